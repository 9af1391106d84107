"""Points of one shard out of its archive in the bucket: fetched and decrypted to the spool disk, compared, and read."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from ferry.archive.node_archive import split_shard
from ferry.archive.points import Batch, Selection, read_points
from ferry.connections import Repository
from ferry.errors import BackupNotFoundError
from ferry.models import Progress, ShardId, no_progress
from ferry.repository.manifest import ArchiveRecord, CollectionManifest
from ferry.verify.archive import form_of, spooled


def stored_points(
    repository: Repository,
    manifest: CollectionManifest,
    shard_id: ShardId,
    selection: Selection,
    progress: Progress = no_progress,
) -> Generator[Batch, None, None]:
    """Yield the chosen points of one shard of a backup; the archive is on the spool disk until the last one.

    ``progress`` gets the points of each batch, 0 while there is none, and may raise to stop. Raises
    BackupNotFoundError for a shard that the backup does not hold, ArchiveDamagedError when the bucket holds other
    bytes than the manifest says, WrongKeyError without the identity that opens them, and what `read_points` raises.
    """
    with stored_shard(repository, manifest, shard_id, progress) as path:
        yield from read_points(path, path.parent / "open", selection, progress)


@contextmanager
def stored_shard(
    repository: Repository, manifest: CollectionManifest, shard_id: ShardId, progress: Progress = no_progress
) -> Iterator[Path]:
    """The archive of one shard of a backup on the spool disk, removed afterwards. Raises as `stored_points`."""
    archive = archive_of(manifest, shard_id)
    key = repository.keys.collection_prefix(manifest.cluster, manifest.backup_id, manifest.collection) + archive.key
    with spooled(repository, key, form_of(archive), progress) as path:
        part = path
        if archive.kind == "node":
            part = path.with_name("shard.snapshot")
            split_shard(path, shard_id, part)
            path.unlink()
        yield part


def archive_of(manifest: CollectionManifest, shard_id: ShardId) -> ArchiveRecord:
    """The archive that a shard is read from. Raises BackupNotFoundError when the backup does not hold the shard."""
    for shard, archive in manifest.best_shards():
        if shard.shard_id == shard_id:
            return archive
    known = ", ".join(str(shard.shard_id) for shard, _ in manifest.best_shards()) or "none"
    msg = f"Backup {manifest.backup_id} of {manifest.collection} holds no shard {shard_id}, but: {known}."
    raise BackupNotFoundError(msg)
