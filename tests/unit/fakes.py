"""A store in memory that passes the same contract suite as the real one (tests/integration/test_store.py)."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConflictError, FerryError
from ferry.models import Progress, no_progress, now
from ferry.repository.store import ObjectInfo
from ferry.repository.upload import Uploaded

BLOCK_BYTES = 1024


class MemoryStore:
    """Objects in a dict, with S3's conditions. ``before`` and ``after`` may raise or act around any operation."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self.writes: list[str] = []
        self.kept: set[str] = set()
        self.can_delete = True
        self.before: Callable[[str, str], None] = lambda _operation, _key: None
        self.after: Callable[[str, str], None] = lambda _operation, _key: None
        self._lock = threading.Lock()

    def put_document(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None, keep: bool = False
    ) -> str:
        """Write on a condition; ``kept`` notes what would be locked."""
        self.before("put", key)
        with self._lock:
            held = self.objects.get(key)
            if (if_absent and held) or (if_match is not None and (held is None or held[1].etag != if_match)):
                raise ConflictError(f"{key} is not as it was.")
            etag = self._keep(key, data, {})
            if keep:
                self.kept.add(key)
        self.after("put", key)
        return etag

    def get_document(self, key: str) -> tuple[bytes, str]:
        """Bytes and ETag."""
        self.before("get", key)
        try:
            data, info = self.objects[key]
        except KeyError:
            raise BackupNotFoundError(f"{key} does not exist.") from None
        return data, info.etag

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object."""
        self.before("head", key)
        held = self.objects.get(key)
        return held[1] if held else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects under a folder."""
        self.before("list", prefix)
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield self.objects[key][1].model_copy(update={"metadata": {}})

    def list_folders(self, prefix: str) -> "Names":
        """Folders directly under a folder."""
        self.before("list", prefix)
        rests = [key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)]
        return sorted({rest.split("/")[0] for rest in rests if "/" in rest})

    def delete(self, keys: Iterable[str]) -> None:
        """Delete in order; missing is fine; nothing when it may not."""
        for key in keys if self.can_delete else ():
            self.before("delete", key)
            self.objects.pop(key, None)

    def upload(
        self,
        key: str,
        blocks: Iterable[bytes],
        *,
        metadata: Mapping[str, str] | None = None,
        progress: Progress = no_progress,
        expected_bytes: int | None = None,
    ) -> Uploaded:
        """Write an archive once."""
        if self.head(key) is not None:
            raise ConflictError(f"{key} exists already.")
        data = bytearray()
        for block in blocks:
            data += block
            progress(len(block))
        if expected_bytes is not None and len(data) != expected_bytes:
            raise ArchiveDamagedError(f"{key}: {len(data)} bytes of {expected_bytes}.")
        with self._lock:
            if key in self.objects:
                raise ConflictError(f"{key} was written meanwhile.")
            etag = self._keep(key, bytes(data), dict(metadata or {}))
        return Uploaded(len(data), hashlib.sha256(data).hexdigest(), etag)

    def read(self, key: str, *, expected_bytes: int, etag: str | None = None) -> Iterator[bytes]:
        """An archive in blocks."""
        held = self.objects.get(key)
        if held is None or len(held[0]) != expected_bytes or (etag is not None and etag != held[1].etag):
            raise ArchiveDamagedError(f"{key} is not what was expected.")
        for start in range(0, expected_bytes, BLOCK_BYTES):
            yield held[0][start : start + BLOCK_BYTES]

    def _keep(self, key: str, data: bytes, metadata: dict[str, str]) -> str:
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        info = ObjectInfo(key=key, bytes=len(data), etag=etag, modified=now(), metadata=metadata)
        self.objects[key] = (data, info)
        self.writes.append(key)
        return etag


Names = list[str]


def failing(error: FerryError, operation: str = "put") -> Callable[[str, str], None]:
    """For ``before`` and ``after``: raise that error at each such operation."""

    def act(happening: str, _key: str) -> None:
        if happening == operation:
            raise error

    return act
