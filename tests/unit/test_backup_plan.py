"""Which replica of each shard a backup reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.backup.commit import build_manifest
from ferry.backup.plan import BackupRequest, Measured, plan_backup
from ferry.errors import RepositoryError
from ferry.models import BackupId, ClusterLayout, PeerId, ShardId, SnapshotKind
from tests.unit.builders import BACKUP_ID, archive, collection, layout, node, proven, run_of, shard

NODES = [node(1), node(2), node(3)]


def request(kind: SnapshotKind = "shard") -> BackupRequest:
    return BackupRequest(backup_id=BackupId(BACKUP_ID), cluster="test", repository="main", kind=kind)


def measured(cluster: ClusterLayout, points: int = 10, size: int = 1000) -> Measured:
    """Every replica holds the same."""
    each = {
        c.name: {s.shard_id: {r.peer_id: points for r in s.replicas} for s in c.shards} for c in cluster.collections
    }
    sizes = {c.name: {s.shard_id: {r.peer_id: size for r in s.replicas} for s in c.shards} for c in cluster.collections}
    return Measured(points=each, bytes=sizes)


def test_every_shard_is_read_once_and_the_nodes_share_the_work() -> None:
    """Three shards with two replicas each on three nodes make one archive a shard, one for each node."""
    docs = collection("docs", [shard(0, [1, 2]), shard(1, [2, 3]), shard(2, [3, 1])])
    cluster = layout(NODES, [docs])
    plan = plan_backup(request(), cluster, measured(cluster))
    assert sorted(archive.shard_id or 0 for archive in plan.archives) == [0, 1, 2]
    assert {archive.node.peer_id for archive in plan.archives} == {1, 2, 3}


def test_the_fuller_replica_is_read_and_the_difference_reported() -> None:
    """Where replicas differ in exact count the fuller one is kept, and the operator is told both counts."""
    cluster = layout(NODES, [collection("docs", [shard(0, [1, 2])])])
    facts = measured(cluster)
    facts.points["docs"][ShardId(0)][PeerId(2)] = 11
    plan = plan_backup(request(), cluster, facts)
    assert plan.archives[0].node.peer_id == 2
    assert "peer 1: 10, peer 2: 11" in plan.findings[0].message


def test_a_node_backup_takes_everything_from_every_node_that_holds_something() -> None:
    """Kind node makes one archive for each node and collection, with all shards that the node holds."""
    docs = collection("docs", [shard(0, [1, 2]), shard(1, [2, 1])])
    cluster = layout(NODES, [docs])
    plan = plan_backup(request("node"), cluster, measured(cluster))
    assert [(archive.node.peer_id, len(archive.shards)) for archive in plan.archives] == [(1, 2), (2, 2)]
    assert all(archive.shard_id is None for archive in plan.archives)


def test_a_collection_without_shards_is_backed_up_as_its_schema_and_said_so() -> None:
    """Sharded by keys before its first key, a collection never drops out of the backup without a word."""
    cluster = layout(NODES, [collection("docs", [shard(0, [1])]), collection("keyed", [], sharding_method="custom")])
    plan = plan_backup(request(), cluster, measured(cluster))
    assert run_of(plan).to_commit == ["docs", "keyed"]
    assert [finding.subject for finding in plan.findings] == ["keyed/shards"]
    assert build_manifest(run_of(plan), "keyed", []).archives == ()


def test_a_collection_that_lacks_an_archive_has_no_manifest() -> None:
    """A shard that is missing is a failed backup, never a smaller one."""
    cluster = layout(NODES, [collection("docs", [shard(0, [1]), shard(1, [1])])])
    with pytest.raises(RepositoryError, match=r"no archive of shards \[1\]"):
        build_manifest(run_of(plan_backup(request(), cluster, measured(cluster))), "docs", [proven(archive(0))])


@given(
    placements=st.lists(st.sets(st.integers(1, 3), min_size=1).map(sorted), min_size=1, max_size=12),
    at_a_time=st.integers(1, 5),
)
def test_no_shard_is_ever_left_out(placements: list[list[int]], at_a_time: int) -> None:
    """Whatever the placement, each shard is in the plan exactly once, on a node that holds it, and in one lane."""
    docs = collection("docs", [shard(number, peers) for number, peers in enumerate(placements)])
    cluster = layout(NODES, [docs])
    plan = plan_backup(request(), cluster, measured(cluster))
    lanes = run_of(plan).lanes(at_a_time)
    planned = [work.archive for lane in lanes for work in lane]
    assert sorted(archive.shard_id or 0 for archive in planned) == list(range(len(placements)))
    assert all(archive.node.peer_id in placements[archive.shard_id or 0] for archive in planned)
    assert len(lanes) <= at_a_time
