"""What is sent in place of vectors that Qdrant would round once more."""

import math
from typing import Any

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from ferry.archive.doubles import read_by_qdrant
from ferry.qdrant.rounding import before_rounding, half_cosine_vectors, points_json, sent_exactly

Row = list[float]


def shown_by_qdrant(text: str) -> float:
    """What is shown of a decimal that was sent: read, stored as its shortest decimal, and read again."""
    return read_by_qdrant(repr(read_by_qdrant(text)))


def stored(vector: Row) -> Row:
    """What Qdrant 1.16 stores of a Cosine vector as float16: made as long as 1, unless it is, and rounded."""
    single = np.array(vector, dtype=np.float32)
    squares = np.float32((single * single).sum(dtype=np.float32))
    if squares >= np.finfo(np.float32).eps and abs(squares - 1) > 1e-6:
        single = single / np.sqrt(squares)
    return [float(value) for value in single.astype(np.float16)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 64), st.floats(0, 3))
def test_stored_vectors_are_stored_again_as_they_are(seed: int, size: int, spread: float) -> None:
    """Whatever was once normalized and rounded comes back bit for bit, though sent as it is it would not always."""
    random = np.random.default_rng(seed)
    vector = stored([float(x) for x in random.standard_normal(size) * 10 ** random.uniform(-spread, spread, size)])
    assert list(map(str, stored(before_rounding(vector)))) == list(map(str, vector))  # -0.0 is not 0.0


def test_without_it_they_would_not() -> None:
    """The model of Qdrant above shows what was measured: of rounded vectors some change when they are sent again."""
    random = np.random.default_rng(1)
    vectors = [stored([float(x) for x in random.standard_normal(8)]) for _ in range(2000)]
    changed = sum(stored(vector) != vector for vector in vectors)
    assert 10 < changed < 400
    assert all(stored(before_rounding(vector)) == vector for vector in vectors)


def test_rows_and_odd_vectors() -> None:
    """Rows of a multivector one by one; zeros and what never was as long as 1 do not become something else."""
    rows = [stored([0.1, -0.7, 2.0]), [0.0, -0.0, 0.0], stored([1.0, 1e-4, 3e-5])]
    found = before_rounding(rows)
    assert [list(map(str, stored(row))) for row in found] == [list(map(str, row)) for row in rows]
    long = [2.0, 4.0]
    assert [float(np.float16(value)) for value in before_rounding(long)] == long


def test_the_vectors_that_need_it() -> None:
    """By datatype and distance, named or not."""
    half = {"size": 4, "distance": "Cosine", "datatype": "float16"}
    named = {"a": half, "b": half | {"distance": "Dot"}, "c": half | {"datatype": "uint8"}, "d": {"distance": "Cosine"}}
    assert half_cosine_vectors({"params": {"vectors": named | {"e": half}}}) == ["a", "e"]
    assert half_cosine_vectors({"params": {"vectors": half}}) == [""]
    assert half_cosine_vectors({"params": {"vectors": {"size": 4, "distance": "Cosine"}}}) == []
    assert half_cosine_vectors({"params": {}}) == []


def test_only_those_vectors_are_touched() -> None:
    """Other vectors, sparse ones, payloads and points without the vector pass as they are."""
    vector, rest = stored([0.3, -0.2, 0.9]), {"b": [7.25], "s": {"indices": [1], "values": [0.5]}}
    points: list[dict[str, Any]] = [
        {"id": 1, "vector": {"a": vector} | rest, "payload": {"k": 1.5}},
        {"id": "u", "vector": rest, "payload": {}},
        {"id": 3, "vector": {}, "payload": {}},
    ]
    sent = orjson.loads(sent_exactly(orjson.dumps(points), ["a"]))
    assert stored(sent[0]["vector"].pop("a")) == vector
    points[0]["vector"] = rest
    assert sent == points
    [bare] = orjson.loads(sent_exactly(orjson.dumps([{"id": 1, "vector": vector, "payload": {}}]), [""]))
    assert stored(bare["vector"]) == vector
    assert math.isclose(sum(value * value for value in bare["vector"]), 1, abs_tol=1e-9)


def test_decoded_points_are_written_as_qdrant_shows_them_rightly() -> None:
    """A batch that was taken apart has the decimals again that Qdrant's JSON reader gets right."""
    bits = np.random.default_rng(3).integers(0x2000000000000000, 0x5000000000000000, 300)
    written = [float(value) for value in bits.view(np.float64)]  # with exponents of every size
    shown = [shown_by_qdrant(repr(value)) for value in written]
    wrong = [value for value in shown if shown_by_qdrant(repr(value)) != value]
    assert wrong  # else this would show nothing
    body = points_json([{"id": 1, "vector": [1.0], "payload": {"v": wrong}}])
    texts = body.split(b'"v":[')[1].split(b"]")[0].decode().split(",")
    assert [shown_by_qdrant(text) for text in texts] == wrong
