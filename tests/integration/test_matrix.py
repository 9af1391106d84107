"""From any shape to any other: nodes, copies, shards, shard keys; every point ends where Qdrant looks for it.

One backup of a source of three nodes, and targets that all cells share: four nodes behind an API key, two, and a single
node without cluster mode.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from math import ceil, floor
from typing import Any

import pytest

from ferry.backup.plan import BackupRequest
from ferry.backup.run import prepare, run_backup
from ferry.errors import FerryError
from ferry.lanes import Job
from ferry.repository.manifest import BackupRecord
from ferry.restore.run import Restored
from ferry.restore.shape import Shape
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import (
    HOLDER,
    SERVERS,
    Eavesdropper,
    StandaloneNode,
    back_up,
    changes_something,
    new_id,
    proven_everywhere,
    quick_job,
    restore,
)
from tests.integration.samples import SAMPLES, Api, Sample, by_shard, everything, few
from tests.integration.tokens import TokenCluster, token
from tests.unit.routing import shard_of
from tests.workshop import Workshop

pytestmark = SERVERS

# Key, shards and copies in the order of their making; "gone" leaves a gap in the numbers: 1-2, 3, 5-6.
KEYS: list[tuple[str | int, int, int]] = [("z/ключ", 2, 1), ("b", 1, 2), ("gone", 1, 1), (7, 2, 2)]
POINTS_OF_KEY = 60


@dataclass(frozen=True)
class Stage:
    """The clusters, and one backup of everything on the source."""

    shop: Workshop
    record: BackupRecord


@dataclass(frozen=True)
class Cell:
    """One restore: of what, to which cluster, how, and what must come of it."""

    of: str
    to: str
    path: str
    nodes: int
    shards: dict[int, Any]  # number and key
    copies: int
    asked: dict[str, Any] = field(default_factory=dict)
    without: tuple[Any, ...] = ()  # keys that are left out


def plain(number: int) -> dict[int, None]:
    """Shards without keys."""
    return dict.fromkeys(range(number))


CELLS = {
    "nodes 3 to 4, shards 3 to 3, copies 2 to 3": Cell(
        "three", "four", "shards", 4, plain(3), 3, {"replication_factor": 3}
    ),
    "nodes 3 to 2, copies 2 to 1": Cell("three", "two", "shards", 2, plain(3), 1, {"replication_factor": 1}),
    "nodes 3 to 1, a node without cluster mode": Cell("named", "one", "shards", 1, plain(2), 1),
    "copies 1 to 2, shards 6 to 6": Cell("six", "four", "shards", 4, plain(6), 2, {"replication_factor": 2}),
    "shards 3 to 5": Cell("three", "two", "points", 2, plain(5), 2, {"shape": Shape(shard_number=5)}),
    "shards 6 to 2": Cell("six", "four", "points", 4, plain(2), 1, {"shape": Shape(shard_number=2)}),
    "one shard to one key": Cell(
        "single", "two", "shards", 2, {1: "all"}, 1, {"shape": Shape(sharding="custom", into_key="all")}
    ),
    "auto to one key of many shards": Cell(
        "three", "two", "points", 2, {1: 7, 2: 7, 3: 7}, 2, {"shape": Shape(sharding="custom", into_key=7)}
    ),
    "auto to a key for each tenant": Cell(
        "six", "two", "points", 2, {1: "t0", 2: "t1"}, 1, {"shape": Shape(sharding="custom", key_field="tenant")}
    ),
    "keys to auto": Cell("keyed", "two", "points", 2, plain(5), 2, {"shape": Shape(sharding="auto")}),
    "one key to auto": Cell(
        "keyed", "two", "shards", 2, plain(1), 2, {"shape": Shape(sharding="auto", only_keys=("b",))},
        without=("z/ключ", 7),
    ),
    "keys as they were": Cell(
        "keyed", "four", "shards", 4, {1: "z/ключ", 2: "z/ключ", 3: "b", 5: 7, 6: 7}, 2,
    ),
    "keys renamed": Cell(
        "keyed", "two", "shards", 2, {1: "z/ключ", 2: "z/ключ", 3: 7, 5: "seven", 6: "seven"}, 2,
        {"shape": Shape(rename_keys={"7": "seven", "b": 7})},
    ),
    "one key only, with its shards' numbers": Cell(
        "keyed", "four", "shards", 4, {5: 7, 6: 7}, 2, {"shape": Shape(only_keys=(7,))}, without=("z/ключ", "b"),
    ),
    "two keys into one, the third with more shards": Cell(
        "keyed", "four", "points", 4, {1: "x", 2: "x", 3: "x", 4: "b", 5: "b", 6: "b"}, 2,
        {"shape": Shape(rename_keys={"7": "x", "z/ключ": "x"}, shard_number=3)},
    ),
}  # fmt: skip


def sample_of(name: str, shards: int, copies: int) -> Sample:
    """Points of every kind of id, of two tenants."""
    made = few(name, 240)
    points = [point | {"payload": point["payload"] | {"tenant": f"t{n % 2}"}} for n, point in enumerate(made.points)]
    body = made.body | {"shard_number": shards, "replication_factor": copies, "write_consistency_factor": copies}
    return replace(made, body=body, points=points, indexes={"tenant": "keyword"})


def make_keyed(api: Api) -> None:
    """A collection sharded by keys; no id is in two of them."""
    api.call("PUT", "/collections/keyed", few("keyed").body | {"sharding_method": "custom"})
    points = iter(few("keyed", POINTS_OF_KEY * len(KEYS)).points)
    for key, shards, copies in KEYS:
        body = {"shard_key": key, "shards_number": shards, "replication_factor": copies}
        api.call("PUT", "/collections/keyed/shards", body)
        rows = [next(points) | {"payload": {"key": key}} for _ in range(POINTS_OF_KEY)]
        api.call("PUT", "/collections/keyed/points?wait=true", {"points": rows, "shard_key": key})
    api.call("POST", "/collections/keyed/shards/delete", {"shard_key": "gone"})


@pytest.fixture(scope="module")
def stage(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Made once: no cell changes the source or its backup."""
    folder = tmp_path_factory.mktemp("matrix")
    with (
        TokenCluster(4, folder=folder / "four") as four,
        StandaloneNode(folder / "one") as one,
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(
            folder, monkeypatch, shared_s3, {"source": three_nodes, "two": two_nodes, "four": four, "one": one}
        ) as shop,
        Api(three_nodes.urls[0]) as source,
    ):
        for name, shards, copies in (("three", 3, 2), ("six", 6, 1), ("single", 1, 1)):
            source.make(name, sample_of(name, shards, copies))
        source.make("named", SAMPLES["named"]())
        make_keyed(source)
        yield Stage(shop, back_up(shop))


@pytest.fixture(scope="module")
def restores(stage: Stage) -> dict[str, Future[Restored]]:
    """Every cell's restore, into a collection called like the cell: clusters beside each other, on each one by one."""
    lanes: dict[str, list[str]] = defaultdict(list)
    for name, cell in CELLS.items():
        lanes[cell.to].append(name)

    def restored(name: str) -> Restored:
        cell = CELLS[name]
        return restore(stage.shop, stage.record, cell.of, cluster=cell.to, into=name, **cell.asked)

    ended = Job().run(list(lanes.values()), restored)
    return dict(zip((name for lane in lanes.values() for name in lane), ended, strict=True))


@pytest.fixture(autouse=True)
def settings(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the stage, which name all its clusters."""
    monkeypatch.setenv("FERRY_CONFIG", str(stage.shop.config))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell(stage: Stage, restores: dict[str, Future[Restored]], name: str) -> None:
    """The path that was planned, every point equal on every replica, and in the shard that Qdrant asks for it."""
    cell, restored = CELLS[name], restores[name].result()
    assert (restored.plan.path, len(restored.plan.layout.nodes)) == (cell.path, cell.nodes)
    assert all(verdict.problems == () and verdict.compared == verdict.points for verdict in restored.verdicts)
    assert all(verdict.digest for verdict in restored.verdicts)
    found = by_shard(stage.shop.clusters[cell.to], name)
    assert together(found) == wanted(stage, cell)

    layout = stage.shop.connect(cell.to).cluster.read_layout([name]).collection(name)
    assert layout is not None
    keys = {int(shard.shard_id): shard.key for shard in layout.shards}
    assert keys == cell.shards
    replicas = [replica for shard in layout.shards for replica in shard.replicas]
    assert {replica.state for replica in replicas} == {"Active"}
    assert max(len(shard.replicas) for shard in layout.shards) == cell.copies
    params = layout.config["params"]
    assert params["write_consistency_factor"] <= params["replication_factor"] == restored.plan.replication_factor
    if not layout.custom_sharding:
        held = Counter(replica.peer_id for replica in replicas)
        evenly = len(replicas) / cell.nodes
        assert {held[node.peer_id] for node in restored.plan.layout.nodes} <= {floor(evenly), ceil(evenly)}
    points_are_where_they_are_looked_for(found, keys)
    written_again_none_is_twice(stage, cell, name, keys)


def together(shards: dict[int, dict[str, str]]) -> dict[str, str]:
    """The points of all shards; none is in two of them."""
    found = {point: text for points in shards.values() for point, text in points.items()}
    assert len(found) == sum(map(len, shards.values()))
    return found


def wanted(stage: Stage, cell: Cell) -> dict[str, str]:
    """The points of the source, without those of keys that are left out."""
    points = everything(stage.shop.clusters["source"], cell.of)
    return {point: text for point, text in points.items() if json.loads(text)[0].get("key") not in cell.without}


def points_are_where_they_are_looked_for(found: dict[int, dict[str, str]], keys: dict[int, Any]) -> None:
    """By Qdrant's own rule, which goes by the numbers of a key's shards."""
    for number, points in found.items():
        ring = tuple(other for other, key in keys.items() if key == keys[number])
        assert {shard_of(int(point) if point.isdecimal() else point, ring) for point in points} <= {number}


def written_again_none_is_twice(stage: Stage, cell: Cell, name: str, keys: dict[int, Any]) -> None:
    """The collection takes writes, and each point goes to where it is."""
    cluster = stage.shop.clusters[cell.to]
    before, vector = by_shard(cluster, name), {} if cell.of == "named" else [0.5] * 4
    with Api(cluster.urls[0], cluster.api_key) as api:
        for number, points in before.items():
            rows = [{"id": int(point) if point.isdecimal() else point, "vector": vector} for point in points]
            body = {"points": rows} | ({} if keys[number] is None else {"shard_key": keys[number]})
            api.call("PUT", api.of(name) + "/points?wait=true", body)
    after = by_shard(cluster, name)
    assert {number: points.keys() for number, points in after.items()} == {
        number: points.keys() for number, points in before.items()
    }


def test_nothing_is_left_behind(stage: Stage, restores: dict[str, Future[Restored]]) -> None:
    """No cell leaves a snapshot, an upload, a lease, a journal entry or a spooled archive."""
    assert len(restores) == len(CELLS)
    assert stage.shop.leftovers() == []


def test_from_one_node_to_three(stage: Stage, restores: dict[str, Future[Restored]]) -> None:
    """A node without cluster mode is backed up, and its collection comes to a cluster of three with two copies."""
    (name,) = [name for name, cell in CELLS.items() if cell.to == "one"]
    restores[name].result()
    shop = stage.shop
    request = BackupRequest(backup_id=new_id(), cluster="one", repository="main", include=(name,))
    connections = shop.connect("one")
    record = run_backup(connections, prepare(connections, request), HOLDER, quick_job())
    asked = {"cluster": "source", "source_cluster": "one", "into": "back", "replication_factor": 2}
    back = restore(shop, record, name, **asked)
    assert proven_everywhere(back)
    assert everything(shop.clusters["source"], "back") == everything(shop.clusters["one"], name)
    assert shop.leftovers() == []


def test_a_token_for_one_collection_is_refused_before_anything_is_made(stage: Stage) -> None:
    """Neither it nor one that only reads gets further than being asked; the error names the right that is missing."""
    shop, four = stage.shop, stage.shop.clusters["four"]
    limits: dict[str, Any] = {"Global access is required": [{"collection": "new", "access": "rw"}]}
    limits["refuses what restores .* need: Forbidden: Global manage access"] = "r"
    with Api(four.urls[0], four.api_key) as api:
        before = api.collections(), api.aliases()
        for said, access in limits.items():
            with Eavesdropper(shop, "four") as heard:
                nodes = [proxy.url for proxy in heard.nodes]
                shop.configure(clusters={"four": {"nodes": nodes, "api_key": token({"access": access})}})
                with pytest.raises(FerryError, match=said) as refused:
                    restore(shop, stage.record, "three", cluster="four", into="new")
                assert heard.nodes[0].requests
                assert [line for line in heard.of_nodes() if changes_something(line)] == []
            assert "api_key to" in (refused.value.remedy or "")
            assert (api.collections(), api.aliases()) == before
    shop.configure()
    assert shop.leftovers() == []
