"""The steps of one archive: create, upload, prove. Each may run twice, at any time, on any worker."""

import logging
import time
from datetime import datetime

from ferry.archive.proof import Proof
from ferry.backup.plan import BackupPlan, PlannedArchive
from ferry.connections import Connections
from ferry.errors import ArchiveDamagedError
from ferry.models import BackupId, Progress, ProofLevel, ShardId, Value, no_progress, now
from ferry.qdrant import snapshots
from ferry.qdrant.node import Node
from ferry.repository.journal import Entry
from ferry.repository.manifest import ArchiveRecord, ShardRecord
from ferry.verify import spool
from ferry.verify.archive import prove_stored

log = logging.getLogger(__name__)


class Work(Value):
    """One archive to make, with all that its steps need to know apart from the connections."""

    backup_id: BackupId
    cluster: str
    repository: str
    proof: ProofLevel
    archive: PlannedArchive

    @property
    def label(self) -> str:
        """What an operator calls it."""
        return self.archive.label


class MadeSnapshot(Value):
    """A snapshot that lies on its node, as Qdrant described it."""

    name: str
    bytes: int
    sha256: str
    started_at: datetime
    finished_at: datetime


class StoredArchive(Value):
    """An archive in the bucket, whose bytes on the wire were what Qdrant said they are."""

    key: str
    snapshot: MadeSnapshot
    seconds: float

    @property
    def mb_per_second(self) -> float:
        """Megabytes (10^6) a second from node to bucket."""
        return self.snapshot.bytes / 1e6 / max(self.seconds, 1e-9)


def lanes_of_work(plan: BackupPlan, at_a_time: int) -> list[list[Work]]:
    """One lane a node, as work; where there are more nodes than ``at_a_time``, several share a lane."""
    lanes: list[list[Work]] = [[] for _ in range(min(at_a_time, len(plan.lanes())))]
    for number, archives in enumerate(plan.lanes().values()):
        lanes[number % at_a_time] += [
            Work(
                backup_id=plan.backup_id,
                cluster=plan.cluster,
                repository=plan.repository,
                proof=plan.proof,
                archive=archive,
            )
            for archive in archives
        ]
    return lanes


def create_snapshot(connections: Connections, work: Work) -> MadeSnapshot:
    """Make the snapshot on its node, and note it in the journal before, so that no crash leaves it behind.

    Raises LayoutError when another peer answers at the node's address, NodeError when Qdrant refuses or is gone.
    """
    archive, journal = work.archive, connections.journal(work.backup_id)
    node = connections.cluster.node(archive.node.peer_id)
    node.require_identity()
    entry = journal.find("node_snapshot", _journal_name(work))
    if entry is None:
        names = [found.name for found in snapshots.list_snapshots(node, archive.collection, archive.shard_id)]
        entry = journal.note(
            "node_snapshot",
            _journal_name(work),
            {
                "node_url": archive.node.url,
                "peer_id": archive.node.peer_id,
                "collection": archive.collection,
                "shard_id": archive.shard_id,
                "names_before": names,
                "process": snapshots.process_id(node),
            },
        )
    started = now()
    snapshot = _made_earlier(node, entry) or snapshots.create_snapshot(node, archive.collection, archive.shard_id)
    node.require_identity()
    journal.update(entry, name=snapshot.name)
    log.info("%s: snapshot %s, %d bytes", archive.label, snapshot.name, snapshot.size)
    if snapshot.checksum is None:
        msg = f"{archive.label}: Qdrant gave no checksum for {snapshot.name}, so its bytes cannot be proven."
        raise ArchiveDamagedError(msg, "Set storage.snapshots_config.snapshots_storage to local on the nodes.")
    return MadeSnapshot(
        name=snapshot.name, bytes=snapshot.size, sha256=snapshot.checksum, started_at=started, finished_at=now()
    )


def _made_earlier(node: Node, entry: Entry) -> snapshots.Snapshot | None:
    """The snapshot that an earlier attempt of this step has made, so that a retry never makes a second one."""
    name = entry.detail.get("name") or made_after(node, entry)
    collection, shard_id = entry.detail["collection"], entry.detail["shard_id"]
    found = [made for made in snapshots.list_snapshots(node, collection, shard_id) if made.name == name]
    return snapshots.with_whole_checksum(node, collection, shard_id, found[0]) if found else None


def made_after(node: Node, entry: Entry) -> str | None:
    """The snapshot that a journal entry asked for, when nobody lived to note its name.

    Qdrant names snapshots itself. Ours is the first that appeared after the entry: whoever else makes one of the same
    shard in the same seconds waits behind ours, because Qdrant makes them one after the other.
    """
    known = set(entry.detail["names_before"])
    found = snapshots.list_snapshots(node, entry.detail["collection"], entry.detail["shard_id"])
    return min((snapshot.name for snapshot in found if snapshot.name not in known), default=None)


def node_restarted(node: Node, entry: Entry) -> bool:
    """Whether the node was restarted since the entry: then what it was making is gone."""
    return bool(entry.detail["process"] != snapshots.process_id(node))


def upload_snapshot(
    connections: Connections, work: Work, made: MadeSnapshot, progress: Progress = no_progress
) -> StoredArchive:
    """Move a snapshot from its node to the bucket in one pass, compare sha256 and size, and delete the node's file.

    Raises ArchiveDamagedError when the bytes on the wire are not what Qdrant said; the object is deleted again then.
    """
    archive, key = work.archive, archive_key(connections, work)
    journal = connections.journal(work.backup_id)
    journal.note("archive", _journal_name(work), {"key": key, "collection": archive.collection})
    started = time.monotonic()
    held = connections.store.head(key)
    # An earlier attempt may have failed after its upload; what it wrote is compared with sha256 by the proof.
    if held is None or (held.bytes, held.metadata.get("sha256")) != (made.bytes, made.sha256):
        if held is not None:  # of another snapshot of this run, which is lost; uploads never overwrite
            connections.store.delete([key])
        _move_snapshot(connections, work, made, progress)
    seconds = time.monotonic() - started
    # Once more: while this run was frozen, another may have taken the lease, and the note, before there was an object.
    journal.note("archive", _journal_name(work), {"key": key, "collection": archive.collection})
    release_snapshot(connections, work, made.name)
    return StoredArchive(key=key, snapshot=made, seconds=seconds)


def _move_snapshot(connections: Connections, work: Work, made: MadeSnapshot, progress: Progress) -> None:
    archive, store, key = work.archive, connections.store, archive_key(connections, work)
    node = connections.cluster.node(archive.node.peer_id)
    node.require_identity()
    blocks = snapshots.download_snapshot(
        node, archive.collection, archive.shard_id, made.name, expected_bytes=made.bytes
    )
    blocks = spool.keeping(connections.worker, key, blocks)
    uploaded = store.upload(key, blocks, expected_bytes=made.bytes, metadata={"sha256": made.sha256}, progress=progress)
    if (uploaded.bytes, uploaded.sha256) != (made.bytes, made.sha256):
        store.delete([key])
        msg = (
            f"{archive.label}: {uploaded.bytes} bytes with sha256 {uploaded.sha256} arrived; "
            f"Qdrant said {made.bytes} bytes with {made.sha256}."
        )
        raise ArchiveDamagedError(msg, "Something between node and worker changes bytes; run the backup again.")
    node.require_identity()


def release_snapshot(connections: Connections, work: Work, name: str) -> None:
    """Delete the node's file and settle its journal entry."""
    archive, journal = work.archive, connections.journal(work.backup_id)
    node = connections.cluster.node(archive.node.peer_id)
    snapshots.delete_snapshot(node, archive.collection, archive.shard_id, name)
    if entry := journal.find("node_snapshot", _journal_name(work)):
        journal.settle(entry)


def prove_upload(
    connections: Connections, work: Work, stored: StoredArchive, progress: Progress = no_progress
) -> ArchiveRecord:
    """Read the archive back from the bucket and fix its count and digest, shard by shard.

    Raises ArchiveDamagedError when it cannot be opened or its bytes are not those that were sent.
    """
    archive = work.archive
    shard_ids = [shard.shard_id for shard in archive.shards]
    proofs = prove_stored(
        connections,
        stored.key,
        (stored.snapshot.bytes, stored.snapshot.sha256),
        None if archive.kind == "shard" else shard_ids,
        work.proof,
        progress,
    )
    return _record(connections, work, stored, proofs)


def _record(
    connections: Connections, work: Work, stored: StoredArchive, proofs: dict[ShardId | None, Proof]
) -> ArchiveRecord:
    archive = work.archive
    shards = tuple(
        ShardRecord(
            shard_id=shard.shard_id,
            shard_key=shard.key,
            replica_counts=shard.replica_counts,
            proof=proofs[None if archive.kind == "shard" else shard.shard_id],
        )
        for shard in archive.shards
    )
    folder = connections.keys.collection_prefix(work.cluster, work.backup_id, archive.collection)
    return ArchiveRecord(
        key=stored.key.removeprefix(folder),
        kind=archive.kind,
        snapshot=stored.snapshot.name,
        bytes=stored.snapshot.bytes,
        sha256=stored.snapshot.sha256,
        source_peer=archive.node.peer_id,
        started_at=stored.snapshot.started_at,
        finished_at=stored.snapshot.finished_at,
        shards=shards,
    )


def archive_key(connections: Connections, work: Work) -> str:
    """Where the archive's bytes go in the bucket."""
    archive, keys = work.archive, connections.keys
    if archive.shard_id is None:
        return keys.node_archive(work.cluster, work.backup_id, archive.collection, archive.node.peer_id)
    return keys.shard_archive(work.cluster, work.backup_id, archive.collection, archive.shard_id)


def _journal_name(work: Work) -> str:
    archive = work.archive
    shard = "all" if archive.shard_id is None else archive.shard_id
    return f"{archive.collection}-{shard}-{archive.node.peer_id}"
