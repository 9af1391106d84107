"""Values for unit tests, with only what a test cares about to be named."""

from datetime import UTC, datetime
from typing import Any

from ferry.archive.proof import Proof
from ferry.backup.plan import BackupPlan
from ferry.backup.work import BackupRun, ProvenArchive
from ferry.models import BackupId, ClusterLayout, CollectionLayout, NodeInfo, PeerId, Replica, ShardId, ShardLayout
from ferry.repository.lease import Lease, LeaseRecord
from ferry.repository.manifest import ArchiveRecord, CollectionManifest, NodeRecord, ShardRecord
from tests.unit.fakes import MemoryStore

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
BACKUP_ID = BackupId("20261122T120000Z-abcdef")


def node(number: int, version: str = "1.16.3") -> NodeInfo:
    """Node number 1 is peer 1 at node-1:6333."""
    return NodeInfo(url=f"http://node-{number}:6333", peer_id=PeerId(number), version=version)


def shard(shard_id: int, peers: list[int], state: str = "Active") -> ShardLayout:
    """A shard with replicas on these peers."""
    return ShardLayout(
        shard_id=ShardId(shard_id), replicas=tuple(Replica(peer_id=PeerId(peer), state=state) for peer in peers)
    )


def collection(name: str, shards: list[ShardLayout], **params: Any) -> CollectionLayout:
    """A collection of 4-dimensional vectors with these shards."""
    config = {
        "params": {
            "vectors": {"size": 4, "distance": "Cosine"},
            "shard_number": len(shards),
            "replication_factor": max((len(s.replicas) for s in shards), default=1),
            "write_consistency_factor": 1,
            "on_disk_payload": True,
        }
        | params,
        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0},
        "optimizer_config": {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "flush_interval_sec": 5},
        "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
        "quantization_config": None,
    }
    return CollectionLayout(name=name, config=config, payload_schema={}, status="green", shards=tuple(shards))


def layout(
    nodes: list[NodeInfo], collections: list[CollectionLayout], aliases: dict[str, str] | None = None
) -> ClusterLayout:
    """A cluster called test."""
    return ClusterLayout(
        cluster="test",
        taken_at=NOON,
        nodes=tuple(nodes),
        collections=tuple(collections),
        aliases=aliases or {},
    )


def archive(shard_id: int, points: int = 10, size: int = 1000, peer: int = 1) -> ArchiveRecord:
    """A proven archive of one shard."""
    return ArchiveRecord(
        key=f"shards/{shard_id}.snapshot",
        kind="shard",
        snapshot=f"docs-shard-{shard_id}-2026-11-22-12-00-00.snapshot",
        bytes=size,
        sha256="0" * 64,
        source_peer=PeerId(peer),
        started_at=NOON,
        finished_at=NOON,
        shards=(ShardRecord(shard_id=ShardId(shard_id), proof=proof(points)),),
    )


def proof(points: int | None = 10) -> Proof:
    """A proof that counted, and no more."""
    return Proof(level="count", engine="test", points=points, content=None, sample=[], seconds=0.0)


def run_of(plan: BackupPlan) -> BackupRun:
    """A run of that plan that holds the lease under fencing number 7."""
    record = LeaseRecord(
        holder="a test",
        host="here",
        pid=1,
        token="t",
        fencing=7,
        ttl_seconds=60,
        acquired_at=NOON,
        renewed_at=NOON,
    )
    return BackupRun(Lease(MemoryStore(), "lease", record, "etag", 0.0), plan)


def proven(record: ArchiveRecord, collection: str = "docs") -> ProvenArchive:
    """An archive as its journal entry holds it."""
    place = f"shard-{record.shards[0].shard_id}"
    return ProvenArchive(
        noted=f"{collection}-{place}", record=record, etag="e", fingerprint="f", place=place, collection=collection
    )


def manifest(source: CollectionLayout, archives: list[ArchiveRecord], version: str = "1.16.3") -> CollectionManifest:
    """The manifest of that collection with these archives."""
    return CollectionManifest(
        backup_id=BACKUP_ID,
        cluster="test",
        collection=source.name,
        kind="shard",
        nodes=(NodeRecord(peer_id=PeerId(1), url="http://node-1:6333", version=version),),
        config=source.config,
        payload_schema=source.payload_schema,
        layout=source.shards,
        archives=tuple(archives),
        skew_seconds=0.0,
        created_at=NOON,
        ferry_version="0.0.0",
    )
