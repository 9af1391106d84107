"""The build writer on real clusters: shards arrive indexed, hold what the source holds, and take writes afterwards."""

import random
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from ferry.archive import builder, routing
from ferry.errors import FerryError, HeadroomError, MigrationError, PreflightError
from ferry.migration import build
from ferry.migration.plan import BackupSource, MigrationRequest, QdrantSource
from ferry.migration.report import CompletenessReport
from ferry.migration.run import run_migration
from ferry.restore.shape import Shape
from sandbox.qdrant import QdrantCluster
from tests.integration.crossings import HOLDER, SERVERS, back_up, quick_job
from tests.integration.samples import CONDITIONS, SAMPLES, Api, Sample, by_shard, everything, floats, point_id
from tests.unit.routing import shard_of
from tests.workshop import Workshop

pytestmark = SERVERS
POINTS = 900
TINY = ("payload", "strict")  # of less than a KiB of vectors in a shard the engine makes no graph, nor does Qdrant


def migrate(shop: Workshop, name: str, **wishes: Any) -> CompletenessReport:
    source = QdrantSource(cluster="source", collection=name)
    usual = {"cluster": "target", "repository": "main", "source": source, "into": f"{name}-new", "writer": "build"}
    return run_migration(shop.connect("target"), MigrationRequest(**{**usual, **wishes}), HOLDER, quick_job())


def buildable(name: str) -> Sample:
    """A sample without the one setting that cannot be built."""
    sample = SAMPLES[name]()
    if name == "quantized":
        del sample.body["vectors"]["binary"]["hnsw_config"]["inline_storage"]
    return sample


def optimizations(cluster: QdrantCluster, name: str) -> Iterator[Any]:
    """What the optimizers of each replica have done since their node was started."""
    for url in cluster.urls:
        with Api(url) as api:
            shown = api.call("GET", "/telemetry?details_level=4")["collections"]["collections"]
        for shard in next(each["shards"] for each in shown if each["id"] == name):
            yield (shard["local"] or {"optimizations": {}})["optimizations"]


def assert_never_optimized(cluster: QdrantCluster, name: str) -> None:
    for done in optimizations(cluster, name):
        assert done.get("optimizations", {}).get("count", 0) == 0
        assert done.get("log", []) == []


@pytest.mark.parametrize(
    "name",
    [
        "named",
        "payload",
        "quantized",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("dense", "strict", "empty")),
    ],
)
def test_whatever_a_collection_holds_arrives_indexed(workshop: Workshop, name: str) -> None:
    """Every kind of vector, quantization and payload index; the target's optimizers have nothing to do."""
    sample, target = buildable(name), workshop.clusters["target"]
    with Api(workshop.clusters["source"].urls[0]) as api:
        api.make(name, sample)
        before = {using: api.nearest(name, using, query) for using, query in sample.queries.items()}
        found = {key: api.filtered(name, CONDITIONS[key], key) for key in sample.indexes if key in CONDITIONS}
    report = migrate(workshop, name)
    assert (report.verdict, report.repaired, report.surplus_removed) == ("equal", 0, 0)
    assert everything(target, f"{name}-new") == everything(workshop.clusters["source"], name)
    with Api(target.urls[1]) as api:
        shown = api.call("GET", f"/collections/{name}-new")
        assert shown["status"] == "green"
        everyone = sum(each.target or 0 for each in report.vectors.values())
        assert shown["indexed_vectors_count"] == everyone or name in TINY
        assert {key: api.filtered(f"{name}-new", CONDITIONS[key], key) for key in found} == found
        for using, query in sample.queries.items():
            # An index of sparse vectors may keep their values as float16, which the source had not built yet.
            exact = pytest.approx([score for score, _ in before[using]], rel=1e-3)
            assert [score for score, _ in api.nearest(f"{name}-new", using, query)] == exact
    assert_never_optimized(target, f"{name}-new")


@pytest.fixture
def docs(workshop: Workshop) -> Workshop:
    """``docs`` on the source, in three shards."""
    rng = random.Random("docs")
    rows = [
        {"id": point_id(n), "vector": floats(rng, 32), "payload": {"group": f"g{n % 2}", "n": n}} for n in range(POINTS)
    ]
    body = {"vectors": {"size": 32, "distance": "Cosine"}, "shard_number": 3}
    with Api(workshop.clusters["source"].urls[0]) as api:
        api.make("docs", Sample(body, rows, {"group": "keyword"}))
    return workshop


def test_other_shards_take_writes_from_then_on(docs: Workshop) -> None:
    """Three shards become five with two copies of each; the first writes after it count, and lie where they belong."""
    target = docs.clusters["target"]
    migrate(docs, "docs", shape=Shape(shard_number=5), replication_factor=2)
    before = everything(target, "docs-new")
    assert before == everything(docs.clusters["source"], "docs")
    new = [str(uuid4()) for _ in range(20)]
    rng = random.Random("later")
    changed, gone = [point_id(n) for n in range(100)], [point_id(n) for n in range(100, 200)]
    with Api(target.urls[0]) as api:
        rows = [{"id": each, "vector": floats(rng, 32), "payload": {"later": True}} for each in [*changed, *new]]
        api.call("PUT", "/collections/docs-new/points?wait=true", {"points": rows})
        api.call("POST", "/collections/docs-new/points/delete?wait=true", {"points": gone})
    shards = by_shard(target, "docs-new")
    after = {point: content for points in shards.values() for point, content in points.items()}
    assert after.keys() == (before.keys() | set(new)) - set(map(str, gone))
    assert {point for point in after if "later" in after[point]} == {*new, *map(str, changed)}
    ids = {str(point): point for point in [*new, *(point_id(n) for n in range(POINTS))]}
    for shard, points in shards.items():
        assert {shard_of(ids[point], tuple(range(5))) for point in points} == {shard}


def test_keys_named_by_a_field_are_built_apart(docs: Workshop) -> None:
    """A tenant split out of a backup whose collection is gone: two shards for each group."""
    back_up(docs)
    with Api(docs.clusters["source"].urls[0]) as api:
        api.call("DELETE", "/collections/docs")
    shape = Shape(sharding="custom", key_field="group", shard_number=2)
    report = migrate(docs, "docs", source=BackupSource(cluster="source", collection="docs"), shape=shape)
    target = docs.clusters["target"]
    assert (report.verdict, report.repaired) == ("equal", 0)
    assert (report.read, report.written, report.deduplicated) == (POINTS, POINTS, 0)
    with Api(target.urls[0]) as api:
        for group in ("g0", "g1"):
            only = {"shard_key": group, "with_payload": True}
            assert {point["payload"]["group"] for point in api.pages("docs-new", **only)} == {group}
        assert api.count("docs-new") == POINTS
    assert_never_optimized(target, "docs-new")


def test_finished_shards_are_not_built_again(docs: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = build._Sent.send

    def broken(self: Any, *given: Any) -> None:
        if len(sent) == 1:
            raise FerryError("the line is cut")
        sent.append(self._shard_id)
        send(self, *given)

    monkeypatch.setattr(build._Sent, "send", broken)
    with pytest.raises(FerryError, match="the line is cut"):
        migrate(docs, "docs")
    assert docs.leftovers() == []
    [first] = sent
    monkeypatch.setattr(build._Sent, "send", lambda self, *given: (sent.append(self._shard_id), send(self, *given)))
    assert migrate(docs, "docs").verdict == "equal"
    assert sorted(sent) == [0, 1, 2]
    assert sent[0] == first
    assert docs.leftovers() == []


def test_what_would_not_work_is_refused(docs: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another ring than the target's, a full disk, a setting that cannot be built; nothing of it stays anywhere."""
    target = docs.clusters["target"]
    with monkeypatch.context() as patch:
        patch.setattr(routing, "VIRTUAL_NODES", 97)
        with pytest.raises(MigrationError, match="places points of docs-new otherwise"):
            migrate(docs, "docs")
    assert everything(target, "docs-new") == {}
    with monkeypatch.context() as patch:
        patch.setattr(build, "SHARD_BYTES", 1 << 60)
        with pytest.raises(HeadroomError, match="needs about"):
            migrate(docs, "docs")
    with monkeypatch.context() as patch:
        patch.setattr(builder, "LEAST_FREE_BYTES", 1 << 60)
        with pytest.raises(HeadroomError, match="ran full while shards were built"):
            migrate(docs, "docs")
    assert docs.leftovers() == []
    assert migrate(docs, "docs").verdict == "equal"
    with Api(docs.clusters["source"].urls[0]) as api:
        api.make("quantized", SAMPLES["quantized"]())
    with pytest.raises(PreflightError, match=r"vector 'binary': setting hnsw_config\.inline_storage"):
        migrate(docs, "quantized")
