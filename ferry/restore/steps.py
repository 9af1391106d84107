"""The steps of a restore: create the target, recover each replica, settle, and put into service by an alias."""

import logging
import time
from collections import defaultdict
from glob import escape

from ferry.connections import Connections
from ferry.errors import (
    FerryError,
    NodeRefusedError,
    NodeUnreachableError,
    RestoreError,
    SnapshotError,
)
from ferry.models import BackupId, CollectionLayout, Finding, NodeInfo, PeerId, Progress, ShardId, Value, no_progress
from ferry.qdrant import points, snapshots
from ferry.qdrant.http import NoSpaceError, NotFoundError, ReplyLostError
from ferry.qdrant.node import Node
from ferry.qdrant.schema import restore_mark, schema_differences, unmark_restore
from ferry.repository.manifest import ArchiveRecord, ShardRecord
from ferry.restore.mend import mend_restored
from ferry.restore.plan import RestorePlan
from ferry.restore.source import by_url, object_key, source_of, upload_replica
from ferry.restore.switch import plan_move
from ferry.verify.replica import ReplicaVerdict, read_replica, verify_replica

log = logging.getLogger(__name__)
ACTIVE_SECONDS = 300.0
PLACED_SECONDS = 60.0
# A node may answer from another one that is behind, for seconds after a change (seen on 1.16.3).
SCHEMA_SECONDS = 15.0
POLL_SECONDS = 0.5
LATE_SECONDS = 3.0  # consensus makes a collection within a second, or refuses


class ReplicaWork(Value):
    """One replica of the new collection, to be recovered and verified."""

    plan: RestorePlan
    shard_id: ShardId
    node: NodeInfo
    lease: tuple[str, int] | None = None  # its key and fencing number, for steps in other processes than their run
    points_planned: int | None = None  # what it held when it was planned to be overwritten in place

    @property
    def label(self) -> str:
        """What an operator calls it: ``docs-new/shard 1 on 10.0.0.2:6333``."""
        return f"{self.plan.target}/shard {self.shard_id} on {self.node.label}"


class RecoveredReplica(Value):
    """How one replica got its data."""

    shard_id: ShardId
    peer_id: PeerId
    path: str
    bytes: int
    seconds: float
    findings: tuple[Finding, ...] = ()


def create_target(connections: Connections, plan: RestorePlan) -> list[ReplicaWork]:
    """Create the new collection with the source's configuration and payload indexes, and read where replicas are.

    Noted in the journal before; until ``keep_target`` it is ours to drop.
    """
    cluster, target = connections.cluster, plan.target
    journal = connections.journal(plan.request.restore_id)
    first = cluster.node(plan.layout.nodes[0].peer_id)
    first.require_identity()
    if journal.find("collection", target):  # an earlier attempt of this step got somewhere
        drop(connections, target, plan.request.restore_id)
    entry = journal.note("collection", target, {"collection": target})
    first.create_collection(target, plan.creation_body)
    journal.update(entry, created=True)
    _make_keys(first, plan)
    if plan.patch_body:
        first.patch_collection(target, plan.patch_body)
    for field, schema in plan.payload_indexes:
        first.create_payload_index(target, field, schema)
    return [
        ReplicaWork(plan=plan, shard_id=shard.shard_id, node=plan.layout.node(replica.peer_id))
        for shard in _placed(connections, plan).shards
        for replica in shard.replicas
    ]


def _make_keys(node: Node, plan: RestorePlan) -> None:
    """Make the shard keys in the planned order, and drop those that only held a number's place."""
    copies = {shard.key: shard.copies for shard in plan.shards}
    for step in plan.key_steps:
        if step.action == "drop":
            node.drop_shard_key(plan.target, step.key)
            continue
        factor = copies.get(step.key, 1)
        body = {"shard_key": step.key, "shards_number": step.shards, "replication_factor": factor}
        node.create_shard_key(plan.target, body)


def _placed(connections: Connections, plan: RestorePlan) -> CollectionLayout:
    """The new collection with every copy of every shard Active on every node's view, under its planned number and key.

    Nodes show some of the shards or none right after creating (seen on 1.16.3 under load), and all that they show is
    Active: a replica that is overlooked here would stay empty and be read from.
    """
    cluster, target = connections.cluster, plan.target
    wanted = {shard.shard_id: (shard.key, ["Active"] * shard.copies) for shard in plan.shards}
    deadline = time.monotonic() + PLACED_SECONDS
    while True:
        cluster.wait_until_active(target, None, ACTIVE_SECONDS)
        layout = cluster.read_layout([escape(target)]).collection(target)
        shards = layout.shards if layout else ()
        found = {shard.shard_id: (shard.key, [each.state for each in shard.replicas]) for shard in shards}
        if layout and found == wanted:
            return layout
        if time.monotonic() >= deadline:
            msg = (
                f"{target} has shards {found} after {PLACED_SECONDS:.0f} s; planned were {wanted}. "
                "It will be dropped again."
            )
            raise RestoreError(msg, "Run the restore again.")
        time.sleep(POLL_SECONDS)


def lanes_of_replicas(replicas: list[ReplicaWork]) -> list[list[ReplicaWork]]:
    """The replicas of each node: one recover at a time there (qdrant.md §7), nodes beside each other."""
    lanes: dict[PeerId, list[ReplicaWork]] = defaultdict(list)
    for replica in replicas:
        lanes[replica.node.peer_id].append(replica)
    return list(lanes.values())


def recover_replica(connections: Connections, work: ReplicaWork, progress: Progress = no_progress) -> RecoveredReplica:
    """Give one replica its shard's archive: fetched by the node from a signed address, else uploaded by us.

    Raises RestoreError or NodeError; the same call again is safe, it replaces what an earlier one left.
    """
    node = connections.cluster.node(work.node.peer_id)
    shard, archive = source_of(work.plan, work.shard_id)
    node.require_identity()
    started, findings = time.monotonic(), []
    path = "upload"
    if by_url(archive):
        try:
            _recover_from_url(connections, work, archive)
            path = "url"
        except ReplyLostError:
            raise  # the node was restarted meanwhile: to be tried again
        except NoSpaceError:
            raise
        except (NodeRefusedError, NodeUnreachableError) as error:
            # A node that cannot reach the bucket says 500, "error sending request for url" (seen on 1.16.3).
            log.warning("%s: by address failed, uploading instead: %s", work.label, error.message)
            findings.append(_fallback_finding(work, error))
    if path == "upload":
        upload_replica(connections, node, work.plan, work.shard_id, progress)
    node.require_identity()
    return RecoveredReplica(
        shard_id=shard.shard_id,
        peer_id=work.node.peer_id,
        path=path,
        bytes=archive.bytes,
        seconds=time.monotonic() - started,
        findings=tuple(findings),
    )


def _recover_from_url(connections: Connections, work: ReplicaWork, archive: ArchiveRecord) -> None:
    location = connections.store.presign(object_key(connections, work.plan, archive))
    node = connections.cluster.node(work.node.peer_id)
    process = snapshots.process_id(node)
    try:
        snapshots.recover_shard(node, work.plan.target, work.shard_id, location=location, checksum=archive.sha256)
    except ReplyLostError:
        _await_recovery(node, work, process)


def _await_recovery(node: Node, work: ReplicaWork, process: str) -> None:
    """Wait for a recovery whose answer was lost, since up to 1.18 a second one of the same shard would interleave.

    Raises ReplyLostError, which is tried again, when the node was restarted; SnapshotError at the deadline.
    """
    shard, _ = source_of(work.plan, work.shard_id)
    deadline = time.monotonic() + node.profile.snapshot_timeout_seconds
    silence = snapshots.Silence(node)
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        try:
            restarted = snapshots.process_id(node) != process
            silence.broken()
        except NodeUnreachableError as error:
            silence.heard(error)
            continue
        try:
            if _arrived(node, work, shard):
                return
        except NodeUnreachableError:
            pass  # it loads the shard
        if restarted:
            msg = f"{work.label}: the node was restarted while it recovered the shard."
            raise ReplyLostError(msg)
    msg = f"{work.label}: nobody knows whether the node has recovered the shard."
    raise SnapshotError(msg, "Look at the node's log, then run the restore again.")


def _arrived(node: Node, work: ReplicaWork, shard: ShardRecord) -> bool:
    """Whether a replica holds its shard. In place it held points before, maybe as many: those sampled must agree."""
    if work.plan.in_place is None:
        counted = points.count(node, work.plan.target, work.shard_id)
        return counted == shard.proof.points or (bool(counted) and shard.proof.points is None)
    compared = verify_replica(node, work.plan.target, work.shard_id, shard.proof, "sample")
    return shard.proof.points is not None and not compared.problems


def _fallback_finding(work: ReplicaWork, error: FerryError) -> Finding:
    return Finding(
        severity="warning",
        subject=work.label,
        message=f"The node could not fetch the archive itself, so it was uploaded: {error.message}",
        remedy="Let the nodes reach the bucket (repositories.<name>.node_endpoint_url) to spare the worker's network.",
    )


def settle_target(connections: Connections, plan: RestorePlan, progress: Progress = no_progress) -> list[str]:
    """Mend replicas that are stuck, wait until all are Active on every view, wake the optimizers, compare the schema.

    Returns what the new collection's schema has otherwise than the source's. Raises StuckError with the exact calls.
    """
    cluster = connections.cluster
    copies = {shard.shard_id: shard.copies for shard in plan.shards}
    mend_restored(connections, plan.target, copies, plan.request.restore_id, progress)
    cluster.wait_until_active(plan.target, None, ACTIVE_SECONDS, progress)
    first = cluster.node(plan.layout.nodes[0].peer_id)
    # Recovering shards does not trigger the optimizers; an empty patch does (qdrant.md §3.3).
    first.patch_collection(plan.target, {"optimizers_config": {}})
    deadline = time.monotonic() + SCHEMA_SECONDS
    while True:
        found = first.collection(plan.target)
        differences = schema_differences(
            plan.config, plan.manifest.payload_schema, found["config"], found["payload_schema"]
        )
        if not differences or time.monotonic() > deadline:
            return differences
        progress(0)
        time.sleep(POLL_SECONDS)


def verify_restored(connections: Connections, work: ReplicaWork, progress: Progress = no_progress) -> ReplicaVerdict:
    """Compare one replica with the proof of its shard; where points were sent, read it for `combined_problems`."""
    plan, level = work.plan, work.plan.request.verify
    node = connections.cluster.node(work.node.peer_id)
    node.require_identity()
    if plan.path == "points":
        sample = [point for shard, proof in plan.manifest.proofs() if shard in plan.sources for point in proof.sample]
        return read_replica(node, plan.target, work.shard_id, level, sample, progress)
    shard, _ = source_of(plan, work.shard_id)
    return verify_replica(node, plan.target, work.shard_id, shard.proof, level, progress)


def keep_target(connections: Connections, plan: RestorePlan) -> None:
    """Take the new collection out of the journal: from here on it is the operator's, and no run drops it.

    What its alias is to do is noted before, so that a kill between here and there leaves nothing unknown.
    """
    plan_move(connections, plan)
    journal = connections.journal(plan.request.restore_id)
    if entry := journal.find("collection", plan.target):
        first = connections.cluster.node(plan.layout.nodes[0].peer_id)
        unmark_restore(first, plan.target, plan.manifest.config.get("metadata"))
        journal.settle(entry)


def discard_target(connections: Connections, plan: RestorePlan) -> None:
    """Drop the new collection of a restore that failed, unless the operator wants to look at it.

    Raises nothing of Ferry's, which would hide why the restore failed: what stays is in the journal for the next one.
    """
    journal = connections.journal(plan.request.restore_id)
    try:
        entry = journal.find("collection", plan.target)
        if entry is None:
            return
        if not plan.request.keep_on_failure:
            created = entry.detail.get("created", False)
            if not created:
                _await_late(connections, plan.target)
            drop(connections, plan.target, plan.request.restore_id, created=created)
        journal.settle(entry)
    except FerryError as error:
        log.warning("%s is left for the next restore to drop: %s", plan.target, error.message)


def _await_late(connections: Connections, collection: str) -> None:
    """Wait for a collection that may still be on its way: a cancel interrupts us, and not the cluster's consensus."""
    deadline = time.monotonic() + LATE_SECONDS
    while time.monotonic() < deadline and not any(node.exists(collection) for node in connections.cluster.nodes):
        time.sleep(POLL_SECONDS)


def drop(connections: Connections, collection: str, restore_id: BackupId, *, created: bool = False) -> None:
    """Delete a collection that bears the mark of that restore, by the first node that can; one that is gone is fine.

    Without the mark it is not, or no longer, the restore's: then it is left alone. A shard that failed late makes the
    mark unreadable (500); only the run that has ``created`` the collection itself goes on without. Raises what the
    last node said.
    """
    nodes = list(connections.cluster.nodes)
    if not created:
        marked = _first_marked(nodes, collection, restore_id)
        if marked is None:
            return
        nodes.sort(key=lambda node: node is not marked)  # one that knows the collection first
    *others, last = nodes
    for node in others:
        try:
            node.delete_collection(collection)
        except FerryError as error:
            log.warning("%s was not dropped by %s: %s", collection, node.label, error.message)
        else:
            return
    last.delete_collection(collection)


def _first_marked(nodes: list[Node], collection: str, restore_id: BackupId) -> Node | None:
    """A node that shows the mark; None when no node knows the collection, or none shows the mark in time.

    Right after creating, some nodes do not know the collection yet, or show it without its mark (seen on 1.16.3).
    """
    deadline = time.monotonic() + LATE_SECONDS
    while True:
        known, failed = False, None
        for node in nodes:
            try:
                if restore_mark(node.collection(collection)["config"]) == restore_id:
                    return node
                known = True
            except NotFoundError:
                continue
            except FerryError as error:
                failed = error
        if not known and failed is None:
            return None
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    if failed is not None:
        raise failed
    log.warning("%s bears no mark of restore %s; it is left as it is", collection, restore_id)
    return None
