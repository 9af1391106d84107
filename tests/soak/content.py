"""What the source holds and held: every acknowledged state, as hashes of points that we compute ourselves.

Nothing here uses Ferry. The hash of a point is written anew from docs/repository.md, so that Ferry's digest and ours
can only agree when both follow the page.
"""

import hashlib
import json
import random
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import orjson

from sandbox.qdrant import QdrantCluster

BATCH_POINTS = 250
MODULUS = 1 << 256
Hashes = dict[int, int]  # of a point, by its id


@dataclass(frozen=True)
class Shape:
    """One collection of the soak."""

    points: int
    size: int
    shards: int
    replicas: int = 2


# `large` has three parts of 5 MiB in its one shard; the others are whole objects.
SHAPES = {
    "docs": Shape(points=900, size=16, shards=3),
    "notes": Shape(points=300, size=8, shards=2),
    "large": Shape(points=2900, size=1024, shards=1),
    "few": Shape(points=5, size=4, shards=1),
}
SMALL = {"docs": Shape(points=120, size=8, shards=2), "few": Shape(points=5, size=4, shards=1, replicas=1)}


def point_hash(point_id: int, payload: dict[str, Any], vector: np.ndarray) -> int:
    """The hash of one point with an unnamed dense vector, as docs/repository.md defines it."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    values = np.asarray(vector, dtype="<f4")
    parts = (
        b"\x00" + struct.pack("<Q", point_id),
        struct.pack("<I", len(text)) + text,
        struct.pack("<I", 1),
        struct.pack("<I", 0) + b"\x00" + struct.pack("<I", len(values)) + values.tobytes(),
    )
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=32).digest(), "big")


def total(hashes: Hashes) -> str:
    """The digest of points: 64 hex digits."""
    return f"{sum(hashes.values()) % MODULUS:064x}"


class Content:
    """The collections of a cluster, what every acknowledged change made of them, and which shard each point is in."""

    def __init__(self, cluster: QdrantCluster, shapes: dict[str, Shape], dice: random.Random) -> None:
        self.cluster = cluster
        self.shapes = shapes
        self._dice = dice
        self._change = 0
        self.states: dict[str, list[Hashes]] = {name: [{}] for name in shapes}
        self.routes: dict[str, dict[int, int]] = {name: {} for name in shapes}

    def load(self) -> None:
        """Create and fill all collections."""
        for name, shape in self.shapes.items():
            wanted = {
                "vectors": {"size": shape.size, "distance": "Dot"},
                "shard_number": shape.shards,
                "replication_factor": shape.replicas,
                "optimizers_config": {"default_segment_number": 2},
            }
            self._ask("PUT", f"/collections/{name}", wanted)
            self._upsert(name, list(range(shape.points)))

    def change(self) -> str:
        """Write to and delete from one collection, acknowledged; what was done."""
        weights = [
            1 if shape.size > 100 else 3 for shape in self.shapes.values()
        ]  # loading large vectors takes a while
        [name] = self._dice.choices(list(self.shapes), weights)
        known = sorted(self.states[name][-1])
        gone = self._dice.sample(known, k=min(len(known) // 4, self._dice.randint(0, 20)))
        written = self._dice.sample(known, k=min(len(known), self._dice.randint(1, 30)))
        written += [max(known, default=0) + 1 + i for i in range(self._dice.randint(0, 20))]
        if gone:
            self._ask("POST", f"/collections/{name}/points/delete?wait=true", {"points": gone})
            self.states[name].append({key: h for key, h in self.states[name][-1].items() if key not in set(gone)})
        self._upsert(name, written)
        return f"{name}: {len(gone)} deleted, {len(written)} written, {len(self.states[name][-1])} points"

    def digests(self, name: str, shard_id: int) -> set[str]:
        """The digest of a shard in every state that there was."""
        route = self.routes[name]
        return {total({key: h for key, h in state.items() if route[key] == shard_id}) for state in self.states[name]}

    def latest(self, name: str, shard_id: int) -> str:
        """The digest of a shard as it must be now."""
        route = self.routes[name]
        return total({key: h for key, h in self.states[name][-1].items() if route[key] == shard_id})

    def require_unharmed(self) -> None:
        """Every replica on every node holds what was acknowledged, point by point."""
        for name in self.shapes:
            for url, shard_id in self._replicas(name):
                found = {
                    p["id"]: point_hash(p["id"], p["payload"], p["vector"]) for p in self._points(url, name, shard_id)
                }
                assert total(found) == self.latest(name, shard_id), (
                    f"{name}/{shard_id} on {url} is not what was written"
                )

    def all_active(self) -> bool:
        """Whether every node shows every replica as Active."""
        for name in self.shapes:
            for node in self.cluster.nodes:
                found = self._ask("GET", f"/collections/{name}/cluster", url=node.url)
                states = {shard["state"] for shard in (*found["local_shards"], *found["remote_shards"])}
                if states != {"Active"} or found["shard_transfers"]:
                    return False
        return True

    def _upsert(self, name: str, ids: list[int]) -> None:
        self._change += 1
        state = dict(self.states[name][-1])
        for begin in range(0, len(ids), BATCH_POINTS):
            rows = []
            for point_id in ids[begin : begin + BATCH_POINTS]:
                seed = [zlib.crc32(name.encode()), point_id, self._change]
                # Multiples of 1/1024, which JSON carries without rounding.
                vector = (
                    np.random.default_rng(seed).integers(1024, size=self.shapes[name].size).astype(np.float32) / 1024
                )
                payload = {"of": name, "number": point_id, "change": self._change, "text": 'ä/ö "u"'}
                rows.append({"id": point_id, "vector": vector, "payload": payload})
                state[point_id] = point_hash(point_id, payload, vector)
            self._ask("PUT", f"/collections/{name}/points?wait=true", {"points": rows})
        self.states[name].append(state)
        self._learn_routes(name)

    def _learn_routes(self, name: str) -> None:
        if self.shapes[name].shards == 1:
            self.routes[name] = defaultdict(int)
            return
        seen: set[int] = set()
        for url, shard_id in self._replicas(name):
            if shard_id not in seen:
                seen.add(shard_id)
                self.routes[name].update(
                    dict.fromkeys((p["id"] for p in self._points(url, name, shard_id, False)), shard_id)
                )

    def _replicas(self, name: str) -> list[tuple[str, int]]:
        return [
            (node.url, shard["shard_id"])
            for node in self.cluster.nodes
            for shard in self._ask("GET", f"/collections/{name}/cluster", url=node.url)["local_shards"]
        ]

    def _points(self, url: str, name: str, shard_id: int, whole: bool = True) -> list[dict[str, Any]]:
        """All points of one node's own replica, by the route that reads it and no other."""
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next_page_offset": 0}
        while (offset := page["next_page_offset"]) is not None:
            body = {"limit": BATCH_POINTS, "offset": offset, "with_vector": whole, "with_payload": whole}
            page = self._ask("POST", f"/collections/{name}/shards/{shard_id}/points/scroll", body, url)
            found += page["points"]
        return found

    def _ask(self, method: str, path: str, body: Any = None, url: str | None = None) -> Any:
        content = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"content-type": "application/json"}
        with httpx.Client(base_url=url or self.cluster.urls[0], timeout=60, trust_env=False) as http:
            answer = http.request(method, path, content=content, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()["result"]
