"""Floats that came through JSON."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ferry.archive.decimals import as_meant

SINGLES = st.floats(width=32, allow_nan=False, allow_infinity=False)


def through_json(single: float) -> float:
    """What Python reads of the shortest decimal that names the single, which is what Qdrant writes."""
    return float(str(np.float32(single)))


def test_a_decimal_halfway_between_two_singles_is_the_one_it_names() -> None:
    """The shortest decimal of a single names that single, also where rounding twice gives its neighbour."""
    named = next(
        candidate
        for candidate in (np.nextafter(np.float32(7.038531e-26), np.float32(way)) for way in (0, 1))
        if str(candidate) == "7.038531e-26"
    )
    assert np.float32(7.038531e-26) != named
    assert np.float32(as_meant([7.038531e-26])[0]) == named


@given(st.lists(SINGLES, min_size=1))
def test_every_single_survives_json(singles: list[float]) -> None:
    """Whatever Qdrant stores is what is compared."""
    meant = as_meant([through_json(single) for single in singles])
    assert np.array(meant, dtype=np.float32).tolist() == np.array(singles, dtype=np.float32).tolist()


def test_other_shapes_pass_through() -> None:
    """Named, sparse, multi and missing vectors keep their shape; null stays null."""
    vectors = {"a": [1.0, None], "s": {"indices": [1], "values": [0.5]}, "m": [[1.0], [2.0]], "none": None}
    assert as_meant(vectors) == vectors


def test_the_indices_of_sparse_vectors_stay_whole_numbers() -> None:
    """An index that lies halfway between two singles is no float: 2^25 + 2 and its like are left as they are."""
    large = [2**25 + 2, 2**31 + 2**7, 2**32 - 2**7]
    vectors = {"s": {"indices": large, "values": [7.038531e-26, 1.0, 2.0]}, "indices": [1.0], "values": [2.0]}
    meant = as_meant(vectors)
    assert meant["s"]["indices"] == large
    assert all(type(index) is int for index in meant["s"]["indices"])
    assert meant["s"]["values"] == as_meant(vectors["s"]["values"])
