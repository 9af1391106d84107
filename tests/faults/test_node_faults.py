"""Nodes that are down, killed, frozen or restarted while a run is at work on them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry.errors import FerryError, NodeUnreachableError
from ferry.qdrant import snapshots
from ferry.qdrant.http import ReplyLostError, Transport
from flows.back_up_cluster import back_up_cluster
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster, QdrantNode
from sandbox.s3 import S3Server
from tests.faults.conftest import SOURCE, furnished
from tests.faults.scene import ALIAS, COLLECTION, LIVE, Scene, fill, later, names_and_aliases, together
from tests.workshop import Workshop

pytestmark = pytest.mark.usefixtures("quick")
LARGE = "large"


@pytest.fixture(scope="module")
def fragile() -> Iterator[QdrantCluster]:
    """Three nodes that may be killed; whole again after each test."""
    with QdrantCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def source(
    fragile: QdrantCluster,
    two_nodes: QdrantCluster,
    shared_s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Scene]:
    """The fragile cluster as source, with a collection of several parts whose only replica is on one node."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"source": fragile, "target": two_nodes}) as shop:
        scene = furnished(shop)
        fill(fragile, LARGE, 1800, size=1024, shards=1, replicas=1)
        scene.remember("source", LARGE)
        yield scene


def holder_of(scene: Scene, collection: str = LARGE) -> QdrantNode:
    """The node with the only replica of a collection."""
    layout = scene.connections().cluster.read_layout([collection])
    found = layout.collection(collection)
    assert found is not None
    url = layout.node(found.shards[0].replicas[0].peer_id).url
    return next(node for node in scene.shop.clusters["source"].nodes if node.url == url)


def through(scene: Scene, node: QdrantNode, proxy: FaultProxy, **profile: float) -> None:
    """Let Ferry reach one node of the source by a proxy."""
    urls = [proxy.url if url == node.url else url for url in scene.shop.clusters["source"].urls]
    scene.configure(clusters={"source": {"nodes": urls, **profile}})


def in_front_of(node: QdrantNode) -> FaultProxy:
    """A proxy before a node."""
    return FaultProxy(("127.0.0.1", node.place.http_port))


def test_a_node_that_is_down_is_named_before_anything_is_touched(source: Scene) -> None:
    """With a node down at the start a backup is refused by its address; the bucket stays empty."""
    node = source.shop.clusters["source"].nodes[2]
    node.kill()
    state = back_up_cluster(**SOURCE, return_state=True)
    assert state.is_failed()
    assert node.url.removeprefix("http://") in (state.message or "")
    assert "python -m ferry doctor" in (state.message or "")
    assert source.shop.objects() == []
    node.restart()
    source.settled("source")
    back_up_cluster(**SOURCE)
    source.require_sound()


def test_a_node_that_is_killed_and_comes_back_during_download_is_waited_for(source: Scene) -> None:
    """The same snapshot is read on from where it broke off, and the run succeeds."""
    node = holder_of(source)
    with in_front_of(node) as proxy:
        through(source, node, proxy)
        proxy.after(2_000_000, together(node.kill, later(1.0, node.restart)))
        backup = back_up_cluster(**SOURCE)
    assert source.complete() == [backup]
    source.configure()
    source.settled("source")
    source.require_sound()


def test_a_node_that_stays_away_during_download_fails_the_run(source: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other collections keep their backup, the run fails naming the node, and its restart leaves nothing."""
    node = holder_of(source)
    with in_front_of(node) as proxy:
        through(source, node, proxy)
        proxy.after(2_000_000, node.kill)
        monkeypatch.setattr(snapshots, "_FRUITLESS_ATTEMPTS", 3)
        with pytest.raises(NodeUnreachableError, match=f"Node 127.0.0.1:{proxy.port} did not answer"):
            source.back_up(delays=())
    assert source.complete() == []
    source.configure()
    node.restart()
    source.settled("source")
    back_up_cluster(**SOURCE)
    source.require_sound()


def test_a_node_that_is_killed_while_it_makes_a_snapshot_leaves_none(source: Scene) -> None:
    """What a node was making when it died is gone with its restart, and the run makes it again or fails by name."""
    node = holder_of(source)
    with in_front_of(node) as proxy:
        through(source, node, proxy)
        fired = threading.Event()

        def watch() -> None:
            while not fired.wait(0.001):
                if any(line.startswith("POST") and "/snapshots" in line for line in proxy.requests):
                    node.kill()
                    later(0.5, node.restart)()
                    return

        threading.Thread(target=watch).start()
        try:
            source.back_up()
        except FerryError as error:
            assert f"127.0.0.1:{proxy.port}" in str(error)  # noqa: PT017 - both ends are right
        fired.set()
    source.configure()
    source.settled("source")
    back_up_cluster(**SOURCE)
    source.require_sound()


def test_a_node_that_dies_over_a_snapshot_is_not_waited_for_for_hours(
    source: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that does not come back fails the run by name long before the time limit of a snapshot."""
    node = holder_of(source)
    asked = Transport.request

    def fatal(self: Transport, method: str, path: str, **named: Any) -> Any:
        if method == "POST" and path.endswith("/snapshots") and self.url == node.url:
            node.kill()
            raise ReplyLostError("the node closed the connection")
        return asked(self, method, path, **named)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "AWAY_SECONDS", 2.0)
        patch.setattr(Transport, "request", fatal)
        with pytest.raises(FerryError, match=f"{node.url.removeprefix('http://')} went away over a snapshot"):
            source.back_up(delays=())
    node.restart()
    source.settled("source")
    source.back_up()
    source.require_sound()


def test_a_frozen_node_is_waited_for(source: Scene) -> None:
    """A node that hangs for longer than every time limit delays the run, and no more."""
    node = holder_of(source)
    with in_front_of(node) as proxy:
        through(source, node, proxy, timeout_seconds=1, stall_seconds=1)
        proxy.after(2_000_000, together(node.freeze, later(4.0, node.thaw)))
        backup = back_up_cluster(**SOURCE)
    assert source.complete() == [backup]
    source.configure()
    source.settled("source")
    source.require_sound()


@pytest.mark.soak  # killed and back at every step: test_nodes_lost_in_restore.py
def test_a_target_node_that_restarts_during_recover(
    three_nodes: QdrantCluster,
    fragile: QdrantCluster,
    shared_s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either the restore recovers the replica again and is equal to its proof, or it drops what it made."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"source": three_nodes, "target": fragile}) as shop:
        scene = furnished(shop)
        fill(three_nodes, LARGE, 1800, size=1024, shards=1, replicas=1)
        scene.remember("source", LARGE)
        scene.back_up()
        with FaultProxy(shared_s3.host_port) as proxy:
            scene.configure(repository={"node_endpoint_url": proxy.url})
            proxy.after(3_000_000, together(*(later(0, node.restart) for node in fragile.nodes[1:])))
            try:
                restored = scene.restore(collection=LARGE, alias=ALIAS, replication_factor=3)
                expected = ({LIVE, restored}, {ALIAS: restored})
            except FerryError:
                expected = ({LIVE}, {ALIAS: LIVE})
        scene.settled("target")
        assert names_and_aliases(fragile) == expected
        scene.configure()
        restored = scene.restore(collection=COLLECTION)
        assert restored in names_and_aliases(fragile)[0]
        scene.require_sound()
