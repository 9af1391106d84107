"""What goes wrong while points are sent to a new collection: they arrive all the same, or nothing is left."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ferry.qdrant import writer
from ferry.restore.shape import Shape
from flows.restore_collection import restore_collection
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.faults.conftest import RESTORE, TARGET, Runs, furnished
from tests.faults.scene import ALIAS, LIVE, Scene, fill, later, names_and_aliases
from tests.integration.crossings import address
from tests.workshop import Workshop

LARGE = "large"
POINTS, SIZE = 1800, 512  # about 20 batches
TWO_SHARDS = {"shard_number": 2}


@pytest.fixture(scope="module")
def fragile() -> Iterator[QdrantCluster]:
    """Three nodes that may be killed."""
    with QdrantCluster(nodes=3) as cluster:
        yield cluster


@pytest.mark.usefixtures("quick")
def test_the_next_restore_tidies_after_one_that_was_killed_in_mid_stream(scene: Scene, runs: Runs) -> None:
    """Half of the points are gone with their collection, the alias was not touched, and the next run sends all."""
    scene.back_up()
    target = scene.shop.clusters["target"]
    runs.killed(RESTORE, TARGET | {"shape": TWO_SHARDS, "into": "dead"}, "ferry.qdrant.writer:_Writer.write", nth=2)
    assert names_and_aliases(target) == ({LIVE, "dead"}, {ALIAS: LIVE})
    restored = restore_collection(**TARGET, shape=Shape(**TWO_SHARDS), verify="content")
    assert names_and_aliases(target) == ({LIVE, restored}, {ALIAS: restored})
    scene.require_sound()


def test_connections_that_break_in_mid_stream(scene: Scene) -> None:
    """Whatever was under way is sent again; every point arrives once."""
    fill(scene.shop.clusters["source"], LARGE, POINTS, size=SIZE, shards=1, replicas=1)
    scene.back_up()
    with ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy(address(url))) for url in scene.shop.clusters["target"].urls]
        scene.configure(clusters={"target": {"nodes": [proxy.url for proxy in proxies]}})
        for number, proxy in enumerate(proxies):
            proxy.after(1_500_000 * (number + 1), proxy.cut)
        restored = scene.restore(delays=(), collection=LARGE, shape=TWO_SHARDS)
        assert min(proxy.bytes_total for proxy in proxies) > 3_000_000
        scene.configure()
    assert restored in names_and_aliases(scene.shop.clusters["target"])[0]
    scene.require_sound()


@pytest.mark.parametrize("copies", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_node_that_is_killed_and_comes_back_in_mid_stream(
    three_nodes: QdrantCluster,
    fragile: QdrantCluster,
    shared_s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    copies: int,
) -> None:
    """With one copy it is waited for, with two the others take its points; in the end each replica has them all."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"source": three_nodes, "target": fragile}) as shop:
        scene = furnished(shop)
        fill(three_nodes, LARGE, POINTS, size=SIZE, shards=1, replicas=1)
        scene.back_up()
        write, batches = writer._Writer.write, [0]

        def deadly(self: writer._Writer, *batch: Any) -> int:
            batches[0] += 1
            if batches[0] == 6:
                fragile.nodes[1].kill()
                later(1.0, fragile.nodes[1].restart)()
            return write(self, *batch)

        monkeypatch.setattr(writer._Writer, "write", deadly)
        shape = {"shard_number": 3}
        wishes: dict[str, Any] = {"alias": ALIAS, "shape": shape, "replication_factor": copies}
        restored = scene.restore(delays=(), collection=LARGE, **wishes)  # no step is tried again: the writer goes on
        assert batches[0] > 12
        scene.settled("target")
        assert names_and_aliases(fragile) == ({LIVE, restored}, {ALIAS: restored})
        assert len(scene.content("target", restored)) == 3 * copies
        scene.require_sound()
