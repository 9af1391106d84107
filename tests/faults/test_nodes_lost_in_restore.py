"""A target node is killed at each step of a restore and comes back seconds later; another time it stays away.

Either the restore goes on and everything is equal, or it fails clearly and leaves nothing; the live collection and its
alias are as they were. A node that is restarted during recover by its operator: test_node_faults.py.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ferry.errors import FerryError
from ferry.restore import steps
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster, QdrantNode
from sandbox.s3 import S3Server
from tests.faults.conftest import furnished
from tests.faults.scene import ALIAS, COLLECTION, Scene, later, names_and_aliases, soon
from tests.workshop import Workshop

# Longer together than a node takes to start, as the 100 s of a real run are.
DELAYS = (0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 4.0, 4.0)
AWAY_SECONDS = 0.3


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


def lose(node: QdrantNode) -> Callable[[], None]:
    """Kill a node once, and start it again a moment later."""
    done: list[bool] = []

    def kill() -> None:
        if not done:
            done.append(True)
            node.kill()
            later(AWAY_SECONDS, node.start)()

    return kill


def around(
    patch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    *,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Do something right before or right after a step of the restore."""
    step = getattr(where, name)

    def stepped(*arguments: Any, **named: Any) -> Any:
        if before:
            before()
        done = step(*arguments, **named)
        if after:
            after()
        return done

    patch.setattr(where, name, stepped)


def end_of(scene: Scene, **wishes: Any) -> str | None:
    """Restore, and hold the oracle against its end: the new collection's name, or None after a clear failure."""
    fragile = scene.shop.clusters["target"]
    names, aliases = names_and_aliases(fragile)
    try:
        restored = scene.restore(DELAYS, alias=ALIAS, replication_factor=2, **wishes)
    except FerryError as error:
        print(type(error), error)
        restored = None
    soon(lambda: all(node.cluster_state() for node in fragile.nodes))
    scene.settled("target")
    if restored is None:
        assert names_and_aliases(fragile) == (names, aliases)
    else:
        assert names_and_aliases(fragile) == ({*names, restored}, {ALIAS: restored})
        source = {shard: digest for (shard, _), digest in scene.before["source", COLLECTION].items()}
        assert {shard: {digest} for shard, digest in source.items()} == digests(scene, restored)
    return restored


def digests(scene: Scene, collection: str) -> dict[int, set[str]]:
    """The digests of the replicas of each shard on the target."""
    found: dict[int, set[str]] = {}
    for (shard, _), digest in scene.content("target", collection).items():
        found.setdefault(shard, set()).add(digest)
    return found


@pytest.mark.parametrize("number", [0, 2], ids=["first", "last"])
@pytest.mark.parametrize("step", ["create", "recover", "settle", "verify", "alias"])
def test_a_node_is_killed_at_a_step_and_comes_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """The first node of the profile is the one that makes collection and alias; the last only holds replicas."""
    node = scene.shop.clusters["target"].nodes[number]
    kill = lose(node)
    with monkeypatch.context() as patch, FaultProxy(scene.shop.s3.host_port) as proxy:
        if step == "create":
            around(patch, steps, "create_target", after=kill)
        elif step == "recover":
            scene.configure(repository={"node_endpoint_url": proxy.url})
            proxy.after(200_000, kill)
        elif step == "settle":
            around(patch, steps, "settle_target", before=kill)
        elif step == "verify":
            around(patch, steps, "verify_restored", before=kill)
        else:
            around(patch, steps, "keep_target", after=kill)
        restored = end_of(scene, into=f"{step}-{number}")
    print(step, number, restored)
