"""What a node says of its consensus, and which of it stands in the way of a backup."""

from types import SimpleNamespace
from typing import Any

import pytest

from ferry.qdrant.view import _consensus_problems
from tests.unit.builders import node

PEERS = {str(number): {"uri": f"http://node-{number}:6335/"} for number in (1, 2, 3)}


def seen_by(number: int, leader: int | None, unreachable: int) -> Any:
    """A node that could once not reach a peer."""
    cluster = {
        "consensus_thread_status": {"consensus_thread_status": "working"},
        "raft_info": {"pending_operations": 0, "leader": leader},
        "peers": PEERS,
        "message_send_failures": {PEERS[str(unreachable)]["uri"]: {"count": 1}},
    }
    return SimpleNamespace(info=node(number), cluster=cluster)


@pytest.mark.parametrize(("number", "leader", "unreachable"), [(1, 1, 2), (2, 1, 1), (2, None, 3)])
def test_a_peer_that_the_leader_or_its_follower_cannot_reach_is_a_problem(
    number: int, leader: int | None, unreachable: int
) -> None:
    """These exchange messages all the time, so what they say is of now."""
    assert len(_consensus_problems(seen_by(number, leader, unreachable))) == 1


def test_what_one_follower_noted_of_another_stays_for_good_and_is_none() -> None:
    """After a restart nobody sends the message that would take it back (seen on 1.16.3)."""
    assert _consensus_problems(seen_by(2, 1, 3)) == []
