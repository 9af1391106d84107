"""How fast an archive is proven, and in how much memory: 200k points of 256 dimensions with a payload.

Run: python -m benchmarks.bench_proof
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import qdrant_edge as edge

from benchmarks.figures import Figure, Target, middle
from ferry.archive import proof
from ferry.archive.reader import load, unpack

POINTS = 200_000
DIMENSIONS = 256
POLL_SECONDS = 0.02
TARGET = Target(100_000, "at least", " points/s")


def run(points: int = POINTS) -> dict[str, Any]:
    """Build an archive and prove it in this process, in one other and in two; rates are points a second.

    ``seconds`` of a proof include starting processes, unpacking and loading. Peak bytes are anonymous memory, of this
    process (above what it held before) and of all workers together. ``scroll`` is the engine's own reading alone.
    """
    folder = Path(tempfile.mkdtemp(prefix="ferry-bench-proof-"))
    try:
        archive = _build(folder, points)
        figures: dict[str, Any] = {"points": points, "archive_bytes": archive.stat().st_size}
        figures |= _scroll(archive, folder / "scroll")
        for processes in (0, 1, 2):
            figures[f"processes_{processes}"] = _prove(archive, folder, processes)
        return figures
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(points: int, rounds: int) -> list[Figure]:
    """Prove the same archive with two processes some times over, and let the engine read it alone as often."""
    folder = Path(tempfile.mkdtemp(prefix="ferry-bench-proof-"))
    try:
        archive = _build(folder, points)
        size = archive.stat().st_size
        alone = [_scroll(archive, folder / "scroll")["scroll_points_per_second"] for _ in range(rounds)]
        proofs = [_prove(archive, folder, 2) for _ in range(rounds)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rates = tuple(float(found["points_per_second"]) for found in proofs)
    reading = middle([found["reading_points_per_second"] for found in proofs])
    cpu = middle([found["cpu_microseconds_per_point"] for found in proofs])
    return [
        Figure(
            area="proof",
            name=f"points proven by two processes, {DIMENSIONS} dimensions and a payload",
            ours=f"{middle(rates):,.0f} points/s",
            raw=f"the engine's reading alone {middle(alone):,.0f} points/s",
            value=middle(rates),
            values=rates,
            target=TARGET,
            limit=f"{cpu:.1f} µs of processor a point, so two free cores give {2e6 / cpu:,.0f} points/s at most",
            unit=" points/s",
            digits=0,
            notes=(
                f"{points:,} points, {size / 1e6:,.0f} MB, with the start of the processes, unpacking and loading",
                f"{reading:,.0f} points/s once they read",
            ),
        )
    ]


def _build(folder: Path, points: int) -> Path:
    shard_folder = folder / "shard"
    params = edge.EdgeVectorParams(size=DIMENSIONS, distance=edge.Distance.Cosine, on_disk=True)
    shard = edge.EdgeShard.create(str(shard_folder), edge.EdgeConfig(vectors=params))
    for start in range(0, points, 5000):
        rows = [_point(index) for index in range(start, min(start + 5000, points))]
        shard.update(edge.UpdateOperation.upsert_points(rows))
    shard.flush()
    shard.close()
    (shard_folder / "replica_state.json").write_text("{}")
    (shard_folder / "shard_config.json").write_text('{"type":"ReplicaSet"}')
    archive = folder / "bench.snapshot"
    members = ["segments", "wal", "replica_state.json", "shard_config.json"]
    subprocess.run(["tar", "--format=gnu", "-S", "-cf", str(archive), *members], cwd=shard_folder, check=True)
    shutil.rmtree(shard_folder)
    return archive


def _point(index: int) -> edge.Point:
    bits = array("I", random.Random(index).randbytes(4 * DIMENSIONS))  # noqa: S311
    payload = {"title": f"document {index}", "lang": "en", "n": index, "score": index / 4, "tags": ["a", str(index)]}
    point_id = index if index % 4 else uuid5(NAMESPACE_OID, str(index))
    return edge.Point(id=point_id, vector=[value / 2**31 - 1 for value in bits], payload=payload)


def _scroll(archive: Path, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    unpack(archive, folder)
    unpacked = time.perf_counter()
    with load(folder) as opened:
        loaded = time.perf_counter()
        read = sum(len(batch) for batch in opened.batches())
        done = time.perf_counter()
    shutil.rmtree(folder)
    return {
        "unpack_seconds": round(unpacked - began, 3),
        "load_seconds": round(loaded - unpacked, 3),
        "scroll_points_per_second": round(read / (done - loaded)),
    }


def _prove(archive: Path, folder: Path, processes: int) -> dict[str, Any]:
    scan_began: list[float] = []

    def progress(done: int) -> None:
        if done and not scan_began:
            scan_began.append(time.monotonic())

    cpu_before = _cpu_seconds()
    with _Peak() as peak:
        result = proof.prove_archive(archive, folder / "work", "content", processes=processes, progress=progress)
        ended = time.monotonic()
    if not result.points or result.content is None:
        raise RuntimeError("the benchmark's archive holds no points")
    return {
        "seconds": result.seconds,
        "points_per_second": round(result.points / result.seconds),
        "reading_points_per_second": round(result.points / (ended - scan_began[0])),
        "cpu_microseconds_per_point": round((_cpu_seconds() - cpu_before) * 1e6 / result.points, 1),
        "peak_anonymous_bytes": peak.bytes,
        "digest": result.content.digest[:16],
    }


def _cpu_seconds() -> float:
    """Of this process and of the children that it has waited for; says what a shared machine's clock does not."""
    return sum(os.times()[:4])


class _Peak:
    """Watches the anonymous memory of this process and its children."""

    def __enter__(self) -> _Peak:
        self.bytes = 0
        self._before = _anonymous(str(os.getpid()))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = str(os.getpid())
        while not self._done.wait(POLL_SECONDS):
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
            self.bytes = max(self.bytes, _anonymous(me) - self._before + sum(map(_anonymous, children)))


def _anonymous(pid: str) -> int:
    """RssAnon of /proc/PID/status: a counter. (smaps_rollup walks all pages, which halved the rate being measured.)"""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
