"""Finding backups in the bucket, and reading and writing their documents. Nothing here is remembered between calls."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Literal
from uuid import uuid4

from pydantic import ValidationError

from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConfigurationError, ConflictError, RepositoryError
from ferry.models import BackupId, Value, now
from ferry.repository import fence
from ferry.repository.layout import Keys, decode_name, names_archive, parse_backup_id
from ferry.repository.manifest import FORMAT_VERSION, ArchiveRecord, BackupRecord, CollectionManifest
from ferry.repository.records import Record
from ferry.repository.store import ObjectStore

LATEST = "latest"


class RepositoryMark(Record):
    """What ferry.json says: this prefix is a repository of Ferry's, and which one."""

    format_version: Literal[1] = 1
    repository_id: str
    created_at: datetime


class BackupSummary(Value):
    """One line of a list of backups; an incomplete one has no record of its run, or a damaged one, and says why."""

    cluster: str
    backup_id: BackupId
    taken_at: datetime
    complete: bool
    collections: tuple[str, ...] = ()
    points: int | None = None
    bytes: int | None = None
    problem: str | None = None


class Catalog:
    """The backups of one repository."""

    def __init__(self, store: ObjectStore, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    def ensure_repository(self) -> RepositoryMark:
        """Mark the prefix as a repository, or read its mark; two runs that do so at a time agree on one.

        Raises RepositoryError when a release of Ferry that this one does not understand has written it.
        """
        key = self._keys.repository
        try:
            return _read_mark(self._store.get_document(key)[0], key)
        except BackupNotFoundError:
            mark = RepositoryMark(repository_id=uuid4().hex, created_at=now())
        try:
            self._store.put_document(key, mark.to_bytes(), if_absent=True)
        except ConflictError:
            return _read_mark(self._store.get_document(key)[0], key)
        return mark

    def clusters(self) -> list[str]:
        """Names of all clusters that have a folder of backups, in order; folders that are not ours are passed over."""
        return sorted(_ours(self._store.list_folders(self._keys.clusters_prefix)))

    def backups(self, cluster: str) -> list[BackupSummary]:
        """All backups of a cluster, the newest first, the incomplete ones too."""
        summaries = (self._summary(cluster, backup_id) for backup_id in self._ids(cluster))
        return [summary for summary in summaries if summary is not None]

    def read_backup(self, cluster: str, backup_id: str) -> BackupRecord:
        """The record of one run, or of the newest complete one for ``latest``.

        Raises BackupNotFoundError when there is none, ArchiveDamagedError when it is damaged or lies where it does
        not belong, ConfigurationError when that is no backup id.
        """
        if backup_id != LATEST:
            return self._read_record(cluster, BackupId(backup_id))
        for found in self._ids(cluster):
            try:
                return self._read_record(cluster, found)
            except BackupNotFoundError:
                continue
        msg = f"There is no complete backup of {cluster}."
        raise BackupNotFoundError(msg)

    def read_manifest(self, cluster: str, backup_id: str, collection: str) -> CollectionManifest:
        """The manifest of one collection in one backup, or in the newest that has one for ``latest``.

        Raises BackupNotFoundError when there is none; raises ArchiveDamagedError when it is damaged, is not the one
        that the run recorded, was copied here from elsewhere, or names archives outside of its folder.
        """
        if backup_id == LATEST:
            return self.latest_with(cluster, collection)
        key = self._keys.manifest(cluster, BackupId(backup_id), collection)
        data = self._document(key)
        manifest = CollectionManifest.from_bytes(data, key)
        _require_place(manifest, key, cluster, backup_id, collection)
        for archive in manifest.archives:
            if not _in_its_place(archive):
                msg = f"{key} names an archive at {archive.key!r}, which is no place for it."
                raise ArchiveDamagedError(msg, "Somebody edited it. Use another backup.")
        self._require_recorded(manifest, key, hashlib.sha256(data).hexdigest())
        return manifest

    def find_manifest(self, cluster: str, backup_id: str, collection: str) -> CollectionManifest | None:
        """The manifest of one collection in one backup, or None when it has none; damage is raised."""
        try:
            return self.read_manifest(cluster, backup_id, collection)
        except BackupNotFoundError:
            return None

    def latest_with(self, cluster: str, collection: str) -> CollectionManifest:
        """The newest manifest of a collection, also from a run of which another collection failed.

        Raises BackupNotFoundError; raises ArchiveDamagedError when the newest is damaged, never takes an older one.
        """
        for backup_id in self._ids(cluster):
            if self._store.head(self._keys.manifest(cluster, backup_id, collection)) is None:
                continue
            try:
                return self.read_manifest(cluster, backup_id, collection)
            except BackupNotFoundError:  # a fence, or it was pruned since
                continue
        msg = f"There is no backup of {collection} on {cluster}."
        raise BackupNotFoundError(msg)

    def write_manifest(self, manifest: CollectionManifest, claim_etag: str | None = None) -> None:
        """Commit one collection, where nothing is or where our claim is (``fence.claim``).

        The same once more is fine; raises ConflictError when there is another one, or another run has taken over.
        """
        key = self._keys.manifest(manifest.cluster, manifest.backup_id, manifest.collection)
        fence.commit(self._store, key, manifest.to_bytes(), claim_etag)

    def write_backup(self, record: BackupRecord, claim_etag: str | None = None) -> None:
        """Commit a run, in the same way."""
        fence.commit(self._store, self._keys.backup(record.cluster, record.backup_id), record.to_bytes(), claim_etag)

    def _document(self, key: str) -> bytes:
        """The document at a commit point; a fence there is none."""
        data, _ = self._store.get_document(key)
        if held := fence.as_fence(data):
            msg = f"There is nothing at {key}: {held.by} has {held.fence} it."
            raise BackupNotFoundError(msg)
        return data

    def _ids(self, cluster: str) -> list[BackupId]:
        """Ids of all backups of a cluster, the newest first; folders that are not ours are passed over."""
        found: list[tuple[datetime, BackupId]] = []
        for name in self._store.list_folders(self._keys.cluster_prefix(cluster)):
            try:
                found.append((parse_backup_id(name), BackupId(name)))
            except ConfigurationError:
                continue
        return [backup_id for _, backup_id in sorted(found, reverse=True)]

    def _summary(self, cluster: str, backup_id: BackupId) -> BackupSummary | None:
        summary = BackupSummary(
            cluster=cluster, backup_id=backup_id, taken_at=parse_backup_id(backup_id), complete=False
        )
        try:
            record = self._read_record(cluster, backup_id)
        except BackupNotFoundError:
            folder = self._keys.backup_prefix(cluster, backup_id)
            objects = [info.key for info in self._store.list(folder)]
            left = {key.removeprefix(folder).split("/")[0] for key in objects if not self._condemned(key)}
            left.discard("backup.json")
            if not left:
                return None  # deleted; some stores name an empty folder for a while
            problem = "the run did not finish, or runs still"
            return summary.model_copy(update={"collections": tuple(sorted(_ours(left))), "problem": problem})
        except ArchiveDamagedError as error:
            return summary.model_copy(update={"problem": error.message})
        points = [entry.points for entry in record.collections]
        return summary.model_copy(
            update={
                "complete": True,
                "collections": tuple(entry.collection for entry in record.collections),
                "points": None if None in points else sum(count or 0 for count in points),
                "bytes": sum(entry.bytes for entry in record.collections),
            }
        )

    def _condemned(self, key: str) -> bool:
        if not key.endswith(".json"):
            return False
        held = fence.read_place(self._store, key).fence
        return held is not None and held.fence == "condemned"

    def _read_record(self, cluster: str, backup_id: BackupId) -> BackupRecord:
        key = self._keys.backup(cluster, backup_id)
        record = BackupRecord.from_bytes(self._document(key), key)
        _require_place(record, key, cluster, backup_id, None)
        return record

    def _require_recorded(self, manifest: CollectionManifest, key: str, sha256: str) -> None:
        """Compare with the record of the run, where there is one: a run may have died between the two."""
        try:
            record = self._read_record(manifest.cluster, manifest.backup_id)
        except BackupNotFoundError:
            return
        recorded = {entry.collection: entry.manifest_sha256 for entry in record.collections}
        if recorded.get(manifest.collection) != sha256:
            msg = f"{key} is not the manifest that its run recorded: it has sha256 {sha256}."
            raise ArchiveDamagedError(msg, "Somebody replaced it. Use another backup.")


def _ours(folders: Iterable[str]) -> list[str]:
    names = []
    for folder in folders:
        try:
            names.append(decode_name(folder))
        except ConfigurationError:
            continue
    return names


def _read_mark(data: bytes, key: str) -> RepositoryMark:
    try:
        return RepositoryMark.model_validate_json(data)
    except ValidationError:
        msg = f"{key} is of no format that this Ferry knows (it knows {FORMAT_VERSION}); nothing was changed."
        raise RepositoryError(msg, "Use the release of Ferry that wrote it, or set another prefix.") from None


def _in_its_place(archive: ArchiveRecord) -> bool:
    if archive.kind == "node":
        return names_archive(archive.key, archive.source_peer, "node")
    return len(archive.shards) == 1 and names_archive(archive.key, archive.shards[0].shard_id, "shard")


def _require_place(
    document: CollectionManifest | BackupRecord, key: str, cluster: str, backup_id: str, collection: str | None
) -> None:
    expected = (cluster, backup_id, collection)
    inside = (document.cluster, document.backup_id, getattr(document, "collection", None))
    if inside != expected:
        what = "/".join(str(part) for part in inside if part is not None)
        msg = f"{key} is the document of {what}: it was copied or moved here."
        raise ArchiveDamagedError(msg, "A backup is never moved: put it back, or use another one.")
