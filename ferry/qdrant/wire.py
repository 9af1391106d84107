"""Points of Qdrant's gRPC API as bytes: asked for, passed on without being decoded, decoded into columns, encoded.

``RetrievedPoint`` and ``PointStruct`` nest the same messages under other numbers, so that nothing of a point needs to
be decoded on its way from one Qdrant to another (sources.md §0.5, measured: 34k points a second instead of 1.5k).

Requests are bytes: ``channel.unary_unary(wire.UPSERT, bytes, bytes)`` or, for reading, ``(wire.SCROLL, bytes,
wire.scroll_page)`` and ``(wire.GET, bytes, wire.got_points)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ferry.migration.batch import PointBatch, PointId, WireBatch
from ferry.migration.columns import each_point, take
from ferry.models import ShardKey
from ferry.qdrant.messages import FIRST, MESSAGES, SECOND, field, id_message, plain_id
from ferry.qdrant.vector_columns import column, encoded, finite, named

UPSERT = "/qdrant.Points/Upsert"
SCROLL = "/qdrant.Points/Scroll"
GET = "/qdrant.Points/Get"

_PointId, _PointStruct = MESSAGES["PointId"], MESSAGES["PointStruct"]
_ReadPoint, _BuiltPoint = MESSAGES["ReadPoint"], MESSAGES["BuiltPoint"]
_NO_VECTORS = b"\x12\x00"  # an empty map of named vectors; a PointStruct must have one of the two

# A double in a payload that Qdrant may not show again as it is: not zero, below 2^-13 or from 2^53 on. As a Value it is
# 9 bytes after the tag 0x11; sign and exponent are in its last two (see ferry.archive.doubles for why).
_ODD_DOUBLE = re.compile(
    rb"\x09\x11(?!\x00{7}[\x00\x80]|.{6}(?:[\x20-\xff][\x3f\xbf]|.[\x40-\x42\xc0-\xc2]|[\x00-\x3f][\x43\xc3]))",
    re.DOTALL,
)
_LEAST_PLAIN, _FIRST_LARGE = 2.0**-13, 2.0**53
# Of 100 messages within each other, some for the request. Tags of an object and of a list in a Value.
_MOST_DEEP, _FEWEST_DEEP, _STRUCT, _LIST = 90, 30, b"\x32", b"\x3a"
_PLAIN_KINDS = ("string_value", "integer_value", "double_value", "bool_value")


@dataclass(frozen=True)
class Page:
    """An answer of a scroll: points that only functions of this module understand, and the id that follows."""

    points: Sequence[Any]
    following: PointId | None
    size_bytes: int = 0


@dataclass(frozen=True)
class Selection:
    """What every request of a reader says. ``filter`` is a serialized ``Filter``; ``vectors`` None means all."""

    collection: str
    key: ShardKey | None = None
    filter: bytes | None = None
    vectors: Sequence[str] | None = None
    payload: bool = True


def scroll_request(selection: Selection, offset: PointId | None, limit: int) -> bytes:
    """A request for up to ``limit`` points from id ``offset`` on, by rising id: numbers, then UUIDs."""
    message = _selecting("ScrollPoints", selection)
    message.limit = limit
    if offset is not None:
        message.offset.CopyFrom(id_message(offset))
    if selection.filter is not None:
        message.filter = selection.filter
    return bytes(message.SerializeToString())


def scroll_page(answer: bytes) -> Page:
    """The answer to `scroll_request`."""
    message = MESSAGES["ScrollResponse"].FromString(answer)
    following = plain_id(message.next_page_offset) if message.HasField("next_page_offset") else None
    return Page(message.result, following, len(answer))


def get_request(selection: Selection, ids: Iterable[PointId]) -> bytes:
    """A request for the points of these ids; the filter is not part of it."""
    message = _selecting("GetPoints", selection)
    message.ids.extend(id_message(point_id) for point_id in ids)
    return bytes(message.SerializeToString())


def got_points(answer: bytes) -> Sequence[Any]:
    """The answer to `get_request`: those that are there."""
    points: Sequence[Any] = MESSAGES["GetResponse"].FromString(answer).result
    return points


def upsert_request(
    collection: str, points: Sequence[bytes], key: ShardKey | None, timeout_seconds: int | None = None
) -> bytes:
    """A request that writes these points (``WireBatch.points``) and is answered when they are applied.

    ``wait`` is always true: without it a wrong vector is acknowledged and lost (seen on 1.16.3).
    """
    message = MESSAGES["UpsertPoints"](collection_name=collection, wait=True, points=points)
    _set_key(message, key)
    if timeout_seconds is not None:
        message.timeout = timeout_seconds
    return bytes(message.SerializeToString())


def retrieved_id(point: Any) -> PointId:
    """The id of a point of a `Page`."""
    return plain_id(_PointId.FromString(point.id))


def point_id(point: bytes) -> PointId:
    """The id of a point of a `WireBatch`."""
    return plain_id(_PointId.FromString(_PointStruct.FromString(point).id))


def payload_of(point: bytes) -> dict[str, Any]:
    """The payload of a point of a `WireBatch`."""
    return _plain_entries(_BuiltPoint.FromString(point).payload)


def retag(points: Iterable[Any]) -> list[bytes]:
    """Points of a `Page` as those of a `WireBatch`, without decoding any. See `not_carried` for which must not pass."""
    tagged = []
    for point in points:
        struct = _PointStruct(id=point.id, payload=point.payload, vectors=point.vectors or _NO_VECTORS)
        tagged.append(struct.SerializeToString())
    return tagged


def not_carried(points: Iterable[Any]) -> list[PointId]:
    """Ids of points of a `Page` whose payload gRPC does not show as it is, or would not be taken over gRPC as it is.

    gRPC has no whole numbers from 2^63 on and shows them as doubles. Very small and very large doubles are shown by
    1.16.3 with another last place after they were sent so (`ferry.archive.doubles`). A message within more than 100
    others is refused: objects in objects some 30 times (seen on 1.16.3: INTERNAL). A few that are named are none.
    """
    return [retrieved_id(point) for point in points if _is_odd(b"".join(point.payload), point)]


def _is_odd(payload: bytes, point: Any) -> bool:
    if _ODD_DOUBLE.search(payload):
        return True
    if payload.count(_STRUCT) + payload.count(_LIST) < _FEWEST_DEEP:  # text has such bytes, too, but seldom so many
        return False
    read = _read(point)
    return len(read.payload) < len(point.payload) or not _sendable(_plain_entries(read.payload))


def _read(point: Any) -> Any:
    """A point with its payload parsed, or without payload when that is nested too deeply to be."""
    try:
        return _ReadPoint.FromString(point.SerializeToString())
    except DecodeError:
        bare = type(point)(id=point.id, vectors=point.vectors)
        return _ReadPoint.FromString(bare.SerializeToString())


def not_finite(points: Sequence[bytes]) -> list[PointId]:
    """Ids of points of a `WireBatch` with a vector that holds NaN or an infinity; Qdrant would take them."""
    parsed = [_PointStruct.FromString(point) for point in points]
    if finite(point.vectors for point in parsed):
        return []
    return [retrieved_id(point) for point in parsed if not finite([point.vectors])]


def decode(points: Sequence[Any], key: ShardKey | None) -> PointBatch:
    """Points of a `Page` as columns. 1.16 fills the deprecated fields of vectors, newer versions the others.

    Payloads are as gRPC shows them (see `not_carried`), and empty where they are nested too deeply to be parsed.
    """
    parsed = [_read(point) for point in points]
    found: dict[str, list[tuple[int, bytes]]] = {}
    for row, point in enumerate(parsed):
        for name, vector in named(point.vectors):
            found.setdefault(name, []).append((row, vector))
    return PointBatch(
        ids=[plain_id(point.id) for point in parsed],
        payloads=[_plain_entries(point.payload) for point in parsed],
        vectors={name: column(entries, len(points)) for name, entries in found.items()},
        key=key,
    )


def encode(batch: PointBatch) -> WireBatch:
    """Points as they are sent; their ids must be numbers of 64 bits or UUIDs.

    Those with a payload that gRPC cannot send as it is (see `not_carried`) are in ``plain``, as REST takes them. Raises
    TypeError for a payload that is no JSON.
    """
    vectors: list[list[bytes]] = [[] for _ in batch.ids]
    alone = set(batch.vectors) == {""}
    for name, vector_column in batch.vectors.items():
        key = field(FIRST, name.encode())
        for row, vector in encoded(vector_column):
            vectors[row].append(vector if alone else field(FIRST, key + field(SECOND, vector)))
    points, odd = list[bytes](), list[int]()
    for row, (identity, payload) in enumerate(zip(batch.ids, batch.payloads, strict=True)):
        if not _sendable(payload):
            odd.append(row)
            continue
        built = _BuiltPoint(id=id_message(identity))
        _fill_entries(built.payload, payload)
        built.vectors = field(FIRST if alone else SECOND, b"".join(vectors[row])) if vectors[row] else _NO_VECTORS
        points.append(bytes(built.SerializeToString()))
    return WireBatch(points, batch.key, _as_json(take(batch, np.array(odd))) if odd else ())


def filter_bytes(conditions: Mapping[str, Any]) -> bytes:
    """Qdrant's JSON filter as the serialized message. Raises ValueError (pydantic's) for what is no filter.

    A server silently ignores conditions that are newer than it is (sources.md §0.7), so ask it once over REST, which
    refuses them.
    """
    # Imported here: it takes half a second, and only filters need it. The client itself is not used.
    from qdrant_client import models  # noqa: TID251
    from qdrant_client.conversions.conversion import RestToGrpc  # noqa: TID251

    return bytes(RestToGrpc.convert_filter(models.Filter.model_validate(conditions)).SerializeToString())


def _as_json(batch: PointBatch) -> list[dict[str, Any]]:
    rows = zip(batch.ids, batch.payloads, each_point(batch), strict=True)
    return [{"id": identity, "payload": payload, "vector": vectors} for identity, payload, vectors in rows]


def _selecting(kind: str, selection: Selection) -> Any:
    message = MESSAGES[kind](collection_name=selection.collection)
    message.with_payload.enable = selection.payload
    if selection.vectors is None:
        message.with_vectors.enable = True
    elif selection.vectors:
        message.with_vectors.include.names.extend(selection.vectors)
    else:
        message.with_vectors.enable = False
    _set_key(message, selection.key)
    return message


def _set_key(message: Any, key: ShardKey | None) -> None:
    if key is not None:
        added = message.shard_key_selector.shard_keys.add()
        setattr(added, "number" if isinstance(key, int) else "keyword", key)


def _sendable(value: Any, room: int = _MOST_DEEP) -> bool:
    """Whether gRPC sends a payload, with so many messages within each other, so that it is shown again as it is."""
    kind = type(value)
    if kind is int:
        return bool(-(2**63) <= value < 2**63)
    if kind is float:
        return bool(value == 0 or _LEAST_PLAIN <= abs(value) < _FIRST_LARGE)
    if kind is dict:  # a message each for the value, the object, and the entry
        return room > 0 and all(_sendable(each, room - 3) for each in value.values())
    return kind is not list or (room > 0 and all(_sendable(each, room - 2) for each in value))


def _fill(message: Any, value: Any) -> None:
    """Put a value of JSON into a ``Value``."""
    kind = type(value)
    if kind is str:
        message.string_value = value
    elif kind is bool:
        message.bool_value = value
    elif kind is int:
        message.integer_value = value
    elif kind is float:
        message.double_value = value
    elif value is None:
        message.null_value = 0
    elif kind is dict:
        message.struct_value.SetInParent()
        _fill_entries(message.struct_value.fields, value)
    elif kind is list:
        message.list_value.SetInParent()
        for each in value:
            _fill(message.list_value.values.add(), each)
    else:
        msg = f"{kind.__name__} is no value of JSON"
        raise TypeError(msg)


def _fill_entries(fields: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        entry = fields.add(key=key)
        _fill(entry.value, value)


def _plain_entries(entries: Iterable[Any]) -> dict[str, Any]:
    return {entry.key: _plain(entry.value) for entry in entries}


def _plain(value: Any) -> Any:
    """A ``Value`` as JSON has it; one without a kind is null."""
    for kind in _PLAIN_KINDS:
        if value.HasField(kind):
            return getattr(value, kind)
    if value.HasField("list_value"):
        return [_plain(each) for each in value.list_value.values]
    return _plain_entries(value.struct_value.fields) if value.HasField("struct_value") else None
