"""Where everything lies in the bucket: the only place that builds or takes apart keys. Folders end with a slash."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

from ferry.errors import ConfigurationError
from ferry.models import BackupId, PeerId, ShardId, SnapshotKind

MAX_KEY_BYTES = 1024  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_BACKUP_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
_STAMP = "%Y%m%dT%H%M%SZ"
# A collection's folder lies beside this object; stores that keep objects as files cannot have both under one name.
_TAKEN_NAMES = frozenset({"backup.json"})


def encode_name(name: str) -> str:
    """A name as one part of a key: percent-encoded UTF-8, leading dots too; unicode is kept as it was written.

    Raises ConfigurationError for an empty name.
    """
    if not name:
        msg = "An empty name cannot become a key."
        raise ConfigurationError(msg)
    dots = len(name) - len(name.lstrip("."))
    encoded = "%2E" * dots + quote(name[dots:], safe="")
    return f"%{ord(name[0]):02X}{name[1:]}" if encoded in _TAKEN_NAMES else encoded


def decode_name(encoded: str) -> str:
    """The name that ``encode_name`` made this of; raises ConfigurationError when it made no such thing."""
    try:
        name = unquote_to_bytes(encoded).decode()
        ours = encode_name(name) == encoded
    except (UnicodeDecodeError, ConfigurationError):
        ours = False
    if not ours:
        msg = f"{encoded!r} is no name that Ferry wrote."
        raise ConfigurationError(msg)
    return name


def new_backup_id(moment: datetime, seed: str) -> BackupId:
    """A sortable id, the same for the same moment (aware) and seed, so that a retried run keeps its own."""
    return BackupId(f"{moment.astimezone(UTC):{_STAMP}}-{hashlib.sha256(seed.encode()).hexdigest()[:6]}")


def parse_backup_id(text: str) -> datetime:
    """The moment in UTC that a backup's id names; raises ConfigurationError when it is none."""
    try:
        if _BACKUP_ID.fullmatch(text):
            return datetime.strptime(text[:16], _STAMP).replace(tzinfo=UTC)
    except ValueError:  # such as the 31st of a month that has 30
        pass
    msg = f"{text!r} is no backup id; one looks like 20261122T020000Z-7f3a9c."
    raise ConfigurationError(msg, "See what there is: python -m ferry list")


def is_backup_id(text: str) -> bool:
    """Whether that is a backup's id, and no folder of somebody else's."""
    try:
        parse_backup_id(text)
    except ConfigurationError:
        return False
    return True


@dataclass(frozen=True)
class Keys:
    """All keys under one prefix (no slash at its ends). Raises ConfigurationError for a key longer than S3 allows."""

    prefix: str

    @property
    def repository(self) -> str:
        """The document that says what this is: ferry.json."""
        return f"{self.prefix}/ferry.json"

    @property
    def clusters_prefix(self) -> str:
        """The folder with one folder for each cluster that was backed up."""
        return f"{self.prefix}/backups/"

    @property
    def probe_prefix(self) -> str:
        """The folder for objects that only try out the store."""
        return f"{self.prefix}/probe/"

    def cluster_prefix(self, cluster: str) -> str:
        """The folder with one folder for each backup of a cluster."""
        return f"{self.clusters_prefix}{encode_name(cluster)}/"

    def backup_prefix(self, cluster: str, backup_id: BackupId) -> str:
        """The folder of one backup; raises ConfigurationError when that is no backup id."""
        parse_backup_id(backup_id)
        return f"{self.cluster_prefix(cluster)}{backup_id}/"

    def backup(self, cluster: str, backup_id: BackupId) -> str:
        """The record of the run, and its commit point."""
        return _checked(self.backup_prefix(cluster, backup_id) + "backup.json")

    def collection_prefix(self, cluster: str, backup_id: BackupId, collection: str) -> str:
        """The folder of one collection in a backup."""
        return f"{self.backup_prefix(cluster, backup_id)}{encode_name(collection)}/"

    def manifest(self, cluster: str, backup_id: BackupId, collection: str) -> str:
        """The manifest of one collection, and its commit point."""
        return _checked(self.collection_prefix(cluster, backup_id, collection) + "manifest.json")

    def archive(self, cluster: str, backup_id: BackupId, collection: str, file: str) -> str:
        """The archive that ``archive_file`` has named."""
        return _checked(self.collection_prefix(cluster, backup_id, collection) + file)

    def lease(self, name: str) -> str:
        """The lease of that name; a cluster's own is named like the cluster."""
        return _checked(f"{self.prefix}/leases/{encode_name(name)}.json")

    def hold(self, cluster: str, backup_id: BackupId) -> str:
        """The mark that keeps a backup from being pruned, with who put it there and why."""
        parse_backup_id(backup_id)
        return f"{self.holds_prefix(cluster)}{backup_id}.json"

    def holds_prefix(self, cluster: str) -> str:
        """The folder of all holds on backups of a cluster."""
        return f"{self.prefix}/holds/{encode_name(cluster)}/"

    def restore(self, cluster: str, restore_id: BackupId) -> str:
        """The record of a restore into that cluster; its id looks like a backup's."""
        parse_backup_id(restore_id)
        return f"{self.restores_prefix(cluster)}{restore_id}.json"

    def restores_prefix(self, cluster: str) -> str:
        """The folder with the records of the last restores into a cluster."""
        return f"{self.prefix}/restores/{encode_name(cluster)}/"

    def readers_prefix(self, cluster: str, backup_id: BackupId | None = None) -> str:
        """The folder with one mark for each reader of a backup, or of any backup of a cluster."""
        folder = f"{self.prefix}/readers/{encode_name(cluster)}/"
        return folder if backup_id is None else f"{folder}{backup_id}/"

    def switches_prefix(self, cluster: str) -> str:
        """The folder with one record for each alias of a cluster that a restore has moved."""
        return f"{self.prefix}/switches/{encode_name(cluster)}/"

    def switch(self, cluster: str, alias: str) -> str:
        """The record of the last switch of an alias."""
        return _checked(f"{self.switches_prefix(cluster)}{encode_name(alias)}.json")

    def migration_prefix(self, migration_id: str) -> str:
        """The folder of one migration: its plan, how far its ranges are, its report."""
        return f"{self.migrations_prefix}{encode_name(migration_id)}/"

    @property
    def migrations_prefix(self) -> str:
        """The folder with one folder for each migration."""
        return f"{self.prefix}/migrations/"

    def migration_plan(self, migration_id: str) -> str:
        """The plan of a migration, written once."""
        return f"{self.migration_prefix(migration_id)}plan.json"

    def migration_range(self, migration_id: str, number: int) -> str:
        """The checkpoint of one range of a migration's plan."""
        return f"{self.migration_prefix(migration_id)}ranges/{number}.json"

    def migration_built(self, migration_id: str, shard_id: ShardId) -> str:
        """The record of a shard that the build writer has finished."""
        return f"{self.migration_prefix(migration_id)}built/{shard_id}.json"

    def migration_report(self, migration_id: str) -> str:
        """What a migration that has ended has done."""
        return f"{self.migration_prefix(migration_id)}report.json"

    def loads_prefix(self, cluster: str) -> str:
        """The folder with one note for each collection of a cluster whose indexing a migration holds back."""
        return f"{self.prefix}/loads/{encode_name(cluster)}/"

    def load(self, cluster: str, migration_id: str) -> str:
        """The note that a migration holds the indexing of its collection back."""
        return f"{self.loads_prefix(cluster)}{encode_name(migration_id)}.json"

    @property
    def conformance(self) -> str:
        """What the trial of the bucket has shown, when and with which settings."""
        return f"{self.prefix}/conformance.json"

    def runs_prefix(self, cluster: str) -> str:
        """The folder with one folder for each run that may have left something behind."""
        return f"{self.prefix}/runs/{encode_name(cluster)}/"

    def journal_prefix(self, cluster: str, run_id: str) -> str:
        """The folder of what one run may leave behind."""
        return f"{self.runs_prefix(cluster)}{encode_name(run_id)}/"


def archive_file(number: ShardId | PeerId, kind: SnapshotKind, fencing: int, encoding: str = "plain") -> str:
    """Where the archive of a shard or of a node (peer id) lies in the folder of its collection.

    The fencing number of the holder that began it is part of the name, so that no two holders write one object.
    """
    return f"{kind}s/{number}.{fencing}.snapshot{'' if encoding == 'plain' else '.' + encoding}"


def names_archive(file: str, number: ShardId | PeerId, kind: SnapshotKind) -> bool:
    """Whether that is a place for the archive of a shard or a node; without a fencing number before issue 3."""
    return re.fullmatch(rf"{kind}s/{number}(\.\d+)?\.snapshot(\.age)?", file) is not None


def _checked(key: str) -> str:
    if len(key.encode()) > MAX_KEY_BYTES:
        msg = f"The key {key[:80]}… would have {len(key.encode())} bytes; S3 allows {MAX_KEY_BYTES}."
        raise ConfigurationError(msg, "Use a shorter prefix, or rename the collection.")
    return key
