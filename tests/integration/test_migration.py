"""Migrations between real clusters, three nodes to two: other shards, keys and points; stopped and gone on with."""

import random
from typing import Any

import pytest

from ferry.errors import FerryError, PreflightError, StoppedError
from ferry.lanes import Job
from ferry.migration import records
from ferry.migration.plan import MigrationRequest, QdrantSource
from ferry.migration.prepare import prepare_migration
from ferry.migration.report import CompletenessReport
from ferry.migration.run import alone, run_migration
from ferry.migration.target import HELD_BACK
from ferry.models import Progress
from tests.integration.crossings import HOLDER, SERVERS, quick_job
from tests.integration.samples import SAMPLES, Api, Sample, everything, floats, point_id
from tests.workshop import Workshop

pytestmark = SERVERS
POINTS = 600
GROUPS = ("a", "b", "ü")


def grouped() -> Sample:
    """Ids of every kind, an index for HNSW soon, and a field that could be a shard key."""
    rng = random.Random("grouped")
    body = {
        "vectors": {"size": 16, "distance": "Cosine"},
        "sparse_vectors": {"words": {}},
        "shard_number": 3,
        "replication_factor": 2,
        "optimizers_config": {"indexing_threshold": 20, "default_segment_number": 2},
        "metadata": {"owner": "team"},
    }
    points = [
        {
            "id": point_id(n),
            "vector": {"": floats(rng, 16), "words": {"indices": [n % 7, 9], "values": [0.5, float(n)]}},
            "payload": {"group": GROUPS[n % 3], "n": n, "text": "x" * (n % 300)},
        }
        for n in range(POINTS)
    ]
    return Sample(body, points, {"group": "keyword", "n": "integer"})


@pytest.fixture
def docs(workshop: Workshop) -> Workshop:
    """``docs`` on the source."""
    with Api(workshop.clusters["source"].urls[0]) as api:
        api.make("docs", grouped())
    return workshop


def asked(**wishes: Any) -> MigrationRequest:
    usual = {"cluster": "target", "repository": "main", "source": QdrantSource(cluster="source", collection="docs")}
    return MigrationRequest(**{**usual, "into": "new", "batch_bytes": 16_384, **wishes})


def migrate(shop: Workshop, job: Job | None = None, **wishes: Any) -> CompletenessReport:
    return run_migration(shop.connect("target"), asked(**wishes), HOLDER, job or quick_job())


def content(shop: Workshop, cluster: str, name: str) -> dict[Any, Any]:
    """Every point by its id, as Qdrant's REST API shows it."""
    with Api(shop.clusters[cluster].urls[0]) as api:
        return {point["id"]: point for point in api.pages(name, limit=1000, with_payload=True, with_vector=True)}


def config(shop: Workshop, name: str = "new") -> dict[str, Any]:
    with Api(shop.clusters["target"].urls[0]) as api:
        found: dict[str, Any] = api.call("GET", api.of(name))
        return found


def shard_keys(shop: Workshop, name: str = "new") -> list[Any]:
    """The shard key of every shard, in the order of their numbers."""
    layout = shop.connect("target").cluster.read_layout([name]).collection(name)
    assert layout is not None
    return [shard.key for shard in layout.shards]


def test_a_collection_gets_other_shards_on_fewer_nodes(docs: Workshop) -> None:
    """3 shards on 3 nodes become 5 on 2: every point as it was, the schema too, and nothing of ours is left there."""
    report = migrate(docs, shape={"shard_number": 5})
    assert (report.verdict, report.read, report.written, report.target_points) == ("equal", POINTS, POINTS, POINTS)
    assert report.source_digest == report.target_digest
    assert report.vectors["words"].target == POINTS
    assert content(docs, "target", "new") == content(docs, "source", "docs")
    found = config(docs)
    assert found["config"]["optimizer_config"]["indexing_threshold"] == 20
    assert found["config"]["metadata"] == {"owner": "team"}
    assert found["status"] == "green"
    assert {field: info["data_type"] for field, info in found["payload_schema"].items()} == {
        "group": "keyword",
        "n": "integer",
    }
    assert shard_keys(docs) == [None] * 5
    assert docs.objects("loads/") == []
    assert docs.leftovers() == []
    # It is the operator's now: the same call again says so, and touches nothing.
    with Api(docs.clusters["target"].urls[0]) as api:
        api.call("POST", api.of("new") + "/points/delete?wait=true", {"points": [0]})
    assert migrate(docs, shape={"shard_number": 5}) == report
    assert len(content(docs, "target", "new")) == POINTS - 1
    with pytest.raises(PreflightError, match="not made by this migration"):
        migrate(docs, restart=True)


def test_points_come_under_the_shard_keys_that_a_field_names_and_only_those_of_the_filter(docs: Workshop) -> None:
    """auto → custom: a key for each value of the field, one shard each, and no point that was not asked for."""
    chosen = {"must": [{"key": "n", "range": {"gte": 150}}]}
    report = migrate(docs, shape={"sharding": "custom", "key_field": "group"}, filter=chosen)
    assert (report.verdict, report.written) == ("equal", POINTS - 150)
    before = {key: point for key, point in content(docs, "source", "docs").items() if point["payload"]["n"] >= 150}
    found = content(docs, "target", "new")
    assert {point.pop("shard_key") for point in found.values()} == set(GROUPS)
    assert found == before
    assert sorted(shard_keys(docs)) == sorted(GROUPS)
    with Api(docs.clusters["target"].urls[0]) as api:
        under = {group: list(api.pages("new", limit=1000, shard_key=group, with_payload=True)) for group in GROUPS}
    assert all(point["payload"]["group"] == group for group, points in under.items() for point in points)


class Stopped(Job):
    """A job that is stopped when so many points were applied, as a cancel does."""

    def __init__(self, after_points: int) -> None:
        super().__init__(retry_delays_seconds=())
        self._left = after_points

    def _stoppable(self, label: str, show: Progress) -> Progress:
        inner = super()._stoppable(label, show)

        def tell(done: int) -> None:
            inner(done)
            self._left -= done
            if self._left <= 0:
                raise StoppedError("a test has had enough")

        return tell


def test_a_stopped_migration_goes_on_where_it_was_and_refuses_to_when_something_has_changed(docs: Workshop) -> None:
    """What was applied counts once; other readers and batches are fine, another filter or schema is refused by name."""
    with pytest.raises(StoppedError):
        migrate(docs, Stopped(200), readers=1, batch_bytes=8192)
    connections = docs.connect("target")
    plan = records.saved_plan(connections, records.migration_id_of(asked()))
    assert plan is not None
    states = records.range_states(connections, plan)
    assert 0 < sum(state.read for state in states) < POINTS
    # Stopped, it indexes what it has, and nothing but its plan, its checkpoints and itself is left.
    assert config(docs)["config"]["optimizer_config"]["indexing_threshold"] == 20
    assert docs.objects("loads/") == []
    assert docs.leftovers() == []

    refused: dict[str, dict[str, Any]] = {
        "filter": {"filter": {"must": [{"key": "n", "range": {"gte": 1}}]}},
        "shape": {"shape": {"shard_number": 4}},
        "changes": {"changes": {"drop_fields": ("text",)}},
        "writer": {"writer": "build"},
    }
    for name, wish in refused.items():
        with pytest.raises(PreflightError, match=name):
            prepare_migration(connections, asked(**wish))
    with Api(docs.clusters["source"].urls[0]) as api:
        api.call("PUT", api.of("docs") + "/index?wait=true", {"field_name": "text", "field_schema": "keyword"})
        with pytest.raises(PreflightError, match="payload index text"):
            migrate(docs)
        api.call("DELETE", api.of("docs") + "/index/text?wait=true")
    assert records.range_states(connections, plan) == states

    report = migrate(docs, readers=3, batch_bytes=32_768)
    assert (report.verdict, report.read, report.written, report.repaired) == ("equal", POINTS, POINTS, 0)
    assert content(docs, "target", "new") == content(docs, "source", "docs")


def test_a_collection_of_somebody_else_is_never_written_to(docs: Workshop) -> None:
    """One of the same name is refused, with what is otherwise in it."""
    with Api(docs.clusters["target"].urls[0]) as api:
        api.call("PUT", "/collections/new", {"vectors": {"size": 8, "distance": "Dot"}})
    with pytest.raises(PreflightError, match="not made by this migration, and has another schema"):
        migrate(docs)
    assert docs.objects("migrations/") == []


def test_begun_anew_nothing_of_before_counts(docs: Workshop) -> None:
    """A collection that was dropped by hand is made again, whole; a restart drops what was begun for other wishes."""
    with pytest.raises(StoppedError):
        migrate(docs, Stopped(200), readers=1, batch_bytes=8192)
    with Api(docs.clusters["target"].urls[0]) as api:
        api.call("DELETE", "/collections/new")
    report = migrate(docs)
    assert (report.verdict, report.read, report.repaired) == ("equal", POINTS, 0)

    with pytest.raises(StoppedError):
        migrate(docs, Stopped(200), into="anew", readers=1, batch_bytes=8192)
    plan = docs.connect("target").keys.migration_plan(records.migration_id_of(asked(into="anew")))
    docs.bucket.delete_object(Bucket="ferry", Key=plan)
    with pytest.raises(PreflightError, match="this repository does not know its plan"):
        migrate(docs, into="anew")
    wish: dict[str, Any] = {"shape": {"shard_number": 1}, "changes": {"drop_fields": ("text",)}}
    report = migrate(docs, into="anew", restart=True, **wish)
    assert (report.verdict, report.read, report.repaired) == ("equal", POINTS, 0)
    assert len(shard_keys(docs, "anew")) == 1
    assert all("text" not in point["payload"] for point in content(docs, "target", "anew").values())


def test_what_a_dead_migration_holds_back_is_put_back_by_the_next_one(
    docs: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, a migration cannot let its collection index again; the next one does, whatever it makes itself."""
    with monkeypatch.context() as dying:
        dying.setattr("ferry.migration.target.put_back", lambda *_: None)  # as after SIGKILL
        with pytest.raises(StoppedError):
            migrate(docs, Stopped(200), into="dead", readers=1, batch_bytes=8192)
    assert config(docs, "dead")["config"]["optimizer_config"]["indexing_threshold"] == HELD_BACK
    assert len(docs.objects("loads/")) == 1
    with alone(docs.connect("target"), asked(), HOLDER):
        pass
    assert config(docs, "dead")["config"]["optimizer_config"]["indexing_threshold"] == 20
    assert docs.objects("loads/") == []
    assert migrate(docs, into="dead").verdict == "equal"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.soak] * (name not in ("named", "payload", "strict"))) for name in SAMPLES],
)
def test_whatever_a_collection_holds_arrives_as_it_was(workshop: Workshop, name: str) -> None:
    """Every kind of vector, payload, id and setting, strict mode too: the digests say equal, and so does REST."""
    with Api(workshop.clusters["source"].urls[0]) as api:
        api.make(name, SAMPLES[name]())
    asked: dict[str, Any] = {"source": QdrantSource(cluster="source", collection=name), "batch_bytes": 1 << 20}
    if name == "payload":  # nodes pass points on by gRPC
        with pytest.raises(FerryError, match=r"an integer from 2\^63 on.*writer: build"):
            migrate(workshop, **asked)
        asked |= {"writer": "build", "restart": True}
    report = migrate(workshop, **asked)
    assert (report.verdict, report.repaired) == ("equal", 0)
    clusters = workshop.clusters
    assert everything(clusters["target"], "new") == everything(clusters["source"], name)
