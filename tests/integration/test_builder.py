"""Shards built without a server: what goes in comes out of the archive, in files that Qdrant 1.16.3 knows."""

import json
import tarfile
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from ferry.archive import builder
from ferry.archive.builder import FinishedShard, ShardBuilders, unfit
from ferry.archive.builder_schema import obstacles
from ferry.archive.digest import digest_of
from ferry.archive.proof import prove_archive
from ferry.archive.tar import require_complete
from ferry.errors import FerryError, HeadroomError
from ferry.migration.batch import Dense, Multi, PointBatch, Sparse
from ferry.migration.columns import each_point
from ferry.models import ShardId
from sandbox import disk

CONFIG: dict[str, Any] = {
    "params": {
        "vectors": {
            "dense": {"size": 4, "distance": "Dot"},
            "half": {"size": 4, "distance": "Euclid", "datatype": "float16", "on_disk": True},
            "byte": {"size": 4, "distance": "Manhattan", "datatype": "uint8", "on_disk": False},
            "multi": {"size": 2, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
        },
        "sparse_vectors": {"sparse": {"modifier": "idf", "index": {"on_disk": False}}},
        "on_disk_payload": True,
    },
    "hnsw_config": {"m": 8, "ef_construct": 32, "full_scan_threshold": 10, "max_indexing_threads": 0, "on_disk": False},
    "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
}
SCHEMA: dict[str, Any] = {
    "n": {"data_type": "integer", "points": 0},
    "text": {"data_type": "text", "params": {"type": "text", "tokenizer": "word", "lowercase": True}, "points": 0},
}
# Of 1.16.3; qdrant-edge 0.9.0 also knows InRamMmap.
KNOWN_STORAGES = {"Mmap", "ChunkedMmap", "InRamChunkedMmap"}
SHARD = ShardId(3)
POINTS = 600


def batch(start: int, stop: int, sign: int = 1) -> PointBatch:
    """Points with numbers and UUIDs as ids, all kinds of vectors, some of them missing."""
    numbers = range(start, stop)
    count = len(numbers)
    values = sign * np.array([[n, 0.5, -0.25, 1] for n in numbers], dtype=np.float32)
    some = np.flatnonzero(np.array(numbers) % 3 > 0)
    return PointBatch(
        ids=[2**64 - 1 - n if n % 2 else str(UUID(int=n + 1)) for n in numbers],
        payloads=[{"n": n, "text": f"слово {n}", "deep": {"a.b": [1.0, None, -0.0, 2**63 + n]}} for n in numbers],
        vectors={
            "dense": Dense(values),
            "half": Dense(values[some] % 64, some),
            "byte": Dense(np.abs(values[some]) % 200 // 1, some),  # whole numbers, as uint8 keeps them
            "multi": Multi(np.arange(count + 1) * 2, np.repeat(values[:, :2], 2, axis=0)),
            "sparse": Sparse(
                np.arange(len(some) + 1) * 2,
                np.array([[1, start + row + 2] for row in some.tolist()], dtype=np.uint32).ravel(),
                np.ones(2 * len(some), dtype=np.float32),
                some,
            ),
        },
    )


def as_json(points: PointBatch) -> list[dict[str, Any]]:
    rows = zip(points.ids, points.payloads, each_point(points), strict=True)
    return [{"id": point_id, "payload": payload, "vector": vector} for point_id, payload, vector in rows]


def build(folder: Path, *batches: PointBatch, config: dict[str, Any] = CONFIG) -> tuple[Path, FinishedShard]:
    archive = folder / "3.snapshot"
    with ShardBuilders(folder, config, SCHEMA) as builders:
        builders.create([SHARD])
        for each in batches:
            builders.add(SHARD, each)
        return archive, builders.finish(SHARD, archive)


def test_an_archive_holds_exactly_the_points_that_went_in(tmp_path: Path) -> None:
    """Twice, and once otherwise before: only ids and their last content count."""
    archive, made = build(tmp_path, batch(0, 300, sign=-1), batch(0, 400), batch(0, POINTS), batch(200, 300))
    points = batch(0, POINTS)
    proof = prove_archive(archive, tmp_path / "work", "content")
    assert proof.content == digest_of(as_json(points))
    some = len(points.vectors["sparse"].rows if points.vectors["sparse"].rows is not None else [])
    assert made.points == POINTS
    assert made.vectors == {"dense": POINTS, "half": some, "byte": some, "multi": POINTS, "sparse": some}
    assert made.indexed_vectors == sum(made.vectors.values())
    assert made.bytes == archive.stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"3.snapshot", "work", "worker-0.log"}


def test_its_files_are_those_that_the_target_knows(tmp_path: Path) -> None:
    """One indexed segment whose points are older than all that the target will write, as Qdrant packs it."""
    archive, _ = build(tmp_path, batch(0, POINTS))
    assert require_complete(archive)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        [segment] = {name.split("/")[1] for name in names if name.startswith("segments/")}
        prefix = f"segments/{segment}/files/"
        read = {name: tar.extractfile(name) for name in names if name.startswith(prefix)}
        content = {name.removeprefix(prefix): file.read() for name, file in read.items() if file is not None}
    document = json.loads(content["segment.json"])
    others = [name for name in names if not name.startswith(prefix)]
    log = f"wal/closed-{document['version'] + 1}"  # the target goes on counting where no point is newer
    assert others == ["wal", log, "replica_state.json", "shard_config.json"]
    assert document["version"] >= np.frombuffer(content["id_tracker.versions"], dtype="<u8").max() > 0
    dense = document["config"]["vector_data"]
    assert {name: vector["storage_type"] for name, vector in dense.items()} == {
        "dense": "InRamChunkedMmap",
        "half": "Mmap",
        "byte": "InRamChunkedMmap",
        "multi": "InRamChunkedMmap",
    }
    assert {vector["index"]["type"] for vector in dense.values()} == {"hnsw"}
    assert {vector["index"]["options"]["m"] for vector in dense.values()} == {8}
    assert archive.stat().st_size < 20 << 20 < sum(map(len, content.values()))  # holes stayed holes


def test_vectors_in_chunks_are_cut_where_qdrant_cuts_them(tmp_path: Path) -> None:
    """Several chunks of 32 MiB, the last of them not full."""
    size = 4096
    config = deepcopy(CONFIG) | {"quantization_config": None}
    config["params"] = {"vectors": {"size": size, "distance": "Dot"}}
    config["hnsw_config"]["m"] = 0
    values = np.arange(5000, dtype=np.float32)[:, None] + np.linspace(0, 1, size, dtype=np.float32)
    points = [PointBatch(range(n, n + 500), [{}] * 500, {"": Dense(values[n : n + 500])}) for n in range(0, 5000, 500)]
    archive, _ = build(tmp_path, *points, config=config)
    proof = prove_archive(archive, tmp_path / "work", "content")
    assert proof.content == digest_of([point for each in points for point in as_json(each)])
    with tarfile.open(archive) as tar:
        chunks = [member for member in tar.getmembers() if "/vector_storage/vectors/chunk_" in member.name]
    assert [chunk.size for chunk in chunks] == [32 << 20] * 3


def test_points_that_no_shard_can_hold_are_named() -> None:
    points = batch(0, 9)
    broken = points.vectors["multi"].values.copy()
    broken[4, 1] = np.nan  # of the third point, its first row
    half = points.vectors["half"]
    infinite = half.values.copy()
    infinite[-1, 0] = np.inf  # of the last point
    wrong = PointBatch(
        points.ids,
        points.payloads,
        {
            **points.vectors,
            "multi": Multi(np.arange(10) * 2, broken),
            "half": Dense(infinite, half.rows),
            "other": Dense(np.ones((1, 4), dtype=np.float32), np.array([4])),
        },
    )
    sizes: dict[str, int | None] = {"dense": 4, "half": 4, "byte": 4, "multi": 2, "sparse": None}
    assert unfit(points, sizes) == {}
    assert unfit(wrong, sizes) == {
        2: "vector 'multi' holds NaN or an infinity",
        8: "vector 'half' holds NaN or an infinity",
        4: "the target has no vector 'other'",
    }
    assert set(unfit(points, sizes | {"dense": 5}).values()) == {"vector 'dense' has 4 dimensions and not 5"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"turbo": {"bits": 4}}}, "turbo quantization"),
        ({"quantization_config": {"product": {"compression": "x3"}}}, "product quantization with compression x3"),
        ({"hnsw_config": {"m": 8, "new": 1}}, "setting hnsw_config.new"),
        ({"params": {"vectors": {"a": {"size": 4, "distance": "Jaccard"}}}}, "vector 'a': distance Jaccard"),
        (
            {"params": {"vectors": {"size": 4, "distance": "Dot", "datatype": "int4"}}},
            "vector '': datatype int4",
        ),
        ({"params": {"sparse_vectors": {"s": {"index": {"zip": True}}}}}, "sparse vector 's': setting zip"),
    ],
)
def test_what_cannot_be_built_is_said(change: dict[str, Any], said: str) -> None:
    assert obstacles(CONFIG, SCHEMA, ("1.16.3", "1.19.0")) == []
    assert obstacles({**CONFIG, **change}, SCHEMA, ("1.16.3",)) == [said]


def test_indexes_and_versions_that_cannot_be_built_are_said() -> None:
    schema = {
        "a": {"data_type": "text", "params": {"type": "text", "tokenizer": "runes"}},
        "b": {"data_type": "vector"},
        "c": {"data_type": "keyword", "params": {"type": "keyword", "sorted": True, "on_disk": None}},
    }
    assert obstacles(CONFIG, schema, ("1.15.5", "1.16.3")) == [
        "a node has Qdrant 1.15.5",
        "payload index 'a': tokenizer runes",
        "payload index 'b': type vector",
        "payload index 'c': setting sorted",
    ]


def test_what_the_engine_refuses_is_said_and_stops_the_rest(tmp_path: Path) -> None:
    points = PointBatch([1], [{}], {"dense": Dense(np.ones((1, 5), dtype=np.float32))})
    with pytest.raises(FerryError, match=r"Shard 3 cannot be built: .*5"):
        build(tmp_path, points, batch(0, 10))


@pytest.mark.skipif(not disk.storage_limit_supported(), reason=disk.STORAGE_LIMIT_REASON)
@pytest.mark.parametrize("spare_bytes", [256 << 20, 0])
def test_a_disk_that_runs_full_stops_the_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare_bytes: int
) -> None:
    """In time; and where others fill it faster than that, the engine's process dies of it and it is said."""
    monkeypatch.setattr(builder, "LEAST_FREE_BYTES", max(spare_bytes, 1 << 12))
    folder = tmp_path / "small"
    disk.mount_limited(folder, spare_bytes + (24 << 20))
    try:
        with pytest.raises(HeadroomError, match="ran full while shards were built"):
            build(folder, *(batch(start, start + 2000) for start in range(0, 60_000, 2000)))
    finally:
        disk.unmount(folder)
