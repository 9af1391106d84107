"""What is made of the nodes' words about a collection, without a server."""

from types import SimpleNamespace
from typing import Any

import pytest

from ferry.errors import PreflightError
from ferry.models import PeerId, ShardId
from ferry.qdrant.condition import SeenNode as Seen
from ferry.qdrant.condition import _condition, _leads, _Told, _transfers, _trouble, read_condition
from ferry.qdrant.view import CollectionView
from tests.unit import builders

CLUSTER: Any = SimpleNamespace(name="test", profile=SimpleNamespace(api_key=None))
COMMENT = "Transferring records (10/90), started 4s ago, ETA: 12.00s"
SHARD, ONE, TWO = ShardId(0), PeerId(1), PeerId(2)


def view(states: dict[int, str], *transfers: dict[str, Any]) -> CollectionView:
    """Shard 0 as one node sees it."""
    replicas = {(SHARD, PeerId(peer)): state for peer, state in states.items()}
    return CollectionView({}, replicas, {SHARD: None}, list(transfers), [])


def told(peer: int, views: dict[str, CollectionView], counts: dict[Any, Any] | None = None, **params: Any) -> _Told:
    """What one node has said."""
    configs = {"docs": {"params": {"replication_factor": 2, **params}}}
    return _Told(Seen(info=builders.node(peer)), {ONE, TWO}, configs, views, counts or {})


def test_a_transfer_is_told_by_its_source_and_without_the_clock() -> None:
    """Two looks at one that stands still are the same; others who show it know nothing of it."""
    seen = {"shard_id": 0, "from": 1, "to": 2, "comment": COMMENT}
    [transfer] = _transfers({ONE: view({}, seen), TWO: view({}, seen | {"comment": "no word of mine"})})
    assert (transfer.source, transfer.target, transfer.told) == (1, 2, "Transferring records (10/90)")
    [silent] = _transfers({ONE: view({}, seen | {"comment": None}), TWO: view({}, seen)})
    assert silent.told is None


def test_a_node_that_does_not_show_a_replica_or_the_collection_sees_it_absent() -> None:
    """So that it differs from the others, and is told."""
    here, nothing = told(1, {"docs": view({1: "Active", 2: "Active"})}), told(2, {})
    condition = _condition(CLUSTER, "docs", ([here, nothing], []), None, True)
    assert [replica.states for replica in condition.replicas] == [{1: "Active", 2: "absent"}] * 2


def test_counts_are_of_the_replicas_own_node_and_words_are_what_is_broken() -> None:
    """A number is points, a sentence is why there are none."""
    both = {"docs": view({1: "Active", 2: "Active"})}
    answers = [told(1, both, {("docs", SHARD): 7}), told(2, both, {("docs", SHARD): "Dirty shard"})]
    condition = _condition(CLUSTER, "docs", (answers, []), None, True)
    assert [(replica.points, replica.broken) for replica in condition.replicas] == [(7, None), (None, "Dirty shard")]


def test_who_is_away_is_silent_and_wanted_copies_come_from_the_asker_or_the_collection() -> None:
    """The number of copies of custom sharding is certain only when somebody names it."""
    one = told(1, {"docs": view({1: "Active"})})
    away = _condition(CLUSTER, "docs", ([one], ["node-2:6333"]), None, True)
    assert (away.silent, away.away, away.copies, away.certain) == ((2,), ("node-2:6333",), {0: 2}, True)
    keyed = told(1, {"docs": view({1: "Active"})}, sharding_method="custom")
    assert not _condition(CLUSTER, "docs", ([keyed], []), None, True).certain
    for asked in (3, {SHARD: 3}):
        named = _condition(CLUSTER, "docs", ([keyed], []), asked, True)
        assert (named.copies, named.certain) == ({0: 3}, True)


def test_consensus_that_does_not_work_is_told_in_the_nodes_words() -> None:
    """A node without cluster mode has none, and leads nobody."""
    stopped = {"consensus_thread_status": {"consensus_thread_status": "stopped_with_err", "err": "no"}}
    assert _trouble(stopped) == "stopped_with_err: no"
    assert _trouble({"consensus_thread_status": {"consensus_thread_status": "working"}}) is None
    assert _trouble({"status": "disabled"}) is None
    assert _leads({"peer_id": 1, "raft_info": {"leader": 1}})
    assert not _leads({"peer_id": 1, "raft_info": {"leader": 2}})
    assert not _leads({"status": "disabled"})


def test_a_name_that_no_node_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias leads to a collection in Qdrant, and is none."""
    answer = told(1, {"an-alias": view({1: "Active"})})
    monkeypatch.setattr("ferry.qdrant.condition._ask_all", lambda *_, **__: ([answer], []))
    with pytest.raises(PreflightError, match="knows a collection an-alias"):
        read_condition(CLUSTER, "an-alias")
