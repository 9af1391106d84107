"""Shards of backups kept on this worker's disk, unpacked, so that the next question of a backup downloads nothing.

A folder for each shard of an archive, named by the object's key and sha256, so it never goes stale. Whoever reads a
folder holds its lock shared; who fills or drops it holds it alone: processes beside each other share what is there,
and a folder in use is never dropped. Those used longest ago go when all of them hold more than ``worker.cache_bytes``.
What is encrypted in the bucket does not stay readable on this disk: it goes as soon as it has been read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ferry.archive import reader
from ferry.archive.crew import Crew
from ferry.archive.proof import INLINE_BYTES
from ferry.connections import Repository
from ferry.models import Progress, ShardId, no_progress
from ferry.profiles import WorkerSettings
from ferry.repository.manifest import CollectionManifest
from ferry.verify.spool import folder as spool_folder
from ferry.verify.spool import require_spool
from ferry.verify.stored_points import archive_of, stored_shard

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class CachedShard:
    """An unpacked shard on this disk; ``fetched_bytes`` came from the bucket just now, 0 when it was here already."""

    folder: Path
    fetched_bytes: int


@contextmanager
def cached_shard(
    repository: Repository, manifest: CollectionManifest, shard_id: ShardId, progress: Progress = no_progress
) -> Iterator[CachedShard]:
    """One shard of a backup, unpacked, for `ferry.archive.points.read_points`; fetched where it is not here yet.

    ``progress`` gets 0 while it is fetched, and may raise to stop. Raises HeadroomError when the disk is too small, and
    what `stored_points` raises.
    """
    archive = archive_of(manifest, shard_id)
    place, fetched_bytes = _place(repository, manifest, shard_id), 0
    shard = place / "shard"
    try:
        while True:
            with _locked(place, fcntl.LOCK_SH, progress):
                if shard.exists():
                    os.utime(place)
                    yield CachedShard(shard, fetched_bytes)
                    return
            with _locked(place, fcntl.LOCK_EX, progress):
                if not shard.exists():
                    _fill(repository, manifest, shard_id, shard, progress)
                    fetched_bytes = archive.held[0]
    finally:
        if archive.encoding != "plain":
            _drop(place)
        _drop_oldest(repository.worker)


def _place(repository: Repository, manifest: CollectionManifest, shard_id: ShardId) -> Path:
    archive, store = archive_of(manifest, shard_id), repository.store
    key = repository.keys.collection_prefix(manifest.cluster, manifest.backup_id, manifest.collection) + archive.key
    name = hashlib.sha256(f"{store.where(key)}\n{archive.sha256}\n{shard_id}".encode()).hexdigest()
    return repository.worker.spool_dir / "cache" / name


def _fill(
    repository: Repository, manifest: CollectionManifest, shard_id: ShardId, shard: Path, progress: Progress
) -> None:
    """Fetch and unpack beside the cache, then move it there: a process that dies leaves nothing half done."""
    require_spool(repository.worker, archive_of(manifest, shard_id).bytes)
    with spool_folder(repository.worker) as folder:
        unpacked = folder / "shard"
        with stored_shard(repository, manifest, shard_id, progress) as path:
            _unpack(path, unpacked, progress)
        shutil.rmtree(unpacked / "wal", ignore_errors=True)  # the engine's own empty one, of 64 MiB
        unpacked.rename(shard)


def _unpack(path: Path, unpacked: Path, progress: Progress) -> None:
    """Unpack, and let the engine repair what it repairs on loading, so that linked copies show the same points."""
    if path.stat().st_size <= INLINE_BYTES:
        reader.unpack(path, unpacked)
        with reader.load(unpacked) as archive:
            archive.flush()
        return
    with Crew(1, unpacked.parent) as crew:
        job = {"job": "open", "archive": str(path), "folder": str(unpacked), "parts": 1, "sample": 0}
        crew.results([job], lambda _points: progress(0))


@contextmanager
def _locked(place: Path, kind: int, progress: Progress) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is not there. Whoever dies gives it back."""
    while (handle := _lock(place, kind, progress)) is None:
        progress(0)
    try:
        yield
    finally:
        os.close(handle)


def _lock(place: Path, kind: int, progress: Progress) -> int | None:
    """The locked handle of a folder; None when another process dropped the folder meanwhile."""
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return None
    locked = False
    try:
        while not _try_lock(handle, kind):
            progress(0)
            time.sleep(POLL_SECONDS)
        locked = _is_at(handle, place)
    finally:
        if not locked:
            os.close(handle)
    return handle if locked else None


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, place: Path) -> bool:
    """Whether the open folder is still there under its name: another process may have dropped it meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), place.stat())
    except FileNotFoundError:
        return False


def _drop_oldest(worker: WorkerSettings) -> None:
    """Drop what was used longest ago and is not in use, until the rest is small enough; and what was never filled."""
    sizes = {place: _disk_bytes(place) for place in (worker.spool_dir / "cache").iterdir()}
    total = sum(sizes.values())
    for place in sorted(sizes, key=_used_at):
        if (total > worker.cache_bytes or not sizes[place]) and _drop(place):
            total -= sizes[place]


def _drop(place: Path) -> bool:
    """Drop a folder unless somebody uses it; whether it is gone."""
    try:
        handle = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(handle, fcntl.LOCK_EX):
            return False
        shutil.rmtree(place, ignore_errors=True)
        return True
    finally:
        os.close(handle)


def _used_at(place: Path) -> float:
    with suppress(FileNotFoundError):
        return place.stat().st_mtime
    return 0.0


def _disk_bytes(place: Path) -> int:
    """What a folder takes on the disk, holes left out."""
    total = 0
    for folder, _, files in os.walk(place):
        for name in files:
            with suppress(FileNotFoundError):
                total += Path(folder, name).stat().st_blocks * 512
    return total
