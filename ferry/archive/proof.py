"""Proving an archive: opening it with Qdrant's own engine, counting its points, and fixing what they are."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ferry.archive.crew import Crew
from ferry.archive.digest import ContentDigest, PointSample, point_sample
from ferry.archive.reader import open_archive
from ferry.archive.scan import Part, Scanned, joined, scan
from ferry.errors import ArchiveDamagedError

INLINE_BYTES = 32 << 20  # about 20k points of 256-d: proven here in less time than processes take to start
LINKED_BYTES = 1 << 20  # smaller files are copied, so that processes share only what is large
PART_POINTS = 20_000  # fewer are read in less time than a second process takes to load the shard
MAX_PROCESSES = 4


class ProofLevel(StrEnum):
    """How deep to look: at bytes only, at the exact count, or at every point."""

    BYTES = "bytes"
    COUNT = "count"
    CONTENT = "content"


class Proof(BaseModel):
    """What is known of an archive. ``bytes`` says only that the caller hashed its bytes: no count, no content.

    ``engine`` is the reader and its version, ``sample`` some random points field by field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: ProofLevel
    engine: str
    points: int | None
    content: ContentDigest | None
    sample: list[PointSample]
    seconds: float


Progress = Callable[[int], None]


def engine() -> str:
    """Return the name and version of what opens archives, e.g. ``qdrant-edge-py 0.9.0``."""
    return f"qdrant-edge-py {version('qdrant-edge-py')}"


def prove_archive(
    path: Path,
    workdir: Path,
    level: ProofLevel | str,
    sample: int = 64,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove a shard archive at a level, and leave nothing in ``workdir``, however it ends.

    An archive of up to 32 MiB is proven in this process; a larger one in ``processes`` others (default: one a core, at
    most 4), because the engine stops all other threads of its process while it works; 0 means in this process always.
    ``progress`` gets the number of points read, after every page or twice a second, and may raise to stop.

    Raises `ArchiveDamagedError` if the archive is not complete, cannot be opened, or shows another number of points
    than it counts; `HeadroomError` if ``workdir`` is too small (see `ferry.archive.reader.workdir_bytes`);
    `FerryError` if a worker process was killed; and whatever ``progress`` raises.
    """
    began, level, tell = time.monotonic(), ProofLevel(level), progress or _silent
    found = _Found()
    if level != ProofLevel.BYTES:
        tell(0)
        wanted = _Wanted(level == ProofLevel.CONTENT, sample)
        if processes == 0 or path.stat().st_size <= INLINE_BYTES:
            found = _inline(path, workdir, wanted, tell)
        else:
            found = _by_crew(path, workdir, wanted, processes or _default_processes(), tell)
        _require_all(path, found)
    return Proof(level=level, engine=engine(), seconds=round(time.monotonic() - began, 3), **vars(found))


@dataclass(frozen=True)
class _Wanted:
    content: bool
    sample: int


@dataclass(frozen=True)
class _Found:
    points: int | None = None
    content: ContentDigest | None = None
    sample: list[PointSample] = field(default_factory=list)


def _require_all(path: Path, found: _Found) -> None:
    if found.content is not None and found.content.points != found.points:
        raise ArchiveDamagedError(
            f"{path.name} counts {found.points} points, but {found.content.points} could be read.",
            "Use another backup of this shard, or back it up again.",
        )


def _inline(path: Path, workdir: Path, wanted: _Wanted, tell: Progress) -> _Found:
    with open_archive(path, workdir) as archive:
        points = archive.count()
        if wanted.content:
            return _found(points, scan(archive, Part(), wanted.sample, tell))
        records = archive.sample(wanted.sample)
        return _Found(points, None, [point_sample(record.id, record.payload, record.vector) for record in records])


def _by_crew(path: Path, workdir: Path, wanted: _Wanted, processes: int, tell: Progress) -> _Found:
    workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="archive-", dir=workdir))
    try:
        with Crew(processes if wanted.content else 1, folder) as crew:
            first = folder / path.name
            sample = 0 if wanted.content else wanted.sample
            job = {"job": "open", "archive": str(path), "folder": str(first), "parts": processes, "sample": sample}
            [opened] = crew.results([job], tell)
            if not wanted.content:
                return _Found(opened["points"], None, [PointSample(**point) for point in opened["sample"]])
            jobs = _scan_jobs(first, opened, wanted.sample)
            return _found(opened["points"], joined(map(_scanned, crew.results(jobs, tell)), wanted.sample))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _scan_jobs(first: Path, opened: dict[str, Any], sample: int) -> list[dict[str, Any]]:
    """One part of the ids for each process; the first has the archive open, the others get linked copies of it."""
    cuts = [None, *opened["boundaries"], None] if opened["points"] > 2 * PART_POINTS else [None, None]
    jobs = []
    for index, (start, stop) in enumerate(pairwise(cuts)):
        folder = first if index == 0 else first.with_name(f"{first.name}-{index}")
        if index:
            link_folder(first, folder)
        jobs.append({"job": "scan", "folder": str(folder), "start": start, "stop": stop, "sample": sample})
    return jobs


def link_folder(source: Path, target: Path) -> None:
    """Make a second shard folder of the same content, which another process can load at the same time.

    The engine locks the write-ahead log, so the log is left out and the copy gets an empty one. Loading a settled shard
    changes no byte of its files (qdrant-edge 0.9.0: compared before and after load and close), so large ones are hard
    links, which also share the page cache.
    """
    for place, folders, files in os.walk(source):
        if place == str(source) and "wal" in folders:
            folders.remove("wal")
        goal = target / Path(place).relative_to(source)
        goal.mkdir()
        for name in files:
            file = Path(place, name)
            if file.stat().st_size >= LINKED_BYTES:
                os.link(file, goal / name)
            else:
                shutil.copyfile(file, goal / name)


def _scanned(result: dict[str, Any]) -> Scanned:
    sample = [(int(value, 16), PointSample(**point)) for value, point in result["sample"]]
    return Scanned(ContentDigest(**result["content"]), sample)


def _found(points: int, scanned: Scanned) -> _Found:
    return _Found(points, scanned.content, [sample for _, sample in scanned.sample])


def _default_processes() -> int:
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0)))


def _silent(points: int) -> None:
    """For callers that do not listen."""
