"""Doubles in payloads, written so that Qdrant shows them as they are; that it does is tested on a real server."""

from math import isclose, isfinite

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
    """One whose own digits would end as its neighbour is written as another decimal."""
    value = next(v for n in range(1000) if shown_of(repr(v := read_by_qdrant(repr(n * 1.1e-12))).encode()) != v)
    text = payload_json({"x": value})
    assert text != orjson.dumps({"x": value})
    assert shown_of(text.removeprefix(b'{"x":').removesuffix(b"}")) == value


def test_nothing_else_is_touched() -> None:
    """Text that looks like a number, large integers, truth values, and what is nested."""
    payload = {"t": "0.12345678901234567890e9", "u": 2**64 - 1, "b": [True, None, {}], "e": {"1e5": 1e300}}
    assert orjson.loads(payload_json(payload)) == payload
    assert as_read(payload) == payload
