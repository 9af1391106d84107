"""How much a snapshot disturbs its collection: single upserts and searches at rest, while it is made, while it is read.

The writer and the searcher are a process of their own, as users are, so that they do not wait for Ferry's Python.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import NamedTuple

import httpx

from benchmarks.data import DIMENSIONS, Shape
from benchmarks.figures import Figure, middle
from benchmarks.stage import Stage
from ferry.backup.guard import Guard, guarded
from ferry.models import ShardId, no_progress
from ferry.profiles import AnswerLimits, PolicyProfile
from ferry.qdrant import snapshots
from ferry.qdrant.node import Node

SHARD = ShardId(0)
CAP_MB_PER_SECOND = 50.0
CLIENTS = ("upsert", "search")
PHASES = {
    "rest": "at rest",
    "made": "while its shard's snapshot is made",
    "read": "while it is read as fast as it goes",
    "capped": f"while it is read with node_mb_per_second = {CAP_MB_PER_SECOND:g}",
}
# A user pauses between two searches; a writer sends the next point when the last one is there.
SEARCH_PAUSE_SECONDS = 0.1


class Sample(NamedTuple):
    """One request: when it was sent (monotonic, the same clock in all processes) and how long its answer took."""

    client: str
    began: float
    seconds: float


@dataclass
class Round:
    """When each phase began and ended, and what the guard saw meanwhile."""

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    seen_ms: float = 0.0

    def span(self, phase: str, work: Callable[[], None]) -> None:
        began = monotonic()
        work()
        self.spans[phase] = (began, monotonic())


def measure(stage: Stage, points: int, rounds: int, rest_seconds: float) -> list[Figure]:
    """Rounds of rest, creating, reading, and reading under a cap, with the clients at work all the while."""
    collection = stage.collection(Shape("bench-stall", points))
    try:
        node = _holder(stage, collection)
        with _clients(node.url, collection, points) as samples:
            sleep(min(1.0, rest_seconds))  # connections and caches
            done = [_round(node, collection, rest_seconds) for _ in range(rounds)]
        size = _size(node, collection)
    finally:
        stage.drop(collection)
    return _figures(samples, done, size)


def _holder(stage: Stage, collection: str) -> Node:
    cluster = stage.connect().cluster
    layout = cluster.read_layout([collection])
    return cluster.node(layout.collections[0].shards[0].replicas[0].peer_id)


def _round(node: Node, collection: str, rest_seconds: float) -> Round:
    done = Round()
    done.span("rest", lambda: sleep(rest_seconds))
    watched = PolicyProfile(answers=AnswerLimits(interval_seconds=0.05))
    made: list[snapshots.Snapshot] = []
    with guarded(node, collection, watched, no_progress, SHARD) as guard:
        guard.admit()
        done.span("made", lambda: made.append(snapshots.create_snapshot(node, collection, SHARD)))
        done.seen_ms = guard.worst_ms or 0.0
    capped = PolicyProfile(node_mb_per_second=CAP_MB_PER_SECOND)
    for phase, policy in (("read", PolicyProfile()), ("capped", capped)):
        with guarded(node, collection, policy, no_progress, SHARD) as guard:
            done.span(phase, lambda guard=guard: _read(node, collection, made[0], guard))  # type: ignore[misc]
    snapshots.delete_snapshot(node, collection, SHARD, made[0].name)
    return done


def _read(node: Node, collection: str, made: snapshots.Snapshot, guard: Guard) -> None:
    blocks = snapshots.download_snapshot(node, collection, SHARD, made.name, expected_bytes=made.size)
    for _ in guard.paced(blocks):
        pass


def _size(node: Node, collection: str) -> int:
    made = snapshots.create_snapshot(node, collection, SHARD)
    snapshots.delete_snapshot(node, collection, SHARD, made.name)
    return made.size


@contextmanager
def _clients(url: str, collection: str, points: int) -> Iterator[list[Sample]]:
    """A writer and a searcher in a process of their own; what they measured is in the list when this is left."""
    samples: list[Sample] = []
    context = get_context("spawn")  # a fork would inherit locks of threads that it does not have
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, url, collection, points), name="bench-clients")
    process.start()
    try:
        ours.recv()
        yield samples
        ours.send("stop")
        samples += [Sample(*sample) for sample in ours.recv()]
        process.join()
    finally:
        process.kill()
        process.join()
        for end in (ours, theirs):
            end.close()


def _work(pipe: Connection, url: str, collection: str, points: int) -> None:
    ended = threading.Event()
    samples: list[tuple[str, float, float]] = []
    threads = [
        threading.Thread(target=_repeat, args=(ended, samples, url, collection, points, client)) for client in CLIENTS
    ]
    for thread in threads:
        thread.start()
    pipe.send("started")
    pipe.recv()
    ended.set()
    for thread in threads:
        thread.join()
    pipe.send(samples)


def _repeat(
    ended: threading.Event, samples: list[tuple[str, float, float]], url: str, collection: str, points: int, client: str
) -> None:
    """Send one request after the other. Upserts overwrite points that are there, as the stall needs."""
    chance = random.Random(client)  # noqa: S311 - the same requests each time
    folder = f"/collections/{collection}/points"
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
        while not ended.is_set():
            vector = [float(chance.randint(-9, 9)) for _ in range(DIMENSIONS)]
            point = {"id": chance.randrange(points), "vector": vector, "payload": {"by": "bench-stall"}}
            began = monotonic()
            if client == "upsert":
                http.put(folder + "?wait=true", json={"points": [point]}).raise_for_status()
            else:
                http.post(folder + "/query", json={"query": vector, "limit": 10}).raise_for_status()
            samples.append((client, began, monotonic() - began))
            if client == "search":
                sleep(SEARCH_PAUSE_SECONDS)


def _figures(samples: list[Sample], rounds: list[Round], size: int) -> list[Figure]:
    times: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for number, done in enumerate(rounds):
        for phase, (began, ended) in done.spans.items():
            for sample in samples:
                if sample.began < ended and sample.began + sample.seconds > began:
                    times[sample.client, phase, number].append(sample.seconds * 1000)
    seen = ", ".join(f"{done.seen_ms:,.0f}" for done in rounds)
    seconds = {phase: middle([done.spans[phase][1] - done.spans[phase][0] for done in rounds]) for phase in PHASES}
    figures = []
    for client in CLIENTS:
        rest = [ms for number in range(len(rounds)) for ms in times[client, "rest", number]]
        for phase, words in PHASES.items():
            if phase == "rest":
                continue  # it stands beside each of the others
            each = [times[client, phase, number] or [0.0] for number in range(len(rounds))]
            all_of_them = [ms for some in each for ms in some]
            worst = tuple(max(some) for some in each)
            figures.append(
                Figure(
                    area="stall",
                    name=f"worst single {client}, {words}",
                    ours=_shown(all_of_them),
                    raw=f"at rest {_shown(rest)}",
                    value=middle(worst),
                    values=worst,
                    target=None,
                    limit=f"{len(all_of_them)} requests in {len(rounds)} × {seconds[phase]:.1f} s",
                    unit=" ms",
                    digits=0,
                    notes=(f"snapshot of {size / 1e6:,.0f} MB; the guard's own question took {seen} ms at worst",)
                    if phase == "made"
                    else (),
                )
            )
    return figures


def _shown(milliseconds: list[float]) -> str:
    ordered = sorted(milliseconds)
    if not ordered:
        return "no request"
    return f"p50 {middle(ordered):,.0f}, p99 {ordered[int(len(ordered) * 0.99)]:,.0f}, worst {ordered[-1]:,.0f} ms"
