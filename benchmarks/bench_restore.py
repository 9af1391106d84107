"""How long a restore takes, against the same recover calls made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import httpx

from benchmarks.data import Shape
from benchmarks.figures import Figure, Target, middle, ratios, timed
from benchmarks.load import Load
from benchmarks.stage import CLUSTER, REPOSITORY, Stage
from ferry.backup.run import run_backup
from ferry.connections import Connections
from ferry.lanes import Job
from ferry.models import Progress, no_progress
from ferry.qdrant.http import path_of
from ferry.repository.manifest import ArchiveRecord
from ferry.restore import preflight, source, steps
from ferry.restore.plan import RestorePlan, RestoreRequest
from ferry.restore.run import run_restore

TARGET = Target(1.15, "at most")
SHARDS, REPLICATION = 3, 2
VERBS = ("create", "recover", "settle", "verify")


class Spans:
    """From the first step of a kind to the end of its last one, by the first word of the steps' labels."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    @contextmanager
    def tell(self, label: str, _total: int | None) -> Iterator[Progress]:
        """To be given to a Job."""
        verb = label.split(maxsplit=1)[0]
        self._began.setdefault(verb, perf_counter())
        yield no_progress
        self._ended[verb] = perf_counter()

    def seconds(self, verb: str) -> float:
        """How long the steps of that kind took together."""
        return self._ended[verb] - self._began[verb]


@dataclass(frozen=True)
class Round:
    """Seconds of one restore by Ferry, in all and by verb, and of the bare recover calls."""

    whole: float
    verbs: dict[str, float]
    by_hand: float


def measure(stage: Stage, points: int, rounds: int, warm_rounds: int = 1) -> list[Figure]:
    """Restore one collection of three shards, two replicas each, some times over, and recover it by hand as often."""
    collection = stage.collection(Shape("bench-restore", points, SHARDS, REPLICATION))
    connections, watch = stage.connect(), stage.load_watch()
    run_backup(connections, stage.plan(collection), "bench", Job())
    results = []
    for number in range(-warm_rounds, rounds):  # those before 0 warm connections and caches
        ways = [_ferry, _by_hand] if number % 2 else [_by_hand, _ferry]
        meter = watch if number >= 0 else stage.load_watch()
        seconds = {way.__name__: way(stage, collection, meter) for way in ways}
        if number >= 0:
            verbs = seconds["_ferry"]
            results.append(Round(verbs.pop("whole"), verbs, seconds["_by_hand"]["recover"]))
    stage.drop(collection)
    return _figures(connections, results, str(watch))


def _request(stage: Stage, collection: str, into: str) -> RestoreRequest:
    return RestoreRequest(
        restore_id=stage.new_id(),
        cluster=CLUSTER,
        repository=REPOSITORY,
        source_cluster=CLUSTER,
        collection=collection,
        into=into,
        verify="count",
    )


def _ferry(stage: Stage, collection: str, watch: Load) -> dict[str, float]:
    spans = Spans()
    request = _request(stage, collection, "bench-restored")
    with watch:
        whole, _ = timed(lambda: run_restore(stage.connect(), request, "bench", Job(spans.tell)))
    stage.drop("bench-restored")
    return {"whole": whole} | {verb: spans.seconds(verb) for verb in VERBS}


def _by_hand(stage: Stage, collection: str, _watch: Load) -> dict[str, float]:
    connections = stage.connect()
    plan = preflight.prepare(connections, _request(stage, collection, "bench-by-hand"))
    replicas = steps.create_target(connections, plan)
    lanes = steps.lanes_of_replicas(replicas)
    calls = [[_call(connections, plan, replica) for replica in lane] for lane in lanes]
    seconds, _ = timed(lambda: recover_by_hand(calls))
    connections.cluster.wait_until_active(plan.target, None, 60)
    steps.keep_target(connections, plan)
    stage.drop(plan.target)
    return {"recover": seconds}


@dataclass(frozen=True)
class Call:
    """One recover request: where to, and its body."""

    url: str
    body: dict[str, str]


def _call(connections: Connections, plan: RestorePlan, replica: steps.ReplicaWork) -> Call:
    archive = _archive_of(plan, replica)
    path = path_of("collections", plan.target, "shards", replica.shard_id, "snapshots", "recover")
    location = connections.store.presign(source.object_key(connections, plan, archive))
    body = {"location": location, "priority": "no_sync", "checksum": archive.sha256}
    return Call(f"{replica.node.url}{path}?wait=true", body)


def _archive_of(plan: RestorePlan, replica: steps.ReplicaWork) -> ArchiveRecord:
    archives = {shard.shard_id: archive for shard, archive in plan.manifest.best_shards()}
    return archives[replica.shard_id]


def recover_by_hand(lanes: Sequence[Sequence[Call]]) -> None:
    """Send the calls as a careful shell script would: nodes beside each other, one replica at a time on each."""

    def drive(lane: Sequence[Call]) -> None:
        with httpx.Client(timeout=300, trust_env=False) as http:
            for call in lane:
                http.put(call.url, json=call.body).raise_for_status()

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(drive, lanes))


def _figures(connections: Connections, results: list[Round], load: str) -> list[Figure]:
    manifest = connections.catalog.latest_with(CLUSTER, "bench-restore")
    size = manifest.bytes * REPLICATION
    by_hand = [done.by_hand for done in results]
    lanes = ratios([done.verbs["recover"] for done in results], by_hand)
    whole = ratios([done.whole for done in results], by_hand)
    parts = ", ".join(f"{verb} {middle([done.verbs[verb] for done in results]):.2f} s" for verb in VERBS)
    rest = middle([done.whole - sum(done.verbs.values()) for done in results])
    beside = middle([done.whole - done.verbs["recover"] for done in results])
    enough = beside / (TARGET.bound - 1) * size / middle(by_hand)
    raw = f"{middle(by_hand):.2f} s, {size / 1e6 / middle(by_hand):,.0f} MB/s"

    def figure(name: str, values: tuple[float, ...], ours: float, limit: str, note: str) -> Figure:
        return Figure("restore", name, f"{ours:.2f} s", raw, middle(values), values, TARGET, limit, notes=(note,))

    return [
        figure(
            "recover every replica ÷ the same recover calls by hand",
            lanes,
            middle([done.verbs["recover"] for done in results]),
            load,
            f"{SHARDS} shards × {REPLICATION} replicas on {len(connections.cluster.nodes)} nodes, {size / 1e6:,.0f} MB",
        ),
        figure(
            "whole restore (lease, plan, create, recover, settle, count) ÷ the recover calls by hand",
            whole,
            middle([done.whole for done in results]),
            f"{parts}; lease, plan and journal {rest:.2f} s. {beside:.2f} s beside recovering, whatever the size: "
            f"the target is met from about {enough / 1e6:,.0f} MB on",
            "the calls by hand get their collection ready-made and look at nothing afterwards",
        ),
    ]
