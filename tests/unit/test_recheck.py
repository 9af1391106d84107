"""What a plan's collections became while their backup ran, compared without a server."""

from copy import deepcopy
from typing import Any

import pytest

from ferry.backup.plan import BackupPlan, BackupRequest, Measured, plan_backup
from ferry.backup.recheck import NodeNames, Recheck, Seen, compare
from ferry.models import ClusterLayout, CollectionLayout, PeerId, ShardId
from ferry.qdrant.view import CollectionView
from tests.unit.builders import BACKUP_ID, collection, layout, node, shard

DOCS, OTHER = "docs", "other"


def keyed(name: str = DOCS) -> CollectionLayout:
    """Two shards with keys, one on peers 1 and 2, the other on 2."""
    first = shard(1, [1, 2]).model_copy(update={"key": "a"})
    second = shard(4, [2]).model_copy(update={"key": 7})
    return collection(name, [first, second]).model_copy(update={"uuid": f"uuid of {name}"})


def cluster(**changes: Any) -> ClusterLayout:
    """Two nodes with the collections docs and other, and an alias."""
    found = layout([node(1), node(2)], [keyed(), keyed(OTHER)], {"live": DOCS})
    return found.model_copy(update={"names": (DOCS, OTHER, "left-out"), **changes})


def planned(of: ClusterLayout | None = None, **asked: Any) -> BackupPlan:
    """A plan of everything in the layout."""
    found = of or cluster()
    points = {c.name: {s.shard_id: {r.peer_id: 5 for r in s.replicas} for s in c.shards} for c in found.collections}
    request = BackupRequest(backup_id=BACKUP_ID, cluster="test", repository="main", **asked)
    return plan_backup(request, found, Measured(points=points, bytes={}))


def view_of(of: CollectionLayout) -> CollectionView:
    """What a node shows of that collection."""
    info = {"config": deepcopy(of.config), "payload_schema": deepcopy(of.payload_schema), "status": "green"}
    replicas = {(s.shard_id, r.peer_id): r.state for s in of.shards for r in s.replicas}
    return CollectionView(info, replicas, {s.shard_id: s.key for s in of.shards}, [], [])


def listing(*names: str, aliases: dict[str, str] | None = None, **uuids: str) -> NodeNames:
    """What a node lists."""
    known = {name: uuids.get(name, f"uuid of {name}") for name in names}
    return NodeNames(frozenset(names), {"live": DOCS} if aliases is None else aliases, known)


def seen(first: NodeNames | None = None, second: NodeNames | None = None, **views: CollectionView) -> Seen:
    """Two nodes that still see everything, save what is given."""
    usual = listing(DOCS, OTHER, "left-out")
    shown = {DOCS: view_of(keyed()), OTHER: view_of(keyed(OTHER))} | views
    first = first or usual
    return Seen(nodes={"node-1:6333": first, "node-2:6333": second or first}, collections=shown)


def test_where_nothing_changed_nothing_is_said() -> None:
    """Empty metadata shown as null, and numbers of indexed points, are no change."""
    view = view_of(keyed())
    view.info["config"]["metadata"] = {}
    view.info["config"]["params"]["replication_factor"] = 3
    assert compare(planned(), seen(docs=view)) == Recheck()


def test_what_every_node_has_dropped_is_told_and_is_no_failure() -> None:
    """The rest counts; the finding says what is not in this backup."""
    found = compare(planned(), seen(listing(OTHER, "left-out")))
    assert (found.dropped, found.changed) == ((DOCS,), {})
    assert [(finding.severity, finding.subject) for finding in found.findings] == [("warning", DOCS)]
    assert "not in this backup" in found.findings[0].message


def test_what_one_node_has_dropped_is_a_change() -> None:
    """Nodes that do not agree are named."""
    found = compare(planned(), seen(listing(DOCS, OTHER, "left-out"), listing(OTHER, "left-out")))
    assert found.dropped == ()
    assert found.changed == {
        DOCS: "docs changed while the backup ran: node-1:6333 still has it and node-2:6333 has not."
    }


@pytest.mark.parametrize("second", [None, listing(DOCS, OTHER, "left-out")])
def test_an_equal_one_made_again_is_told_by_its_uuid(second: NodeNames | None) -> None:
    """Same shards and settings, another collection: on every node, or still only on some."""
    found = compare(planned(), seen(listing(DOCS, OTHER, "left-out", docs="another"), second))
    assert found.changed.keys() == {DOCS}
    assert "made again under the same name" in found.changed[DOCS]


def test_without_uuids_an_equal_one_is_the_same() -> None:
    """Qdrant of before 1.16 tells none, and then nothing can be told."""
    blind = cluster(collections=(keyed().model_copy(update={"uuid": None}),))
    assert compare(planned(blind), seen(docs=view_of(keyed()))).changed == {}


def change_vector(view: CollectionView) -> None:
    view.info["config"]["params"]["vectors"]["size"] = 8


def change_index(view: CollectionView) -> None:
    view.info["payload_schema"]["town"] = {"data_type": "keyword", "points": 3}


def change_metadata(view: CollectionView) -> None:
    view.info["config"]["metadata"] = {"owner": "b"}


def new_shard(view: CollectionView) -> None:
    view.keys[ShardId(5)] = "b"


def lost_shard(view: CollectionView) -> None:
    del view.keys[ShardId(4)]


def other_key(view: CollectionView) -> None:
    view.keys[ShardId(4)] = "7"


def resharding(view: CollectionView) -> None:
    view.resharding.append({})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_vector, "params.vectors.size: 4 before, 8 now"),
        (change_index, "payload index town.type: nothing before, 'keyword' now"),
        (change_metadata, "metadata.owner: nothing before, ['b'] now"),
        (new_shard, "shards 5 (key 'b') came"),
        (lost_shard, "shards 4 (key 7) went"),
        (other_key, "shards 4 (key '7') came and shards 4 (key 7) went"),
        (resharding, "it is being resharded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_change_of_shards_and_settings_is_told(change: Any, said: str) -> None:
    """Its archives do not fit together any more, or not with the manifest; other collections are not touched."""
    view = view_of(keyed())
    change(view)
    assert compare(planned(), seen(docs=view)).changed == {DOCS: f"docs changed while the backup ran: {said}."}


def test_moved_replicas_count_and_are_told() -> None:
    """The archive is what the node held when it was asked."""
    view = view_of(keyed())
    view.replicas[ShardId(4), PeerId(1)] = view.replicas.pop((ShardId(4), PeerId(2)))
    found = compare(planned(), seen(docs=view))
    assert found.changed == {}
    assert [finding.severity for finding in found.findings] == ["info"]
    assert "Replicas of shards 4 of docs were moved" in found.findings[0].message


def test_a_replica_that_was_read_and_is_sick_now_is_told() -> None:
    """One that was not read is not of this backup's business."""
    plan = planned()
    (peer,) = {archive.node.peer_id for archive in plan.of_collection(DOCS) if archive.shard_id == 1}
    view = view_of(keyed())
    view.replicas[ShardId(1), peer] = "Dead"
    (finding,) = compare(plan, seen(docs=view)).findings
    assert (finding.severity, finding.subject) == ("warning", DOCS)
    assert f"shard 1 on peer {peer} is Dead" in finding.message
    view.replicas[ShardId(1), peer] = "Active"
    view.replicas[ShardId(1), PeerId(3 - peer)] = "Dead"
    assert compare(plan, seen(docs=view)).findings == ()


def test_new_collections_are_told_where_the_patterns_choose_them() -> None:
    """Those that were there before and left out are not new; of many only some are named."""
    names = [f"new-{number:02}" for number in range(12)]
    now = listing(DOCS, OTHER, "left-out", "tmp-1", *names)
    (finding,) = compare(planned(exclude=("tmp-*",)), seen(now)).findings
    assert finding.severity == "info"
    assert "new-00, new-01" in finding.message
    assert finding.message.endswith("new-09 and 2 more.")


def test_other_aliases_are_told() -> None:
    """The record has the aliases of its start, which a hand-over meanwhile makes wrong."""
    (finding,) = compare(planned(), seen(listing(DOCS, OTHER, "left-out", aliases={"live": OTHER}))).findings
    assert "live (docs → other)" in finding.message


def test_a_silent_node_is_told_and_a_lost_cluster_is_no_failure() -> None:
    """What is proven counts most of all when the cluster is gone: nothing is called dropped."""
    whole = seen()
    half = Seen(
        nodes={"node-1:6333": whole.nodes["node-1:6333"]},
        silent={"node-2:6333": "gone."},
        collections=whole.collections,
    )
    assert [finding.subject for finding in compare(planned(), half).findings] == ["node-2:6333"]
    lost = compare(planned(), Seen(silent={"node-1:6333": "gone.", "node-2:6333": "gone."}))
    assert (lost.dropped, lost.changed) == ((), {})
    assert [finding.severity for finding in lost.findings] == ["warning", "warning"]


def test_a_collection_that_could_not_be_read_again_is_told() -> None:
    """It is listed and does not answer: a warning, for nothing says that it changed."""
    whole = seen()
    found = compare(planned(), Seen(nodes=whole.nodes, collections={OTHER: whole.collections[OTHER]}))
    assert found.changed == {}
    assert [finding.subject for finding in found.findings] == [DOCS]
