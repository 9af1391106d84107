"""The vectors of a collection by its configuration, and what fits them."""

from typing import Any

import pytest

from ferry.qdrant.vectors import VectorShape, vectors_of

DENSE = {"size": 3, "distance": "Cosine"}


def test_every_kind_is_known_by_its_name() -> None:
    """Unnamed and named, dense, multivector, sparse; the datatype where one is set."""
    named = {"a": DENSE, "many": DENSE | {"multivector_config": {"comparator": "max_sim"}, "datatype": "float16"}}
    sparse = {"words": {"index": {"datatype": "float16"}}, "none": None}
    assert vectors_of({"params": {"vectors": DENSE}}) == {"": VectorShape(kind="dense", size=3, distance="Cosine")}
    found = vectors_of({"params": {"vectors": named, "sparse_vectors": sparse}})
    assert {name: shape.words for name, shape in found.items()} == {
        "a": "dense, 3 × float32, Cosine",
        "many": "multivector, 3 × float16, Cosine",
        "words": "sparse",
        "none": "sparse",
    }
    assert vectors_of({"params": {}}) == {}


@pytest.mark.parametrize(
    ("kind", "vector", "wanted"),
    [
        ("dense", [1, 2.5, 3], None),
        ("dense", [1, 2], "3 numbers"),
        ("dense", [1, 2, "x"], "3 numbers"),
        ("dense", [True, 2, 3], "3 numbers"),
        ("dense", {"indices": [1], "values": [1]}, "3 numbers"),
        ("dense", 3, "3 numbers"),
        ("multivector", [[1, 2, 3], [4, 5, 6]], None),
        ("multivector", [[1, 2, 3], [4]], "rows of 3 numbers"),
        ("multivector", [], "rows of 3 numbers"),
        ("sparse", {"indices": [1, 7], "values": [0.5, 1]}, None),
        ("sparse", {"indices": [1], "values": [0.5], "more": 1}, "indices and values"),
        ("sparse", [1, 2, 3], "indices and values"),
        ("sparse", {"indices": [1, 2], "values": [0.5]}, "as many indices as values"),
    ],
)
def test_what_fits_is_told_before_anything_is_read(kind: Any, vector: Any, wanted: str | None) -> None:
    """And what is needed where it does not."""
    shape = VectorShape(kind=kind, size=None if kind == "sparse" else 3, distance=None if kind == "sparse" else "Dot")
    assert shape.problem(vector) == wanted


def test_which_score_is_the_best() -> None:
    """Distances are best when small, similarities when large."""
    best = {each: VectorShape(kind="dense", size=1, distance=each).nearest_first for each in ("Dot", "Cosine")}
    best |= {each: VectorShape(kind="dense", size=1, distance=each).nearest_first for each in ("Euclid", "Manhattan")}
    assert best == {"Dot": False, "Cosine": False, "Euclid": True, "Manhattan": True}
    assert not VectorShape(kind="sparse").nearest_first
