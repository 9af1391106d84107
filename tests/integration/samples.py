"""Collections that hold everything a point can hold, and reading them back by Qdrant's own REST API alone."""

import json
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

import httpx

from sandbox.qdrant import QdrantCluster

Point = dict[str, Any]
PAGE_POINTS = 50  # below what the strict sample allows

NESTED: dict[str, Any] = {
    "one": 1.0, "minus_zero": -0.0, "large": 2**60, "largest": 2**64 - 1, "tiny": 1e-7, "null": None, "empty": [],
    "object": {}, "deep": {"ü": {"z": [1, 2.5, {"k": "\u2028\u0000😀"}]}, "a": "b"}, "ключ": "значение 日本語",
    "a.b[]": {"c.d": [[1, [2]], None]}, "": "an empty key",
}  # fmt: skip
INDEXES: dict[str, Any] = {
    "city": "keyword",
    "tenant": {"type": "keyword", "is_tenant": True, "on_disk": True},
    "rank": "integer",
    "year": {"type": "integer", "lookup": False, "range": True, "is_principal": True, "on_disk": True},
    "code": {"type": "integer", "lookup": True, "range": False},
    "price": {"type": "float", "on_disk": True},
    "open": "bool",
    "place": "geo",
    "when": {"type": "datetime", "on_disk": True},
    "uuid": "uuid",
    "title": "text",
    "note": {
        "type": "text", "tokenizer": "word", "min_token_len": 2, "max_token_len": 20, "lowercase": True,
        "phrase_matching": True, "stopwords": {"languages": ["english"], "custom": ["foo"]},
        "stemmer": {"type": "snowball", "language": "english"}, "ascii_folding": True, "on_disk": True,
    },
    "prefix": {"type": "text", "tokenizer": "prefix", "min_token_len": 1, "max_token_len": 6},
    "tags[].name": "keyword",
}  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {
    "city": {"match": {"value": "Zürich"}},
    "tenant": {"match": {"any": ["t1", "t3"]}},
    "rank": {"range": {"gte": 10, "lt": 60}},
    "year": {"range": {"gt": 2003}},
    "code": {"match": {"value": 3}},
    "price": {"range": {"lte": 5.5}},
    "open": {"match": {"value": True}},
    "place": {"geo_radius": {"center": {"lon": 8.5, "lat": 47.4}, "radius": 300_000.0}},
    "when": {"range": {"gte": "2026-02-01T00:00:00Z"}},
    "uuid": {"match": {"value": str(uuid.UUID(int=7))}},
    "title": {"match": {"text": "hello 42"}},
    "note": {"match": {"phrase": "running Café"}},
    "prefix": {"match": {"text": "abc"}},
    "tags[].name": {"match": {"value": "red"}},
}


@dataclass(frozen=True)
class Sample:
    """A collection to make: its body, its payload indexes, its points, and what to search it with."""

    body: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    indexes: Mapping[str, Any] = field(default_factory=dict)
    queries: Mapping[str, Any] = field(default_factory=dict)
    gone: list[Any] = field(default_factory=list)


def point_id(number: int) -> int | str:
    """Small numbers, UUIDs, and the largest numbers that an id can be."""
    mixed: list[int | str] = [
        number,
        str(uuid.UUID(int=random.Random(number).getrandbits(128))),
        2**64 - 1 - number + number % 3,
    ]
    return mixed[number % 3]


def floats(rng: random.Random, size: int) -> list[float]:
    return [rng.gauss() for _ in range(size)]


def _dense() -> Sample:
    """One unnamed vector, quantized, everything on disk, indexed by HNSW."""
    rng = random.Random("dense")
    points = [{"id": point_id(n), "vector": floats(rng, 16), "payload": {"n": n}} for n in range(300)]
    body = {
        "vectors": {"size": 16, "distance": "Cosine", "on_disk": True},
        "on_disk_payload": True,
        "shard_number": 3,
        "replication_factor": 2,
        "hnsw_config": {"m": 8, "ef_construct": 40, "on_disk": True},
        "quantization_config": {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}},
        "optimizers_config": {"indexing_threshold": 1, "default_segment_number": 2},
        "write_consistency_factor": 2,
    }
    return Sample(body, points, {"n": "integer"}, {"": floats(rng, 16)}, gone=[points[0]["id"], points[1]["id"]])


def _named() -> Sample:
    """Vectors of every datatype and kind, of which points lack some."""
    rng = random.Random("named")
    body = {
        "vectors": {
            "float32": {"size": 12, "distance": "Euclid"},
            "half": {"size": 8, "distance": "Dot", "datatype": "float16"},
            "bytes": {"size": 8, "distance": "Manhattan", "datatype": "uint8"},
            "many": {"size": 4, "distance": "Cosine", "multivector_config": {"comparator": "max_sim"}},
            "binary": {"size": 16, "distance": "Cosine", "quantization_config": {"binary": {"always_ram": True}}},
        },
        "sparse_vectors": {
            "idf": {"modifier": "idf", "index": {"on_disk": True}},
            "words": {"index": {"datatype": "float16"}},
        },
        "shard_number": 2,
        "replication_factor": 2,
    }

    def vectors() -> dict[str, Any]:
        return {
            "float32": floats(rng, 12),
            "half": floats(rng, 8),
            "bytes": [rng.randrange(256) for _ in range(8)],
            "many": [floats(rng, 4) for _ in range(rng.randrange(1, 4))],
            "binary": floats(rng, 16),
            "idf": {"indices": rng.sample(range(40), 6), "values": [rng.random() for _ in range(6)]},
            "words": {"indices": rng.sample(range(2**32), 5), "values": floats(rng, 5)},
        }

    points: list[Point] = []
    for n in range(200):
        kept = {name: vector for name, vector in vectors().items() if rng.random() < 0.8}
        points.append({"id": point_id(n), "vector": {} if n == 5 else kept, "payload": {"n": n}})
    points[7]["vector"]["float32"] = [-0.0, 1e-40, *floats(rng, 10)]
    queries = vectors() | {"words": next(p["vector"]["words"] for p in points if "words" in p["vector"])}
    return Sample(body, points, {}, queries)


def _quantized() -> Sample:
    """Every quantization over every datatype, built by the indexer, with graphs of every kind; sparse in memory."""
    rng = random.Random("quantized")
    scalar = {"scalar": {"type": "int8", "quantile": 0.95, "always_ram": False}}
    binary = {"binary": {"always_ram": True, "encoding": "two_bits", "query_encoding": "scalar8bits"}}
    body = {
        "vectors": {
            "scalar": {"size": 16, "distance": "Cosine", "datatype": "float16", "quantization_config": scalar},
            "product": {
                "size": 16, "distance": "Euclid", "on_disk": True, "hnsw_config": {"m": 0, "payload_m": 8},
                "quantization_config": {"product": {"compression": "x8", "always_ram": True}},
            },
            "binary": {
                "size": 16, "distance": "Dot", "datatype": "uint8", "quantization_config": binary,
                "hnsw_config": {"on_disk": True, "inline_storage": True},
            },
            "colbert": {
                "size": 4, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}, "on_disk": True,
                "hnsw_config": {"m": 0}, "quantization_config": {"binary": {"encoding": "one_and_half_bits"}},
            },
        },
        "sparse_vectors": {"words": {"modifier": "idf", "index": {"full_scan_threshold": 10, "on_disk": False}}},
        "shard_number": 1,
        "replication_factor": 2,
        "on_disk_payload": True,
        "hnsw_config": {"m": 6, "ef_construct": 20, "full_scan_threshold": 10, "on_disk": True, "payload_m": 4},
        "optimizers_config": {"indexing_threshold": 1, "default_segment_number": 1, "max_optimization_threads": 1},
    }  # fmt: skip
    points: list[Point] = [
        {
            "id": point_id(n),
            "vector": {
                "scalar": floats(rng, 16),
                "product": floats(rng, 16),
                "binary": [rng.randrange(256) for _ in range(16)],
                "colbert": [floats(rng, 4) for _ in range(1 + n % 3)],
                "words": {"indices": rng.sample(range(90), 8), "values": [rng.random() for _ in range(8)]},
            },
            "payload": {"tenant": f"t{n % 4}"},
        }
        for n in range(260)
    ]
    # Not by its sparse vector: replicas that were optimized apart round the last digit of idf differently.
    queries = {"scalar": floats(rng, 16), "product": floats(rng, 16), "colbert": [floats(rng, 4)]}
    return Sample(body, points, {"tenant": INDEXES["tenant"]}, queries, gone=[points[9]["id"]])


def payload_of(n: int) -> dict[str, Any]:
    """A value for every index, over nested and odd ones."""
    return NESTED | {
        "city": ["Zürich", "København", "東京"][n % 3],
        "tenant": f"t{n % 5}",
        "rank": n,
        "year": 2000 + n % 7,
        "code": [n % 4, 100 + n % 2],
        "price": n / 10,
        "open": n % 2 == 0,
        "place": {"lon": 8.5 + n / 50, "lat": 47.4 - n / 50},
        "when": f"2026-0{1 + n % 6}-15T12:30:00+02:00",
        "uuid": str(uuid.UUID(int=n % 20)),
        "title": f"Hello world {n % 50}",
        "note": f"the runner was running café number {n % 4}" if n % 2 else "nothing of the kind",
        "prefix": "abcdef" if n % 3 else "xyz",
        "tags": [{"name": "red" if n % 4 else "blue", "weight": n}, {"name": "green"}],
    }


def _payload() -> Sample:
    """Payload indexes of every kind, and payloads of every shape; some points have none."""
    rng = random.Random("payload")
    points = [
        {"id": point_id(n), "vector": floats(rng, 4), "payload": None if n % 10 == 9 else payload_of(n)}
        for n in range(150)
    ]
    body = {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 3, "replication_factor": 1}
    return Sample(body, points, INDEXES, {"": floats(rng, 4)})


def _strict() -> Sample:
    """Strict mode, metadata, and settings that are nobody's default."""
    rng = random.Random("strict")
    points = [{"id": n, "vector": floats(rng, 4), "payload": {"n": n, "free": n}} for n in range(120)]
    body = {
        "vectors": {"size": 4, "distance": "Dot"},
        "shard_number": 2,
        "replication_factor": 3,
        "write_consistency_factor": 3,
        "strict_mode_config": {
            "enabled": True, "max_query_limit": 50, "unindexed_filtering_retrieve": False, "upsert_max_batchsize": 60,
            "search_allow_exact": True, "max_payload_index_count": 5, "max_points_count": 10_000,
        },
        "metadata": {"owner": "team ü", "nothing": None, "deep": {"list": [1, None, {"nothing": None}]}, "empty": {}},
        "wal_config": {"wal_capacity_mb": 16, "wal_segments_ahead": 1},
        "optimizers_config": {"deleted_threshold": 0.3, "flush_interval_sec": 7, "max_segment_size": 50_000},
        "on_disk_payload": False,
    }  # fmt: skip
    return Sample(body, points, {"n": "integer"}, {"": floats(rng, 4)})


def _empty() -> Sample:
    """No point at all, but shards, indexes and settings."""
    body = {"vectors": {"a": {"size": 4, "distance": "Dot"}}, "shard_number": 2, "replication_factor": 2}
    return Sample(body, [], {"n": "integer", "text": INDEXES["note"]})


def few(name: str, points: int = 12) -> Sample:
    """A small collection whose points say whose they are."""
    rng = random.Random(name)
    body = {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 1}
    rows = [{"id": point_id(n), "vector": floats(rng, 4), "payload": {"of": name, "n": n}} for n in range(points)]
    return Sample(body, rows, {}, {"": floats(rng, 4)})


SAMPLES: dict[str, Callable[[], Sample]] = {
    "dense": _dense, "named": _named, "payload": _payload, "strict": _strict, "empty": _empty,
    "quantized": _quantized,
}  # fmt: skip


class Api:
    """Qdrant's public REST API at one address, without any code of Ferry's."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"api-key": api_key} if api_key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send one request; the answer's ``result``."""
        answer = self._client.request(method, path, json=body, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()["result"]

    def of(self, collection: str) -> str:
        """The path of a collection of any name."""
        return "/collections/" + quote(collection, safe="")

    def make(self, name: str, sample: Sample) -> None:
        """Create a collection with its indexes and points, and delete those points that shall be gone."""
        path = self.of(name)
        self.call("PUT", path, sample.body)
        for where, schema in sample.indexes.items():
            self.call("PUT", f"{path}/index?wait=true", {"field_name": where, "field_schema": schema})
        for start in range(0, len(sample.points), PAGE_POINTS):
            self.call("PUT", f"{path}/points?wait=true", {"points": sample.points[start : start + PAGE_POINTS]})
        if sample.gone:
            self.call("POST", f"{path}/points/delete?wait=true", {"points": sample.gone})

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection, wherever it pointed before."""
        actions: list[dict[str, Any]] = [
            {"delete_alias": {"alias_name": alias}},
            {"create_alias": {"alias_name": alias, "collection_name": collection}},
        ]
        self.call("POST", "/collections/aliases", {"actions": actions if alias in self.aliases() else actions[1:]})

    def aliases(self) -> dict[str, str]:
        """Collection by alias."""
        return {entry["alias_name"]: entry["collection_name"] for entry in self.call("GET", "/aliases")["aliases"]}

    def collections(self) -> set[str]:
        """Names of all collections."""
        return {entry["name"] for entry in self.call("GET", "/collections")["collections"]}

    def count(self, collection: str) -> int:
        """Exact number of points."""
        return int(self.call("POST", self.of(collection) + "/points/count", {"exact": True})["count"])

    def pages(self, collection: str, shard: str = "", **ask: Any) -> Iterator[Point]:
        """Scroll through everything that a request finds."""
        body: dict[str, Any] = {"limit": PAGE_POINTS, **ask}
        while True:
            page = self.call("POST", f"{self.of(collection)}{shard}/points/scroll", body)
            yield from page["points"]
            if page["next_page_offset"] is None:
                return
            body["offset"] = page["next_page_offset"]

    def replicas(self, collection: str) -> dict[int, dict[str, str]]:
        """Each point's payload and vectors as text, which tells -0.0 from 0.0 and 1 from 1.0, by shard and id."""
        found: dict[int, dict[str, str]] = {}
        for shard in self.call("GET", self.of(collection) + "/cluster")["local_shards"]:
            of_shard = found[shard["shard_id"]] = {}
            where = f"/shards/{shard['shard_id']}"
            for point in self.pages(collection, where, with_payload=True, with_vector=True):
                assert str(point["id"]) not in of_shard
                of_shard[str(point["id"])] = json.dumps([point["payload"], point["vector"]], sort_keys=True)
        return found

    def filtered(self, collection: str, condition: dict[str, Any], where: str) -> list[str]:
        """Ids that a filter on one field finds."""
        only = {"must": [{"key": where, **condition}]}
        return sorted(str(point["id"]) for point in self.pages(collection, filter=only, with_payload=False))

    def nearest(self, collection: str, using: str, query: Any) -> list[tuple[float, str]]:
        """Scores and ids of an exact search, the best first."""
        body = {"query": query, "limit": 20, "params": {"exact": True}} | ({"using": using} if using else {})
        points = self.call("POST", self.of(collection) + "/points/query", body)["points"]
        return sorted(((point["score"], str(point["id"])) for point in points), reverse=True)

    def settings(self, collection: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Configuration and payload indexes as Qdrant shows them, without the number of copies."""
        document = self.call("GET", self.of(collection))
        config = document["config"]
        for copies in ("replication_factor", "write_consistency_factor"):
            config["params"].pop(copies, None)
        config["metadata"] = config.get("metadata") or None  # PATCH leaves {} where there was none; both mean none
        return config, document["payload_schema"]


def everything(cluster: QdrantCluster, collection: str) -> dict[str, str]:
    """Every point of a collection by its id."""
    found: dict[str, str] = {}
    for points in by_shard(cluster, collection).values():
        assert found.keys().isdisjoint(points)
        found |= points
    return found


def by_shard(cluster: QdrantCluster, collection: str) -> dict[int, dict[str, str]]:
    """The points of each shard by their ids, read from every replica on its own node; replicas must agree.

    Not asked through one node for all: what comes from another node is not what is stored (1.16.3 shows a payload's
    integers above 2^63 as floats then).
    """
    shards: dict[int, dict[str, str]] = {}
    for url in cluster.urls:
        with Api(url, cluster.api_key) as api:
            for shard_id, points in api.replicas(collection).items():
                assert shards.setdefault(shard_id, points) == points
    return shards
