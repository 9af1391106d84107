"""Small shard archives without a server: built with qdrant-edge, packed as Qdrant packs them."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path
from typing import Any

import qdrant_edge as edge


def points(count: int) -> list[dict[str, Any]]:
    """Points as Qdrant's JSON has them: numbers and UUIDs as ids, two vectors, payloads."""
    return [
        {
            "id": index if index % 3 else str(uuid.uuid5(uuid.NAMESPACE_OID, str(index))),
            "payload": {"title": f"документ {index}", "n": index, "meta": {"x": [1.0, None, -0.0]}},
            "vector": {"image": [float(index), 0.5, -0.0, 3.25], "text": [0.125 * index, 1.0]},
        }
        for index in range(count)
    ]


def build_archive(folder: Path, content: list[dict[str, Any]], name: str = "0.snapshot") -> Path:
    """Make a shard of these points and pack it as the archive ``name``; both stay in ``folder``."""
    shard_folder = folder / f"{name}-shard"
    vectors = {
        "image": edge.EdgeVectorParams(size=4, distance=edge.Distance.Dot, on_disk=True),
        "text": edge.EdgeVectorParams(size=2, distance=edge.Distance.Euclid, on_disk=True),
    }
    shard = edge.EdgeShard.create(str(shard_folder), edge.EdgeConfig(vectors=vectors))
    rows = [edge.Point(id=_id(point["id"]), vector=point["vector"], payload=point["payload"]) for point in content]
    shard.update(edge.UpdateOperation.upsert_points(rows))
    shard.flush()
    shard.close()
    (shard_folder / "replica_state.json").write_text("{}")
    (shard_folder / "shard_config.json").write_text('{"type":"ReplicaSet"}')
    archive = folder / name
    members = ["segments", "wal", "replica_state.json", "shard_config.json"]
    # GNU tar because it keeps the engine's 32 MiB pages sparse, as Qdrant does and Python's tarfile does not.
    subprocess.run(["tar", "--format=gnu", "-S", "-cf", str(archive), *members], cwd=shard_folder, check=True)
    return archive


def _id(point_id: int | str) -> int | uuid.UUID:
    return point_id if isinstance(point_id, int) else uuid.UUID(point_id)
