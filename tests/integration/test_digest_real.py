"""The digest of an archive is the digest of the node's own answers, for everything that a point can hold."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ferry.archive.digest import ContentDigest, ShardDigest, point_fields, point_sample
from ferry.archive.node_archive import list_shards, split_shard
from ferry.archive.proof import prove_archive
from ferry.archive.reader import open_archive, plain_id
from sandbox.qdrant import QdrantCluster

pytestmark = pytest.mark.servers

POINTS = 600
SHARDS = (0, 1)
VECTORS = {
    "dense": {"size": 32, "distance": "Cosine"},
    "half": {"size": 8, "distance": "Dot", "datatype": "float16"},
    "bytes": {"size": 8, "distance": "Euclid", "datatype": "uint8"},
    "many": {"size": 4, "distance": "Cosine", "multivector_config": {"comparator": "max_sim"}},
    "small": {
        "size": 16,
        "distance": "Cosine",
        "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
    },
}
PAYLOAD: dict[str, Any] = {
    "one": 1.0,
    "minus_zero": -0.0,
    "large": 2**60,
    "largest": 2**64 - 1,
    "beyond": 10**20,
    "small": 1e-7,
    "null": None,
    "empty": [],
    "object": {},
    "nested": {"ü": {"z": [1, 2.5, {"k": "\u2028\u0000😀"}]}, "a": "b"},
    "geo": {"lon": 13.4, "lat": 52.5},
    "time": "2026-11-22T00:00:00Z",
    "ключ": "значение",
}


class Node:
    """A real node's answers."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)

    def call(self, method: str, path: str, **body: Any) -> Any:
        answer = self.client.request(method, path, **body)
        assert answer.is_success, answer.text
        return answer.json()["result"]

    def points(self, collection: str, shard: int) -> Iterator[dict[str, Any]]:
        """Read one local replica."""
        ask: dict[str, Any] = {"limit": 100, "with_payload": True, "with_vector": True}
        while True:
            page = self.call("POST", f"/collections/{collection}/shards/{shard}/points/scroll", json=ask)
            yield from page["points"]
            if page.get("next_page_offset") is None:
                return
            ask["offset"] = page["next_page_offset"]

    def digest(self, collection: str, shard: int) -> ContentDigest:
        digest = ShardDigest()
        for point in self.points(collection, shard):
            digest.add(point["id"], point.get("payload"), point.get("vector"))
        return digest.value()

    def snapshot(self, place: str, path: Path) -> Path:
        """Make a snapshot and download it."""
        made = self.call("POST", f"/collections/{place}/snapshots")
        path.write_bytes(self.client.get(f"/collections/{place}/snapshots/{made['name']}").content)
        return path


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with QdrantCluster(nodes=1, folder=tmp_path_factory.mktemp("qdrant")) as cluster:
        node = Node(cluster.urls[0])
        with node.client:
            _fill(node, "rich")
            yield node


def _fill(node: Node, collection: str) -> None:
    _create(node, collection)
    points = [_point(index) for index in range(POINTS)]
    for start in range(0, POINTS, 100):
        node.call("PUT", f"/collections/{collection}/points?wait=true", json={"points": points[start : start + 100]})
    node.call("POST", f"/collections/{collection}/points/delete?wait=true", json={"points": [points[3]["id"]]})
    gone = {"points": [points[20]["id"]], "vectors": ["dense"]}
    node.call("POST", f"/collections/{collection}/points/vectors/delete?wait=true", json=gone)


def _create(node: Node, collection: str) -> None:
    body = {"vectors": VECTORS, "sparse_vectors": {"sparse": {}}, "shard_number": len(SHARDS)}
    node.call("PUT", f"/collections/{collection}", json=body)


def _point(index: int) -> dict[str, Any]:
    rng = random.Random(index)
    ids = [index, str(uuid.UUID(int=rng.getrandbits(128))), 2**64 - 1 - index]
    payloads: list[Any] = [None, {}] + [PAYLOAD | {"n": index}] * 8
    return {"id": ids[index % 3], "payload": payloads[index % 10], "vector": _vectors(index, rng)}


def _vectors(index: int, rng: random.Random) -> dict[str, Any]:
    """Random vectors of which some are missing; a few are what breaks careless readers."""
    vectors: dict[str, Any] = {
        "dense": [rng.gauss() for _ in range(32)],
        "half": [rng.gauss() for _ in range(8)],
        "bytes": [rng.randrange(256) for _ in range(8)],
        "many": [[rng.gauss() for _ in range(4)] for _ in range(rng.randrange(1, 4))],
        "small": [rng.gauss() for _ in range(16)],
        "sparse": {"indices": rng.sample(range(2**32), 5), "values": [rng.gauss() for _ in range(5)]},
    }
    kept = {name: vector for name, vector in vectors.items() if rng.random() < 0.8}
    special = {
        7: {"half": [1e6] * 8},  # ∞ as float16, null in JSON
        8: {},
        9: {"dense": [0.0] * 32},  # cannot be normalised
        11: {"dense": [-0.0] + [1e-40] * 31},  # denormal
    }
    return special.get(index, kept)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_shard_archive_has_the_nodes_digest(node: Node, tmp_path: Path, shard: int) -> None:
    """The proof of an archive is what the node's replica answers, in count, digest and sampled fields."""
    path = node.snapshot(f"rich/shards/{shard}", tmp_path / f"{shard}.snapshot")
    proof = prove_archive(path, tmp_path / "work", "content")
    assert proof.points == sum(1 for _ in node.points("rich", shard)) > POINTS // 4
    assert proof.content == node.digest("rich", shard), _difference(node, shard, path, tmp_path)
    answers = {point["id"]: point for point in node.points("rich", shard)}
    for sample in proof.sample:
        answer = answers[sample.id]
        assert sample.differing_fields(point_fields(sample.id, answer.get("payload"), answer.get("vector"))) == []


def test_one_changed_point_is_found_on_the_node(node: Node, tmp_path: Path) -> None:
    """After one payload value changes on the node, one range of ids differs, and the sample names the field."""
    path = node.snapshot("rich/shards/0", tmp_path / "0.snapshot")
    proof = prove_archive(path, tmp_path / "work", "content", sample=POINTS)
    victim = next(sample for sample in proof.sample if "payload.n" in sample.fields)
    restored = {"payload": {"n": next(p for p in node.points("rich", 0) if p["id"] == victim.id)["payload"]["n"]}}
    where = "/collections/rich/points/payload?wait=true"
    node.call("POST", where, json={"payload": {"n": -1}, "points": [victim.id]})
    try:
        assert proof.content is not None
        assert len(proof.content.differing_ranges(node.digest("rich", 0))) == 1
        [point] = [point for point in node.points("rich", 0) if point["id"] == victim.id]
        fields = point_fields(point["id"], point["payload"], point["vector"])
        assert victim.differing_fields(fields) == ["payload.n"]
    finally:
        node.call("POST", where, json=restored | {"points": [victim.id]})


def test_a_shard_of_a_collection_snapshot_is_recovered_by_the_node(node: Node, tmp_path: Path) -> None:
    """Each shard split out of a node's collection snapshot proves the same, and the node takes it at shard level."""
    whole = node.snapshot("rich", tmp_path / "whole.snapshot")
    assert list_shards(whole) == list(SHARDS)
    _create(node, "copy")
    for shard in SHARDS:
        part = tmp_path / f"part-{shard}.snapshot"
        split_shard(whole, shard, part)
        assert prove_archive(part, tmp_path / "work", "content").content == node.digest("rich", shard)
        with open(part, "rb") as file:
            place = f"/collections/copy/shards/{shard}/snapshots/upload?priority=no_sync&wait=true"
            node.call("POST", place, files={"snapshot": file})
        assert node.digest("copy", shard) == node.digest("rich", shard)


def _difference(node: Node, shard: int, path: Path, folder: Path) -> list[Any]:
    """The first points that differ, with the names of their fields, for the failure's message."""
    answers = {point["id"]: point for point in node.points("rich", shard)}
    found: list[Any] = []
    with open_archive(path, folder / "difference") as archive:
        for batch in archive.batches():
            for record in batch:
                answer = answers[plain_id(record.id)]
                fields = point_fields(answer["id"], answer.get("payload"), answer.get("vector"))
                if names := point_sample(record.id, record.payload, record.vector).differing_fields(fields):
                    found.append((answer["id"], names))
    return found[:5]
