"""The ring against the oracle that was written from the facts, for ids of every kind and rings of every shape."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.archive import routing
from ferry.archive.routing import Router
from ferry.models import ShardId
from tests.unit.routing import shard_of

NUMBERS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))
UUIDS = st.uuids().map(str)


@given(st.lists(NUMBERS | UUIDS, max_size=40), st.sets(st.integers(0, 4000), min_size=1, max_size=6))
def test_every_id_goes_where_qdrant_looks_for_it(ids: list[int | str], shards: set[int]) -> None:
    found = Router(map(ShardId, shards)).shards_of(ids).tolist()
    assert found == [shard_of(point_id, tuple(shards)) for point_id in ids]


def test_the_ring_has_no_entry_more_or_less() -> None:
    """One entry moves less than one id in a hundred, so this looks at many."""
    shards, ids = (0, 1, 2, 5), list(range(0, 3 * 10**9, 10**6))
    assert Router(map(ShardId, shards)).shards_of(ids).tolist() == [shard_of(point_id, shards) for point_id in ids]


def test_the_first_id_of_each_arc_shows_an_entry_too_many() -> None:
    """What the trial on the target rests on."""
    ids = list(range(30_000))
    ring = Router([ShardId(0), ShardId(1)])
    first = ring.first_of_arcs(ids)
    assert 190 <= len(first) == len(set(first)) <= ring.arcs + 1
    with_one_more = routing.VIRTUAL_NODES + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "VIRTUAL_NODES", with_one_more)
        other = Router([ShardId(0), ShardId(1)])
    assert ring.shards_of(first).tolist() != other.shards_of(first).tolist()


def test_the_order_of_shards_does_not_matter() -> None:
    ids = list(range(500))
    first, second = Router([ShardId(3), ShardId(1)]), Router([ShardId(1), ShardId(3), ShardId(3)])
    assert first.shards_of(ids).tolist() == second.shards_of(ids).tolist()


def test_a_number_and_the_uuid_of_the_same_bits_are_two_ids() -> None:
    ids: list[int | str] = [*range(64), *(str(UUID(int=number)) for number in range(64))]
    places = Router([ShardId(0), ShardId(1)]).shards_of(ids).tolist()
    assert places[:64] != places[64:]


def test_ids_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        Router([ShardId(0)]).shards_of(["a word"])
