"""The stream writer on real nodes: what breaks on the way, what nodes refuse, and what is left then."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferry.errors import FerryError, NodeRefusedError, StoppedError
from ferry.migration import stream
from ferry.migration.batch import Dense, Floats, PointBatch, WireBatch
from ferry.migration.stream import Acknowledged, StreamWriter
from ferry.models import Progress, ShardKey, no_progress
from ferry.qdrant import wire
from ferry.qdrant.grpc import open_channel
from ferry.qdrant.http import NotFoundError
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.faults.scene import Scene, later, session, together
from tests.integration.crossings import address
from tests.workshop import Workshop, eventually

NEW = "new"
BATCHES, POINTS, SIZE = 24, 100, 64
TOTAL = BATCHES * POINTS
VECTORS: Floats = np.random.default_rng(5).random((TOTAL, SIZE), dtype=np.float32)


@pytest.fixture(scope="module")
def fragile() -> Iterator[QdrantCluster]:
    """Three nodes that may be killed."""
    with QdrantCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def target(
    fragile: QdrantCluster, shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator["Target"]:
    """They, with an empty collection of three shards in two copies."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"target": fragile}) as shop:
        made = Target(shop, fragile)
        made.create({"shard_number": 3, "replication_factor": 2})
        yield made


class Target:
    """A collection that is written to, and what it must hold in the end."""

    def __init__(self, shop: Workshop, servers: QdrantCluster) -> None:
        self.scene, self.servers = Scene(shop), servers
        self.told: list[Acknowledged[int]] = []

    def create(self, shape: dict[str, Any]) -> None:
        """Make the collection, in place of another one."""
        vectors = {"vectors": {"size": SIZE, "distance": "Dot"}}
        with session(self.servers) as http:
            http.delete(f"/collections/{NEW}").raise_for_status()
            http.put(f"/collections/{NEW}", json=vectors | shape).raise_for_status()

    @contextmanager
    def proxies(self) -> Iterator[list[FaultProxy]]:
        """One in front of the gRPC of each node."""
        with ExitStack() as stack:
            made = [stack.enter_context(FaultProxy(address(url))) for url in self.servers.grpc_urls]
            self.configure(made)
            yield made
        self.scene.configure()

    def configure(self, proxies: Sequence[FaultProxy], **wishes: Any) -> None:
        """Go through these proxies."""
        self.scene.configure(clusters={"target": {"grpc_nodes": [proxy.url for proxy in proxies], **wishes}})

    def write(
        self, batches: Sequence[WireBatch] | None = None, progress: Progress = no_progress, **wishes: Any
    ) -> list[Acknowledged[int]]:
        """Stream the batches, each with its number as cursor; all by default."""
        writer = StreamWriter(self.scene.connections("target").cluster, NEW, **wishes)
        numbered = enumerate(everything() if batches is None else batches)
        self.told = []
        writer.write(((batch, number) for number, batch in numbered), self.told.append, progress)
        return self.told

    def stored(self, key: ShardKey | None = None) -> dict[int, Any]:
        """All points, by REST."""
        asked = {"limit": 2 * TOTAL, "with_vector": True, "shard_key": key}
        with session(self.servers) as http:
            answer = http.post(f"/collections/{NEW}/points/scroll", json=asked).raise_for_status()
        return {point["id"]: point for point in answer.json()["result"]["points"]}

    def require_all(self) -> None:
        """Every point is there bit for bit, in all copies, and each batch was acknowledged once and in order."""
        assert [each.cursor for each in self.told] == list(range(BATCHES))
        stored = self.stored()
        assert sorted(stored) == list(range(TOTAL))
        found = np.array([stored[number]["vector"] for number in range(TOTAL)], np.float32)
        assert (found == VECTORS).all()
        assert all(stored[number]["payload"] == {"n": number} for number in range(TOTAL))
        self.scene.settled("target")
        self.scene.connections("target").cluster.wait_until_active(NEW, None, 30.0)
        copies = self.scene.content("target", NEW)
        assert len(copies) == 6
        assert len({(shard, digest) for (shard, _), digest in copies.items()}) == 3


def batch(first: int, values: Floats, key: ShardKey | None = None) -> WireBatch:
    """These vectors as points with ids from ``first`` on."""
    ids = range(first, first + len(values))
    return wire.encode(PointBatch(ids, [{"n": n} for n in ids], {"": Dense(values)}, key))


def everything() -> list[WireBatch]:
    return [batch(first, VECTORS[first : first + POINTS]) for first in range(0, TOTAL, POINTS)]


def at_batch(number: int, act: Callable[[], object]) -> Progress:
    """Progress that does something once, when so many points are acknowledged."""
    seen = [0]

    def progress(points: int) -> None:
        before, seen[0] = seen[0], seen[0] + points
        if before < number * POINTS <= seen[0]:
            act()

    return progress


def test_connections_that_break_in_mid_stream(target: Target) -> None:
    """Whatever was under way is sent again; every point arrives once, and again changes nothing."""
    with target.proxies() as proxies:
        cut: list[FaultProxy] = []
        for number, proxy in enumerate(proxies):
            proxy.after(40_000 * (number + 1), together(proxy.cut, partial(cut.append, proxy)))
        target.write()
        assert len(cut) == 3
    target.require_all()
    target.write()
    target.require_all()


def test_a_node_that_is_silent_is_passed_over(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches go to the others when the deadline of a call is over; nothing waits longer."""
    monkeypatch.setattr(stream, "WRITE_SECONDS", 1.0)
    with target.proxies() as proxies:
        target.configure(proxies, timeout_seconds=1.0)
        proxies[0].stall()
        began = time.monotonic()
        target.write()
        assert time.monotonic() - began < 15
    target.require_all()


def test_a_node_that_is_killed_and_comes_back_in_mid_stream(target: Target) -> None:
    """The others take its points, and in the end each copy has them all."""
    node = target.servers.nodes[1]

    def kill() -> None:
        node.kill()
        later(1.0, node.restart)()

    target.write(progress=at_batch(6, kill))
    target.require_all()


def test_what_nodes_refuse_is_left_out_by_name(target: Target) -> None:
    """A vector of another size, one with a number that is none, and a vector that the collection does not have."""
    short = batch(1000, VECTORS[:1, : SIZE - 1])
    odd = VECTORS[:3].copy()
    odd[1, 7] = np.nan
    named = wire.encode(PointBatch([2000], [{"__id__": "row 7"}], {"other": Dense(VECTORS[:1])}))
    mixed = WireBatch([*batch(0, VECTORS[:60]).points, *short.points, *batch(60, VECTORS[60:80]).points])
    told = target.write([mixed, batch(1500, odd), named], leave_out=True)
    assert [each.points for each in told] == [80, 2, 0]
    refused = {point.id: point.reason for each in told for point in each.refused}
    assert set(refused) == {1000, 1501, "row 7"}
    assert "expected dim: 64, got 63" in refused[1000]
    assert "NaN" in refused[1501]
    assert "other" in refused["row 7"]
    assert set(target.stored()) == {*range(80), 1500, 1502}
    with pytest.raises(NodeRefusedError, match=r"Point 1000 cannot be written to new: .*expected dim: 64, got 63"):
        target.write([mixed])
    with pytest.raises(NodeRefusedError, match="None of the first 10 points can be written to new"):
        target.write([batch(5000, VECTORS[:40, :7])], leave_out=True)


def test_limits_of_the_collection_are_learnt(target: Target) -> None:
    """Strict mode allows fewer points at once than a batch has."""
    target.create({
        "shard_number": 3,
        "replication_factor": 2,
        "strict_mode_config": {"enabled": True, "upsert_max_batchsize": 30},
    })  # fmt: skip
    target.write()
    target.require_all()


def test_points_go_to_the_shard_key_of_their_batch(target: Target) -> None:
    """One id under two keys is two points; a key that is not there is said as it is."""
    target.create({"sharding_method": "custom"})
    with session(target.servers) as http:
        for key in ("a", 7):
            http.put(f"/collections/{NEW}/shards", json={"shard_key": key}).raise_for_status()
    target.write([batch(0, VECTORS[:5], "a"), batch(0, VECTORS[5:12], 7)])
    assert (len(target.stored("a")), len(target.stored(7))) == (5, 7)
    with pytest.raises(FerryError, match='Shard key "b" not found'):
        target.write([batch(0, VECTORS[:5], "b")])
    with session(target.servers) as http:
        http.delete(f"/collections/{NEW}").raise_for_status()
    with pytest.raises(NotFoundError, match="Collection `new` doesn't exist"):
        target.write([batch(0, VECTORS[:5], "a")])


def test_a_cancel_ends_calls_that_hang(target: Target) -> None:
    """Progress raises while every node is silent; the threads end with it, and the next run writes all."""
    with target.proxies() as proxies:
        for proxy in proxies:
            proxy.stall()
        calls: list[int] = []

        def cancel(points: int) -> None:
            calls.append(points)
            if len(calls) > 3:
                raise StoppedError("cancelled")

        began = time.monotonic()
        with pytest.raises(StoppedError, match="cancelled"):
            target.write(progress=cancel)
        assert time.monotonic() - began < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ferry-stream")]
    target.write()
    target.require_all()


def test_answers_are_not_compressed(target: Target) -> None:
    """Qdrant would gzip them for a client that takes it, at twenty times the cost."""
    target.write([batch(0, np.ones((1000, SIZE), np.float32))])
    with target.proxies() as proxies:
        profile = target.scene.connections("target").cluster.profile
        with open_channel(proxies[0].url, profile) as channel:
            answer = channel.unary_unary(wire.SCROLL)(wire.scroll_request(wire.Selection(NEW), None, 1000))
        assert len(answer) > 1000 * SIZE * 4
        assert eventually(lambda: proxies[0].bytes_moved["to_client"] > len(answer))


def test_a_key_that_is_wrong_is_refused_and_not_shown(
    shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, with what to set."""
    with (
        QdrantCluster(nodes=1, api_key="the-right-one") as keyed,
        Workshop(tmp_path, monkeypatch, shared_s3, {"target": keyed}) as shop,
    ):
        guarded = Target(shop, keyed)
        guarded.create({})
        assert guarded.write([batch(0, VECTORS[:5])])[0].points == 5
        shop.configure(clusters={"target": {"api_key": "the-wrong-one"}})
        with pytest.raises(NodeRefusedError, match=r"(UNAUTHENTICATED|PERMISSION_DENIED)") as caught:
            guarded.write([batch(0, VECTORS[:5])])
        assert "api_key" in str(caught.value.remedy)
        assert "the-wrong-one" not in str(caught.value)
        shop.configure()
