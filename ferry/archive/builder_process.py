"""A process that builds shards for `ferry.archive.builder`; why it is one of its own, `ferry.archive.worker` says.

One JSON job a line on stdin; ``add`` is followed by as many bytes as it says. ``create`` opens a shard in a folder,
``add`` gives it points, ``finish`` builds its indexes, packs it and removes the folder. Only ``create`` and ``finish``
are answered; an error may come at any time, and ends the process.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import qdrant_edge as edge

from ferry.archive.builder_schema import engine_config, field_index
from ferry.archive.packing import pack, put_right
from ferry.archive.reader import engine_errors
from ferry.errors import ArchiveDamagedError, FerryError, MigrationError
from ferry.migration.batch import PointBatch
from ferry.migration.changed_config import dense_vectors, sparse_vectors
from ferry.migration.columns import each_point

_AT_ONCE = 1000  # points in one operation of the engine


@dataclass
class _Shard:
    """An open shard, and how many operations have made it."""

    engine: edge.EdgeShard
    folder: Path
    vectors: list[str]
    operations: int = 0

    def update(self, operation: edge.UpdateOperation) -> None:
        self.engine.update(operation)
        self.operations += 1


class Workshop:
    """The shards that this process builds."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._open: dict[int, _Shard] = {}

    def answer(self, job: dict[str, Any], given: BinaryIO) -> None:
        """Do a job. Raises `FerryError`."""
        shard = int(job["shard"])
        if job["job"] == "add":
            batch = pickle.loads(given.read(job["bytes"]))  # noqa: S301 - from our own parent, over a pipe of its own
            self._add(shard, batch)
        elif job["job"] == "create":
            self._create(shard, Path(job["folder"]), job)
            self.say({"result": {}})
        else:
            self.say({"result": self._finish(shard, Path(job["archive"]))})

    def say(self, message: dict[str, Any]) -> None:
        """Write a line to whoever asks."""
        self._out.write(orjson.dumps(message) + b"\n")
        self._out.flush()

    def _create(self, shard: int, folder: Path, job: dict[str, Any]) -> None:
        config = job["config"]
        with _building(shard):
            made = edge.EdgeShard.create(str(folder), engine_config(config))
            self._open[shard] = _Shard(made, folder, [*dense_vectors(config), *sparse_vectors(config)])
            for field, info in sorted(job["payload_schema"].items()):
                self._open[shard].update(edge.UpdateOperation.create_field_index(field, field_index(info)))

    def _add(self, shard: int, batch: PointBatch) -> None:
        points = list(_points(batch))
        with _building(shard):
            for start in range(0, len(points), _AT_ONCE):
                self._open[shard].update(edge.UpdateOperation.upsert_points(points[start : start + _AT_ONCE]))

    def _finish(self, shard: int, archive: Path) -> dict[str, Any]:
        opened = self._open.pop(shard)
        made, folder = opened.engine, opened.folder
        began = time.monotonic()
        with _building(shard):
            made.optimize()
            points = made.count(edge.CountRequest(exact=True))
            vectors = {name: made.count(_having(name)) for name in opened.vectors}
            indexed = made.info().indexed_vectors_count
            made.flush()
            made.close()
        put_right(folder, opened.operations)
        sha256 = pack(folder, archive, lambda _bytes: None)
        shutil.rmtree(folder)
        seconds = time.monotonic() - began
        return {
            "points": points,
            "vectors": vectors,
            "indexed_vectors": indexed,
            "bytes": archive.stat().st_size,
            "sha256": sha256,
            "seconds": round(seconds, 3),
        }


@contextmanager
def _building(shard: int) -> Iterator[None]:
    try:
        with engine_errors(f"shard {shard}"):
            yield
    except ArchiveDamagedError as error:
        msg = f"Shard {shard} cannot be built: {error.__cause__ or error.message}; the target holds nothing of it."
        raise MigrationError(msg, "Let the points stream (writer: stream), and tell Ferry's maintainers.") from error


def _having(name: str) -> edge.CountRequest:
    return edge.CountRequest(exact=True, filter=edge.Filter(must=[edge.HasVectorCondition(name)]))


def _points(batch: PointBatch) -> Iterator[edge.Point]:
    for point_id, vectors, payload in zip(batch.ids, each_point(batch), batch.payloads, strict=True):
        for name, vector in vectors.items():
            if isinstance(vector, dict):
                vectors[name] = edge.SparseVector(**vector)
        yield edge.Point(id=point_id, vector=vectors, payload=payload)


def main() -> None:
    """Answer jobs until stdin closes. Descriptor 1 is taken away from everybody else: the engine may print."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    workshop, given = Workshop(out), sys.stdin.buffer
    try:
        for line in iter(given.readline, b""):
            workshop.answer(orjson.loads(line), given)
    except FerryError as error:
        workshop.say({"error": type(error).__name__, "message": error.message, "remedy": error.remedy})
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # nobody reads any more, or the terminal's Ctrl-C reached the whole group: whoever asked cleans up
    finally:
        sys.stderr.flush()
        os._exit(0)  # the folders are about to be removed: no flush of mapped pages, no interpreter tear-down


if __name__ == "__main__":
    main()
