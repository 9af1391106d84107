"""The quick look at a batch says yes only where the slow one finds nothing, and says it where points are alike."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ferry.migration.batch import Dense, Floats, Multi, PointBatch, Sparse
from ferry.qdrant import wire
from ferry.qdrant.finite import surely_finite
from ferry.qdrant.messages import MESSAGES

POINTS, SIZE = 5, 40
Form = Callable[[Floats], Sequence[bytes]]


def encoded(vectors: dict[str, Any]) -> Sequence[bytes]:
    ids = [1, 2**40, "0cf0d6f5-6a7c-5d3e-8a53-6f6a5e0f8f5a", 3, 4]
    return wire.encode(PointBatch(ids, [{"text": "x" * n} for n in range(POINTS)], vectors)).points


def unnamed(values: Floats) -> Sequence[bytes]:
    return encoded({"": Dense(values)})


def named(values: Floats) -> Sequence[bytes]:
    return encoded({"a": Dense(values[:, :3]), "longer": Dense(values)})


def not_packed(values: Floats) -> Sequence[bytes]:
    """As 1.16.3 sends them."""
    made = []
    for number, row in enumerate(values):
        vector = b"".join(b"\x0d" + struct.pack("<f", value) for value in row)
        vectors = MESSAGES["Vectors"](vector=vector).SerializeToString()
        point_id = MESSAGES["PointId"](num=number).SerializeToString()
        made.append(MESSAGES["PointStruct"](id=point_id, vectors=vectors).SerializeToString())
    return made


def some(values: Floats) -> Sequence[bytes]:
    return encoded({"a": Dense(values[1:], np.arange(1, POINTS))})


def sparse(values: Floats) -> Sequence[bytes]:
    starts = np.arange(POINTS + 1, dtype=np.int64) * SIZE
    return encoded({"s": Sparse(starts, np.tile(np.arange(SIZE, dtype=np.uint32), POINTS), values.reshape(-1))})


def multi(values: Floats) -> Sequence[bytes]:
    starts = np.arange(POINTS + 1, dtype=np.int64) * 2
    return encoded({"m": Multi(starts, values.reshape(POINTS * 2, -1))})


ALIKE: list[Form] = [unnamed, named, not_packed]
FORMS: list[Form] = [*ALIKE, some, sparse, multi]


def values() -> Floats:
    return np.random.default_rng(1).standard_normal((POINTS, SIZE)).astype(np.float32)


@pytest.mark.parametrize("form", ALIKE)
def test_points_that_are_alike_need_no_closer_look(form: Form) -> None:
    """Whatever their ids and payloads are."""
    assert surely_finite(form(values()))
    assert surely_finite([])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("points", [1, POINTS])
def test_no_float_is_overlooked(form: Form, wrong: float, points: int) -> None:
    """At the ends and in the middle of the first point, the last and one between; the slow look names it."""
    for row in range(points):
        for place in (0, 1, SIZE // 2, SIZE - 1):
            broken = values()
            broken[row, place] = wrong
            made = form(broken)[:points] if form is not some else form(broken)
            if not wire.not_finite(made):
                assert form is some  # which leaves the first point out
                continue
            assert not surely_finite(made)


@pytest.mark.parametrize("form", FORMS)
def test_what_it_is_sure_of_is_true(form: Form) -> None:
    """Sparse vectors, multivectors and points without a vector get the closer look."""
    made = form(values())
    assert wire.not_finite(made) == []
    assert surely_finite(made) is (form in ALIKE)


def test_points_that_differ_in_their_vectors_get_a_closer_look() -> None:
    """Another size or another name in one of them, or vectors that are not last."""
    made = list(unnamed(values()))
    assert not surely_finite([*made, *unnamed(values()[:, 1:])])
    assert not surely_finite([*made, *named(values())])
    other = MESSAGES["PointStruct"].FromString(made[0])
    swapped = b"\x22\x02\x12\x00" + b"\x0a" + bytes([len(other.id)]) + other.id
    assert MESSAGES["PointStruct"].FromString(swapped).vectors == b"\x12\x00"
    assert not surely_finite([swapped])
