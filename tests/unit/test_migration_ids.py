"""Ids of any source become ids of Qdrant: the same on every run, never two into one, and the original is kept."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.archive.filters import to_id
from ferry.migration.ids import ORIGINAL, is_kept, namespace_of, point_id, source_id_of, with_original

SPACE = namespace_of("postgres:db/docs")
ANY = st.integers(min_value=-(1 << 70), max_value=1 << 70) | st.text() | st.uuids().map(str)


@pytest.mark.parametrize("kept", [0, 7, (1 << 64) - 1, "44f30f7c-a00e-4d90-bb3e-1eae3a27c3cb", str(UUID(int=0))])
def test_qdrants_own_ids_stay(kept: int | str) -> None:
    """Unsigned 64-bit numbers and UUIDs in the form that Qdrant shows."""
    assert point_id(kept, SPACE) == kept


LOOK_ALIKES = [
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
    "67E55044-10B1-426F-9247-BB680E5FE0C8",
    "67e5504410b1426f9247bb680e5fe0c8",
    "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
    "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
    " 67e55044-10b1-426f-9247-bb680e5fe0c8",
    "5",
    5,
    "-5",
    -5,
    "number:-5",
    1 << 64,
    str(1 << 64),
    "",
]


def test_ids_that_look_alike_stay_apart() -> None:
    """What Python, or another tool, would read as the same UUID or number are rows of their own in the source."""
    found = {to_id(point_id(each, SPACE), "id") for each in LOOK_ALIKES}  # as Qdrant reads them
    assert len(found) == len(LOOK_ALIKES)


@given(ANY, ANY)
def test_every_id_is_one_of_qdrants_and_none_is_shared(first: int | str, second: int | str) -> None:
    """Valid, made again the same way, and different for different ids."""
    made = point_id(first, SPACE)
    assert to_id(made, "id") == made
    assert is_kept(made)
    assert point_id(first, SPACE) == made
    same = first == second and type(first) is type(second)
    assert (point_id(second, SPACE) == made) == same


def test_two_sources_do_not_overwrite_each_other() -> None:
    """Equal ids of two tables are two points; the namespace is that of the source, made again by any worker."""
    other = namespace_of("postgres:db/users")
    assert point_id("a", SPACE) != point_id("a", other)
    # A change of this value would make every resumed migration write its points a second time.
    assert point_id("a", SPACE) == "aa36d382-cd02-5e00-b66f-ff68df2b5eec"


def test_the_original_id_is_kept_in_the_payload() -> None:
    """And found there again; a field of that name that means something else is not overwritten."""
    kept = with_original({"n": 1}, "doc-7")
    assert kept == {"n": 1, ORIGINAL: "doc-7"}
    assert with_original(kept, "doc-7") == kept
    assert source_id_of(point_id("doc-7", SPACE), kept) == "doc-7"
    assert source_id_of(4, {"n": 1}) == 4
    with pytest.raises(ValueError, match="__id__ already"):
        with_original({ORIGINAL: "else"}, "doc-7")
