"""Fences at commit points: whoever was fenced off is refused by the store, whatever it does and whenever it wakes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.errors import ConflictError
from ferry.repository import fence
from tests.unit.fakes import MemoryStore

KEY = "ferry/backups/prod/20261122T020000Z-7f3a9c/docs/manifest.json"
DOCUMENT = b'{"self_sha256": "x"}'


def test_a_place_that_nobody_touched_is_committed() -> None:
    """The usual case; the same once more is fine, other content is not."""
    store = MemoryStore()
    fence.commit(store, KEY, DOCUMENT, None)
    fence.commit(store, KEY, DOCUMENT, None)
    assert fence.read_place(store, KEY).document == DOCUMENT
    with pytest.raises(ConflictError, match="other content"):
        fence.commit(store, KEY, b'{"other": 1}', None)


def test_the_holder_that_was_taken_for_dead_is_refused() -> None:
    """Its put asks for an empty place; the one that goes on commits where its own claim is."""
    store = MemoryStore()
    mine = fence.claim(store, KEY, "the second run", 8)
    with pytest.raises(ConflictError, match=r"the second run \(fencing number 8\) has taken over"):
        fence.commit(store, KEY, DOCUMENT, None)
    fence.commit(store, KEY, DOCUMENT, mine.etag)
    assert fence.read_place(store, KEY).document == DOCUMENT


def test_a_later_claim_fences_off_an_earlier_one() -> None:
    """The second holder may be frozen as well."""
    store = MemoryStore()
    second = fence.claim(store, KEY, "the second run", 8)
    third = fence.claim(store, KEY, "the third run", 9)
    with pytest.raises(ConflictError, match="the third run"):
        fence.commit(store, KEY, DOCUMENT, second.etag)
    fence.commit(store, KEY, DOCUMENT, third.etag)


def test_what_is_condemned_is_never_committed_or_claimed() -> None:
    """Archives may be deleted from here on, so no manifest may ever name them."""
    store = MemoryStore()
    mine = fence.claim(store, KEY, "a run", 8)
    assert fence.condemn(store, KEY, "prune", 9)
    for etag in (None, mine.etag):
        with pytest.raises(ConflictError, match="prune"):
            fence.commit(store, KEY, DOCUMENT, etag)
    held = fence.claim(store, KEY, "a run", 10)
    assert held.fence is not None
    assert held.fence.fence == "condemned"


def test_a_document_is_neither_claimed_nor_condemned() -> None:
    """A manifest that counts stays, whoever comes."""
    store = MemoryStore()
    fence.commit(store, KEY, DOCUMENT, None)
    assert fence.claim(store, KEY, "a run", 8).document == DOCUMENT
    assert not fence.condemn(store, KEY, "prune")
    assert fence.read_place(store, KEY).document == DOCUMENT


@given(st.lists(st.tuples(st.sampled_from(["claim", "condemn", "commit"]), st.integers(0, 3)), max_size=14))
def test_in_any_order_only_who_fenced_last_commits(acts: list[tuple[str, int]]) -> None:
    """Four holders do what they like: a commit succeeds where nothing is, or for who claimed last; then it stays."""
    store = MemoryStore()
    claims: dict[int, str | None] = {}
    last: int | None = None
    condemned, committed = False, None
    for act, holder in acts:
        if act == "claim":
            place = fence.claim(store, KEY, f"run {holder}", holder)
            if not condemned and committed is None:
                claims[holder], last = place.etag, holder
        elif act == "condemn":
            assert fence.condemn(store, KEY, f"run {holder}", holder) == (committed is None)
            condemned = condemned or committed is None
        else:
            data = f'{{"by": {holder}}}'.encode()
            allowed = committed == data if committed else not condemned and last in (None, holder)
            try:
                fence.commit(store, KEY, data, claims.get(holder))
            except ConflictError:
                assert not allowed
            else:
                assert allowed
                committed = data
    assert fence.read_place(store, KEY).document == committed
