"""Finished shards made on this worker: points go in, in any order and twice if need be; an archive with indexes is out.

The engine works in processes of its own (`ferry.archive.builder_process`), each with some of the shards. What is open
lies on disk: of memory a process takes about 60 bytes a point for ids, and while it builds a graph about ``8 × m``
bytes a point for its links; vectors and payloads are mapped files.
"""

from __future__ import annotations

import os
import pickle
import select
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ferry.archive.crew import HEARTBEAT_SECONDS, Crew, Worker
from ferry.errors import FerryError, HeadroomError
from ferry.migration.batch import PointBatch
from ferry.models import Progress, ShardId, Value, no_progress

MODULE = "ferry.archive.builder_process"
MOST_PROCESSES = 4
# The engine writes to mapped files, whose process is killed when the disk is full: so it is stopped before.
LEAST_FREE_BYTES = 256 << 20


class FinishedShard(Value):
    """An archive, and what it holds: exact points, exact vectors of each name, and vectors in an index."""

    points: int
    vectors: dict[str, int]
    indexed_vectors: int
    bytes: int
    sha256: str
    seconds: float


class ShardBuilders:
    """Builds some shards of one collection in ``folder``; safe to use from several threads.

    ``config`` and ``payload_schema`` are the collection's, as ``GET /collections/{name}`` shows them. All methods raise
    HeadroomError when the disk is (nearly) full, and FerryError when a process died or the engine refuses something.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], payload_schema: Mapping[str, Any]) -> None:
        self._folder = folder
        self._schema = {"config": dict(config), "payload_schema": dict(payload_schema)}
        self._crew: Crew | None = None
        self._of: dict[ShardId, Worker] = {}
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._crew is not None:
            self._crew.__exit__(kind, error, traceback)

    def create(self, shards: Sequence[ShardId], progress: Progress = no_progress) -> list[list[ShardId]]:
        """Open the shards; returns them by the process that builds them, one after another."""
        size = max(1, min(len(shards), MOST_PROCESSES, len(os.sched_getaffinity(0))))
        self._crew = Crew(size, self._folder, MODULE).__enter__()
        workers = self._crew.workers
        lanes = [list(shards[lane::size]) for lane in range(size)]
        for worker, lane in zip(workers, lanes, strict=True):
            self._locks[worker.pid] = threading.Lock()
            for shard in lane:
                self._of[shard] = worker
                self._answer(shard, {"job": "create", "folder": str(self._folder / f"shard-{shard}")}, progress)
        return lanes

    def add(self, shard: ShardId, batch: PointBatch) -> None:
        """Give a shard points; of the same id the last counts. Vectors must be as the collection's are."""
        self._require_room()
        worker = self._of[shard]
        data = pickle.dumps(batch, protocol=5)
        with self._locks[worker.pid], self._explained():
            if select.select([worker], [], [], 0)[0]:
                worker.hear()  # nothing was asked: it raises what went wrong
            try:
                worker.ask({"job": "add", "shard": shard, "bytes": len(data)}, data)
            except FerryError:
                worker.hear()  # its last words, if it had any
                raise

    def finish(self, shard: ShardId, archive: Path, progress: Progress = no_progress) -> FinishedShard:
        """Build all indexes of a shard, pack it as ``archive``, and remove what it was built in."""
        self._require_room()
        found = self._answer(shard, {"job": "finish", "archive": str(archive)}, progress)
        return FinishedShard.model_validate(found)

    def _answer(self, shard: ShardId, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
        worker = self._of[shard]
        with self._locks[worker.pid], self._explained():
            worker.ask({"shard": shard} | self._schema_of(job) | job)
            while True:
                progress(0)
                if not select.select([worker], [], [], HEARTBEAT_SECONDS)[0]:
                    continue
                for message in worker.hear():
                    found: dict[str, Any] = message["result"]
                    return found

    def _schema_of(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return self._schema if job["job"] == "create" else {}

    def _require_room(self) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < LEAST_FREE_BYTES:
            raise _full(free)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A process that died on a full disk died of that."""
        try:
            yield
        except HeadroomError:
            raise
        except FerryError as error:
            free = shutil.disk_usage(self._folder).free
            if free < LEAST_FREE_BYTES:
                raise _full(free) from error
            raise


def _full(free_bytes: int) -> HeadroomError:
    msg = (
        f"The worker's disk ran full while shards were built: {free_bytes} bytes are free, and {LEAST_FREE_BYTES} must "
        "stay. What was not finished is removed; finished shards count."
    )
    return HeadroomError(msg, "Point worker.spool_dir at a larger disk and run it again, or let the points stream.")


def unfit(batch: PointBatch, sizes: Mapping[str, int | None]) -> dict[int, str]:
    """Which points of a batch (by place) no shard with vectors of these sizes (None: sparse) can hold, and why."""
    found: dict[int, str] = {}
    for name, column in batch.vectors.items():
        rows = np.arange(len(batch.ids)) if column.rows is None else column.rows
        if name not in sizes:
            found |= {int(row): f"the target has no vector {name!r}" for row in rows}
            continue
        size, found_size = sizes[name], column.values.shape[-1] if column.values.ndim == 2 else None
        if size != found_size:
            found |= {int(row): f"vector {name!r} has {found_size} dimensions and not {size}" for row in rows}
        finite = np.isfinite(column.values)
        if not finite.all():
            broken = np.flatnonzero(~(finite.all(axis=1) if finite.ndim == 2 else finite))
            starts = getattr(column, "starts", None)
            places = broken if starts is None else np.searchsorted(starts, broken, side="right") - 1
            found |= {int(rows[place]): f"vector {name!r} holds NaN or an infinity" for place in places}
    return found
