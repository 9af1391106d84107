"""The content digest: its algebra, its bytes, and what it tells apart."""

from __future__ import annotations

import json
import math
import random
import struct
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qdrant_edge import SparseVector

from ferry.archive import digest
from ferry.archive.digest import (
    ContentDigest,
    PointSample,
    ShardDigest,
    digest_of,
    point_fields,
    point_sample,
    range_of,
)

f32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ids = st.one_of(st.integers(0, 2**64 - 1), st.uuids().map(str))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), names
)
payloads = st.dictionaries(names, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
sparse = st.dictionaries(st.integers(0, 2**32 - 1), f32, max_size=4).map(
    lambda entries: {"indices": list(entries), "values": list(entries.values())}
)
vectors = st.dictionaries(names, st.one_of(st.lists(f32, min_size=1, max_size=4), sparse), max_size=3)
one_point = st.fixed_dictionaries({"id": ids, "payload": payloads, "vector": vectors})
many_points = st.lists(one_point, max_size=12, unique_by=lambda point: str(point["id"]))


@given(many_points, st.randoms())
@settings(deadline=None, max_examples=8)
def test_any_order_gives_the_same_digest(points: list[dict[str, Any]], rng: random.Random) -> None:
    """The digest does not depend on the order in which points are read."""
    shuffled = rng.sample(points, len(points))
    assert digest_of(shuffled) == digest_of(points)


@given(many_points, st.integers(0, 12))
@settings(deadline=None, max_examples=8)
def test_merged_parts_equal_the_whole(points: list[dict[str, Any]], cut: int) -> None:
    """Digests of two parts add up to the digest of all points, also by way of the manifest's form."""
    total = ShardDigest()
    for part in (points[:cut], points[cut:]):
        total.merge(ContentDigest.model_validate_json(digest_of(part).model_dump_json()))
    assert total.value() == digest_of(points)
    assert total.points == len(points)


@given(many_points.filter(bool), st.data())
@settings(deadline=None, max_examples=10)
def test_one_changed_field_changes_one_range(points: list[dict[str, Any]], data: st.DataObject) -> None:
    """A single changed payload value or vector changes the digest, exactly one range, and exactly that field."""
    victim = data.draw(st.sampled_from(points))
    changed, field = _changed(victim, data.draw(st.booleans()))
    before = digest_of(points)
    after = digest_of([changed if point is victim else point for point in points])
    assert before.digest != after.digest
    assert before.differing_ranges(after) == [range_of(victim["id"])]
    fields = point_fields(changed["id"], changed["payload"], changed["vector"])
    assert point_sample(victim["id"], victim["payload"], victim["vector"]).differing_fields(fields) == [field]


def _changed(point: dict[str, Any], in_payload: bool) -> tuple[dict[str, Any], str]:
    if in_payload:
        old = point["payload"].get("a")
        return point | {"payload": point["payload"] | {"a": [old]}}, "payload.a"
    return point | {"vector": point["vector"] | {"v": [1.0, 2.0, 3.0, 4.0, 5.0]}}, "vector.v"


def test_the_bytes_are_those_of_the_documentation() -> None:
    """A point spelled out byte by byte, as in docs/repository.md, gives the digest; nothing of it may ever change."""
    uuid = UUID("00112233-4455-6677-8899-aabbccddeeff")
    payload = b'{"a":{"b":null,"c":-0.0},"n":1152921504606846976,"x":1.0,"\xc3\xbc":"\xc3\x9f"}'
    u32 = struct.Struct("<I").pack
    point = b"".join([
        b"\x01" + uuid.bytes,
        u32(len(payload)) + payload,
        u32(4),
        u32(0) + b"\x00" + u32(2) + struct.pack("<2f", 1.5, -0.0),
        u32(1) + b"m" + b"\x02" + u32(2) + u32(1) + struct.pack("<2f", 2, 3),
        u32(1) + b"s" + b"\x01" + u32(2) + u32(3) + u32(4294967295) + struct.pack("<2f", 0.25, 7),
        u32(2) + "ü".encode() + b"\x00" + u32(1) + b"\x00\x00\xc0\x7f",
    ])  # fmt: skip
    number = b"\x00" + (2**64 - 1).to_bytes(8, "little")
    bare = number + u32(2) + b"{}" + u32(0)
    hashes = [int.from_bytes(blake2b(data, digest_size=32).digest(), "big") for data in (point, bare)]

    shard = ShardDigest()
    shard.add(2**64 - 1, None, {})
    vector = {"ü": [math.nan], "s": SparseVector([4294967295, 3], [7, 0.25]), "": [1.5, -0.0], "m": [[2.0], [3.0]]}
    shard.add(uuid, {"ü": "ß", "x": 1.0, "n": 2**60, "a": {"c": -0.0, "b": None}}, vector)
    assert shard.hexdigest == f"{sum(hashes) % 2**256:064x}"
    assert shard.ranges == {
        f"{crc32(key) & 255:02x}": f"{value:064x}"
        for key, value in zip((b"\x01" + uuid.bytes, number), hashes, strict=True)
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"": [1.0]}, {"a": [1.0]}),
        ({"": [[1.0, 2.0]]}, {"": [[1.0], [2.0]]}),
        ({"": [1.0]}, {"": [[1.0]]}),
        ({"": [0.0]}, {"": [-0.0]}),
        ({"a": [1.0], "b": [2.0]}, {"a": [2.0], "b": [1.0]}),
        ({"a": {"indices": [1, 2], "values": [3.0, 4.0]}}, {"a": {"indices": [1, 2], "values": [4.0, 3.0]}}),
        ({}, {"a": []}),
    ],
)
def test_vectors_that_differ_in_shape_or_place_differ(one: Any, other: Any) -> None:
    """Name, kind, shape, order and the sign of zero are all part of the digest."""
    assert _digest(vector=one) != _digest(vector=other)


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1}, {"a": 1.0}), ({"a": None}, {}), ({"a": []}, {"a": {}}), ({"a": 2**60}, {"a": 2**60 + 1})],
)
def test_payloads_that_differ_in_kind_differ(one: Any, other: Any) -> None:
    """An integer is not a float, null is not missing, and large integers keep every digit."""
    assert _digest(payload=one) != _digest(payload=other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": SparseVector([9, 2], [1.0, 2.0])}, {"a": {"indices": [2, 9], "values": [2.0, 1.0]}}),
        ([1.0, 2.0], {"": [1.0, 2.0]}),
        ({"a": [1.0], "b": None}, {"a": [1.0]}),
        (None, {}),
        ([math.inf, -math.inf, math.nan], [None, None, None]),
        ([1, 255], [1.0, 255.0]),
    ],
)
def test_the_engine_and_the_node_speak_of_the_same_vectors(one: Any, other: Any) -> None:
    """The engine's objects and Qdrant's JSON give one digest, also where JSON has null for what is not finite."""
    assert _digest(vector=one) == _digest(vector=other)


@pytest.mark.parametrize("point_id", [-1, 2**64, True, 1.0, None, "no-uuid"])
def test_what_is_no_point_id_is_refused(point_id: Any) -> None:
    """Only 64-bit unsigned numbers and UUIDs are ids."""
    with pytest.raises(ValueError, match=r"point id|UUID"):
        ShardDigest().add(point_id, {}, {})


@pytest.mark.parametrize("vector", [[[1.0], [1.0, 2.0]], {"a": {"indices": [1], "values": []}}, {"a": "text"}, 5])
def test_what_is_no_vector_is_refused(vector: Any) -> None:
    """A ragged multivector, a sparse vector of unequal halves, and anything else raise ValueError."""
    with pytest.raises(ValueError, match="vector"):
        ShardDigest().add(1, {}, vector)


def test_a_sample_names_what_changed_appeared_and_vanished() -> None:
    """A kept sample explains a point field by field, without the archive."""
    kept = point_sample(UUID(int=5), {"same": 1, "old": 2, "changed": 3}, {"v": [1.0]})
    assert kept.id == str(UUID(int=5))
    assert PointSample.model_validate_json(kept.model_dump_json()) == kept
    now = point_fields(str(UUID(int=5)), {"same": 1, "changed": 4, "new": 5}, {"v": [1.0], "w": [2.0]})
    assert kept.differing_fields(now) == ["payload.changed", "payload.new", "payload.old", "vector.w"]


@pytest.mark.parametrize("signed", [True, False])
@given(value=st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner)))
@example(value=[1e16, 9999999999999998.0, 1e-4, 9.9e-5, 1e-5, 1e22, -1e-7, 5e-324, 1.7976931348623157e308, -0.0, 0.1])
@example(value=[1e-5])
@example(value={"e-mail": 0.5, "text": '0.0000 1e+5 \x00\x1f\x7f\u2028"\\/\n\t\b\f', "😀": {"\uffff": 1, "b": 2}})
@settings(deadline=None, max_examples=12)
def test_json_is_what_python_writes(signed: bool, value: Any) -> None:
    """The canonical JSON does not depend on the version of orjson, which has changed how it writes floats."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "_SIGNED_EXPONENTS", signed and digest._SIGNED_EXPONENTS)
        assert digest._json(value) == canonical


def test_an_orjson_that_writes_exponents_otherwise_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where exponents cannot be searched for in orjson's text, floats that have one still come out as Python's."""
    old = SimpleNamespace(dumps=lambda value, option: b'{"a":1e16}', OPT_SORT_KEYS=0)
    monkeypatch.setattr(digest, "orjson", old)
    monkeypatch.setattr(digest, "_SIGNED_EXPONENTS", False)
    assert digest._json({"a": 1e16}) == b'{"a":1e+16}'


def test_an_empty_shard_has_a_digest_too() -> None:
    """No points sum to zero and to no ranges."""
    assert digest_of([]) == ContentDigest(points=0, digest="0" * 64, ranges={})


def _digest(payload: Any = None, vector: Any = None) -> ContentDigest:
    return digest_of([{"id": 1, "payload": payload, "vector": vector}])
