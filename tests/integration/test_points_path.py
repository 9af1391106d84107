"""The points path: whatever shards the backup had and the target is to have, every point arrives as it was."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from ferry.archive.digest import range_of
from ferry.archive.points import Batch
from ferry.errors import PreflightError, RestoreError, VerificationError
from ferry.models import Progress
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.writer import KeyedBatch, write_keyed_points
from ferry.repository.manifest import BackupRecord
from ferry.restore import stream
from ferry.restore.run import Restored
from ferry.restore.shape import Shape
from ferry.restore.stream import StreamedShard
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import SERVERS, back_up, restore
from tests.integration.samples import INDEXES, SAMPLES, Api, Sample, everything, floats, point_id
from tests.workshop import Workshop

pytestmark = SERVERS

KEYS: dict[str | int, int] = {"eu": 2, 7: 1}
TENANTS: list[Any] = ["a", "b ü", 12]
POINTS = 120


def _of_every_kind() -> Sample:
    """Six shards of the sample with vectors of every kind, and beside them those that Qdrant rounds on arrival."""
    sample = SAMPLES["named"]()
    rng = random.Random("halves")
    cosine = {"size": 8, "distance": "Cosine", "datatype": "float16"}
    vectors = sample.body["vectors"] | {
        "halves": cosine,
        "half rows": cosine | {"multivector_config": {"comparator": "max_sim"}},
        # Two rows of whole numbers are taken for a sparse vector by 1.16.3, unless they are written as 1.0.
        "byte rows": {
            "size": 2,
            "distance": "Dot",
            "datatype": "uint8",
            "multivector_config": {"comparator": "max_sim"},
        },
    }
    for point in sample.points:
        if rng.random() < 0.8:
            point["vector"]["halves"] = [-0.0, *floats(rng, 7)]
            point["vector"]["half rows"] = [floats(rng, 8) for _ in range(rng.randrange(1, 4))]
            point["vector"]["byte rows"] = [[1.0, 255.0], [0.0, float(rng.randrange(256))]]
    return replace(sample, body=sample.body | {"vectors": vectors, "shard_number": 6, "replication_factor": 1})


def _without_large_integers() -> Sample:
    """Payloads of every shape, doubles of every size among them; and no integer that gRPC cannot carry.

    A few points have no payload.
    """
    sample = SAMPLES["payload"]()
    bits = np.random.default_rng(2).integers(0x2000000000000000, 0x5000000000000000, (len(sample.points), 8))
    for point, doubles in zip(sample.points, bits.view(np.float64).tolist(), strict=True):
        if point["payload"]:
            point["payload"] |= {"largest": 2**63 - 1, "smallest": -(2**63), "doubles": doubles}
    return replace(sample, indexes={"city": "keyword", "when": INDEXES["when"]})


def _with_tenants() -> Sample:
    """Points that say which key they are to have: text and numbers, one of them nested."""
    rng = random.Random("tenants")
    points = [
        {"id": point_id(n), "vector": floats(rng, 4), "payload": {"who": {"tenant": TENANTS[n % 3]}, "n": n}}
        for n in range(POINTS)
    ]
    return Sample({"vectors": {"size": 4, "distance": "Cosine"}, "shard_number": 3, "replication_factor": 1}, points)


@dataclass(frozen=True)
class Backup:
    """One backup of all collections, made once for all tests."""

    record: BackupRecord
    shop: Workshop

    def restore(self, collection: str, **asked: Any) -> Restored:
        """Restore by the points path to the two nodes."""
        shape = Shape(**asked.pop("shape", {}))
        return restore(self.shop, self.record, collection, shape=shape, **asked)

    def same_points(self, collection: str, restored: Restored) -> bool:
        """Whether the target holds what the source holds, read by Qdrant's own API alone."""
        source, target = self.shop.clusters["source"], self.shop.clusters["target"]
        return everything(target, restored.plan.target) == everything(source, collection)


MADE = {
    "kinds": _of_every_kind,
    "payload": _without_large_integers,
    "strict": SAMPLES["strict"],
    "tenants": _with_tenants,
}


@pytest.fixture(scope="module")
def made(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backup]:
    """Collections of every kind on three nodes, backed up; the target has two nodes."""
    folder: Path = tmp_path_factory.mktemp("points")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(folder, monkeypatch, shared_s3, {"source": three_nodes, "target": two_nodes}) as shop,
        Api(three_nodes.urls[0]) as source,
    ):
        for name, make in MADE.items():
            source.make(name, make())
        _make_keyed(source)
        _make_large(source, three_nodes)
        yield Backup(back_up(shop), shop)


@pytest.fixture
def backup(made: Backup) -> Backup:
    """The same, under its settings again."""
    made.shop.configure()
    return made


def _make_keyed(api: Api) -> None:
    rng = random.Random("keyed")
    body = {"vectors": {"size": 4, "distance": "Dot"}, "sharding_method": "custom", "replication_factor": 1}
    api.call("PUT", "/collections/keyed", body)
    for number, (key, shards) in enumerate(KEYS.items()):
        api.call("PUT", "/collections/keyed/shards", {"shard_key": key, "shards_number": shards})
        points = [
            {"id": point_id(1000 * number + n), "vector": floats(rng, 4), "payload": {"of": key}} for n in range(40)
        ]
        api.call("PUT", "/collections/keyed/points?wait=true", {"points": points, "shard_key": key})


def _make_large(api: Api, cluster: QdrantCluster) -> None:
    """Integers above 2^63, which only the node with the replica can have been told."""
    api.call("PUT", "/collections/large", {"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 1})
    points = [{"id": n, "vector": [1.0, n], "payload": {"n": [2**64 - 1 - n]}} for n in range(1, 9)]
    for url in cluster.urls:
        with Api(url) as node:
            if node.call("GET", "/collections/large/cluster")["local_shards"]:
                node.call("PUT", "/collections/large/points?wait=true", {"points": points})


@pytest.mark.parametrize(("collection", "shards", "copies"), [("kinds", 2, 2), ("payload", 5, 1)])
def test_other_numbers_of_shards(backup: Backup, collection: str, shards: int, copies: int) -> None:
    """Vectors of every kind, odd payloads: each point is equal on each replica."""
    restored = backup.restore(collection, shape={"shard_number": shards}, replication_factor=copies)
    points = restored.plan.manifest.points
    assert points
    assert restored.plan.path == "points"
    assert len({verdict.shard_id for verdict in restored.verdicts}) == shards
    assert len(restored.verdicts) == shards * copies
    assert sum(verdict.compared for verdict in restored.verdicts) == points * copies
    assert sum(sent.points for sent in restored.recovered if isinstance(sent, StreamedShard)) == points
    assert [part.findings for part in restored.recovered if part.findings] == []
    assert backup.same_points(collection, restored)
    assert backup.shop.leftovers() == []


def test_from_ids_to_one_key_within_the_limits_of_strict_mode(backup: Backup) -> None:
    """All points under one new key, in batches no larger than may be written, compared by sampled points."""
    shape = {"sharding": "custom", "into_key": "all ü", "shard_number": 3}
    restored = backup.restore("strict", shape=shape, verify="sample", replication_factor=2)
    assert backup.same_points("strict", restored)
    assert {shard.key for shard in restored.plan.shards} == {"all ü"}
    assert [verdict.level for verdict in restored.verdicts] == ["sample"] * 6
    sampled = sum(len(proof.sample) for _, proof in restored.plan.manifest.proofs())
    assert sum(verdict.compared for verdict in restored.verdicts) == 2 * sampled >= 200
    with Api(backup.shop.clusters["target"].urls[0]) as api:
        found = list(api.pages(restored.plan.target, shard_key="all ü"))
        assert len(found) == restored.plan.manifest.points


def test_from_ids_to_the_keys_in_a_payload_field(backup: Backup) -> None:
    """Each point is under the key that its payload names, text or number."""
    restored = backup.restore("tenants", shape={"sharding": "custom", "key_field": "who.tenant"}, into="by-tenant")
    assert backup.same_points("tenants", restored)
    with Api(backup.shop.clusters["target"].urls[0]) as api:
        for key in TENANTS:
            found = list(api.pages(restored.plan.target, shard_key=key, with_payload=True))
            assert [point["payload"]["who"]["tenant"] for point in found] == [key] * (POINTS // len(TENANTS))


def test_a_field_that_not_all_points_have_is_refused_before_anything_is_made(backup: Backup) -> None:
    """The points are counted and some of them named; the target has no collection more than before."""
    with Api(backup.shop.clusters["target"].urls[0]) as api:
        before = api.collections()
        with pytest.raises(
            PreflightError, match=r"\d+ points of payload have no value of 'tenant' .*: \d+ \(nothing\)"
        ):
            backup.restore("payload", shape={"sharding": "custom", "key_field": "tenant"}, into="never-made")
        assert api.collections() == before


def test_from_keys_to_ids(backup: Backup) -> None:
    """Points of several keys, of several shards each, spread over the shards of a collection without keys."""
    restored = backup.restore("keyed", shape={"sharding": "auto", "shard_number": 2})
    assert backup.same_points("keyed", restored)
    assert [verdict.shard_id for verdict in restored.verdicts] == [0, 1]


def test_integers_that_cannot_pass_from_node_to_node(backup: Backup) -> None:
    """They are named before the comparison would fail, and nothing is left."""
    with pytest.raises(RestoreError, match=r"8 points or more have integers above 2\^63 .* will be dropped again"):
        backup.restore("large", shape={"shard_number": 2}, into="refused")
    with Api(backup.shop.clusters["target"].urls[0]) as api:
        assert "refused" not in api.collections()


def test_a_point_that_does_not_arrive_is_found(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """One point less than was sent fails the comparison; the new collection is dropped again."""
    honest = write_keyed_points

    def losing(cluster: Cluster, collection: str, batches: Iterator[KeyedBatch], progress: Progress) -> int:
        def all_but_one() -> Iterator[KeyedBatch]:
            for key, batch in batches:
                points = [point for point in orjson.loads(batch.body) if point["id"] != 0]
                yield key, Batch([point["id"] for point in points], [], orjson.dumps(points))

        return honest(cluster, collection, all_but_one(), progress)

    monkeypatch.setattr(stream, "write_keyed_points", losing)
    expected = f"shards hold {POINTS - 1} points, the 3 proofs say {POINTS}; .* in 1 of 256 sub-ranges: {range_of(0)}"
    with pytest.raises(VerificationError, match=expected):
        backup.restore("tenants", shape={"shard_number": 1}, into="one-less")
    with Api(backup.shop.clusters["target"].urls[0]) as api:
        assert "one-less" not in api.collections()
    assert backup.shop.leftovers() == []
