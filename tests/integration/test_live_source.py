"""A live collection read range by range on real nodes, and written again as the bytes that came."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ferry.errors import ConfigurationError
from ferry.migration.batch import AnyBatch, PointBatch, WireBatch
from ferry.migration.columns import each_point
from ferry.migration.plan import QdrantSource
from ferry.migration.source import Ask, Read
from ferry.migration.sources.qdrant import QdrantLive
from ferry.models import Progress, ShardKey, no_progress
from ferry.qdrant import wire
from ferry.qdrant.grpc import Channel, open_channels
from ferry.qdrant.rounding import points_json
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import SERVERS
from tests.integration.samples import SAMPLES, Api, Sample, everything, few, point_id
from tests.workshop import Workshop

pytestmark = SERVERS

SMALL = 4096  # bytes of a batch: several pages of any sample
COLUMNS, UNDECODED = Ask(batch_bytes=SMALL), Ask(wire=True, batch_bytes=SMALL)


def _payloads() -> Sample:
    """Payloads of every shape; some points have none. No index, which this is not about."""
    return replace(SAMPLES["payload"](), indexes={})


def _payloads_that_nodes_can_send() -> Sample:
    """The same without integers from 2^63 on, which nodes cannot send each other as they are, and with odd doubles."""
    sample = _payloads()
    for point in sample.points:
        if point["payload"]:
            point["payload"] |= {"largest": 2**63 - 1, "doubles": [1e-9, 3.3e-7, -1e300, 0.1]}
    return sample


def make(workshop: Workshop, **samples: Sample) -> None:
    with Api(workshop.clusters["source"].urls[0]) as api:
        for name, sample in samples.items():
            api.make(name, sample)


KEYS: list[ShardKey] = ["west ü", 7]


def make_keyed(workshop: Workshop) -> None:
    """Two keys, a name and a number, with points of the same ids under both."""
    sample = few("keyed", 60)
    with Api(workshop.clusters["source"].urls[0]) as api:
        api.call("PUT", "/collections/keyed", sample.body | {"sharding_method": "custom", "shard_number": 2})
        for key, part in zip(KEYS, (sample.points, sample.points[:20]), strict=True):
            api.call("PUT", "/collections/keyed/shards", {"shard_key": key})
            api.call("PUT", "/collections/keyed/points?wait=true", {"points": part, "shard_key": key})


def live(collection: str) -> QdrantLive:
    return QdrantLive(QdrantSource(cluster="source", collection=collection))


def read_all(source: QdrantLive, wanted: int, ask: Ask, progress: Progress = no_progress) -> Iterator[Read]:
    """Every range, each page from a new reader at the last page's cursor, as after a crash at every batch."""
    for part in source.plan_ranges(wanted):
        cursor = None
        while True:
            read = next(source.read(part, cursor, ask, progress))
            yield read
            if (cursor := read.cursor) is None:
                break


def ids_of(batch: AnyBatch) -> list[Any]:
    if isinstance(batch, PointBatch):
        return list(batch.ids)
    return [wire.point_id(point) for point in batch.points] + [point["id"] for point in batch.plain]


def as_json(batch: AnyBatch) -> list[dict[str, Any]]:
    if isinstance(batch, WireBatch):
        points = [{"id": wire.point_id(point), "payload": wire.payload_of(point)} for point in batch.points]
        return [*points, *batch.plain]
    rows = zip(batch.ids, batch.payloads, each_point(batch), strict=True)
    return [{"id": each, "payload": payload, "vector": vectors} for each, payload, vectors in rows]


def write(cluster: QdrantCluster, channel: Channel, collection: str, batch: WireBatch) -> None:
    if batch.points:
        channel.unary_unary(wire.UPSERT)(wire.upsert_request(collection, batch.points, batch.key))
    if batch.plain:
        body = {
            "content": b'{"points":' + points_json(batch.plain) + b"}",
            "headers": {"Content-Type": "application/json"},
        }
        with Api(cluster.urls[0]) as api:
            api.call("PUT", f"/collections/{collection}/points?wait=true", **body)


@pytest.mark.parametrize("made", [SAMPLES["named"], _payloads_that_nodes_can_send])
def test_points_arrive_as_they_were_whether_they_are_decoded_or_not(
    workshop: Workshop, made: Callable[[], Sample]
) -> None:
    source_cluster, target = workshop.clusters["source"], workshop.clusters["target"]
    sample = made()
    make(workshop, docs=sample)
    profile = workshop.connect("target").cluster.profile
    with live("docs") as source, open_channels(profile)[0] as channel, Api(target.urls[0]) as api:
        for name, ask in (("passed", UNDECODED), ("decoded", COLUMNS)):
            api.make(name, replace(sample, points=[], gone=[]))
            for read in read_all(source, 4, ask):
                encoded = wire.encode(read.batch) if isinstance(read.batch, PointBatch) else read.batch
                write(target, channel, name, encoded)
        described = source.describe()
    expected = everything(source_cluster, "docs")
    assert everything(target, "passed") == expected
    assert everything(target, "decoded") == expected
    assert (described.points, described.wire, described.consistency) == (len(expected), True, "live")
    assert 0.2 < (described.bytes or 0) / sum(len(text) for text in expected.values()) < 5


def test_numbers_that_grpc_does_not_show_are_read_as_they_are_stored(workshop: Workshop) -> None:
    make(workshop, docs=_payloads())
    stored = {each: json.loads(text)[0] or {} for each, text in everything(workshop.clusters["source"], "docs").items()}
    assert any(type(payload.get("largest")) is int for payload in stored.values())  # where the node asked had the shard
    with live("docs") as source:
        for ask in (COLUMNS, UNDECODED):
            points = [point for read in read_all(source, 2, ask) for point in as_json(read.batch)]
            assert {str(point["id"]): json.dumps(point["payload"], sort_keys=True) for point in points} == {
                each: json.dumps(payload, sort_keys=True) for each, payload in stored.items()
            }


def test_ranges_hold_every_point_of_every_key_once(workshop: Workshop) -> None:
    make(workshop, strict=SAMPLES["strict"]())
    make_keyed(workshop)
    for collection, points in (("keyed", 80), ("strict", 120)):
        for wanted in (1, 5):
            with live(collection) as source:
                ranges = source.plan_ranges(wanted)
                reads = [(part.key, read) for part in ranges for read in source.read(part, None, COLUMNS)]
            assert [part.number for part in ranges] == list(range(len(ranges)))
            assert len(ranges) == (2 if (collection, wanted) == ("keyed", 1) else wanted)
            found = [(key, each) for key, read in reads for each in ids_of(read.batch)]
            assert len(found) == len(set(found)) == points
            assert {key for key, _ in found} == (set(KEYS) if collection == "keyed" else {None})


def test_only_what_is_asked_for_is_read(workshop: Workshop) -> None:
    make(workshop, named=SAMPLES["named"](), dense=few("dense"))
    with Api(workshop.clusters["source"].urls[0]) as api:
        api.alias("current", "named")
    young = {"must": [{"key": "n", "range": {"lt": 30}}]}
    with live("current") as source:
        for ask in (COLUMNS, UNDECODED):
            asked = ask.model_copy(update={"filter": young, "vectors": ("half", "idf")})
            reads = list(read_all(source, 3, asked))
            assert {each for read in reads for each in ids_of(read.batch)} == {point_id(n) for n in range(30)}
            if not ask.wire:
                assert {name for read in reads for name in read.batch.vectors} == {"half", "idf"}
        bare = Ask(vectors=(), payload=False)
        batches = [read.batch for read in read_all(source, 1, bare)]
        assert all(not batch.vectors and not any(batch.payloads) for batch in batches)
        newer = Ask(filter={"must": [{"slice": {"total": 2, "index": 0}}]})
        with pytest.raises(ConfigurationError, match=r"cannot be applied to current of source: .*400"):
            list(read_all(source, 1, newer))
    with live("dense") as source:
        names = {name for read in read_all(source, 1, Ask(vectors=("",))) for name in read.batch.vectors}
        assert names == {""}
    with pytest.raises(ConfigurationError, match="no collection and no alias absent"), live("absent") as source:
        source.describe()


def test_points_are_retrieved_as_they_would_be_read(workshop: Workshop) -> None:
    make(workshop, named=SAMPLES["named"]())
    make_keyed(workshop)
    with live("named") as source:
        wanted = [point_id(n) for n in range(0, 220, 2)]
        every = {each["id"]: each for read in read_all(source, 1, COLUMNS) for each in as_json(read.batch)}
        found = {each["id"]: each for batch in source.retrieve(wanted, None, COLUMNS) for each in as_json(batch)}
        assert found == {each: every[each] for each in wanted if each in every}
        young = Ask(filter={"must": [{"key": "n", "range": {"lt": 30}}]})
        found = {each["id"]: each for batch in source.retrieve(wanted, None, young) for each in as_json(batch)}
        assert set(found) == {point_id(n) for n in range(0, 30, 2)}
    with live("keyed") as source:
        assert [ids_of(batch) for batch in source.retrieve([point_id(1), point_id(50)], 7, COLUMNS)] == [[point_id(1)]]


def test_a_node_that_dies_is_read_around_and_asked_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_s3: S3Server
) -> None:
    with QdrantCluster(nodes=2) as cluster, Workshop(tmp_path, monkeypatch, shared_s3, {"source": cluster}):
        with Api(cluster.urls[0]) as api:
            api.make("docs", SAMPLES["named"]())  # two replicas
        expected = everything(cluster, "docs")
        with live("docs") as source:
            [part] = source.plan_ranges(1)
            found: list[Any] = []
            for number, read in enumerate(source.read(part, None, UNDECODED)):
                found += ids_of(read.batch)
                if number == 1:
                    cluster.nodes[1].kill()
                if number == 4:
                    cluster.nodes[1].restart()
            assert sorted(map(str, found)) == sorted(expected)
