"""The steps of a restore: create the target, recover each replica, settle, and put into service by an alias."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from glob import escape

from ferry.archive.node_archive import split_shard
from ferry.connections import Connections
from ferry.errors import FerryError, NodeRefusedError, PreflightError, RestoreError
from ferry.models import Finding, NodeInfo, PeerId, Progress, ShardId, Value, no_progress
from ferry.qdrant import snapshots
from ferry.qdrant.node import Node
from ferry.qdrant.schema import schema_differences
from ferry.repository.manifest import ArchiveRecord, ShardRecord
from ferry.restore.plan import RestorePlan
from ferry.verify.archive import spooled
from ferry.verify.replica import ReplicaVerdict, verify_replica

log = logging.getLogger(__name__)
ACTIVE_SECONDS = 300.0


class ReplicaWork(Value):
    """One replica of the new collection, to be recovered and verified."""

    plan: RestorePlan
    shard_id: ShardId
    node: NodeInfo

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


def require_archives(connections: Connections, plan: RestorePlan) -> None:
    """Raise PreflightError when an object is missing or of another size, before anything is created."""
    for archive in plan.manifest.archives:
        key = object_key(connections, plan, archive)
        found = connections.store.head(key)
        if found is None or found.bytes != archive.bytes:
            what = "is missing" if found is None else f"has {found.bytes} bytes instead of {archive.bytes}"
            msg = f"{key} {what}, so {plan.manifest.collection} cannot be restored from {plan.manifest.backup_id}."
            raise PreflightError(msg, "Choose another backup: python -m ferry list")


def create_target(connections: Connections, plan: RestorePlan) -> list[ReplicaWork]:
    """Create the new collection with the source's configuration and payload indexes, and read where replicas are.

    Noted in the journal before; until ``keep_target`` it is ours to drop.
    """
    cluster, target = connections.cluster, plan.target
    journal = connections.journal(plan.request.restore_id)
    journal.note("collection", target, {"collection": target})
    first = cluster.node(plan.layout.nodes[0].peer_id)
    first.require_identity()
    first.create_collection(target, plan.creation_body)
    if plan.patch_body:
        first.patch_collection(target, plan.patch_body)
    for field, schema in plan.payload_indexes:
        first.create_payload_index(target, field, schema)
    cluster.wait_until_active(target, None, ACTIVE_SECONDS)
    placement = cluster.read_layout([escape(target)]).collection(target)
    if placement is None or len(placement.shards) != len(plan.manifest.layout):
        msg = f"{target} was created with other shards than planned; it will be dropped again."
        raise RestoreError(msg, "Run the restore again.")
    return [
        ReplicaWork(plan=plan, shard_id=shard.shard_id, node=plan.layout.node(replica.peer_id))
        for shard in placement.shards
        for replica in shard.replicas
    ]


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
    shard, archive = _source(work)
    node.require_identity()
    started, findings = time.monotonic(), []
    path = "upload"
    if archive.kind == "shard":
        try:
            _recover_from_url(connections, work, archive)
            path = "url"
        except NodeRefusedError as error:
            log.warning("%s: by address failed, uploading instead: %s", work.label, error.message)
            findings.append(_fallback_finding(work, error))
    if path == "upload":
        _upload(connections, node, work, archive, progress)
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
    snapshots.recover_shard(node, work.plan.target, work.shard_id, location=location, checksum=archive.sha256)


def _upload(
    connections: Connections, node: Node, work: ReplicaWork, archive: ArchiveRecord, progress: Progress
) -> None:
    key = object_key(connections, work.plan, archive)
    if archive.kind == "shard":
        blocks = connections.store.read(key, expected_bytes=archive.bytes)
        told = _told(blocks, progress)
        snapshots.upload_shard(node, work.plan.target, work.shard_id, told, archive.bytes, archive.sha256)
        return
    with spooled(connections, key, (archive.bytes, archive.sha256), progress) as path:
        part = path.with_name("shard.snapshot")
        split_shard(path, work.shard_id, part)
        with part.open("rb") as file:
            blocks = iter(lambda: file.read(1 << 20), b"")
            size = part.stat().st_size
            snapshots.upload_shard(node, work.plan.target, work.shard_id, _told(blocks, progress), size, None)


def _told(blocks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for block in blocks:
        progress(len(block))
        yield block


def _fallback_finding(work: ReplicaWork, error: FerryError) -> Finding:
    return Finding(
        severity="warning",
        subject=work.label,
        message=f"The node could not fetch the archive itself, so it was uploaded: {error.message}",
        remedy="Let the nodes reach the bucket (repositories.<name>.node_endpoint_url) to spare the worker's network.",
    )


def settle_target(connections: Connections, plan: RestorePlan, progress: Progress = no_progress) -> list[str]:
    """Wait until every replica is Active on every node's view, wake the optimizers, and compare the schema.

    Returns what the new collection's schema has otherwise than the source's.
    """
    cluster = connections.cluster
    cluster.wait_until_active(plan.target, None, ACTIVE_SECONDS, progress)
    first = cluster.node(plan.layout.nodes[0].peer_id)
    # Recovering shards does not trigger the optimizers; an empty patch does (qdrant.md §3.3).
    first.patch_collection(plan.target, {"optimizers_config": {}})
    found = first.collection(plan.target)
    return schema_differences(
        plan.manifest.config, plan.manifest.payload_schema, found["config"], found["payload_schema"]
    )


def verify_restored(connections: Connections, work: ReplicaWork, progress: Progress = no_progress) -> ReplicaVerdict:
    """Compare one recovered replica with the proof of its shard."""
    shard, _ = _source(work)
    node = connections.cluster.node(work.node.peer_id)
    node.require_identity()
    return verify_replica(node, work.plan.target, shard.shard_id, shard.proof, work.plan.request.verify, progress)


def move_alias(connections: Connections, plan: RestorePlan) -> None:
    """Point the alias at the new collection in one atomic request; refused when somebody moved it meanwhile."""
    alias = plan.request.alias
    if not alias:
        return
    first = connections.cluster.node(plan.layout.nodes[0].peer_id)
    current = first.aliases().get(alias)
    if current != plan.alias_from:
        msg = f"Alias {alias} pointed at {plan.alias_from or 'nothing'} when planned and at {current or 'nothing'} now."
        raise RestoreError(
            msg, f"{plan.target} is restored and verified; move the alias yourself if that is still what you want."
        )
    actions: list[dict[str, dict[str, str]]] = []
    if current:
        actions.append({"delete_alias": {"alias_name": alias}})
    actions.append({"create_alias": {"alias_name": alias, "collection_name": plan.target}})
    first.update_aliases(actions)


def keep_target(connections: Connections, plan: RestorePlan) -> None:
    """Take the new collection out of the journal: from here on it is the operator's, and no run drops it."""
    journal = connections.journal(plan.request.restore_id)
    if entry := journal.find("collection", plan.target):
        journal.settle(entry)


def discard_target(connections: Connections, plan: RestorePlan) -> None:
    """Drop the new collection of a restore that failed, unless the operator wants to look at it."""
    journal = connections.journal(plan.request.restore_id)
    entry = journal.find("collection", plan.target)
    if entry is None:
        return
    if not plan.request.keep_on_failure:
        connections.cluster.nodes[0].delete_collection(plan.target)
    journal.settle(entry)


def object_key(connections: Connections, plan: RestorePlan, archive: ArchiveRecord) -> str:
    """Where an archive of the plan's backup lies in the bucket."""
    manifest = plan.manifest
    return connections.keys.collection_prefix(manifest.cluster, manifest.backup_id, manifest.collection) + archive.key


def _source(work: ReplicaWork) -> tuple[ShardRecord, ArchiveRecord]:
    for shard, archive in work.plan.manifest.best_shards():
        if shard.shard_id == work.shard_id:
            return shard, archive
    msg = f"{work.label}: the manifest has no archive of that shard."
    raise RestoreError(msg)
