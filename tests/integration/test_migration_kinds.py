"""Every kind of data by both writers, live and from a backup: as it was, changed, refused, and twice."""

import json
import random
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

from ferry.connections import connect_repository
from ferry.errors import FerryError, MigrationError
from ferry.migration.batch import Column, Dense, Multi, PointBatch, Sparse
from ferry.migration.plan import BackupSource, MigrationRequest, QdrantSource
from ferry.migration.report import CompletenessReport
from ferry.migration.run import run_migration
from ferry.migration.source import Ask
from ferry.migration.sources.backup import QdrantBackup
from ferry.qdrant import wire
from ferry.qdrant.grpc import open_channels
from ferry.restore.shape import Shape
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import HOLDER, SERVERS, back_up, quick_job
from tests.integration.samples import NESTED, Api, Sample, everything, floats, point_id
from tests.integration.test_backup_source import AWAY
from tests.workshop import Workshop

pytestmark = SERVERS
WAYS = list(product(("live", "backup"), ("stream", "build")))


def ways(*quick: str) -> list[Any]:
    """Every source with every writer; all but a few only in `make soak`."""
    names = {"-".join(way): way for way in WAYS}
    return [
        pytest.param(*way, id=name, marks=[] if name in quick else [pytest.mark.soak]) for name, way in names.items()
    ]


POINTS, SIZE, MIB = 90, 8, 1 << 20
DISTANCES = ("Cosine", "Dot", "Euclid", "Manhattan")
VECTORS: dict[str, dict[str, Any]] = {
    f"{distance} {datatype}": {"size": SIZE, "distance": distance, "datatype": datatype}
    for distance, datatype in product(DISTANCES, ("float32", "float16", "uint8"))
}
for many in ("Cosine float16", "Euclid uint8", "Dot float32"):
    VECTORS[f"many {many}"] = VECTORS[many] | {"multivector_config": {"comparator": "max_sim"}}
SPARSE: dict[str, dict[str, Any]] = {"words": {}, "halves": {"index": {"datatype": "float16"}}}
LAST = "ffffffff-ffff-ffff-ffff-ffffffffffff"
IDS = [2**64 - 1, 0, LAST, "00000000-0000-0000-0000-000000000000", *(point_id(n) for n in range(4, POINTS))]
CHANGES: dict[str, Any] = {
    "vectors": {
        "Cosine float32": "ключ/a.b", "Dot float16": "Cosine float32", "Manhattan uint8": None,
        "many Cosine float16": "viele", "words": "Wörter", "halves": None,
    },
    "drop_fields": ("deep", "a.b[]"),
    "rename_fields": {"ключ": "a.b[]", "": "named"},
    "field_types": {"n": "float"},
}  # fmt: skip
# Whatever Qdrant takes over gRPC although no search could find it; the id says where it is put.
ODD: dict[int | str, tuple[str, float]] = {
    3: ("dense", float("nan")), 2**63 + 5: ("dense", float("-inf")), LAST: ("words", float("nan")),
    2**64 - 1: ("many", float("nan")),
}  # fmt: skip
BOTH, ALONE = 40, 60  # ids under both shard keys, and under each alone


@dataclass(frozen=True)
class Stage:
    """The clusters, a backup of all that is on the source, and what the source shows of it."""

    shop: Workshop
    held: dict[str, dict[str, str]]

    @property
    def target(self) -> QdrantCluster:
        return self.shop.clusters["target"]

    def migrate(self, source: str, name: str, writer: str, **asked: Any) -> CompletenessReport:
        """Into a collection named like the way. The cluster that was backed up cannot be reached meanwhile."""
        self.shop.configure(clusters=AWAY if source == "backup" else None)
        of = (BackupSource if source == "backup" else QdrantSource)(cluster="source", collection=name)
        usual = {"cluster": "target", "repository": "main", "source": of, "writer": writer, "batch_bytes": 32_768}
        request = MigrationRequest(**{**usual, **asked})
        return run_migration(self.shop.connect("target"), request, HOLDER, quick_job())


@pytest.fixture(scope="module")
def stage(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Three collections and one backup of them; no test changes them."""
    clusters = {"source": three_nodes, "target": two_nodes}
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(tmp_path_factory.mktemp("kinds"), monkeypatch, shared_s3, clusters) as shop,
        Api(three_nodes.urls[0]) as api,
    ):
        api.make("kinds", kinds())
        make_odd(shop, api)
        make_keyed(api)
        back_up(shop)
        yield Stage(shop, {name: everything(three_nodes, name) for name in ("kinds", "odd")})


def kinds() -> Sample:
    """Every distance with every datatype, many vectors a point, sparse ones; ids at the ends, and payloads of 1 MB.

    Their numbers are 7.0 and not 7: REST takes two vectors of whole numbers for a sparse one. Integers above 2^63 are
    not among them: where a node passes them on they become floats, the source's own, too (both seen on 1.16.3).
    """
    rng = random.Random("kinds")

    def vector(name: str) -> list[float]:
        if "uint8" in name:
            return [float(rng.randrange(256)) for _ in range(SIZE)]
        while not rounded_twice(found := floats(rng, SIZE)) and "Cosine float16" in name and rng.random() < 0.99:
            pass
        return found

    points = []
    for n, each in enumerate(IDS):
        vectors: dict[str, Any] = {
            name: [vector(name) for _ in range(1 + n % 3)] if name.startswith("many") else vector(name)
            for name in VECTORS
        }
        vectors |= {name: {"indices": rng.sample(range(2**32), 4), "values": floats(rng, 4)} for name in SPARSE}
        kept = {name: values for name, values in vectors.items() if rng.random() < 0.8}
        payload = NESTED | {"n": n, "largest": 2**63 - 1}
        payload |= {"text": "ü" * (MIB // 2) + str(n)} if n in (1, 2, 77) else {}
        points.append({"id": each, "vector": kept, "payload": payload if n % 9 else {}})
    points[9]["payload"] = {"text": [{"ключ": "x" * MIB}], "n": 9}
    body = {
        "vectors": VECTORS,
        "sparse_vectors": SPARSE,
        "shard_number": 3,
        "optimizers_config": {"default_segment_number": 1},
    }
    return Sample(body, points, {"n": "integer"})


def rounded_twice(vector: list[float]) -> bool:
    """Whether Qdrant stores a vector of distance Cosine otherwise as float16 when it is read and written again."""
    halves = (np.array(vector) / np.linalg.norm(vector)).astype(np.float16).astype(np.float64)
    return bool(((halves / np.linalg.norm(halves)).astype(np.float16) != halves).any())


def make_odd(shop: Workshop, api: Api) -> None:
    """Forty points as they should be, and among them those of `ODD`, written over gRPC: JSON has no NaN."""
    many = {"size": 2, "distance": "Cosine", "multivector_config": {"comparator": "max_sim"}}
    body = {"vectors": {"dense": {"size": 2, "distance": "Dot"}, "many": many}, "sparse_vectors": {"words": {}}}
    api.call("PUT", "/collections/odd", body | {"shard_number": 2})
    good = [each for each in range(44) if each not in ODD]
    ids: list[int | str] = [*ODD, *good]
    values = np.linspace(0.1, 1, 2 * len(ids), dtype=np.float32).reshape(-1, 2)
    entries = np.arange(len(ids) + 1) * 2
    columns: dict[str, Column] = {
        "dense": Dense(values.copy()),
        "many": Multi(entries, np.repeat(values, 2, axis=0)),
        "words": Sparse(entries, np.tile(np.array([3, 5], np.uint32), len(ids)), values.flatten()),
    }
    for row, (name, value) in enumerate(ODD.values()):
        per_point = columns[name].values.size // len(ids)
        columns[name].values.reshape(-1)[(row + 1) * per_point - 1] = value
    batch = wire.encode(PointBatch(ids, [{"of": str(each)} for each in ids], columns))
    [channel, *others] = open_channels(shop.connect("source").cluster.profile)
    channel.unary_unary(wire.UPSERT)(wire.upsert_request("odd", batch.points, None))
    for each in (channel, *others):
        each.close()
    assert api.count("odd") == len(ids)


def make_keyed(api: Api) -> None:
    """Two shard keys; `BOTH` ids are a point under each of them."""
    api.call("PUT", "/collections/keyed", {"vectors": {"size": 4, "distance": "Dot"}, "sharding_method": "custom"})
    rng = random.Random("keyed")
    for key, first, shards in (("x", 0, 2), (7, ALONE, 1)):
        api.call("PUT", "/collections/keyed/shards", {"shard_key": key, "shards_number": shards})
        rows = [
            {"id": point_id(n), "vector": floats(rng, 4), "payload": {"key": key, "n": n}}
            for n in range(first, first + ALONE + BOTH)
        ]
        api.call("PUT", "/collections/keyed/points?wait=true", {"points": rows, "shard_key": key})


@pytest.mark.parametrize(("source", "writer"), ways("live-build", "backup-stream"))
def test_everything_arrives_as_it_was(stage: Stage, source: str, writer: str) -> None:
    """To the last digit, as plain REST shows it: distances, datatypes, ids at the ends, 1 MB in one payload."""
    into = f"kinds-{source}-{writer}"
    report = stage.migrate(source, "kinds", writer, into=into, shape=Shape(shard_number=2))
    assert (report.verdict, report.written, report.repaired, report.rejected) == ("equal", len(IDS), 0, ())
    assert report.source_digest == report.target_digest
    found = everything(stage.target, into)
    assert {str(each) for each in IDS} == found.keys()
    assert max(map(len, found.values())) > MIB
    assert found == stage.held["kinds"]
    with Api(stage.target.urls[0]) as api:
        shown = api.call("GET", api.of(into))["config"]["params"]
    assert (shown["vectors"], set(shown["sparse_vectors"])) == (VECTORS, set(SPARSE))


@pytest.mark.parametrize(("source", "writer"), ways("live-stream", "backup-build"))
def test_everything_arrives_as_it_is_to_be(stage: Stage, source: str, writer: str) -> None:
    """Vectors and fields renamed, dropped and typed, as worked out here by hand."""
    into = f"changed-{source}-{writer}"
    report = stage.migrate(source, "kinds", writer, into=into, changes=CHANGES)
    assert (report.verdict, report.written, report.repaired, report.rejected) == ("equal", len(IDS), 0, ())
    assert everything(stage.target, into) == {each: changed(text) for each, text in stage.held["kinds"].items()}
    names = {CHANGES["vectors"].get(name, name) for name in (*VECTORS, *SPARSE)}
    assert report.vectors.keys() == names - {None}


def changed(text: str) -> str:
    """A point after `CHANGES`."""
    payload, vectors = json.loads(text)
    names, fields = CHANGES["vectors"], CHANGES["rename_fields"]
    payload = {fields.get(old, old): value for old, value in payload.items() if old not in CHANGES["drop_fields"]}
    if "n" in payload:
        payload["n"] = float(payload["n"])
    vectors = {names.get(old, old): value for old, value in vectors.items() if names.get(old, old) is not None}
    return json.dumps([payload, vectors], sort_keys=True)


@pytest.mark.parametrize("writer", ["stream", pytest.param("build", marks=pytest.mark.soak)])
def test_another_datatype_is_what_qdrant_makes_of_it(stage: Stage, writer: str) -> None:
    """float32 becomes float16 as in a collection that got the source's points by plain REST."""
    names = {name: None for name in VECTORS if "float32" not in name} | dict.fromkeys(SPARSE)
    vectors = {name: each | {"datatype": "float16"} for name, each in VECTORS.items() if "float32" in name}
    rows = []
    for name, text in stage.held["kinds"].items():
        payload, shown = json.loads(text)
        kept = {each: values for each, values in shown.items() if each in vectors}
        rows.append({"id": int(name) if name.isdecimal() else name, "payload": payload, "vector": kept})
    with Api(stage.target.urls[0]) as api:
        api.make(f"oracle-{writer}", Sample({"vectors": vectors}, rows))
    changes = {"vectors": names, "datatype": "float16"}
    report = stage.migrate("live", "kinds", writer, into=f"halves-{writer}", changes=changes)
    assert (report.verdict, report.repaired) == ("equal", 0)
    assert everything(stage.target, f"halves-{writer}") == everything(stage.target, f"oracle-{writer}")


@pytest.mark.parametrize(("source", "writer"), ways("live-stream", "backup-build"))
@pytest.mark.parametrize("decoded", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["as-it-is", "changed"])
def test_what_is_no_number_is_refused_by_its_id(stage: Stage, source: str, writer: str, decoded: bool) -> None:
    """NaN and infinities of every kind of vector; left out where that is asked for, and named in the report."""
    into = f"odd-{source}-{writer}-{decoded}"
    asked = {"into": into, "changes": {"rename_fields": {"of": "from"}} if decoded else {}}
    ids = "|".join(map(str, ODD))
    with pytest.raises(FerryError, match=rf"(?s)({ids})\b.*NaN or an infinity") as refused:
        stage.migrate(source, "odd", writer, **asked)
    assert "leave_out_refused" in str(refused.value)
    assert stage.shop.leftovers("target") == []

    report = stage.migrate(source, "odd", writer, leave_out_refused=True, **asked)
    assert (report.verdict, report.read, report.written) == ("equal", 44 + 3, 44 - 1)
    assert {point.id for point in report.rejected} == set(ODD)
    assert all("NaN or an infinity" in point.reason for point in report.rejected)
    assert len(report.rejected) == len(ODD)
    of = stage.held["odd"].items()
    expected = {each: text.replace('"of"', '"from"') if decoded else text for each, text in of}
    assert everything(stage.target, into) == {each: expected[each] for each in expected.keys() - set(map(str, ODD))}


def test_a_reading_may_be_given_up_after_its_source_was_closed(stage: Stage) -> None:
    """As where one range fails: what the others have read so far is forgotten later, and nothing is left of it."""
    stage.shop.configure(clusters=AWAY)
    with QdrantBackup(connect_repository("main"), BackupSource(cluster="source", collection="odd")) as source:
        reading = source.read(source.plan_ranges(1)[0], None, Ask(batch_bytes=1024))
        assert next(reading).cursor is not None
    assert isinstance(reading, Generator)
    reading.close()
    assert stage.shop.leftovers("target") == []


@pytest.mark.parametrize(("source", "writer"), ways("live-stream", "backup-build"))
@pytest.mark.parametrize(
    "shape",
    [Shape(sharding="auto", shard_number=3), pytest.param(Shape(rename_keys={"7": "x"}), marks=pytest.mark.soak)],
    ids=["auto", "one-key"],
)
def test_points_of_one_id_that_come_together_are_told(stage: Stage, source: str, writer: str, shape: Shape) -> None:
    """Refused, naming them; where that is asked for the last counts, whole, and the report says how many were lost."""
    into, total = f"one-{source}-{writer}-{shape.sharding}", 2 * ALONE + BOTH
    with pytest.raises(MigrationError, match=rf"{BOTH} ids of .*keyed.* stand for different points") as refused:
        stage.migrate(source, "keyed", writer, into=into, shape=shape)
    assert any(str(point_id(n)) in refused.value.message for n in range(ALONE, ALONE + BOTH))
    report = stage.migrate(source, "keyed", writer, into=into, shape=shape, leave_out_refused=True)
    assert (report.verdict, report.read, report.deduplicated) == ("equal", total + BOTH, BOTH)
    assert (report.source_points, report.target_points, report.rejected) == (total, total, ())
    held = {key: of_key(stage, key) for key in ("x", 7)}
    found = everything(stage.target, into)
    assert found.keys() == held["x"].keys() | held[7].keys()
    for each, text in found.items():
        assert text in [of[each] for of in held.values() if each in of]
    twice = held["x"].keys() & held[7].keys()
    assert len({json.loads(found[each])[0]["key"] for each in twice}) == 1  # always the last in the order of ranges


def of_key(stage: Stage, key: str | int) -> dict[str, str]:
    """The points under a shard key of the source, each as `everything` shows it."""
    with Api(stage.shop.clusters["source"].urls[0]) as api:
        points = api.pages("keyed", shard_key=key, with_payload=True, with_vector=True)
        return {str(each["id"]): json.dumps([each["payload"], each["vector"]], sort_keys=True) for each in points}
