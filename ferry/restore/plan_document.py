"""A plan of a restore as one JSON document, for other programs: without secrets and the manifest's bulk. Pure."""

from typing import Any

from ferry.restore.plan import RestorePlan, planned_points

# Bulk, or told below in fewer words.
_LEFT_OUT = {"manifest", "layout", "needs", "in_place"}


def plan_document(plan: RestorePlan) -> dict[str, Any]:
    """What would be done and why: path, shards, key steps, bytes, points, needs of each node, losses, findings.

    Units are in the names. ``backup`` says which archives it goes by, ``nodes`` what each node needs at most.
    """
    manifest = plan.manifest
    return plan.model_dump(mode="json", exclude=_LEFT_OUT) | {
        "in_place": plan.in_place is not None,
        "backup": {
            "backup_id": manifest.backup_id,
            "cluster": manifest.cluster,
            "collection": manifest.collection,
            "kind": manifest.kind,
            "shards": len(manifest.layout),
            "points": manifest.points,
            "bytes": manifest.bytes,
        },
        "points": planned_points(plan),
        "bytes_to_move": plan.bytes_to_move,
        "nodes": [
            {
                "node": node.label,
                "peer_id": node.peer_id,
                "version": node.version,
                "disk_bytes": plan.needs[node.peer_id].disk_bytes,
                "ram_bytes": plan.needs[node.peer_id].ram_bytes,
            }
            for node in plan.layout.nodes
        ],
    }
