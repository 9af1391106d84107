"""Opening an archive with qdrant-edge: Qdrant's own storage engine, in this process, without a server.

qdrant-edge holds Python's lock through every call (measured with 0.9.0: unpacking 293 MB stopped all other threads for
1.0 s), so anything larger than a few MiB belongs in a process of its own; `ferry.archive.proof` sees to that.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

from qdrant_edge import CountRequest, EdgeShard, Filter, QueryRequest, Record, Sample, ScoredPoint, ScrollRequest

from ferry.archive import tar
from ferry.errors import ArchiveDamagedError, FerryError, HeadroomError

PlainId: TypeAlias = int | str  # as in Qdrant's JSON
PAGE_POINTS = 250  # the fastest of 100, 250, 500, 1000 and 5000 (200k × 256-d, qdrant-edge 0.9.0)
WAL_BYTES = 64 << 20  # two preallocated segments of 32 MiB that qdrant-edge opens beside the data


class OpenArchive:
    """A shard archive, unpacked and loaded. Made by `open_archive`; not for use by two threads at once."""

    def __init__(self, shard: EdgeShard, folder: Path) -> None:
        self._shard = shard
        self.folder = folder

    def count(self, chosen: Filter | None = None) -> int:
        """Return the exact number of points, all or the chosen ones."""
        with engine_errors(self.folder.name):
            return self._shard.count(CountRequest(exact=True, filter=chosen))

    def page(
        self, points: int, start: PlainId | None = None, chosen: Filter | None = None, full: bool = True
    ) -> tuple[list[Record], PlainId | None]:
        """Return up to ``points`` records from id ``start`` on, and the id that follows.

        ``chosen`` are the points wanted; without ``full`` they come as bare ids, without payload and vectors.
        """
        request = ScrollRequest(offset=start, limit=points, filter=chosen, with_payload=full, with_vector=full)
        with engine_errors(self.folder.name):
            records, following = self._shard.scroll(request)
        return records, None if following is None else plain_id(following)

    def batches(
        self, points: int = PAGE_POINTS, start: PlainId | None = None, stop: PlainId | None = None
    ) -> Iterator[list[Record]]:
        """Yield all records from id ``start`` up to, but without, id ``stop``, in the order of `id_order`.

        One batch of ``points`` records is in memory at a time.
        """
        following: PlainId | None = start
        while True:
            records, following = self.page(points, following)
            kept = before(records, stop)
            if kept:
                yield kept
            if following is None or len(kept) < len(records):
                return

    def retrieve(self, ids: Sequence[PlainId], full: bool = True) -> list[Record]:
        """Return the records of these ids in the order of `id_order`; what is not there is left out."""
        with engine_errors(self.folder.name):
            records = self._shard.retrieve(list(ids), with_payload=full, with_vector=full)
        return sorted(records, key=lambda record: id_order(plain_id(record.id)))

    def query(self, request: QueryRequest) -> list[ScoredPoint]:
        """Return the points that a search finds, the best first."""
        with engine_errors(self.folder.name):
            return self._shard.query(request)

    def sample(self, points: int) -> list[Record]:
        """Return up to ``points`` random points with payload and vectors, other ones at every call."""
        return self._random(points, full=True) if points > 0 else []

    def boundaries(self, parts: int) -> list[PlainId]:
        """Return ``parts - 1`` ids that cut the points into parts of about the same number.

        They are quantiles of 4096 random ids, so a part is off by a few per cent; with few points there may be fewer.
        """
        ids = sorted({plain_id(record.id) for record in self._random(4096, full=False)}, key=id_order)
        return [ids[len(ids) * part // parts] for part in range(1, parts)] if len(ids) >= parts else []

    def flush(self) -> None:
        """Write what loading repaired to the folder, so that a linked copy of it shows the same points."""
        with engine_errors(self.folder.name):
            self._shard.flush()

    def _random(self, points: int, full: bool) -> list[Record]:
        request = QueryRequest(limit=points, query=Sample.Random, with_payload=full, with_vector=full)
        return list(self.query(request))  # type: ignore[arg-type]  # ScoredPoint has a Record's fields


@contextmanager
def open_archive(path: Path, workdir: Path) -> Iterator[OpenArchive]:
    """Unpack a shard archive into a new folder in ``workdir``, load it, and remove the folder at the end.

    Raises `ArchiveDamagedError` if the file is empty, truncated, no tar file, or cannot be loaded as a shard;
    `HeadroomError` if ``workdir`` has less free space than `workdir_bytes`, or runs full.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="archive-", dir=workdir))
    try:
        shard_folder = folder / path.name
        unpack(path, shard_folder)
        with load(shard_folder) as archive:
            yield archive
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack(path: Path, folder: Path) -> None:
    """Unpack a shard archive into ``folder``, which must not exist yet. Raises as `open_archive`."""
    needed, free = workdir_bytes(path), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise HeadroomError(
            f"Proving {path.name} needs {needed} bytes in {folder.parent}; {free} bytes are free; nothing changed.",
            "Set the work directory to a larger disk.",
        )
    with engine_errors(path.name):
        EdgeShard.unpack_snapshot(str(path), str(folder))


@contextmanager
def load(folder: Path) -> Iterator[OpenArchive]:
    """Load an unpacked archive, and close it at the end. Raises `ArchiveDamagedError` if it is no shard."""
    with engine_errors(folder.name):
        shard = EdgeShard.load(str(folder))
    try:
        yield OpenArchive(shard, folder)
    finally:
        with engine_errors(folder.name):
            shard.close()


def workdir_bytes(path: Path) -> int:
    """Return how many bytes of disk opening an archive needs at most.

    That is every member's stored bytes (holes stay holes), the largest nested segment once more while it is expanded,
    and the engine's write-ahead log. Raises `ArchiveDamagedError` if the archive is not complete.
    """
    stored = [member.stored for member in tar.require_complete(path)]
    return sum(stored) + max(stored, default=0) + WAL_BYTES


def plain_id(point_id: object) -> PlainId:
    """Return an id of qdrant-edge as Qdrant's JSON has it: a number, or a hyphenated UUID."""
    return point_id if isinstance(point_id, int) else str(point_id)


def id_order(point_id: PlainId) -> tuple[int, int]:
    """Qdrant's order of ids, as a sort key: numbers first, then UUIDs by their 128 bits."""
    return (0, point_id) if isinstance(point_id, int) else (1, UUID(point_id).int)


def before(records: list[Record], stop: PlainId | None) -> list[Record]:
    """Return the leading records whose ids come before ``stop``; records are in order of id."""
    if stop is None or not records or id_order(plain_id(records[-1].id)) < id_order(stop):
        return records
    return [record for record in records if id_order(plain_id(record.id)) < id_order(stop)]


@contextmanager
def engine_errors(name: str) -> Iterator[None]:
    """Map what qdrant-edge raises to Ferry's errors; ``name`` says which archive.

    A panic of the engine arrives as pyo3's PanicException, which is no Exception.
    """
    try:
        yield
    except FerryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt, SystemExit, GeneratorExit
        raise _engine_error(name, error) from error


def _engine_error(name: str, error: BaseException) -> FerryError:
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        return HeadroomError(f"The work directory ran full while {name} was open: {error}")
    return ArchiveDamagedError(
        f"{name} cannot be opened as a Qdrant shard: {error}", "Use another backup of this shard, or back it up again."
    )
