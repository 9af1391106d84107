"""The worker's disk for opening archives: folders that live as long as their process, whatever ends it."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ferry.errors import HeadroomError
from ferry.profiles import WorkerSettings

# Disk that one proof needs, as a multiple of the archive: the archive itself, what it unpacks to, and a little. Holes
# stay holes; ferry.archive.reader.workdir_bytes says it exactly once the archive is there.
SPOOL_FACTOR = 2.2

_kept_folders: dict[Path, tuple[Path, int]] = {}  # by spool: this process's folder of kept archives, and its lock


def require_spool(worker: WorkerSettings, archive_bytes: int, at_a_time: int = 1) -> None:
    """Raise HeadroomError when the spool disk cannot hold so many proofs of archives of that size at a time."""
    worker.spool_dir.mkdir(parents=True, exist_ok=True)
    needed = int(archive_bytes * SPOOL_FACTOR * at_a_time)
    free = shutil.disk_usage(worker.spool_dir).free
    if free < needed:
        msg = f"The worker's spool {worker.spool_dir} has {free} bytes free; {needed} are needed. Nothing was changed."
        raise HeadroomError(msg, "Point worker.spool_dir at a larger disk, or lower worker.parallel_proofs.")


@contextmanager
def folder(worker: WorkerSettings) -> Iterator[Path]:
    """A folder of our own, removed afterwards; first those of processes that died are removed."""
    path, lock = _new_folder(worker.spool_dir)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def keeping(worker: WorkerSettings, key: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass an archive's blocks on, and keep a copy for its proof when ``prove_from`` says so."""
    if worker.prove_from != "spool":
        yield from blocks
        return
    with _kept_path(worker, key).open("wb") as file:
        for block in blocks:
            file.write(block)
            yield block


def take_kept(worker: WorkerSettings, key: str, path: Path) -> bool:
    """Move the kept copy of an archive to ``path``; False when this process keeps none, as on another machine."""
    if worker.spool_dir not in _kept_folders:
        return False
    try:
        _kept_path(worker, key).rename(path)
    except FileNotFoundError:
        return False
    return True


def drop_kept(worker: WorkerSettings) -> None:
    """Remove what this process still keeps; at the end of a run."""
    if found := _kept_folders.pop(worker.spool_dir, None):
        shutil.rmtree(found[0], ignore_errors=True)
        os.close(found[1])


def _kept_path(worker: WorkerSettings, key: str) -> Path:
    if worker.spool_dir not in _kept_folders:
        _kept_folders[worker.spool_dir] = _new_folder(worker.spool_dir)
    return _kept_folders[worker.spool_dir][0] / hashlib.sha256(key.encode()).hexdigest()


def _new_folder(spool: Path) -> tuple[Path, int]:
    """A folder and its lock, which the kernel gives back when the process ends: a folder that can be locked is dead."""
    spool.mkdir(parents=True, exist_ok=True)
    with _locked(spool):
        for old in spool.glob("open-*"):
            with suppress(OSError), _locked(old, wait=False):
                shutil.rmtree(old, ignore_errors=True)
        path = Path(tempfile.mkdtemp(dir=spool, prefix="open-"))
        lock = os.open(path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return path, lock


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder; BlockingIOError when it is taken and ``wait`` is off."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
