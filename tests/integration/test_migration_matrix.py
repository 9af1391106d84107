"""Migrations into other shards, from a live source and from a backup alone, whole and filtered, with both writers."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product, starmap
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from ferry.migration.plan import BackupSource, MigrationRequest, QdrantSource
from ferry.migration.report import CompletenessReport
from ferry.migration.run import run_migration
from ferry.restore.shape import Shape
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import HOLDER, SERVERS, back_up, quick_job
from tests.integration.samples import Api, Sample, by_shard, everything, floats, point_id
from tests.integration.test_backup_source import AWAY
from tests.integration.test_build_writer import assert_never_optimized
from tests.unit.routing import shard_of
from tests.workshop import Workshop

pytestmark = SERVERS
POINTS, SIZE, FIRST = 900, 24, 200
KEYS: tuple[str | int, ...] = ("a", 7, "7", "ü/2")  # a number and a word of the same digits are two keys
FILTER = {"must": [{"key": "n", "range": {"gte": FIRST}}]}
SHAPES = {
    "shards": Shape(shard_number=5),
    "key": Shape(sharding="custom", into_key="all", shard_number=2),
    "field": Shape(sharding="custom", key_field="group"),
}
PLACES: dict[str, dict[Any, tuple[int, ...]]] = {  # numbers of the shards by key; without keys they begin at 0
    "shards": {None: (0, 1, 2, 3, 4)},
    "key": {"all": (1, 2)},
    "field": {7: (1,), "7": (2,), "a": (3,), "ü/2": (4,)},
}
rng = random.Random("asked")
QUERIES: dict[str, Any] = {"": floats(rng, SIZE), "words": {"indices": [3, 9, 21], "values": [0.3, 0.9, 0.5]}}


class Cell(NamedTuple):
    """One migration."""

    source: str  # live or backup
    shape: str
    chosen: bool
    writer: str  # stream or build

    def __str__(self) -> str:
        return "-".join([self.source, self.shape, *(["filter"] if self.chosen else []), self.writer])

    def key(self, text: str) -> Any:
        """The shard key that a point must have."""
        return {"shards": None, "key": "all", "field": json.loads(text)[0]["group"]}[self.shape]


# These show each choice with each writer, but for a field's keys with the build writer (test_build_writer); all others
# take part in `make soak`.
QUICK = {"live-shards-stream", "live-key-filter-build", "backup-shards-filter-build", "backup-key-stream"}
CELLS = [
    pytest.param(cell, id=str(cell), marks=[] if str(cell) in QUICK else [pytest.mark.soak])
    for cell in starmap(Cell, product(("live", "backup"), SHAPES, (False, True), ("stream", "build")))
]


@dataclass(frozen=True)
class Stage:
    """The clusters, what the source holds, and what it finds; a backup of it is in the repository."""

    shop: Workshop
    held: dict[str, str]
    found: dict[bool, dict[str, list[tuple[float, str]]]]

    @property
    def target(self) -> QdrantCluster:
        return self.shop.clusters["target"]

    def wanted(self, cell: Cell) -> dict[str, str]:
        """The points that are to arrive."""
        return {name: text for name, text in self.held.items() if not cell.chosen or json.loads(text)[0]["n"] >= FIRST}


def docs() -> Sample:
    """Dense and sparse vectors, some of them missing, ids of every kind, and graphs from the first KiB on."""
    made = random.Random("docs")
    body = {
        "vectors": {"size": SIZE, "distance": "Cosine"},
        "sparse_vectors": {"words": {}},
        "shard_number": 3,
        "hnsw_config": {"m": 8, "ef_construct": 40, "full_scan_threshold": 10},
        "optimizers_config": {"indexing_threshold": 1, "default_segment_number": 1},
    }
    points = []
    for n in range(POINTS):
        words = {"indices": made.sample(range(30), 6), "values": [made.random() for _ in range(6)]}
        vectors = {"": floats(made, SIZE), "words": words}
        if n % 11 == 10:
            del vectors["words" if n % 2 else ""]
        payload = {"n": n, "group": KEYS[n % len(KEYS)], "deep": {"ключ": [n, {"ü.b": None}]}}
        points.append({"id": point_id(n), "vector": vectors, "payload": payload})
    return Sample(body, points, {"n": "integer"})


def found_by(api: Api, name: str, query: str, chosen: bool) -> list[tuple[float, str]]:
    """Scores and ids of an exact search."""
    body = {"query": QUERIES[query], "limit": 20, "params": {"exact": True}}
    body |= {"using": query} if query else {}
    body |= {"filter": FILTER} if chosen else {}
    points = api.call("POST", api.of(name) + "/points/query", body)["points"]
    return [(point["score"], str(point["id"])) for point in points]


@pytest.fixture(scope="module")
def stage(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """No cell changes the source or its backup."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(
            tmp_path_factory.mktemp("cells"), monkeypatch, shared_s3, {"source": three_nodes, "target": two_nodes}
        ) as shop,
        Api(three_nodes.urls[0]) as api,
    ):
        api.make("docs", docs())
        found = {chosen: {query: found_by(api, "docs", query, chosen) for query in QUERIES} for chosen in (False, True)}
        back_up(shop)
        yield Stage(shop, everything(three_nodes, "docs"), found)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell(stage: Stage, cell: Cell) -> None:
    """Every point as it was in the shard that Qdrant asks for it, found as before, and the collection takes writes."""
    name, wanted = str(cell), stage.wanted(cell)
    report = migrate(stage, cell)
    assert (report.verdict, report.writer, report.rejected) == ("equal", cell.writer, ())
    assert (report.read, report.written, report.target_points, report.source_points) == (len(wanted),) * 4
    assert report.source_digest == report.target_digest
    assert (report.repaired, report.surplus_removed, report.deduplicated, report.passes) == (0, 0, 0, 1)
    vectors = {query: sum(query in vectors_of(text) for text in wanted.values()) for query in QUERIES}
    assert {query: count.target for query, count in report.vectors.items()} == vectors

    assert by_shard(stage.target, name) == placed(cell, {each: (cell.key(text), text) for each, text in wanted.items()})
    assert {key: numbers for key, numbers in rings(stage.target, name).items()} == PLACES[cell.shape]
    with Api(stage.target.urls[1]) as api:
        for query, before in stage.found[cell.chosen].items():
            after = found_by(api, name, query, chosen=False)
            assert [each for _, each in after] == [each for _, each in before]
            assert [score for score, _ in after] == pytest.approx([score for score, _ in before], rel=1e-5)
        if cell.writer == "build":
            assert api.call("GET", api.of(name))["indexed_vectors_count"] == sum(vectors.values())
    if cell.writer == "build":
        assert_never_optimized(stage.target, name)
        assert graphs(stage.target, name) == {"hnsw"}
    assert_takes_writes(stage, cell, wanted)
    assert stage.shop.leftovers("target") == []


def migrate(stage: Stage, cell: Cell) -> CompletenessReport:
    """A backup is read while its cluster cannot be reached."""
    stage.shop.configure(clusters=AWAY if cell.source == "backup" else None)
    source = (BackupSource if cell.source == "backup" else QdrantSource)(cluster="source", collection="docs")
    request = MigrationRequest(
        cluster="target",
        repository="main",
        source=source,
        into=str(cell),
        filter=FILTER if cell.chosen else None,
        shape=SHAPES[cell.shape],
        writer=cell.writer,
        batch_bytes=16_384,
    )
    return run_migration(stage.shop.connect("target"), request, HOLDER, quick_job())


def vectors_of(text: str) -> dict[str, Any]:
    """The vectors of a point by name, however REST shows them."""
    shown = json.loads(text)[1]
    return shown if isinstance(shown, dict) else {"": shown}


def placed(cell: Cell, points: dict[str, tuple[Any, str]]) -> dict[int, dict[str, str]]:
    """The points by the shard that each belongs in, worked out by hand."""
    shards: dict[int, dict[str, str]] = {number: {} for numbers in PLACES[cell.shape].values() for number in numbers}
    for name, (key, text) in points.items():
        shards[shard_of(plain(name), PLACES[cell.shape][key])][name] = text
    return shards


def plain(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def rings(cluster: QdrantCluster, name: str) -> dict[Any, tuple[int, ...]]:
    """Numbers of shards by their key, as the nodes show them."""
    found: dict[Any, set[int]] = defaultdict(set)
    for url in cluster.urls:
        with Api(url) as api:
            for shard in api.call("GET", api.of(name) + "/cluster")["local_shards"]:
                found[shard.get("shard_key")].add(shard["shard_id"])
    return {key: tuple(sorted(numbers)) for key, numbers in found.items()}


def graphs(cluster: QdrantCluster, name: str) -> set[str]:
    """How the dense vectors of all segments that hold points are indexed."""
    kinds = set()
    for url in cluster.urls:
        with Api(url) as api:
            shown = api.call("GET", "/telemetry?details_level=6")["collections"]["collections"]
        for shard in next(each["shards"] for each in shown if each["id"] == name):
            for segment in (shard["local"] or {"segments": []})["segments"]:
                if segment["info"]["num_points"]:
                    kinds.add(segment["config"]["vector_data"][""]["index"]["type"])
    return kinds


def assert_takes_writes(stage: Stage, cell: Cell, wanted: dict[str, str]) -> None:
    """Points that are new, written again and deleted by plain REST: each is changed where it is, and none is twice."""
    keys, names, later = list(PLACES[cell.shape]), sorted(wanted), random.Random(str(cell))
    points = {each: cell.key(wanted[each]) for each in names}
    new = {str(each): keys[n % len(keys)] for n in range(20) for each in (10**12 + n, uuid4())}
    changed, gone = {each: points[each] for each in names[:60]}, {each: points[each] for each in names[60:120]}
    with Api(stage.target.urls[0]) as api:
        path = api.of(str(cell)) + "/points"
        for key in keys:
            of_key = {} if key is None else {"shard_key": key}
            rows = [
                {"id": plain(each), "vector": floats(later, SIZE), "payload": {"later": True}}
                for each, its in {**new, **changed}.items()
                if its == key and type(its) is type(key)
            ]
            api.call("PUT", f"{path}?wait=true", {"points": rows, **of_key})
            ids = [plain(each) for each, its in gone.items() if its == key and type(its) is type(key)]
            api.call("POST", f"{path}/delete?wait=true", {"points": ids, **of_key})
        left = {each: key for each, key in {**points, **new}.items() if each not in gone}
        assert api.count(str(cell)) == len(left)
    shards = by_shard(stage.target, str(cell))
    expected = placed(cell, {each: (key, "") for each, key in left.items()})
    assert {number: set(of_shard) for number, of_shard in shards.items()} == {
        number: set(of_shard) for number, of_shard in expected.items()
    }
    after = {each: text for of_shard in shards.values() for each, text in of_shard.items()}
    assert {each for each, text in after.items() if '"later"' in text} == {*new, *changed}
    assert all(after[each] == wanted[each] for each in left if each not in new and each not in changed)
