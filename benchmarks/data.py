"""Collections of random vectors, loaded as fast as two cores allow: what is in them hardly matters, their size does."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import orjson

DIMENSIONS = 768
BATCH_POINTS = 1_000
IN_FLIGHT = 2
LOAD_SECONDS = 300.0


@dataclass(frozen=True)
class Shape:
    """A collection to make: its name, how many points with how much text each, and how they are spread."""

    name: str
    points: int
    shards: int = 1
    replication: int = 1
    text_bytes: int = 0
    dimensions: int = DIMENSIONS


def load(url: str, shape: Shape) -> None:
    """Create the collection without HNSW (an index would take minutes and move no other bytes) and fill it."""
    settings = {
        "vectors": {"size": shape.dimensions, "distance": "Cosine"},
        "shard_number": shape.shards,
        "replication_factor": shape.replication,
        "optimizers_config": {"indexing_threshold": 0},
    }
    headers = {"content-type": "application/json"}
    with (
        httpx.Client(base_url=url, headers=headers, timeout=LOAD_SECONDS, trust_env=False) as http,
        ThreadPoolExecutor(IN_FLIGHT) as lanes,
    ):
        http.put(f"/collections/{shape.name}", content=orjson.dumps(settings)).raise_for_status()

        def put(body: bytes) -> None:
            http.put(f"/collections/{shape.name}/points?wait=true", content=body).raise_for_status()

        pending: list[Any] = []
        for body in _batches(shape):
            pending.append(lanes.submit(put, body))
            if len(pending) > IN_FLIGHT:
                pending.pop(0).result()
        for future in pending:
            future.result()


def _batches(shape: Shape) -> Iterator[bytes]:
    """Small whole numbers as vectors: two characters each in JSON, and any float once Qdrant has normalized them.

    The text is random base64, which no storage can make much smaller.
    """
    random = np.random.default_rng(20_261_122)
    for start in range(0, shape.points, BATCH_POINTS):
        numbers = range(start, min(start + BATCH_POINTS, shape.points))
        rows = random.integers(-9, 10, size=(len(numbers), shape.dimensions), dtype=np.int8)
        batch = []
        for row, number in zip(rows, numbers, strict=True):
            payload: dict[str, Any] = {"n": number, "title": f"document {number}"}
            if shape.text_bytes:
                payload["text"] = b64encode(random.bytes(shape.text_bytes * 3 // 4)).decode()
            batch.append({"id": number, "vector": row, "payload": payload})
        yield orjson.dumps({"points": batch}, option=orjson.OPT_SERIALIZE_NUMPY)
