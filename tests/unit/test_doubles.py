"""Doubles in payloads, written so that Qdrant shows them as they are; that it does is tested on a real server."""

from math import isclose, isfinite
from random import Random

import orjson
from hypothesis import given
from hypothesis import strategies as some

from ferry.archive.doubles import as_read, payload_json, read_by_qdrant

SHOWN = some.floats(allow_nan=False, allow_infinity=False).filter(
    lambda value: value == 0 or 1e-300 < abs(value) < 1e300
)


def shown_of(text: bytes) -> float:
    """What Qdrant shows of a number that was sent: read, stored as its shortest decimal, read again."""
    return read_by_qdrant(repr(read_by_qdrant(text.decode())))


@given(SHOWN)
def test_what_is_told_is_what_is_shown(held: float) -> None:
    """Of any double that Qdrant may show: the JSON is shown as `as_read` says, which is it or its neighbour."""
    value = read_by_qdrant(repr(held))
    text = payload_json({"x": value})
    told = as_read({"x": value})["x"]
    assert shown_of(text.removeprefix(b'{"x":').removesuffix(b"}")) == told
    assert isclose(told, value, rel_tol=1e-15)
    assert isclose(orjson.loads(text)["x"], value, rel_tol=1e-15)


@given(some.floats(min_value=1e-4, max_value=1e16))
def test_ordinary_ones_are_written_as_they_are(held: float) -> None:
    """Between 1e-4 and 1e16 what Qdrant shows is read as itself."""
    value = read_by_qdrant(repr(held))
    payload = {"a": [value, {"b": -value}]}
    assert payload_json(payload) == orjson.dumps(payload)
    assert as_read(payload) == payload


def test_the_reader_is_off_where_it_is_known_to_be() -> None:
    """serde-rs/json#1336 and #937; and exact for 15 digits, zeros, whole numbers and the ends of the range."""
    assert read_by_qdrant("1.5777777777770001") == 1.577777777777
    assert read_by_qdrant("0.09144338512092887") == 0.09144338512092888
    for value in (0.0, -0.0, 1.0, -2.5, 1e22, 123456789012345.0, 1e-7, 0.1):
        assert repr(read_by_qdrant(repr(value))) == repr(value)
    assert isfinite(read_by_qdrant("1.7976931348623157e308"))
    assert 0 < read_by_qdrant("5e-324") < 1e-323


def test_a_quarter_of_the_tiny_ones_needs_another_text() -> None:
    """One whose own digits would end as its neighbour is written as another decimal; the few without are told."""
    rng = Random("tiny")
    tiny = [read_by_qdrant(repr(rng.random() * 1e-9)) for _ in range(3000)]
    needing = [value for value in tiny if shown_of(repr(value).encode()) != value]
    assert 0.2 < len(needing) / len(tiny) < 0.3
    told = [as_read({"x": value})["x"] for value in needing]
    texts = [payload_json({"x": value}).removeprefix(b'{"x":').removesuffix(b"}") for value in needing]
    assert [shown_of(text) for text in texts] == told
    without = sum(value != shown for value, shown in zip(needing, told, strict=True))
    assert without / len(tiny) < 0.002  # one in two thousand of those written over gRPC has none


def test_one_without_a_right_text_is_told() -> None:
    """It is written as its own digits, and `as_read` says what is shown of them."""
    value = 2.3207488775714402e-10  # written over gRPC
    [told] = as_read({"x": [value]})["x"]
    assert told != value
    assert told == shown_of(payload_json({"x": value}).removeprefix(b'{"x":').removesuffix(b"}"))


def test_nothing_else_is_touched() -> None:
    """Text that looks like a number, large integers, truth values, and what is nested."""
    payload = {"t": "0.12345678901234567890e9", "u": 2**64 - 1, "b": [True, None, {}], "e": {"1e5": 1e300}}
    assert orjson.loads(payload_json(payload)) == payload
    assert as_read(payload) == payload
