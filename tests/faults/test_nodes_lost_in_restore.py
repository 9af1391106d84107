"""A target node is killed at each step of a restore and comes back seconds later; another time it stays away.

Either the restore goes on and everything is equal, or it fails clearly and leaves nothing; the live collection is as it
was. Nodes that their operator restarts during recover: test_node_faults.py.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ferry.errors import FerryError
from ferry.qdrant import snapshots
from ferry.restore import mend, run, steps
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster, QdrantNode
from sandbox.s3 import S3Server
from tests.faults.conftest import furnished
from tests.faults.scene import ALIAS, COLLECTION, Scene, later, names_and_aliases, soon
from tests.workshop import Workshop

# Longer together than a node takes to start, as the 100 s of a real run are.
DELAYS = (0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 4.0, 4.0)
AWAY_SECONDS = 0.3
FIRST, LAST = 0, 2  # the first node of the profile makes collection and alias; the last only holds replicas
# Where each step is, and whether the node is killed right before it is made.
STEPS: dict[str, tuple[Any, str, bool]] = {
    "create": (steps, "create_target", False),
    "stream": (run, "stream_shard", True),
    "settle": (steps, "settle_target", True),
    "verify": (steps, "verify_restored", True),
    "alias": (steps, "keep_target", False),
}


@pytest.fixture(scope="module")
def fragile() -> Iterator[QdrantCluster]:
    """Three nodes that may be killed."""
    with QdrantCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def backed_up(
    three_nodes: QdrantCluster, fragile: QdrantCluster, shared_s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """A backup of three shards, and a target with a live collection; made once, for no test here may change either."""
    folder = tmp_path_factory.mktemp("lost")
    clusters = {"source": three_nodes, "target": fragile}
    with pytest.MonkeyPatch.context() as patch, Workshop(folder, patch, shared_s3, clusters) as shop:
        scene = furnished(shop)
        scene.back_up()
        yield scene


@pytest.fixture
def scene(backed_up: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Its settings, which another test's end has forgotten."""
    monkeypatch.setenv("FERRY_CONFIG", str(backed_up.shop.config))
    backed_up.configure()
    return backed_up


@pytest.fixture
def proxy(scene: Scene) -> Iterator[FaultProxy]:
    """Between the nodes and the bucket."""
    with FaultProxy(scene.shop.s3.host_port) as made:
        scene.configure(repository={"node_endpoint_url": made.url})
        yield made


class Loss:
    """A node that is killed once, and started again after a moment or when it is told to."""

    def __init__(self, node: QdrantNode, *, comes_back: bool) -> None:
        self.node, self.comes_back, self.happened = node, comes_back, False

    def __call__(self) -> None:
        if self.happened:
            return
        self.happened = True
        self.node.kill()
        if self.comes_back:
            later(AWAY_SECONDS, self.node.start)()


def at(patch: pytest.MonkeyPatch, proxy: FaultProxy, step: str, act: Callable[[], None]) -> None:
    """Do something at a step of the next restore."""
    if step == "recover":
        proxy.after(200_000, act)
        return
    where, name, before = STEPS[step]
    made: Any = getattr(where, name)

    def stepped(*arguments: Any, **named: Any) -> Any:
        if before:
            act()
        done = made(*arguments, **named)
        act()
        return done

    patch.setattr(where, name, stepped)


def digests(scene: Scene, cluster: str, collection: str) -> dict[int, set[str]]:
    """The digests of the replicas of each shard."""
    found: dict[int, set[str]] = {}
    for (shard, _), digest in scene.content(cluster, collection).items():
        found.setdefault(shard, set()).add(digest)
    return found


LOSSES: list[dict[str, int]] = [
    {"create": FIRST, "verify": LAST},
    {"recover": LAST, "alias": FIRST},
    {"settle": FIRST},
]
MORE: list[dict[str, int]] = [
    {"create": LAST, "verify": FIRST},
    {"recover": FIRST, "alias": LAST},
    {"settle": LAST},
    {"stream": FIRST},
    {"stream": LAST},
]


@pytest.mark.parametrize(
    "losses",
    [*LOSSES, *(pytest.param(losses, marks=pytest.mark.soak) for losses in MORE)],
    ids=lambda losses: "-".join(f"{step}{number}" for step, number in losses.items()),
)
def test_a_node_that_is_killed_and_comes_back_is_waited_for(
    scene: Scene, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, losses: dict[str, int]
) -> None:
    """The restore goes on with it: every replica equal to the source's, the alias moved, nothing left."""
    fragile = scene.shop.clusters["target"]
    names, _ = names_and_aliases(fragile)
    happened = {step: Loss(fragile.nodes[number], comes_back=True) for step, number in losses.items()}
    wishes: dict[str, Any] = {"alias": ALIAS, "replication_factor": 2, "into": f"new-{len(names)}"}
    with monkeypatch.context() as patch:
        for step, loss in happened.items():
            at(patch, proxy, step, loss)
        restored = scene.restore(DELAYS, **wishes, path="points" if "stream" in losses else None)
    assert all(loss.happened for loss in happened.values())
    scene.settled("target")
    assert names_and_aliases(fragile) == ({*names, restored}, {ALIAS: restored})
    assert digests(scene, "target", restored) == digests(scene, "source", COLLECTION)
    scene.require_untouched()
    assert scene.shop.leftovers() == []


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("settle", LAST),
        *(pytest.param(step, FIRST, marks=pytest.mark.soak) for step in ("create", "recover", "verify")),
    ],
)
def test_a_node_that_stays_away_fails_the_restore_and_leaves_nothing(
    scene: Scene, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """The error names the node and what to do; the new collection is gone, also from that node when it is back."""
    fragile = scene.shop.clusters["target"]
    before = names_and_aliases(fragile)
    node = fragile.nodes[number]
    loss = Loss(node, comes_back=False)
    monkeypatch.setattr(steps, "ACTIVE_SECONDS", 2.0)
    for module in (mend, snapshots):
        monkeypatch.setattr(module, "AWAY_SECONDS", 2.0)
    with monkeypatch.context() as patch:
        at(patch, proxy, step, loss)
        with pytest.raises(FerryError) as caught:
            scene.restore((0.2, 0.2), into=f"away-{step}", alias=ALIAS, replication_factor=2)
    assert loss.happened
    assert node.url.removeprefix("http://") in caught.value.message
    assert caught.value.remedy
    assert names_and_aliases(fragile) == before
    node.start()
    scene.settled("target")
    soon(lambda: node.answers() and names_and_aliases(fragile) == before)
    scene.require_untouched()
    assert scene.shop.leftovers() == []
