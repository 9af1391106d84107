"""What a run holds: lanes of what is still to do, bundles of small archives, and when two moments fit together."""

from hypothesis import given
from hypothesis import strategies as st

from ferry.backup.plan import BackupPlan, plan_backup
from ferry.backup.work import (
    ARCHIVES_A_BUNDLE,
    ARCHIVES_SHOWN,
    SMALL_BYTES,
    BackupRun,
    bundles,
    fingerprint_of_manifest,
    fingerprint_of_plan,
)
from ferry.models import ClusterLayout, CollectionLayout
from tests.unit.builders import archive, collection, layout, manifest, node, proven, run_of, shard
from tests.unit.test_backup_plan import measured, request


def planned(*collections: CollectionLayout, size: int = 1000) -> BackupPlan:
    cluster: ClusterLayout = layout([node(1), node(2)], list(collections))
    return plan_backup(request(), cluster, measured(cluster, size=size))


def test_what_is_proven_or_committed_is_not_done_again() -> None:
    """A run that goes on with a dead one has only the rest in its lanes, and commits what has no manifest."""
    plan = planned(collection("docs", [shard(0, [1]), shard(1, [2])]), collection("more", [shard(0, [1])]))
    fresh = run_of(plan)
    run = BackupRun(fresh.lease, plan, committed=frozenset({"more"}), proven={("docs", "shard-0"): proven(archive(0))})
    assert [work.archive.shard_id for lane in run.lanes(4) for work in lane] == [1]
    assert run.to_commit == ["docs"]
    assert [found.place for found in run.adopted("docs")] == ["shard-0"]


def test_a_collection_that_was_dropped_is_neither_made_nor_committed() -> None:
    """The others keep their work."""
    run = run_of(planned(collection("docs", [shard(0, [1])]), collection("gone", [shard(0, [2])]))).without({"gone"})
    assert run.to_commit == ["docs"]
    assert {work.archive.collection for lane in run.lanes(4) for work in lane} == {"docs"}


@given(st.lists(st.booleans(), max_size=80), st.integers(0, 200))
def test_bundles_hold_everything_in_order(large: list[bool], archives: int) -> None:
    """No archive is lost or doubled; large ones are alone, and small ones too while the run has few."""
    names = [f"c{number}" for number in range(len(large))]
    lane = [
        work for works in run_of(planned(*(collection(n, [shard(0, [1])]) for n in names))).lanes(1) for work in works
    ]
    lane = [
        work.model_copy(
            update={"archive": work.archive.model_copy(update={"estimated_bytes": SMALL_BYTES if big else 1})}
        )
        for work, big in zip(lane, large, strict=True)
    ]
    cut = bundles(lane, archives)
    assert [work for bundle in cut for work in bundle] == lane
    for bundle in cut:
        assert len(bundle) <= ARCHIVES_A_BUNDLE
        sizes = {work.archive.estimated_bytes for work in bundle}
        assert len(bundle) == 1 or (sizes == {1} and archives > ARCHIVES_SHOWN)


def test_archives_of_two_moments_fit_only_when_the_collection_is_the_same() -> None:
    """Another schema, shard, version or uuid is another collection; the number of indexed points is not."""
    docs = collection("docs", [shard(0, [1]), shard(1, [2])])
    same = fingerprint_of_plan(planned(docs), "docs")
    counted = docs.model_copy(update={"payload_schema": {"city": {"data_type": "keyword", "points": 7}}})
    more = docs.model_copy(update={"payload_schema": {"city": {"data_type": "keyword", "points": 9}}})
    assert fingerprint_of_plan(planned(counted), "docs") == fingerprint_of_plan(planned(more), "docs")
    others = [
        counted,
        docs.model_copy(update={"uuid": "another"}),
        collection("docs", [shard(0, [1])]),
        collection("docs", [shard(0, [1]), shard(1, [2])], on_disk_payload=False),
        docs.model_copy(update={"shards": (docs.shards[0], docs.shards[1].model_copy(update={"key": "berlin"}))}),
    ]
    assert len({same, *(fingerprint_of_plan(planned(other), "docs") for other in others)}) == len(others) + 1
    assert fingerprint_of_manifest(manifest(docs, [archive(0), archive(1)])) == same
    assert fingerprint_of_manifest(manifest(docs, [archive(0), archive(1)], version="1.17.0")) != same
