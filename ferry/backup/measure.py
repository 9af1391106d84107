"""Asking a source what a plan needs to know, and refusing what would not work before anything is touched."""

from collections import defaultdict

from ferry.backup.plan import BackupPlan, Measured
from ferry.connections import Connections
from ferry.errors import PreflightError
from ferry.models import ClusterLayout, PeerId, ShardId
from ferry.qdrant.resources import Need, read_headroom, require_headroom
from ferry.qdrant.rights import SNAPSHOTS, require_right
from ferry.qdrant.view import each
from ferry.verify.archive import require_provable
from ferry.verify.spool import require_spool

# Qdrant puts the name into the snapshot's file name, and the file system allows 255 bytes: shard snapshots fail with a
# 500 at 210 bytes and collection snapshots at 200 (1.16.3, tried).
LONGEST_NAME_BYTES = {"shard": 205, "node": 195}


def measure(connections: Connections, layout: ClusterLayout) -> Measured:
    """Exact points and estimated bytes of every replica, each asked from its own node.

    Bytes come from ``/telemetry`` (vectors and payloads, an estimate; Qdrant has no exact number before 1.18).
    """
    cluster = connections.cluster
    sizes: dict[str, dict[ShardId, dict[PeerId, int]]] = defaultdict(lambda: defaultdict(dict))
    nodes = [cluster.node(node.peer_id) for node in layout.nodes]
    # Level 3 tells each shard's sizes; level 4 would add every segment of it.
    for node, telemetry in zip(layout.nodes, each(nodes, lambda node: node.telemetry(3)), strict=True):
        for entry in (telemetry.get("collections") or {}).get("collections") or []:
            for shard in entry.get("shards") or []:
                local = shard.get("local") or {}
                told = int(local.get("vectors_size_bytes") or 0) + int(local.get("payloads_size_bytes") or 0)
                sizes[entry["id"]][ShardId(shard["id"])][node.peer_id] = told
    return Measured(points=cluster.all_exact_counts(layout.collections), bytes=sizes)


def require_source(connections: Connections, plan: BackupPlan) -> BackupPlan:
    """The plan with findings added; raises PreflightError when the cluster, a node's disk or the worker's is not ready.

    A node needs room for the largest snapshot of its lane, since each is deleted before the next one is made.
    """
    require_provable(connections, plan.proof)
    if not plan.layout.collections:
        msg = f"Cluster {plan.cluster} has no collection to back up."
        raise PreflightError(msg, "Create one, or correct the patterns.")
    _require_short_names(plan)
    cluster = connections.cluster
    require_right(cluster, SNAPSHOTS)
    findings = cluster.require_quiet(plan.layout)
    needs = {
        peer: Need(disk_bytes=max(archive.estimated_bytes for archive in lane), ram_bytes=0)
        for peer, lane in plan.lanes().items()
    }
    headrooms = read_headroom(cluster, plan.layout)
    findings += require_headroom(headrooms, needs, cluster.profile.headroom.when_unknown)
    largest = max((archive.estimated_bytes for archive in plan.archives), default=0)
    require_spool(connections.worker, largest, connections.worker.parallel_proofs)
    return plan.model_copy(update={"findings": plan.findings + tuple(findings)})


def _require_short_names(plan: BackupPlan) -> None:
    limit = LONGEST_NAME_BYTES[plan.kind]
    for collection in plan.layout.collections:
        size = len(collection.name.encode())
        if size > limit:
            msg = f"The name of {collection.name} has {size} bytes; {plan.kind} snapshots fail above {limit} in Qdrant."
            raise PreflightError(msg, "Leave it out (parameter `exclude`), or move its points to a shorter name.")
