"""The private messages against qdrant-client's own, which are generated from Qdrant's proto files."""

import math
import uuid
from collections.abc import Sequence
from struct import pack
from typing import Any

import numpy as np
import orjson
import pytest
from google.protobuf import unknown_fields
from hypothesis import example, given
from hypothesis import strategies as st
from qdrant_client import grpc

from ferry.migration.batch import Dense, Multi, PointBatch, Sparse, WireBatch
from ferry.migration.columns import each_point
from ferry.qdrant import wire
from ferry.qdrant.messages import MESSAGES, field

U64 = 2**64 - 1
UUID = str(uuid.UUID(int=7))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PAYLOADS = st.dictionaries(st.text(), JSON, max_size=4)


def batch(payloads: Sequence[dict[str, Any]] = ({}, {}, {}), **columns: Any) -> PointBatch:
    ids = [U64, UUID, 0][: len(payloads)]
    return PointBatch(ids=ids, payloads=payloads, vectors=columns, key="west")


def mixed() -> PointBatch:
    """Three points; the second has no dense vector, the third only that."""
    every = {
        "dense": Dense(np.array([[1, -0.0], [1e-40, 4]], np.float32), np.array([0, 2])),
        "sparse": Sparse(
            np.array([0, 2, 2]), np.array([2**32 - 1, 3], np.uint32), np.array([0.5, 6], np.float32), np.array([0, 1])
        ),
        "multi": Multi(
            np.array([0, 1, 3]), np.arange(12, dtype=np.float32).reshape(3, 4)[:, 1:], np.array([0, 1])
        ),
        "": Dense(np.ones((3, 5), np.float32)),
    }  # fmt: skip
    return batch(**every)


def read_by_client(sent: WireBatch) -> list[grpc.PointStruct]:
    return [grpc.PointStruct.FromString(point) for point in sent.points]


def as_page(points: Sequence[grpc.RetrievedPoint], following: int | None = None) -> wire.Page:
    following_id = None if following is None else grpc.PointId(num=following)
    answer = grpc.ScrollResponse(result=points, next_page_offset=following_id, time=0.5)
    return wire.scroll_page(answer.SerializeToString())


def shown(sent: WireBatch, form: str) -> list[Any]:
    """Points as a server shows them, which have a shard key and another place for everything.

    ``1.16``: vectors in the deprecated fields and floats with a tag each, as 1.16.3 sends them; ``packed``: the same
    with all floats under one tag, as other writers do; ``newer``: in the fields that took their place.
    """
    points = []
    for point in read_by_client(sent):
        after = grpc.RetrievedPoint(id=point.id, payload=point.payload, shard_key=grpc.ShardKey(keyword="west"))
        after.vectors.MergeFromString(point.vectors.SerializeToString())
        if form != "newer":
            content = _deprecated(after.vectors, unpacked=form == "1.16")
            after.ClearField("vectors")
            content = MESSAGES["RetrievedPoint"](vectors=content).SerializeToString()
            points.append(MESSAGES["RetrievedPoint"].FromString(after.SerializeToString() + content))
        else:
            points.append(MESSAGES["RetrievedPoint"].FromString(after.SerializeToString()))
    return points


def _deprecated(vectors: grpc.VectorsOutput, *, unpacked: bool) -> bytes:
    if vectors.WhichOneof("vectors_options") == "vector":
        return bytes(MESSAGES["Vectors"](vector=_deprecated_vector(vectors.vector, unpacked)).SerializeToString())
    named = [
        MESSAGES["NamedVector"](key=name, value=_deprecated_vector(vector, unpacked))
        for name, vector in vectors.vectors.vectors.items()
    ]
    return bytes(MESSAGES["Vectors"](vectors=MESSAGES["NamedVectors"](vectors=named)).SerializeToString())


def _deprecated_vector(vector: grpc.VectorOutput, unpacked: bool) -> bytes:
    kind = vector.WhichOneof("vector")
    content, rest = getattr(vector, kind), grpc.VectorOutput()
    if kind == "dense":
        values = list(content.data)
    elif kind == "sparse":
        values = list(content.values)
        rest.indices.data.extend(content.indices)
        rest.indices.SetInParent()
    else:
        values = [value for row in content.vectors for value in row.data]
        rest.vectors_count = len(content.vectors)
    if unpacked:
        return b"".join(b"\x0d" + pack("<f", value) for value in values) + rest.SerializeToString()
    rest.data.extend(values)
    return bytes(rest.SerializeToString())


FORMS = pytest.mark.parametrize("form", ["1.16", "packed", "newer"])


def test_every_kind_of_vector_and_id_is_read_by_the_clients_own_messages() -> None:
    first, second, third = read_by_client(wire.encode(mixed()))
    assert (first.id.num, second.id.uuid, third.id.WhichOneof("point_id_options"), third.id.num) == (
        U64,
        UUID,
        "num",
        0,
    )
    vectors = first.vectors.vectors.vectors
    assert set(vectors) == {"dense", "sparse", "multi", ""}
    assert math.copysign(1, vectors["dense"].dense.data[1]) == -1
    assert list(vectors["sparse"].sparse.indices) == [2**32 - 1, 3]
    assert list(vectors["sparse"].sparse.values) == [0.5, 6]
    assert [list(row.data) for row in second.vectors.vectors.vectors["multi"].multi_dense.vectors] == [
        [5, 6, 7],
        [9, 10, 11],
    ]
    assert set(second.vectors.vectors.vectors) == {"sparse", "multi", ""}
    assert second.vectors.vectors.vectors["sparse"].HasField("sparse")
    assert third.vectors.vectors.vectors["dense"].dense.data[0] == np.float32(1e-40)


def test_an_unnamed_vector_alone_is_sent_without_a_name_and_none_as_no_names() -> None:
    column = Dense(np.array([[1, 2], [3, 4]], np.float32), np.array([0, 2]))
    first, second, third = read_by_client(wire.encode(batch(**{"": column})))
    assert list(first.vectors.vector.dense.data) == [1, 2]
    assert list(third.vectors.vector.dense.data) == [3, 4]
    assert second.vectors.WhichOneof("vectors_options") == "vectors"
    assert not second.vectors.vectors.vectors


@FORMS
def test_what_was_encoded_is_decoded_from_any_form(form: str) -> None:
    before = mixed()
    after = wire.decode(shown(wire.encode(before), form), "west")
    assert (after.ids, after.key) == (before.ids, "west")
    assert list(each_point(after)) == list(each_point(before))
    assert {column.values.dtype for column in after.vectors.values()} == {np.dtype(np.float32)}
    unnamed = batch(**{"": Dense(np.array([[1, 2], [3, 4]], np.float32), np.array([0, 2]))})
    assert list(each_point(wire.decode(shown(wire.encode(unnamed), form), None))) == list(each_point(unnamed))


@given(payload=PAYLOADS)
def test_payloads_come_back_as_they_were_or_go_over_rest(payload: dict[str, Any]) -> None:
    sent = wire.encode(batch([payload]))
    if sent.plain:
        assert sent.plain == [{"id": U64, "payload": payload, "vector": {}}]
        return
    found = wire.decode(shown(sent, "newer"), None).payloads[0]
    assert orjson.dumps(found, option=orjson.OPT_SORT_KEYS) == orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
    assert wire.payload_of(sent.points[0]) == found


@pytest.mark.parametrize("number", [2**63, U64, 1e-9, -1e-5, 1e16, -1e300, 5e-324])
def test_numbers_that_grpc_does_not_carry_exactly_are_sent_over_rest(number: float) -> None:
    column = Dense(np.array([[1, 2], [3, 4]], np.float32))
    sent = wire.encode(batch([{"a": 1}, {"a": [{"b": number}]}], v=column))
    assert [wire.point_id(point) for point in sent.points] == [U64]
    assert sent.plain == [{"id": UUID, "payload": {"a": [{"b": number}]}, "vector": {"v": [3, 4]}}]


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 0.0, -0.0, 1.5, -1e-3, 9e15, True])
def test_ordinary_numbers_are_sent_over_grpc(number: float) -> None:
    assert not wire.encode(batch([{"a": [{"b": number}]}])).plain


@example(value=2.0**-13, before="")
@example(value=-math.nextafter(2.0**-13, 0), before="")
@example(value=1e-300, before="")
@example(value=math.nextafter(2.0**53, 0), before="")
@example(value=-(2.0**53), before="")
@example(value=1e300, before="")
@given(value=st.floats(allow_nan=False, allow_infinity=False), before=st.sampled_from(["", "\t", "\x12\t\x11\t"]))
def test_odd_doubles_are_found_on_the_wire_wherever_they_stand(value: float, before: str) -> None:
    struct = grpc.Struct(fields={"k": grpc.Value(double_value=value)})
    values = [grpc.Value(string_value=before), grpc.Value(double_value=value)]
    places = [
        grpc.Value(double_value=value),
        grpc.Value(list_value=grpc.ListValue(values=values)),
        grpc.Value(struct_value=struct),
    ]
    points = [
        grpc.RetrievedPoint(id=grpc.PointId(num=number), payload={before + "key": place})
        for number, place in enumerate(places)
    ]
    found = wire.not_carried(as_page(points).points)
    if value != 0 and not 2.0**-13 <= abs(value) < 2.0**53:
        assert found == [0, 1, 2]
    elif not before:
        assert found == []


@FORMS
def test_a_point_is_passed_on_without_being_decoded(form: str) -> None:
    batch_of_json = PointBatch([1], [{"a": [1, {"b": None}], "": "ü"}], {"v": Dense(np.ones((1, 2), np.float32))})
    for before in (mixed(), batch_of_json):
        sent = wire.encode(before)
        page = shown(sent, form)
        tagged = wire.retag(page)
        assert [wire.point_id(point) for point in tagged] == before.ids
        for expected, passed, point in zip(read_by_client(sent), tagged, page, strict=True):
            after = grpc.PointStruct.FromString(passed)
            assert (after.id, after.payload) == (expected.id, expected.payload)
            assert after.vectors.ByteSize() == grpc.Vectors.FromString(point.vectors).ByteSize()
            assert point.vectors in passed
            assert not unknown_fields.UnknownFieldSet(after)


def test_a_point_without_vectors_says_so() -> None:
    [tagged] = wire.retag(as_page([grpc.RetrievedPoint(id=grpc.PointId(num=9))]).points)
    assert grpc.PointStruct.FromString(tagged).vectors.WhichOneof("vectors_options") == "vectors"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["dense", "sparse", "multi", ""])
@FORMS
def test_values_that_are_not_finite_are_named(bad: float, name: str, form: str) -> None:
    assert wire.not_finite(wire.retag(shown(wire.encode(mixed()), form))) == []
    spoilt = mixed()
    spoilt.vectors[name].values.flat[-1] = bad
    expected = {"dense": [0], "sparse": [U64], "multi": [UUID], "": [0]}[name]
    assert wire.not_finite(wire.retag(shown(wire.encode(spoilt), form))) == expected


def test_an_upsert_waits_and_names_its_shard_key() -> None:
    points = wire.encode(mixed()).points
    for key, which in (("west", "keyword"), (7, "number"), (0, "number")):
        request = grpc.UpsertPoints.FromString(wire.upsert_request("docs", points, key, 5))
        assert (request.collection_name, request.wait, request.timeout, len(request.points)) == ("docs", True, 5, 3)
        assert [getattr(shard_key, which) for shard_key in request.shard_key_selector.shard_keys] == [key]
        assert request.shard_key_selector.shard_keys[0].WhichOneof("key") == which
    request = grpc.UpsertPoints.FromString(wire.upsert_request("docs", points, None))
    assert not request.HasField("shard_key_selector")
    assert not request.HasField("timeout")


def test_a_scroll_says_what_is_wanted() -> None:
    conditions = {"must": [{"key": "a", "match": {"value": "b"}}]}
    selection = wire.Selection("docs", "west", wire.filter_bytes(conditions), ("a", ""), payload=False)
    request = grpc.ScrollPoints.FromString(wire.scroll_request(selection, UUID, 100))
    assert (request.collection_name, request.limit, request.offset.uuid) == ("docs", 100, UUID)
    assert list(request.with_vectors.include.names) == ["a", ""]
    assert request.with_payload.WhichOneof("selector_options") == "enable"
    assert not request.with_payload.enable
    assert request.filter.must[0].field.match.keyword == "b"
    request = grpc.ScrollPoints.FromString(wire.scroll_request(wire.Selection("docs"), 0, 1))
    assert request.offset.WhichOneof("point_id_options") == "num"
    assert request.with_vectors.enable
    assert request.with_payload.enable
    assert not request.HasField("filter")
    none = grpc.ScrollPoints.FromString(wire.scroll_request(wire.Selection("docs", vectors=()), None, 1))
    assert none.with_vectors.WhichOneof("selector_options") == "enable"
    assert not none.with_vectors.enable
    assert not none.HasField("offset")


def test_points_are_asked_for_by_id() -> None:
    request = grpc.GetPoints.FromString(wire.get_request(wire.Selection("docs", 3), [U64, UUID]))
    assert [request.ids[0].num, request.ids[1].uuid] == [U64, UUID]
    assert request.shard_key_selector.shard_keys[0].number == 3
    answer = grpc.GetResponse(result=[grpc.RetrievedPoint(id=grpc.PointId(num=4))]).SerializeToString()
    assert [wire.retrieved_id(point) for point in wire.got_points(answer)] == [4]


def test_what_is_no_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="Filter"):
        wire.filter_bytes({"must_really": []})


def nested(levels: int, kind: str) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value} if kind == "object" else [value]
    return {"top": value}


@pytest.mark.parametrize(
    ("kind", "fits", "too_deep"), [("object", 25, 30), ("object", 25, 60), ("list", 40, 45), ("list", 40, 90)]
)
def test_payloads_that_are_nested_too_deeply_for_grpc_are_sent_over_rest(kind: str, fits: int, too_deep: int) -> None:
    sent = wire.encode(batch([nested(fits, kind), nested(too_deep, kind)]))
    assert [wire.point_id(point) for point in sent.points] == [U64]
    assert sent.plain == [{"id": UUID, "payload": nested(too_deep, kind), "vector": {}}]


@pytest.mark.parametrize(
    ("kind", "levels", "named", "parsed"),
    [("object", 20, False, True), ("object", 30, True, True), ("object", 40, True, False), ("object", 110, True, False),
     ("list", 20, False, True), ("list", 45, True, True), ("list", 60, True, False)],
)  # fmt: skip
def test_payloads_that_are_nested_too_deeply_are_found_on_the_wire(
    kind: str, levels: int, named: bool, parsed: bool
) -> None:
    value = b"\x18\x01"
    for _ in range(levels):
        entry = field(b"\x0a", b"a") + field(b"\x12", value)
        value = field(b"\x32", field(b"\x0a", entry)) if kind == "object" else field(b"\x3a", field(b"\x0a", value))
    deep = field(b"\x0a", b"top") + field(b"\x12", value)
    text = field(b"\x0a", b"k") + field(b"\x12", field(b"\x22", b"2:" * 40))
    retrieved_point = MESSAGES["RetrievedPoint"]
    points = [retrieved_point(id=b"\x08\x08", payload=[text]), retrieved_point(id=b"\x08\x07", payload=[text, deep])]
    assert wire.not_carried(points) == ([7] if named else [])
    expected = {"k": "2:" * 40}
    assert wire.decode(points, None).payloads == [expected, expected | nested(levels, kind) if parsed else {}]
