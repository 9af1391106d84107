"""The steps of one archive: create, upload, prove. Each may run twice, at any time, on any worker."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from ferry.archive.encryption import Encoder, StoredForm, stored_bytes_at_most
from ferry.archive.proof import Proof
from ferry.backup.guard import Guard, guarded
from ferry.backup.work import Half, MadeSnapshot, ProvenArchive, StoredArchive, Work
from ferry.connections import Connections
from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConflictError
from ferry.models import PeerId, Progress, ShardId, no_progress, now
from ferry.qdrant import snapshots
from ferry.qdrant.node import Node
from ferry.repository.bandwidth import limited, to_buckets
from ferry.repository.journal import Entry
from ferry.repository.layout import archive_file
from ferry.repository.manifest import ArchiveRecord, ShardRecord
from ferry.repository.store import UnfinishedUpload
from ferry.settings import load_settings
from ferry.verify import spool
from ferry.verify.archive import prove_stored

log = logging.getLogger(__name__)


def store_archive(connections: Connections, work: Work, tell: Callable[[str, int], Progress]) -> ProvenArchive:
    """All steps of one archive, or what an earlier attempt has proven. ``tell`` makes the progress of a step."""
    done = proven_already(connections, work)
    if done is not None:
        return done
    made = create_snapshot(connections, work, tell(f"create {work.label}", 0))
    stored = upload_snapshot(connections, work, made, tell(f"upload {work.label}", made.bytes))
    return prove_upload(connections, work, stored, tell(f"prove {work.label}", 0))


def proven_already(connections: Connections, work: Work) -> ProvenArchive | None:
    """What an earlier attempt of this run has proven, when the bucket still holds just that."""
    entry = connections.journal(work.backup_id).find("proof", work.noted)
    if entry is None:
        return None
    proven = ProvenArchive.model_validate(entry.detail)
    folder = connections.keys.collection_prefix(work.cluster, work.backup_id, proven.collection)
    held = connections.store.head(folder + proven.record.key)
    return proven if held is not None and (held.bytes, held.etag) == (proven.record.held[0], proven.etag) else None


def create_snapshot(connections: Connections, work: Work, progress: Progress = no_progress) -> MadeSnapshot:
    """Make the snapshot on its node, and note it in the journal before, so that no crash leaves it behind.

    Raises LayoutError when another peer answers at the node's address, NodeError when Qdrant refuses or is gone,
    LimitError when the policy forbids to begin now.
    """
    archive, journal = work.archive, connections.journal(work.backup_id)
    node = connections.cluster.node(archive.node.peer_id)
    node.require_identity()
    if work.half is not None and (found := _snapshot_of(node, work, work.half)) is not None:
        log.info("%s: going on with snapshot %s of a run that died", archive.label, found.name)
        return found
    with _guarded(connections, work, progress) as guard:
        guard.admit()
        progress(0)
        entry = journal.find("node_snapshot", work.noted) or _note_snapshot(connections, work, node)
        started = now()
        snapshot = _made_earlier(node, entry) or snapshots.create_snapshot(node, archive.collection, archive.shard_id)
    node.require_identity()
    journal.update(entry, name=snapshot.name)
    log.info("%s: snapshot %s, %d bytes", archive.label, snapshot.name, snapshot.size)
    if snapshot.checksum is None:
        msg = f"{archive.label}: Qdrant gave no checksum for {snapshot.name}, so its bytes cannot be proven."
        raise ArchiveDamagedError(msg, "Set storage.snapshots_config.snapshots_storage to local on the nodes.")
    return MadeSnapshot(
        name=snapshot.name,
        bytes=snapshot.size,
        sha256=snapshot.checksum,
        started_at=started,
        finished_at=now(),
        findings=guard.findings,
    )


def _note_snapshot(connections: Connections, work: Work, node: Node) -> Entry:
    archive = work.archive
    names = [found.name for found in snapshots.list_snapshots(node, archive.collection, archive.shard_id)]
    detail = {
        "node_url": archive.node.url,
        "peer_id": archive.node.peer_id,
        "collection": archive.collection,
        "shard_id": archive.shard_id,
        "names_before": names,
        "process": snapshots.process_id(node),
    }
    return connections.journal(work.backup_id).note("node_snapshot", work.noted, detail)


def _snapshot_of(node: Node, work: Work, half: Half) -> MadeSnapshot | None:
    """The snapshot that a dead run has made, when it is whole and still there."""
    collection, shard_id = work.archive.collection, work.archive.shard_id
    found = [each for each in snapshots.list_snapshots(node, collection, shard_id) if each.name == half.snapshot]
    whole = snapshots.with_whole_checksum(node, collection, shard_id, found[0]) if found else None
    if whole is None or whole.checksum is None:
        return None
    return MadeSnapshot(
        name=whole.name,
        bytes=whole.size,
        sha256=whole.checksum,
        started_at=half.started_at,
        finished_at=max(half.started_at, whole.created_at or half.started_at),
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
    started = time.monotonic()
    stored = _continued(connections, work, made, progress) or _uploaded(connections, work, made, progress)
    progress(0)  # who has lost the lease meanwhile deletes nothing: the snapshot may be its successor's
    _release_snapshot(connections, work, made.name)
    return stored.model_copy(update={"seconds": time.monotonic() - started})


def _uploaded(connections: Connections, work: Work, made: MadeSnapshot, progress: Progress) -> StoredArchive:
    encryption, store = connections.profile.encryption, connections.store
    file = archive_file(_number(work), work.archive.kind, work.fencing, "age" if encryption else "plain")
    key = connections.keys.archive(work.cluster, work.backup_id, work.archive.collection, file)
    journal = connections.journal(work.backup_id)
    if journal.find("archive", work.noted) is not None:
        store.abort_uploads(key)  # of an attempt at this step that died with its process, as on Dask or Ray
    journal.note("archive", work.noted, {"key": key, "collection": work.archive.collection})
    held = store.head(key)
    if held is not None:  # an earlier attempt failed after its upload; only this holder knows the key
        if encryption is None and (held.bytes, held.metadata.get("sha256")) == (made.bytes, made.sha256):
            return StoredArchive(
                key=key, etag=held.etag, snapshot=made, form=StoredForm(bytes=made.bytes, sha256=made.sha256)
            )
        store.delete([key])
    node = connections.cluster.node(work.archive.node.peer_id)
    node.require_identity()
    with _guarded(connections, work, progress) as guard:
        encoder = Encoder(encryption, spool.keeping(connections.worker, key, guard.paced(_read(node, work, made))))
        uploaded = store.upload(
            key,
            limited(encoder.blocks(), to_buckets(connections.worker), progress),
            expected_bytes=None if encryption else made.bytes,
            longest_bytes=stored_bytes_at_most(encryption, made.bytes),
            metadata={} if encryption else {"sha256": made.sha256},
            progress=progress,
        )
    form = encoder.form((uploaded.bytes, uploaded.sha256 or ""))
    if (form.bytes, form.sha256) != (made.bytes, made.sha256):
        store.delete([key])
        msg = (
            f"{work.label}: {form.bytes} bytes with sha256 {form.sha256} arrived; "
            f"Qdrant said {made.bytes} bytes with {made.sha256}."
        )
        raise ArchiveDamagedError(msg, "Something between node and worker changes bytes; run the backup again.")
    node.require_identity()
    return StoredArchive(key=key, etag=uploaded.etag, snapshot=made, form=form, findings=guard.findings)


def _continued(connections: Connections, work: Work, made: MadeSnapshot, progress: Progress) -> StoredArchive | None:
    """Go on with the upload that a dead run has left of this very snapshot; None where there is none, or it failed."""
    half = work.half
    if half is None or half.key is None or half.upload_id is None or half.snapshot != made.name:
        return None
    journal = connections.journal(work.backup_id)
    journal.note("archive", work.noted, {"key": half.key, "collection": work.archive.collection})
    node = connections.cluster.node(work.archive.node.peer_id)
    unfinished = UnfinishedUpload(key=half.key, upload_id=half.upload_id, begun=half.started_at)
    try:
        with _guarded(connections, work, progress) as guard:

            def blocks_from(start: int) -> Iterator[bytes]:
                log.info("%s: going on at byte %d of %d", work.label, start, made.bytes)
                paced = guard.paced(_read(node, work, made, start))
                return limited(paced, to_buckets(connections.worker), progress)

            uploaded = connections.store.continue_upload(
                unfinished, blocks_from, expected_bytes=made.bytes, progress=progress
            )
    except (ArchiveDamagedError, BackupNotFoundError, ConflictError) as error:  # ended by others, or of other bytes
        log.warning("%s: cannot go on with what a dead run has sent: %s", work.label, error.message)
        return None
    form = StoredForm(bytes=made.bytes, sha256=made.sha256)  # the proof compares: it reads all of it back
    return StoredArchive(key=half.key, etag=uploaded.etag, snapshot=made, form=form, findings=guard.findings)


def _guarded(connections: Connections, work: Work, progress: Progress) -> AbstractContextManager[Guard]:
    archive, policy = work.archive, load_settings().policy(work.policy)
    node = connections.cluster.node(archive.node.peer_id)
    run = f"{work.backup_id}/{work.fencing}"  # a resumed run has the same id, and does not inherit a stop
    return guarded(node, archive.collection, policy, progress, archive.shard_id, run=run)


def _read(node: Node, work: Work, made: MadeSnapshot, start: int = 0) -> Iterator[bytes]:
    archive = work.archive
    return snapshots.download_snapshot(
        node, archive.collection, archive.shard_id, made.name, expected_bytes=made.bytes, start=start
    )


def _release_snapshot(connections: Connections, work: Work, name: str) -> None:
    """Delete the node's file and settle its journal entries, those of the dead run that began it too.

    When the collection was dropped meanwhile the file is out of reach: the entries stay, so that it is told.
    """
    archive, journal = work.archive, connections.journal(work.backup_id)
    node = connections.cluster.node(archive.node.peer_id)
    deleted = snapshots.delete_snapshot(node, archive.collection, archive.shard_id, name)
    if not deleted and not node.exists(archive.collection):
        return
    for noted in (work.noted, *([work.half.noted] if work.half else [])):
        journal.drop("node_snapshot", noted)


def prove_upload(
    connections: Connections, work: Work, stored: StoredArchive, progress: Progress = no_progress
) -> ProvenArchive:
    """Read the archive back from the bucket, fix its count and digest, shard by shard, and note that in the journal.

    Raises ArchiveDamagedError when it cannot be opened or its bytes are not those that were sent.
    """
    archive = work.archive
    shard_ids = [shard.shard_id for shard in archive.shards] if archive.kind == "node" else None
    proofs = prove_stored(connections, stored.key, stored.form, shard_ids, work.proof, progress)
    proven = ProvenArchive(
        noted=work.noted,
        record=_record(connections, work, stored, proofs),
        etag=stored.etag,
        fingerprint=work.fingerprint,
        place=archive.place,
        collection=archive.collection,
        mb_per_second=stored.mb_per_second,
        findings=stored.snapshot.findings + stored.findings,
    )
    connections.journal(work.backup_id).note("proof", work.noted, proven.model_dump(mode="json"))
    if work.half is not None:  # what the dead run noted of it is noted by us now
        connections.journal(work.backup_id).drop("archive", work.half.noted)
    return proven


def _record(
    connections: Connections, work: Work, stored: StoredArchive, proofs: dict[ShardId | None, Proof]
) -> ArchiveRecord:
    archive, form = work.archive, stored.form
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
        source_peer=archive.node.peer_id,
        started_at=stored.snapshot.started_at,
        finished_at=stored.snapshot.finished_at,
        shards=shards,
        **form.model_dump(),
    )


def _number(work: Work) -> ShardId | PeerId:
    return work.archive.node.peer_id if work.archive.shard_id is None else work.archive.shard_id
