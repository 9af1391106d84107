"""What is stuck and what may be done about it: the rules over every state, without a server."""

import shlex
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.models import PeerId, ShardId
from ferry.qdrant.condition import Condition, SeenNode, SeenReplica, SeenTransfer
from ferry.qdrant.stuck import Call, Stuck, find_stuck
from tests.unit import builders

SHARD = ShardId(0)
# State and points of a replica; words instead of points are what its own node says when it cannot read it.
Seen = tuple[str, int | str | None]
ACTIVE: Seen = ("Active", 10)


def replica(peer: int, seen: Seen, views: dict[int, str] | None = None, shard: int = 0) -> SeenReplica:
    """One replica as three nodes see it; ``views`` are those that see it otherwise."""
    state, read = seen
    states = {PeerId(node): (views or {}).get(node, state) for node in (1, 2, 3)}
    points, broken = (read, None) if isinstance(read, int) else (None, read)
    return SeenReplica(shard_id=ShardId(shard), peer_id=PeerId(peer), states=states, points=points, broken=broken)


def condition(*seen: Seen, **more: Any) -> Condition:
    """A shard with replicas on peers 1, 2, …, on three nodes of which the first leads; two copies are wanted."""
    nodes = tuple(SeenNode(info=builders.node(number), leads=number == 1) for number in (1, 2, 3))
    replicas = tuple(replica(number, each) for number, each in enumerate(seen, start=1))
    usual = {"cluster": "test", "collection": "docs", "nodes": nodes, "copies": {SHARD: 2}, "keys": {SHARD: None}}
    return Condition(**{**usual, "replicas": replicas, **more})


def told(found: tuple[Stuck, ...]) -> list[tuple[str, int | None, str, bool]]:
    """Kind, peer, operation, and whether Ferry may."""
    return [
        (stuck.kind, stuck.peer_id, next(iter(stuck.call.body or {"-": 0})) if stuck.call else "none", stuck.may)
        for stuck in found
    ]


BROKEN: Seen = ("Active", "Dirty shard - shard is not fully initialized")
TRANSFER = SeenTransfer(shard_id=SHARD, source=PeerId(1), target=PeerId(2), told="Transferring records (1/9)")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([ACTIVE, ACTIVE], []),
        ([ACTIVE, ("Listener", 10)], []),
        ([ACTIVE, ("Dead", 3)], [("inactive", 2, "replicate_shard", True)]),
        ([ACTIVE, ("Partial", 0)], [("inactive", 2, "replicate_shard", True)]),
        ([ACTIVE, ("ManualRecovery", 10)], [("inactive", 2, "replicate_shard", True)]),
        ([ACTIVE, ("Initializing", 0)], [("inactive", 2, "replicate_shard", True)]),
        ([ACTIVE, ("Recovery", None)], [("inactive", 2, "replicate_shard", True)]),
        ([ACTIVE, BROKEN], [("broken", 2, "replicate_shard", True)]),
        ([ACTIVE, ("Partial", 11)], [("inactive", 2, "replicate_shard", False)]),
        ([ACTIVE, ("Resharding", 5)], [("inactive", 2, "replicate_shard", False)]),
        ([BROKEN], [("broken", 1, "location", False)]),
        ([BROKEN, BROKEN], [("broken", 1, "location", False), ("broken", 2, "location", False)]),
        ([("Dead", 9), BROKEN], [("inactive", 1, "location", False), ("broken", 2, "location", False)]),
        ([ACTIVE, ACTIVE, ("Partial", 0)], [("inactive", 3, "drop_replica", True)]),
        ([ACTIVE, ("Active", 9), ("Partial", 0)], [("inactive", 3, "drop_replica", False)]),
        ([ACTIVE, BROKEN, BROKEN], [("broken", 2, "drop_replica", True), ("broken", 3, "replicate_shard", True)]),
        ([ACTIVE, ACTIVE, ACTIVE], [("surplus", 3, "drop_replica", True)]),
        ([ACTIVE], [("missing", 2, "replicate_shard", True)]),
        ([ACTIVE, ("Active", 9)], [("differs", None, "none", False)]),
        ([ACTIVE, ACTIVE, ("Active", 11)], [("differs", None, "none", False)]),
        ([("Listener", 10)], []),
    ],
)  # fmt: skip
def test_each_state_has_its_call(seen: list[Seen], expected: list[Any]) -> None:
    """What is wrong, where, what mends it, and whether Ferry may do it."""
    assert told(find_stuck(condition(*seen))) == expected


def test_no_source_is_broken_and_the_best_one_is_chosen() -> None:
    """The fullest Active replica that can be read fills the others."""
    [stuck] = find_stuck(condition(BROKEN, ACTIVE, copies={SHARD: 2}))
    assert stuck.call is not None
    assert stuck.call.body == {"replicate_shard": {"shard_id": 0, "from_peer_id": 2, "to_peer_id": 1}}
    assert "Dirty shard" in stuck.diagnosis


def test_the_copy_too_many_goes_from_the_fullest_node_and_a_new_one_to_the_emptiest() -> None:
    """Mending leaves the replicas as evenly spread as it can."""
    other = [replica(peer, ACTIVE, shard=1) for peer in (1, 2)]
    keys = {SHARD: None, ShardId(1): None}
    full = condition(
        copies={SHARD: 2, ShardId(1): 2}, keys=keys, replicas=[*(replica(p, ACTIVE) for p in (1, 2, 3)), *other]
    )
    assert [stuck.peer_id for stuck in find_stuck(full)] == [2]
    thin = condition(copies={SHARD: 2, ShardId(1): 2}, keys=keys, replicas=[replica(1, ACTIVE), *other])
    assert [stuck.peer_id for stuck in find_stuck(thin)] == [3]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"resharding": True}, "resharded"),
        ({"restore_id": "20261122T120000Z-other1"}, "restore 20261122T120000Z-other1 has not finished"),
        ({"counted": False}, "were not counted"),
    ],
)
def test_there_are_times_to_keep_the_hands_off(more: dict[str, Any], why: str) -> None:
    """Whatever is stuck is told, and nothing is done by Ferry."""
    for seen in ([ACTIVE, ("Dead", 3)], [ACTIVE, ACTIVE, ACTIVE], [ACTIVE]):
        [stuck] = find_stuck(condition(*seen, **more))
        assert why in (stuck.withheld or "")


def test_a_look_without_counting_takes_no_broken_and_no_absent_copy_for_a_sound_one() -> None:
    """As doctor looks: what it says must not name a source that cannot be read."""
    for other, silent in ((BROKEN, ()), (("Active", None), (PeerId(1),))):
        found = find_stuck(condition(other, ("Partial", None), counted=False, silent=silent))
        assert [stuck.diagnosis for stuck in found if stuck.peer_id == 2 and "no other replica" in stuck.diagnosis]


def test_a_restore_may_mend_its_own_collection() -> None:
    """The mark keeps others off, and not the restore that made it."""
    marked = condition(ACTIVE, ("Dead", 3), restore_id="mine")
    assert [stuck.may for stuck in find_stuck(marked, "mine")] == [True]
    assert [stuck.may for stuck in find_stuck(marked, "another")] == [False]


def test_a_shard_key_may_want_other_numbers() -> None:
    """Where nobody knows how many copies are wanted none is dropped or made, and a bad one is filled again."""
    assert told(find_stuck(condition(ACTIVE, ACTIVE, ACTIVE, certain=False))) == [("surplus", 3, "drop_replica", False)]
    assert told(find_stuck(condition(ACTIVE, certain=False))) == [("missing", 2, "replicate_shard", False)]
    bad = find_stuck(condition(ACTIVE, ACTIVE, ("Dead", 3), certain=False))
    assert told(bad) == [("inactive", 3, "replicate_shard", True)]
    [keyed] = find_stuck(condition(ACTIVE, ("Dead", 3), keys={SHARD: "7"}))
    assert keyed.subject == "docs/shard 0 of key 7 on node-2:6333"


def test_copies_that_no_node_is_left_for_are_none() -> None:
    """Qdrant makes no more copies than there are nodes."""
    assert find_stuck(condition(ACTIVE, ACTIVE, ACTIVE, copies={SHARD: 5})) == ()


def test_nodes_that_see_a_shard_differently_are_named_and_nothing_else_is_judged() -> None:
    """The leader is believed; who differs gets the call that takes over the leader's word, for a person to make."""
    odd = condition(replicas=[replica(1, ACTIVE), replica(2, ("Dead", 3), {3: "Active"})])
    [stuck] = find_stuck(odd)
    assert (stuck.kind, stuck.peer_id, stuck.may) == ("disagreement", 3, False)
    assert stuck.call is not None
    assert stuck.call.curl == "curl -X POST http://node-3:6333/cluster/recover"
    assert "node-2:6333 is Active for it and Dead for node-1:6333" in stuck.diagnosis
    absent = condition(replicas=[replica(1, ACTIVE), replica(2, ACTIVE, {1: "absent"})])
    assert [stuck.peer_id for stuck in find_stuck(absent)] == [2, 3]


def test_a_node_that_is_away() -> None:
    """It is told once with its peer; replicas elsewhere are judged, and none of its own is given up."""
    nodes = tuple(SeenNode(info=builders.node(number), leads=number == 1) for number in (1, 3))
    away = {"nodes": nodes, "away": ("node-2:6333",), "silent": (PeerId(2),)}
    gone = replica(2, ("Active", None))
    found = find_stuck(condition(replicas=[replica(1, ACTIVE), gone], **away))
    assert told(found) == [("away", None, "none", False)]
    assert "DELETE /cluster/peer/2?force=true" in (found[0].remedy or "")
    dead = find_stuck(condition(replicas=[replica(1, ACTIVE), replica(2, ("Dead", None))], **away))
    assert told(dead)[1:] == [("inactive", 2, "replicate_shard", False)]
    beside = find_stuck(condition(replicas=[replica(1, ACTIVE), gone, replica(3, ("Partial", 0))], **away))
    assert told(beside)[1:] == [("inactive", 3, "drop_replica", True)]
    only = find_stuck(condition(replicas=[gone, replica(3, ("Partial", 5))], **away))
    assert told(only)[1:] == [("inactive", 3, "location", False)]
    elsewhere = condition(ACTIVE, replicas=[replica(1, ACTIVE), replica(3, ACTIVE)], **away)
    assert find_stuck(elsewhere) == ()


def test_a_transfer_that_goes_on_is_waited_for_and_a_silent_one_may_be_ended() -> None:
    """Its source says how far it is; one of whose source nothing is heard is aborted, which makes its target Dead."""
    filling = (ACTIVE, ("Partial", 5))
    [going] = find_stuck(condition(*filling, transfers=(TRANSFER,)))
    assert (going.kind, going.under_way, going.may) == ("transfer", True, False)
    assert "(1/9)" in going.token
    silent = TRANSFER.model_copy(update={"told": None})
    [stopped] = find_stuck(condition(*filling, transfers=(silent,)))
    assert (stopped.under_way, stopped.may) == (False, True)
    assert stopped.call is not None
    assert stopped.call.body == {"abort_transfer": {"shard_id": 0, "from_peer_id": 1, "to_peer_id": 2}}
    away = find_stuck(condition(*filling, transfers=(silent,), silent=(PeerId(1),)))
    assert [stuck.may for stuck in away if stuck.kind == "transfer"] == [False]


def test_a_transfer_out_of_a_broken_replica_is_not_touched() -> None:
    """Ending it, or a restart, would stop its node for good (1.16.3): the shard is recovered on the source first."""
    [stuck] = find_stuck(condition(BROKEN, ("Partial", 0), transfers=(TRANSFER,)))
    assert not stuck.may
    assert stuck.call is not None
    assert stuck.call.path == "/collections/docs/shards/0/snapshots/recover"
    assert stuck.call.node == "http://node-1:6333"
    assert "do not restart" in (stuck.remedy or "")


def test_where_consensus_has_stopped_nothing_is_changed_and_nobody_restarts_a_node_over_a_broken_shard() -> None:
    """The broken shard first, then the restart: the other way round the node does not start (1.16.3)."""
    nodes = [SeenNode(info=builders.node(number), leads=number == 1) for number in (1, 2, 3)]
    nodes[1] = nodes[1].model_copy(update={"trouble": "stopped_with_err: Failed to handle committed entries"})
    stopped, partial = find_stuck(condition(("Partial", 0), BROKEN, nodes=tuple(nodes)))[:2]
    assert (stopped.kind, stopped.peer_id, stopped.may) == ("consensus", 2, False)
    assert (stopped.remedy or "").startswith("Do not restart node-2:6333 yet")
    assert stopped.call is not None
    assert stopped.call.node == "http://node-2:6333"
    assert partial.kind == "inactive"
    healthy = find_stuck(condition(ACTIVE, ("Dead", 2), nodes=tuple(nodes)))
    assert "restart it" in (healthy[0].remedy or "")
    assert healthy[0].call is None
    assert [stuck.withheld for stuck in healthy[1:]] == ["consensus on node-2:6333 has stopped"]


def test_a_call_can_be_typed_and_holds_no_key() -> None:
    """Quoted for a shell, whatever the collection is called; the api key is a variable of the shell's."""
    body = {"location": 'it\'s $HOME "quoted"', "priority": "no_sync"}
    call = Call(node="http://n:1", method="PUT", path="/collections/a%20'b/x", body=body, keyed=True)
    words = shlex.split(call.curl)
    assert words[:4] == ["curl", "-X", "PUT", "http://n:1/collections/a%20'b/x"]
    assert orjson.loads(words[-1]) == body
    assert '-H "api-key: $QDRANT_API_KEY"' in call.curl
    assert "api-key" not in call.model_copy(update={"keyed": False}).curl


STATES = st.sampled_from(["Active", "Active", "Dead", "Partial", "Recovery", "Listener", "Resharding", "absent"])
READS = st.sampled_from([10, 10, 9, 0, None, "Dirty shard"])
REPLICAS = st.dictionaries(
    st.integers(1, 3), st.tuples(STATES, READS, st.dictionaries(st.integers(1, 3), STATES, max_size=1)), min_size=1
)


@given(REPLICAS, st.integers(1, 3), st.sets(st.sampled_from([2, 3])), st.booleans())
def test_whatever_is_seen_no_last_good_copy_is_given_up(
    seen: dict[int, Any], copies: int, silent: set[int], certain: bool
) -> None:
    """What Ferry may give up has an equal or fuller copy that all nodes see Active and that was counted."""
    answered = [number for number in (1, 2, 3) if number not in silent]
    replicas = [
        replica(peer, (state, read), views).model_copy(
            update={"states": {PeerId(node): views.get(node, state) for node in answered}}
        )
        for peer, (state, read, views) in seen.items()
    ]
    looked = condition(
        replicas=replicas,
        nodes=tuple(SeenNode(info=builders.node(number), leads=number == 1) for number in answered),
        copies={SHARD: copies},
        silent=tuple(PeerId(peer) for peer in silent),
        certain=certain,
    )
    for stuck in find_stuck(looked):
        if not stuck.may:
            continue
        assert stuck.call is not None
        [(operation, ids)] = (stuck.call.body or {}).items()
        given_up = ids.get("peer_id", ids.get("to_peer_id"))
        kept = {
            each.peer_id: each.points or 0
            for each in replicas
            if each.peer_id not in (given_up, *silent)
            and set(each.states.values()) == {"Active"}
            and each.broken is None
            and each.points is not None
        }
        assert kept
        assert len(set(kept.values())) == 1
        lost = next((each.points or 0 for each in replicas if each.peer_id == given_up), 0)
        assert lost <= max(kept.values())
        assert given_up not in silent
        if operation == "replicate_shard":
            assert ids["from_peer_id"] in kept
        else:
            assert len(replicas) > copies
            assert stuck.kind != "surplus" or len(kept) >= copies
