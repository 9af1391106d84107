"""Whether a cluster is at rest, by what its nodes say; no server."""

from typing import Any

import pytest

from ferry.models import PeerId, ShardId
from ferry.qdrant.quiet import quiet_findings, quiet_problems, unready_replicas
from ferry.qdrant.view import CollectionView

CALM: dict[str, Any] = {"app": {"features": {"recovery_mode": False}}, "collections": {"snapshots": []}}
LABEL = "node-1:6333"


def view(state: str = "Active", status: str = "green", optimizer: Any = "ok", **more: Any) -> CollectionView:
    """One shard on peers 1 and 2, the second in that state."""
    info = {"status": status, "optimizer_status": optimizer}
    replicas = {(ShardId(0), PeerId(1)): "Active", (ShardId(0), PeerId(2)): state}
    return CollectionView(info, replicas, {ShardId(0): None}, more.get("transfers", []), more.get("resharding", []))


@pytest.mark.parametrize("state", ["Active", "Listener"])
@pytest.mark.parametrize("status", ["green", "yellow", "grey"])
def test_a_healthy_collection_may_be_backed_up_busy_or_not(state: str, status: str) -> None:
    """A Listener is a choice and grey waits for a write: neither is a reason to go without a backup."""
    assert quiet_problems(LABEL, {"docs": view(state, status)}, CALM) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (view("Dead"), "shard 0 of docs is Dead on peer 2"),
        (view("Partial"), "shard 0 of docs is Partial on peer 2"),
        (view("Initializing"), "shard 0 of docs is Initializing on peer 2"),
        (view(transfers=[{}, {}]), "2 shard transfers of docs are running"),
        (view(resharding=[{}]), "docs is being resharded"),
        (view(status="red"), "docs is red on node-1:6333"),
        (view(optimizer={"error": "disk"}), "the optimizer of docs on node-1:6333 failed: {'error': 'disk'}"),
    ],
)
def test_what_forbids_a_snapshot_is_named(seen: CollectionView, said: str) -> None:
    """One sentence for each reason."""
    assert quiet_problems(LABEL, {"docs": seen}, CALM) == [said]


def test_recovery_mode_and_a_recovery_of_ours_forbid_it() -> None:
    """A recovery of a collection that is not asked for does not."""
    recovering = {"id": "docs", "running_snapshot_recovery": 1}
    telemetry = {
        "app": {"features": {"recovery_mode": True}},
        "collections": {"snapshots": [recovering, recovering | {"id": "other"}]},
    }
    assert quiet_problems(LABEL, {"docs": view()}, telemetry) == [
        "node-1:6333 runs in recovery mode, which serves no data",
        "node-1:6333 recovers docs from a snapshot",
    ]
    assert quiet_problems(LABEL, {}, {"app": {}}) == []


def test_busy_collections_are_findings() -> None:
    """Yellow and grey are told, each with what it means; green is not."""
    findings = quiet_findings({"a": view(status="yellow"), "b": view(), "c": view(status="grey")})
    assert [(finding.severity, finding.subject) for finding in findings] == [("warning", "a"), ("warning", "c")]
    assert "being optimized" in findings[0].message
    assert "optimizers_config" in (findings[1].remedy or "")


def test_what_is_waited_for() -> None:
    """Replicas that are not Active, those that are not there yet, and transfers."""
    expect = {ShardId(0): {PeerId(1), PeerId(3)}, ShardId(1): {PeerId(1)}}
    assert unready_replicas(LABEL, view("Listener"), None) == []
    assert unready_replicas(LABEL, view("Partial", transfers=[{}]), expect) == [
        "node-1:6333 sees shard 0 on peer 2 Partial",
        "node-1:6333 sees no shard 0 on peer 3",
        "node-1:6333 sees no shard 1 on peer 1",
        "node-1:6333 sees 1 shard transfers",
    ]
