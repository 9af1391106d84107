"""How long a restore takes, against the same recover calls, or the same upserts, made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter

import httpx

from benchmarks.data import Shape
from benchmarks.figures import Figure, Target, middle, ratios, timed
from benchmarks.load import Load
from benchmarks.stage import CLUSTER, REPOSITORY, Stage
from ferry.archive.points import Selection
from ferry.backup.run import run_backup
from ferry.connections import Connections
from ferry.lanes import Job
from ferry.models import Progress, RestorePath, no_progress
from ferry.qdrant.http import path_of
from ferry.repository.manifest import ArchiveRecord
from ferry.restore import preflight, source, steps
from ferry.restore.plan import RestorePlan, RestoreRequest
from ferry.restore.run import run_restore
from ferry.verify.stored_points import stored_points

TARGET = Target(1.15, "at most")
SHARDS, REPLICATION = 3, 2
VERBS = ("create", "recover", "settle", "verify")
IN_FLIGHT = 4


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
    return [*_figures(connections, results, str(watch)), _points_path(stage, points // 2, rounds, warm_rounds)]


def _request(stage: Stage, collection: str, into: str, path: RestorePath = "shards") -> RestoreRequest:
    return RestoreRequest(
        restore_id=stage.new_id(),
        cluster=CLUSTER,
        repository=REPOSITORY,
        source_cluster=CLUSTER,
        collection=collection,
        into=into,
        path=path,
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


def _points_path(stage: Stage, points: int, rounds: int, warm_rounds: int) -> Figure:
    """Restore by reading points out of the archives and sending them, and send the same bodies by hand as often."""
    collection = stage.collection(Shape("bench-points", points, SHARDS, REPLICATION))
    connections, watch = stage.connect(), stage.load_watch()
    run_backup(connections, stage.plan(collection), "bench", Job())
    bodies = _bodies(connections, collection, stage.folder / "bodies")
    results = []
    for number in range(-warm_rounds, rounds):
        meter = watch if number >= 0 else stage.load_watch()
        seconds = _points_round(stage, collection, bodies, meter)
        results += [seconds] if number >= 0 else []
    ours, raw = zip(*results, strict=True)
    size = sum(path.stat().st_size for path in bodies)
    for path in bodies:
        path.unlink()
    stage.drop(collection)
    return Figure(
        "restore",
        "points path: points read out of archives and applied ÷ raw upserts of the same bodies",
        f"{middle(ours):.2f} s, {points / middle(ours):,.0f} points/s",
        f"{middle(raw):.2f} s, {points / middle(raw):,.0f} points/s",
        middle(ratios(ours, raw)),
        ratios(ours, raw),
        None,
        f"{watch}; {watch.per_megabytes(size * rounds / 1e6)}, by bytes of JSON",
        notes=(
            f"{points:,} points × {REPLICATION} replicas, {size / points / 1000:.1f} kB of JSON each; no index is "
            "built, which comes on top (830 µs of one core for a point of 384 dimensions)",
        ),
    )


def _points_round(stage: Stage, collection: str, bodies: Sequence[Path], watch: Load) -> tuple[float, float]:
    """Seconds until Ferry has sent all points, and until a script has sent the same bodies."""
    connections, spans = stage.connect(), Spans()
    with watch:
        run_restore(connections, _request(stage, collection, "bench-sent", "points"), "bench", Job(spans.tell))
    stage.drop("bench-sent")
    plan = preflight.prepare(connections, _request(stage, collection, "bench-upserted", "points"))
    steps.create_target(connections, plan)
    urls = [node.url for node in plan.layout.nodes]
    by_hand, _ = timed(lambda: upsert_by_hand(urls, plan.target, bodies))
    steps.keep_target(connections, plan)
    stage.drop(plan.target)
    return spans.seconds("stream"), by_hand


def _bodies(connections: Connections, collection: str, folder: Path) -> list[Path]:
    """The bodies that a restore sends, each in a file."""
    folder.mkdir()
    manifest = connections.catalog.latest_with(CLUSTER, collection)
    found: list[Path] = []
    for shard in manifest.layout:
        for batch in stored_points(connections, manifest, shard.shard_id, Selection()):
            found.append(folder / str(len(found)))
            found[-1].write_bytes(b'{"points":' + batch.body + b"}")
    return found


def upsert_by_hand(urls: Sequence[str], collection: str, bodies: Sequence[Path]) -> None:
    """Send the bodies as a script would: some at a time, to one node after the other."""
    path = f"{path_of('collections', collection, 'points')}?wait=true"
    with httpx.Client(timeout=300, trust_env=False, headers={"content-type": "application/json"}) as http:

        def put(pair: tuple[str, Path]) -> None:
            http.put(pair[0] + path, content=pair[1].read_bytes()).raise_for_status()

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(put, zip(cycle(urls), bodies, strict=False)))


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
