"""What a restore refuses before anything is created, and what it says each node needs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.errors import PreflightError, RestoreError, VersionError
from ferry.models import BackupId
from ferry.restore.plan import RestoreRequest, plan_restore
from tests.unit.builders import BACKUP_ID, archive, collection, layout, manifest, node, shard

DOCS = collection("docs", [shard(0, [1, 2]), shard(1, [2, 3])])
BACKUP = manifest(DOCS, [archive(0, size=100), archive(1, size=300)])
TARGET = layout([node(1), node(2)], [])


def request(**wishes: Any) -> RestoreRequest:
    base: dict[str, Any] = {"cluster": "test", "repository": "main", "source_cluster": "test", "collection": "docs"}
    return RestoreRequest(restore_id=BackupId("20261122T130000Z-123456"), **base | wishes)


def test_the_new_name_says_which_backup_it_is_from() -> None:
    """Without a name the new collection is called after the old one and the backup."""
    assert plan_restore(request(), BACKUP, TARGET).target == f"docs-{BACKUP_ID}"


def test_replication_is_capped_at_the_number_of_nodes_and_the_plan_says_so() -> None:
    """Restoring RF 2 onto one node gives RF 1 with a reason, and the body that is sent says the same."""
    plan = plan_restore(request(), BACKUP, layout([node(1)], []))
    assert plan.replication_factor == plan.creation_body["replication_factor"] == 1
    assert any("replication factor 1 instead of 2" in reason for reason in plan.reasons)


def test_a_replication_factor_that_cannot_be_is_refused() -> None:
    """What the operator asked for by name is never silently lowered."""
    with pytest.raises(PreflightError, match="needs as many nodes"):
        plan_restore(request(replication_factor=3), BACKUP, TARGET)


@pytest.mark.parametrize("taken", [{"collection": True}, {"collection": False}])
def test_a_name_that_is_taken_is_refused(taken: dict[str, bool]) -> None:
    """Neither a collection nor an alias of the new name may exist."""
    other = collection("new" if taken["collection"] else "other", [shard(0, [1])])
    target = layout([node(1)], [other], {} if taken["collection"] else {"new": "other"})
    with pytest.raises(PreflightError, match="new is already"):
        plan_restore(request(into="new"), BACKUP, target)


def test_an_alias_that_is_a_collection_is_refused() -> None:
    """An alias cannot have the name of a collection, so the restore says so before it begins."""
    target = layout([node(1)], [collection("live", [shard(0, [1])])])
    with pytest.raises(PreflightError, match="cannot be an alias"):
        plan_restore(request(alias="live"), BACKUP, target)


def test_the_plan_remembers_where_the_alias_pointed() -> None:
    """The alias is moved only if it still points where the operator saw it."""
    target = layout([node(1)], [collection("old", [shard(0, [1])])], {"live": "old"})
    assert plan_restore(request(alias="live"), BACKUP, target).alias_from == "old"


def test_a_target_older_than_the_source_gets_points() -> None:
    """Snapshots go to the same or the next minor, never back; points go anywhere. Who asks for archives is refused."""
    older = layout([node(1, "1.15.5")], [])
    plan = plan_restore(request(), BACKUP, older)
    assert plan.path == "points"
    assert "older than the backup's 1.16.3" in plan.reasons[0]
    assert any("the vector index" in loss for loss in plan.losses)
    with pytest.raises(VersionError, match=r"older than the backup's 1\.16\.3") as caught:
        plan_restore(request(path="shards"), BACKUP, older)
    assert "points" in (caught.value.remedy or "")


def test_a_manifest_that_lacks_a_shard_is_refused() -> None:
    """A backup with a missing shard is no backup, even if its manifest were to say otherwise."""
    with pytest.raises(RestoreError, match=r"lacks archives of shards \[1\]"):
        plan_restore(request(), manifest(DOCS, [archive(0)]), TARGET)


def test_shard_keys_get_the_numbers_again_that_their_points_lie_by() -> None:
    """Within a key of several shards Qdrant goes by their numbers: 2 and 3 come again behind a 1 that goes again."""
    shards = [shard(number, [1]).model_copy(update={"key": "a"}) for number in (2, 3)]
    keyed = collection("docs", shards, sharding_method="custom")
    plan = plan_restore(request(), manifest(keyed, [archive(2), archive(3)]), TARGET)
    assert plan.path == "shards"
    assert [(each.shard_id, each.key, each.source) for each in plan.shards] == [(2, "a", 2), (3, "a", 3)]
    steps = [(step.action, step.shards) for step in plan.key_steps]
    assert steps == [("create", 1), ("create", 2), ("drop", 1)]


@given(sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=8), nodes=st.integers(1, 5), factor=st.integers(1, 5))
def test_no_node_is_promised_less_than_any_even_placement_needs(sizes: list[int], nodes: int, factor: int) -> None:
    """The disk a node must have covers its largest possible even share, and two copies of the largest shard on top."""
    source = collection("docs", [shard(number, [1]) for number in range(len(sizes))])
    backup = manifest(source, [archive(number, size=size) for number, size in enumerate(sizes)])
    cluster = layout([node(number + 1) for number in range(nodes)], [])
    plan = plan_restore(request(replication_factor=min(factor, nodes)), backup, cluster)
    replicas = len(sizes) * plan.replication_factor
    share = -(-replicas // nodes)
    for need in plan.needs.values():
        assert need.disk_bytes >= sum(sorted(sizes, reverse=True)[:share]) + 2 * max(sizes)
    assert sum(need.disk_bytes for need in plan.needs.values()) >= sum(sizes) * plan.replication_factor
