"""Two nodes to move collections between, straight and through a slow wire, and what each crossing took.

One node either side: on one machine more of them share its processors, and add their own forwarding to every way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import httpx

from benchmarks.bench_memory import Watcher
from benchmarks.crossing import Errand, difference
from benchmarks.slow_wire import SlowWire
from benchmarks.stage import Stage
from sandbox.process import LOOPBACK, SandboxError
from sandbox.qdrant import QdrantCluster, QdrantNode

SOURCE, TARGET, FAR = "origin", "target", "-far"  # far: the same nodes, through the slow wire
ROUND_TRIP_SECONDS = 0.02
ANSWER_SECONDS, POLL_SECONDS, GREEN_SECONDS = 120.0, 0.1, 1800.0
GREEN_POLLS = 5  # an optimizer that has just ended may begin the next segment


@dataclass(frozen=True)
class Crossing:
    """What one way took. ``seconds``: until the last point was applied; ``green_seconds``: until the target was green.

    Ferry's ways also plan and compare, which is part of ``green_seconds``; the comparing alone took
    ``comparing_seconds``. Processor seconds are those of the way's own processes, of the source and of the target, of
    all and of the comparing.
    """

    seconds: float
    green_seconds: float
    comparing_seconds: float
    used: tuple[float, float, float]
    comparing_used: tuple[float, float, float]
    peak_bytes: int

    @property
    def moving_used(self) -> tuple[float, float, float]:
        """Processor seconds without those of the comparing; where nothing is indexed meanwhile."""
        return difference(self.used, self.comparing_used)


@contextmanager
def harbour(stage: Stage) -> Iterator[Harbour]:
    """A node as the source, another one as the target, and both behind a slow wire as well."""
    with QdrantCluster(1, stage.folder / SOURCE) as source, QdrantCluster(1, stage.folder / TARGET) as target:
        nodes = (*source.nodes, *target.nodes)
        ports = [port for node in nodes for port in (node.place.http_port, node.place.grpc_port)]
        with SlowWire(ports, ROUND_TRIP_SECONDS) as wire:
            yield Harbour(stage, source.nodes[0], target.nodes[0], wire)


class Harbour:
    """Moves collections, each into an empty target, and looks at the clock and the processors."""

    def __init__(self, stage: Stage, source: QdrantNode, target: QdrantNode, wire: SlowWire) -> None:
        self.source = source
        self._stage, self._target, self._wire = stage, target, wire
        self._config = self._write_settings(stage.folder / "ferry-migration.toml")
        self._numbers = count(1)

    def move(self, way: str, collection: str, points: int, *, far: bool = False) -> Crossing:
        """Move the collection, see that all points have come and are indexed, and drop the copy."""
        into = collection if way == "migrate" else f"{collection}-{next(self._numbers)}"
        source, target = (f"{name}{FAR if far else ''}" for name in (SOURCE, TARGET))
        pids = ((node.pid,) for node in (self.source, self._target))
        errand, node = Errand(source, target, collection, into, *pids), self._target
        before = errand.used()
        peaks, told = self._run(way, errand)
        ended = perf_counter()
        self._wait_green(node, into)
        green, used = perf_counter() - ended, difference(errand.used(), before)
        self._require(into, points)
        self._ask(node, "DELETE", into)
        return Crossing(
            seconds=told["seconds"],
            green_seconds=told.get("whole", told["seconds"]) + green,
            comparing_seconds=told.get("comparing", 0.0),
            used=(told["own_seconds"], *used[1:]),
            comparing_used=tuple(told.get("comparing_used", (0.0, 0.0, 0.0))),
            peak_bytes=peaks.get("move", 0),
        )

    def index_source(self, collection: str, threshold_kb: int) -> None:
        """Let the source index its collection from so many kB a segment on, so that its copies shall be indexed."""
        self._ask(self.source, "PATCH", collection, {"optimizers_config": {"indexing_threshold": threshold_kb}})
        self._wait_green(self.source, collection)

    def drop(self, collection: str) -> None:
        """Remove a collection of the source."""
        self._ask(self.source, "DELETE", collection)

    def _run(self, way: str, errand: Errand) -> tuple[dict[str, int], dict[str, Any]]:
        """Peaks of the memory of a way by phase, and what it said last."""
        log = self._stage.folder / "crossing.log"
        env = {**os.environ, "FERRY_CONFIG": str(self._config)}
        command = [sys.executable, "-m", "benchmarks.crossing", way, errand.argument()]
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=env, text=True)
        if process.stdout is None:
            raise SandboxError(f"{way} has no output")
        watcher = Watcher(process.pid)
        told = watcher.listen(process.stdout)
        if process.wait() != 0:
            raise SandboxError(f"{way} ended with {process.returncode}: {log.read_text()[-3000:]}")
        return watcher.peaks, told

    def _wait_green(self, node: QdrantNode, collection: str) -> None:
        deadline, seen = monotonic() + GREEN_SECONDS, 0
        while seen < GREEN_POLLS:
            status = self._ask(node, "GET", collection)["status"]
            seen = seen + 1 if status == "green" else 0
            if monotonic() > deadline:
                raise SandboxError(f"{collection} is {status} after {GREEN_SECONDS:g} s")
            sleep(POLL_SECONDS)

    def _require(self, collection: str, points: int) -> None:
        found = self._ask(self._target, "POST", f"{collection}/points/count", {"exact": True})
        if found["count"] != points:
            raise SandboxError(f"{collection} has {found['count']} points on the target instead of {points}")

    @staticmethod
    def _ask(node: QdrantNode, method: str, path: str, body: Any = None) -> Any:
        url = f"{node.url}/collections/{path}"
        with httpx.Client(trust_env=False, timeout=ANSWER_SECONDS) as http:
            answer = http.request(method, url, json=body).raise_for_status()
        return answer.json()["result"]

    def _write_settings(self, path: Path) -> Path:
        """The stage's own settings, and both ways to the two nodes."""
        self._stage.write_settings(path)
        with path.open("a") as file:
            for name, node in ((SOURCE, self.source), (TARGET, self._target)):
                for far in (False, True):
                    file.write("\n".join(self._profile(f"{name}{FAR if far else ''}", node, far)) + "\n")
        return path

    def _profile(self, name: str, node: QdrantNode, far: bool) -> list[str]:
        def url(port: int) -> str:
            return json.dumps([f"http://{LOOPBACK}:{self._wire.ports[port] if far else port}"])

        return [
            f"[clusters.{name}]",
            f"nodes = {url(node.place.http_port)}",
            f"grpc_nodes = {url(node.place.grpc_port)}",
            f'headroom = {{kind = "local", paths = {json.dumps([str(node.disk_path)])}}}',
        ]
