"""Finding one stored backup, also one whose run did not finish: each collection with a manifest counts by itself."""

from dataclasses import dataclass

from ferry.connections import Repository
from ferry.errors import BackupNotFoundError
from ferry.models import BackupId
from ferry.repository.catalog import LATEST
from ferry.repository.manifest import BackupRecord, CollectionManifest


@dataclass(frozen=True)
class StoredBackup:
    """One backup in the bucket; ``record`` is None when its run did not finish."""

    cluster: str
    backup_id: BackupId
    record: BackupRecord | None
    manifests: tuple[CollectionManifest, ...]


def find_backup(repository: Repository, cluster: str, backup: str, only: str | None = None) -> StoredBackup:
    """A backup by its id, or the newest complete one; ``only`` that collection where one is named.

    Raises BackupNotFoundError when there is nothing of that name, ArchiveDamagedError when a document is damaged.
    """
    catalog = repository.catalog
    try:
        record = catalog.read_backup(cluster, backup)
    except BackupNotFoundError:
        if backup == LATEST:
            raise
        return _unfinished(repository, cluster, BackupId(backup), only)
    names = [entry.collection for entry in record.collections]
    _require_held(record.backup_id, names, only)
    manifests = [catalog.read_manifest(cluster, record.backup_id, name) for name in names if only in (None, name)]
    return StoredBackup(cluster, record.backup_id, record, tuple(manifests))


def _unfinished(repository: Repository, cluster: str, backup: BackupId, only: str | None) -> StoredBackup:
    found = next((each for each in repository.catalog.backups(cluster) if each.backup_id == backup), None)
    if found is None:
        msg = f"There is no backup {backup} of {cluster}."
        raise BackupNotFoundError(msg)
    read = [repository.catalog.find_manifest(cluster, backup, name) for name in found.collections]
    manifests = [manifest for manifest in read if manifest is not None]
    _require_held(backup, [manifest.collection for manifest in manifests], only)
    return StoredBackup(
        cluster, backup, None, tuple(manifest for manifest in manifests if only in (None, manifest.collection))
    )


def _require_held(backup: BackupId, names: list[str], only: str | None) -> None:
    if only is not None and only not in names:
        msg = f"Backup {backup} holds no collection {only}, but: {', '.join(names) or 'none'}."
        raise BackupNotFoundError(msg)
