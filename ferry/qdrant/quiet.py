"""Whether a cluster is at rest: pure rules over what the nodes said."""

from collections.abc import Mapping
from typing import Any

from ferry.models import Finding, PeerId, ShardId
from ferry.qdrant.view import CollectionView

_BUSY = {
    "yellow": (
        "it is being optimized, or a snapshot of it is made at this moment.",
        "A backup now costs the node more than one of a green collection; it is as good.",
    ),
    "grey": (
        "optimizations wait for a write since a node was started.",
        'PATCH the collection with {"optimizers_config": {}} to begin them; the backup is as good.',
    ),
}
# A Listener takes writes and serves no reads; it is a lasting state by the operator's choice, not a sick replica.
AT_REST = frozenset({"Active", "Listener"})


def quiet_problems(label: str, views: Mapping[str, CollectionView], telemetry: Mapping[str, Any]) -> list[str]:
    """What forbids a snapshot or a restore now, in the words of one node's view."""
    problems = []
    if telemetry["app"].get("features", {}).get("recovery_mode"):
        problems.append(f"{label} runs in recovery mode, which serves no data")
    for running in telemetry.get("collections", {}).get("snapshots") or []:
        if running["id"] in views and running.get("running_snapshot_recovery"):
            problems.append(f"{label} recovers {running['id']} from a snapshot")
    for name, view in views.items():
        problems += _replica_problems(name, view)
        if view.transfers:
            problems.append(f"{len(view.transfers)} shard transfers of {name} are running")
        if view.resharding:
            problems.append(f"{name} is being resharded")
        problems += _status_problems(label, name, view.info)
    return problems


def quiet_findings(views: Mapping[str, CollectionView]) -> list[Finding]:
    """What an operator should know and may live with.

    Grey, as after a node's restart until the next write, is no reason to go without a backup: every point is there.
    """
    return [
        Finding(severity="warning", subject=name, message=f"{name} is {view.info['status']}: {told}", remedy=remedy)
        for name, view in views.items()
        if view.info["status"] in _BUSY
        for told, remedy in (_BUSY[view.info["status"]],)
    ]


def unready_replicas(label: str, view: CollectionView, expect: Mapping[ShardId, set[PeerId]] | None) -> list[str]:
    """What one node still waits for: replicas that are not Active, expected ones that are not there, transfers."""
    missing = [
        f"{label} sees shard {shard_id} on peer {peer_id} {state}"
        for (shard_id, peer_id), state in sorted(view.replicas.items())
        if state not in AT_REST
    ]
    for shard_id, peers in sorted((expect or {}).items()):
        missing += [
            f"{label} sees no shard {shard_id} on peer {peer_id}"
            for peer_id in sorted(peers)
            if (shard_id, peer_id) not in view.replicas
        ]
    if view.transfers:
        missing.append(f"{label} sees {len(view.transfers)} shard transfers")
    return missing


def _replica_problems(name: str, view: CollectionView) -> list[str]:
    return [
        f"shard {shard_id} of {name} is {state} on peer {peer_id}"
        for (shard_id, peer_id), state in sorted(view.replicas.items())
        if state not in AT_REST
    ]


def _status_problems(label: str, name: str, info: Mapping[str, Any]) -> list[str]:
    problems = []
    if info["status"] == "red":
        problems.append(f"{name} is red on {label}")
    if info.get("optimizer_status") not in ("ok", None):
        problems.append(f"the optimizer of {name} on {label} failed: {info['optimizer_status']}")
    return problems
