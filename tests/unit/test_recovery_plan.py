"""What a recovery of points plans and refuses, what it calls missing and different, and how it says so."""

from typing import Any

import pytest

from ferry.archive.points import Batch
from ferry.cli.chosen import one_id
from ferry.errors import ConfigurationError, PreflightError
from ferry.models import CollectionLayout, ShardId, ShardKey
from ferry.recovery import report
from ferry.recovery.plan import RecoveryPlan, RecoveryRequest, live_shards, plan_recovery
from ferry.recovery.run import Recovered, in_turn, still_sought
from ferry.recovery.steps import RecoveredShard, ShardWork, compared
from tests.unit import builders

IDS = (1, 2, 3)


def keyed(shards: dict[int, ShardKey], name: str = "docs") -> CollectionLayout:
    """A collection of custom sharding with these keys by shard."""
    made = [builders.shard(number, [1, 2]).model_copy(update={"key": key}) for number, key in shards.items()]
    return builders.collection(name, made, sharding_method="custom")


def plain(name: str = "docs", shards: int = 2, **params: Any) -> CollectionLayout:
    return builders.collection(name, [builders.shard(number, [1, 2]) for number in range(shards)], **params)


def planned(source: CollectionLayout, *there: CollectionLayout, **asked: Any) -> RecoveryPlan:
    """The plan for a backup of ``source`` on a cluster with these collections; docs-live is an alias of docs."""
    usual = {"recovery_id": builders.BACKUP_ID, "cluster": "test", "repository": "main", "source_cluster": "test"}
    request = RecoveryRequest(**usual | {"collection": source.name, "ids": IDS} | asked)
    layout = builders.layout([builders.node(1), builders.node(2)], list(there), {"docs-live": "docs"})
    archives = [builders.archive(shard.shard_id) for shard in source.shards]
    return plan_recovery(request, builders.manifest(source, archives), layout)


def test_the_live_collection_is_the_one_of_that_name_or_behind_the_alias() -> None:
    """An alias is resolved and told; it may have more shards than the backup, and all of them are asked."""
    for into, alias in ((None, None), ("docs", None), ("docs-live", "docs-live")):
        plan = planned(plain(), plain(shards=5), into=into)
        assert (plan.target, plan.alias, plan.restore) == ("docs", alias, None)
        assert [shard.shard_id for shard in live_shards(plan, plain(shards=5), ShardId(1))] == [0, 1, 2, 3, 4]
    assert "which the alias docs-live points at" in report.plan_text(plan)


def test_points_belong_to_their_shard_key() -> None:
    """Whatever the shards are called in the backup and there."""
    live = keyed({4: "a", 5: 7, 6: "a"})
    plan = planned(keyed({0: 7, 1: "a"}), live)
    assert [shard.shard_id for shard in live_shards(plan, live, ShardId(0))] == [5]
    assert [shard.shard_id for shard in live_shards(plan, live, ShardId(1))] == [4, 6]
    assert plan.key_of(ShardId(0)) == 7


VECTORS = {"a": {"size": 4, "distance": "Dot"}, "b": {"size": 2, "distance": "Cosine"}}


@pytest.mark.parametrize(
    ("source", "live", "said"),
    [
        (plain(), None, "no collection and no alias docs"),
        (plain(), plain(vectors={"size": 3, "distance": "Cosine"}), "is dense, 4 × float32, Cosine in the backup"),
        (plain(), plain(vectors={"size": 4, "distance": "Dot"}), "dense, 4 × float32, Dot there"),
        (plain(), plain(vectors=VECTORS), "vector '' (dense, 4 × float32, Cosine) is not there"),
        (plain(sparse_vectors={"w": {}}), plain(), "vector 'w' (sparse) is not there"),
        (plain(), keyed({0: "a"}), "places points by their ids, and it by shard keys"),
        (keyed({0: "a"}), plain(), "places points by shard keys, and it by their ids"),
        (keyed({0: "a", 1: "b", 2: 7}), keyed({0: "a"}), "it has no shard key 7, b any more"),
    ],
)
def test_what_does_not_fit_is_refused(source: CollectionLayout, live: CollectionLayout | None, said: str) -> None:
    """With the reason, and what to do instead."""
    with pytest.raises(PreflightError) as refused:
        planned(source, *([] if live is None else [live]))
    assert said in refused.value.message
    assert "Nothing was changed" in refused.value.message
    assert "new collection" in str(refused.value.remedy)


def test_more_vectors_than_the_backup_has_are_told() -> None:
    """Points come back without them."""
    plan = planned(plain(vectors={"a": VECTORS["a"]}), plain(vectors=VECTORS))
    [finding] = plan.findings
    assert "vectors that the backup has not: 'b'" in finding.message


def test_something_must_be_selected() -> None:
    """Everything is selected only by saying so."""
    with pytest.raises(ConfigurationError, match="Neither a filter nor ids"):
        planned(plain(), plain(), ids=None)
    assert planned(plain(), plain(), ids=None, filter={}).request.selection().filter == {}


def test_a_new_collection_has_the_backups_schema_under_a_new_name() -> None:
    """Its default name holds the backup's id; a name that is taken is refused."""
    plan = planned(plain(), plain(), mode="new collection")
    assert plan.target == f"docs-points-{builders.BACKUP_ID}"
    assert plan.restore is not None
    assert (plan.restore.target, plan.restore.path, len(plan.restore.shards)) == (plan.target, "points", 2)
    with pytest.raises(PreflightError, match="docs is already a collection"):
        planned(plain(), plain(), mode="new collection", into="docs")


def test_missing_and_different_are_told_apart() -> None:
    """A point is also equal when it is as Qdrant's reader makes it of what it was."""
    batch = Batch([1, 2, 3, 4], ["aa", "bb", "cc", "dd"], b"[]", carried={3: "c3", 4: "d4"})
    assert compared(batch, {}) == ([1, 2, 3, 4], [])
    assert compared(batch, {1: "aa", 2: "xx", 3: "c3", 4: "dd"}) == ([], [2])
    assert compared(batch, {2: "bb", 3: "d4"}) == ([1, 4], [3])
    done = RecoveredShard(shard_id=ShardId(0)).with_batch(batch, {1: "aa", 2: "xx"}, ids_asked=True)
    assert (done.selected, done.missing, done.differing, done.equal) == (4, 2, 1, 1)
    assert (done.first_missing, done.first_differing, done.found) == ((3, 4), (2,), (1, 2, 3, 4))


@pytest.mark.parametrize("by_key", [False, True])
def test_shards_are_read_until_all_ids_are_found(by_key: bool) -> None:
    """Under shard keys each may have a point of that id, so all are read; what is nowhere is named."""
    source = keyed({0: "a", 1: "b", 2: "c"}) if by_key else plain(shards=3)
    plan = planned(source, source, ids=(1, 2))
    asked: list[Any] = []

    def recover(work: ShardWork) -> RecoveredShard:
        asked.append(work.ids)
        return RecoveredShard(shard_id=work.shard_id, missing=1, found=(len(asked),))

    done = in_turn(None, plan, recover, write=False)  # type: ignore[arg-type]  # nothing is asked of the cluster
    assert asked == ([(1, 2)] * 3 if by_key else [(1, 2), (2,)])
    assert still_sought(plan, done[:1]) == (2,)
    text = report.recovered_text(Recovered(plan=plan, shards=tuple(done[:1]), dry_run=True))
    assert "Not in the backup, or not selected: 2" in text
    assert "1 points of backup" in text
    assert "Nothing was changed" in text
    rows = report.recovered_rows(Recovered(plan=plan, shards=tuple(done), dry_run=True))
    assert rows[0]["shard"] == ("0 of a" if by_key else 0)


def test_ids_are_read_as_they_are_typed() -> None:
    """Numbers, UUIDs, quoted ones, and the lines that a diff has written."""
    uuid = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"
    assert [one_id(word) for word in ("7", uuid, f'"{uuid}"', '{"id": 7, "what": "removed"}')] == [7, uuid, uuid, 7]
    for wrong in ("x", "-1", '{"what": "removed"}', "{"):
        with pytest.raises(ConfigurationError):
            one_id(wrong)
