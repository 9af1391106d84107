"""Where Parquet files lie: a folder on this worker, or one in the repository's bucket. Both give files of a name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from ferry.connections import Repository
from ferry.errors import BackupNotFoundError, ConfigurationError, ConflictError
from ferry.models import Progress, no_progress
from ferry.repository.store import Store
from ferry.verify import spool

BLOCK_BYTES = 1 << 20
_UNFINISHED = ".unfinished"


class Folder(Protocol):
    """A folder of files and small documents."""

    def where(self, name: str = "") -> str:
        """The folder, or a file in it, as an operator knows it."""

    def names(self) -> set[str]:
        """What is there, finished files alone."""

    def document(self, name: str) -> bytes | None:
        """A small file; None when it is not there."""

    def keep(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a small file whole. Raises ConflictError when it may not be there, and is."""

    def put(self, name: str, path: Path, progress: Progress = no_progress) -> None:
        """Take a file from the spool in, whole or not at all, in place of one of that name."""

    def delete(self, names: set[str]) -> None:
        """Remove files; missing is fine."""

    @contextmanager
    def fetched(self, name: str, size_bytes: int, progress: Progress = no_progress) -> Iterator[Path]:
        """A file to read from. Raises ConfigurationError when it is missing, or has another size."""


def open_folder(location: str, repository: Repository) -> Folder:
    """The folder of a path, or of ``s3://bucket/prefix`` in the repository's own bucket. Raises ConfigurationError."""
    if "://" not in location:
        return LocalFolder(Path(location))
    parts = urlsplit(location)
    bucket = repository.profile.bucket
    if parts.scheme != "s3" or parts.netloc != bucket or not parts.path.strip("/"):
        msg = f"{location} is neither a folder of this worker nor a prefix in the repository's bucket; nothing changed."
        raise ConfigurationError(msg, f"Such as /data/docs or s3://{bucket}/exports/docs.")
    return StoreFolder(repository, parts.path.strip("/") + "/")


class LocalFolder:
    """A folder on this worker's disk; see `Folder`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def where(self, name: str = "") -> str:
        return str(self._path / name)

    def names(self) -> set[str]:
        if not self._path.is_dir():
            return set()
        return {entry.name for entry in self._path.iterdir() if not entry.name.endswith(_UNFINISHED)}

    def document(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keep(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        beside = self._path / (name + _UNFINISHED)
        beside.write_bytes(data)
        try:
            if if_absent:
                os.link(beside, self._path / name)
            else:
                beside.replace(self._path / name)
        except FileExistsError:
            msg = f"{self.where(name)} is there already: another export goes to the same folder."
            raise ConflictError(msg, "Choose another folder.") from None
        finally:
            beside.unlink(missing_ok=True)

    def put(self, name: str, path: Path, progress: Progress = no_progress) -> None:
        beside = self._path / (name + _UNFINISHED)
        with path.open("rb") as source, beside.open("wb") as file:
            while block := source.read(BLOCK_BYTES):
                file.write(block)
                progress(0)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path / name)

    def delete(self, names: set[str]) -> None:
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    @contextmanager
    def fetched(self, name: str, size_bytes: int, progress: Progress = no_progress) -> Iterator[Path]:
        progress(0)
        path = self._path / name
        found = path.stat().st_size if path.is_file() else None
        if found != size_bytes:
            raise _damaged(self.where(name), found, size_bytes)
        yield path


class StoreFolder:
    """A folder in the repository's bucket; its files are read from the spool disk. See `Folder`."""

    def __init__(self, repository: Repository, prefix: str) -> None:
        self._store: Store = repository.store
        self._worker, self._prefix = repository.worker, prefix

    def where(self, name: str = "") -> str:
        return self._store.where(self._prefix + name)

    def names(self) -> set[str]:
        return {found.key.removeprefix(self._prefix) for found in self._store.list(self._prefix)}

    def document(self, name: str) -> bytes | None:
        with suppress(BackupNotFoundError):
            return self._store.get_document(self._prefix + name)[0]
        return None

    def keep(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self._store.put_document(self._prefix + name, data, if_absent=if_absent)

    def put(self, name: str, path: Path, progress: Progress = no_progress) -> None:
        key = self._prefix + name
        self._store.abort_uploads(key)  # of a run that was killed
        self._store.delete([key])  # an upload never overwrites
        with path.open("rb") as file:
            blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
            size_bytes = path.stat().st_size
            self._store.upload(key, blocks, progress=lambda _bytes: progress(0), expected_bytes=size_bytes)

    def delete(self, names: set[str]) -> None:
        self._store.delete([self._prefix + name for name in names])

    @contextmanager
    def fetched(self, name: str, size_bytes: int, progress: Progress = no_progress) -> Iterator[Path]:
        key = self._prefix + name
        held = self._store.head(key)
        if held is None or held.bytes != size_bytes:
            raise _damaged(self.where(name), None if held is None else held.bytes, size_bytes)
        spool.require_spool(self._worker, size_bytes)
        with spool.folder(self._worker) as folder:
            path = folder / "fetched.parquet"
            with path.open("wb") as file:
                for block in self._store.read(key, expected_bytes=size_bytes):
                    file.write(block)
                    progress(0)
            yield path


def _damaged(where: str, found: int | None, wanted: int) -> ConfigurationError:
    what = "is missing" if found is None else f"has {found} bytes instead of {wanted}"
    return ConfigurationError(f"{where} {what}; nothing was read of it.", "Export again, or copy the folder again.")
