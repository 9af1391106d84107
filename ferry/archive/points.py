"""Points out of a shard archive, as Qdrant's REST API takes them: read in a process of its own, a batch at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import field_validator

from ferry.archive.crew import Crew, Worker, error_of
from ferry.archive.filters import to_filter, to_id
from ferry.models import Progress, Value, no_progress


class Selection(Value):
    """Which points are wanted, and what of them; all conditions given must hold.

    ``filter`` is Qdrant's, as in its REST API; ``ranges`` are names of `ferry.archive.digest.range_of`; ``start`` is
    the first id in Qdrant's order, and ``limit`` the number of points. Without ``with_points`` only ids and, if asked
    for, ``hashes`` and ``fields`` come.
    Raises ConfigurationError for a filter or an id that is wrong.
    """

    filter: dict[str, Any] | None = None
    ids: tuple[int | str, ...] | None = None
    ranges: tuple[str, ...] | None = None
    start: int | str | None = None
    limit: int | None = None
    with_points: bool = True
    hashes: bool = False
    fields: bool = False

    @field_validator("filter")
    @classmethod
    def _known_filter(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        if given is not None:
            to_filter(given)
        return given

    @field_validator("ids")
    @classmethod
    def _true_ids(cls, given: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        return given if given is None else tuple(to_id(each, f"ids[{index}]") for index, each in enumerate(given))

    @field_validator("start")
    @classmethod
    def _true_start(cls, given: int | str | None) -> int | str | None:
        return given if given is None else to_id(given, "start")


@dataclass(frozen=True)
class Batch:
    """Some points in Qdrant's order of ids, about 1 MiB of them.

    ``hashes`` are the content hashes (`ferry.archive.digest`) as 64 hex digits, ``fields`` what `point_fields` gives;
    none unless asked for. ``carried`` are the hashes that points have after Qdrant's JSON reader, of those that it
    changes (`ferry.archive.doubles`); with ``hashes`` only. ``body`` is the JSON array that
    ``PUT /collections/{name}/points`` takes under ``points``; ``[]`` where no points are wanted.
    """

    ids: list[int | str]
    hashes: list[str]
    body: bytes
    fields: list[dict[str, str]] = field(default_factory=list)
    carried: dict[int | str, str] = field(default_factory=dict)


def read_points(
    path: Path, workdir: Path, selection: Selection, progress: Progress = no_progress
) -> Generator[Batch, None, None]:
    """Yield the chosen points of a shard archive, or of the folder it is unpacked to; leaves nothing in ``workdir``.

    Memory is bounded: the process that reads waits while nobody takes its batches. ``progress`` gets the points of
    each batch, or 0 every half second while there is none, and may raise to stop.

    Raises `ArchiveDamagedError` if the archive cannot be opened; `HeadroomError` if ``workdir`` is too small;
    `FerryError` if the reading process was killed, or for a vector that JSON cannot carry (NaN, ±∞).
    """
    workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="archive-", dir=workdir))
    try:
        with Crew(1, folder) as crew:
            yield from points_by(crew.workers[0], path, folder / path.name, selection, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def points_by(
    worker: Worker, path: Path, folder: Path, selection: Selection, progress: Progress
) -> Generator[Batch, None, None]:
    """The same by a worker that is there. It unpacks to ``folder``, and is free again when all batches were taken."""
    job = {"job": "read", "archive": str(path), "folder": str(folder), "selection": selection.model_dump()}
    lines = worker.lines(job, progress)
    for line in lines:
        message = orjson.loads(line)
        if "error" in message:
            raise error_of(message)
        if "result" in message:
            return
        progress(len(message["ids"]))
        yield Batch(message["ids"], message["hashes"], next(lines), message["fields"], dict(message["carried"]))
