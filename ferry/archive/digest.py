"""The content digest: one number that says what a shard holds, however its points are read.

For every point ``h = blake2b-256(id ‖ payload ‖ vectors)``; the digest of a shard is the sum of all h modulo 2²⁵⁶.
A sum has no order, so any reader, in any order, in any number of processes, comes to the same digest, and digests of
parts add up to the digest of the whole. Points are also summed in 256 ranges by a hash of their id, so that a
difference is narrowed to 1/256 of the ids without a second reading of either side.

Every byte that goes into h is fixed below and in docs/repository.md; all integers are unsigned and little-endian::

    point    id  payload  u32 number of vectors  vector…            (vectors in the order of their names' UTF-8 bytes)
    id       0x00 u64                  a number
             0x01 16 bytes             a UUID, in network order
    payload  u32 length  JSON          keys sorted by UTF-8 at every level, floats as Python's repr; none is {}
    vector   u32 length  name  0x00 u32 dimensions  f32…            dense; the unnamed vector has the empty name
                               0x01 u32 entries  u32 index…  f32…   sparse, by rising index
                               0x02 u32 rows  u32 dimensions  f32…  multivector, row after row

    range of a point = the lowest byte of crc32(id); h and the sums are read as big-endian numbers

A value that is not finite (NaN, ±∞) counts as the quiet NaN 0x7fc00000: Qdrant's JSON shows all three as null, so no
reader over HTTP could tell them apart. The digest finds damage and mistakes; it does not stop a forger (sums of hashes
can be forged with effort), for whom the archive's sha256 is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from math import isfinite, nan
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import UUID
from zlib import crc32

import orjson
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable

PointId: TypeAlias = "int | str | UUID"

ALGORITHM: Literal["ferry-sum-blake2b-256-v1"] = "ferry-sum-blake2b-256-v1"
RANGES = 256
HASH_BYTES = 32
FIELD_HASH_BYTES = 8  # tells a changed field from an unchanged one; the point's own hash is the proof
_MASK = (1 << 8 * HASH_BYTES) - 1
_DENSE, _SPARSE, _MULTI = b"\x00", b"\x01", b"\x02"
_SIGNED_EXPONENTS = (
    orjson.dumps([1e16, 2.5e22, 1e-7]) == b"[1e+16,2.5e+22,1e-7]"
)  # else floats are looked at one by one
_python_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_pack_u32 = Struct("<I").pack
_pack_2u32 = Struct("<II").pack


class ContentDigest(BaseModel):
    """What a shard holds, as the manifest keeps it.

    ``points`` counts them, ``digest`` is their sum as 64 hex digits, ``ranges`` the sums of the 256 ranges by two hex
    digits; a range without points is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Literal["ferry-sum-blake2b-256-v1"] = ALGORITHM
    points: int
    digest: str
    ranges: dict[str, str]

    def differing_ranges(self, other: ContentDigest) -> list[str]:
        """Return the ranges (two hex digits, as `range_of` gives them) whose points are not the same on both sides."""
        names = self.ranges.keys() | other.ranges.keys()
        return sorted(name for name in names if self.ranges.get(name) != other.ranges.get(name))


class PointSample(BaseModel):
    """One point as small digests of its fields, so that a later difference is explained without the archive.

    ``fields`` is what `point_fields` gives. A UUID id is kept in its hyphenated form, as Qdrant writes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int | str
    fields: dict[str, str]

    def differing_fields(self, fields: Mapping[str, str]) -> list[str]:
        """Return the names of the fields that changed, appeared or vanished."""
        return sorted(name for name in self.fields.keys() | fields.keys() if self.fields.get(name) != fields.get(name))


class ShardDigest:
    """An accumulator of points. Equal accumulators have seen the same points, in whatever order and parts."""

    __slots__ = ("_points", "_sums", "encoded_bytes")
    __hash__ = None  # type: ignore[assignment]  # mutable

    def __init__(self) -> None:
        self._sums = [0] * RANGES
        self._points = 0
        self.encoded_bytes = 0  # read so far; lets a reader keep its batches within a number of bytes

    def add(self, point_id: PointId, payload: Mapping[str, Any] | None, vectors: Any) -> int:
        """Add one point, from a qdrant-edge Record or from Qdrant's REST JSON, and return its hash as a number.

        Raises `ValueError` for an id, payload or vector that Qdrant could not have stored.
        """
        key = _encode_id(point_id)
        data = key + _encode_payload(payload) + _encode_vectors(vectors)
        value = int.from_bytes(blake2b(data, digest_size=HASH_BYTES).digest(), "big")
        self._sums[crc32(key) & 0xFF] += value
        self._points += 1
        self.encoded_bytes += len(data)
        return value

    def add_hash(self, point_id: PointId, value: int) -> None:
        """Add one point by the hash that `add` has given for it."""
        self._sums[crc32(_encode_id(point_id)) & 0xFF] += value
        self._points += 1

    def merge(self, other: ShardDigest | ContentDigest) -> None:
        """Add all points of a digest of other points, e.g. of another process's part of the shard."""
        value = other.value() if isinstance(other, ShardDigest) else other
        for name, digest in value.ranges.items():
            self._sums[int(name, 16)] += int(digest, 16)
        self._points += value.points

    @property
    def points(self) -> int:
        return self._points

    @property
    def hexdigest(self) -> str:
        """The sum over all points as 64 hex digits; zeros for no point."""
        return _hex(sum(self._sums))

    @property
    def ranges(self) -> dict[str, str]:
        """The sums of the 256 ranges by two hex digits, without those that sum to nothing."""
        return {f"{index:02x}": _hex(total) for index, total in enumerate(self._sums) if total}

    def value(self) -> ContentDigest:
        """Return the digest as the manifest keeps it."""
        return ContentDigest(points=self._points, digest=self.hexdigest, ranges=self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardDigest) and self.value() == other.value()


def digest_of(points: Iterable[Mapping[str, Any]]) -> ContentDigest:
    """Digest points as Qdrant's REST answers give them (``id``, ``payload``, ``vector``)."""
    digest = ShardDigest()
    for point in points:
        digest.add(point["id"], point.get("payload"), point.get("vector"))
    return digest.value()


def encoded_point_hash(point_id: PointId, payload: Mapping[str, Any] | None, vectors: Sequence[bytes]) -> int:
    """Return the hash that `ShardDigest.add` gives, for vectors that are encoded already, as the table above says.

    Each of them begins with its name, and they come in the order of the names' UTF-8 bytes.
    """
    data = _encode_id(point_id) + _encode_payload(payload) + _pack_u32(len(vectors)) + b"".join(vectors)
    return int.from_bytes(blake2b(data, digest_size=HASH_BYTES).digest(), "big")


def range_of(point_id: PointId) -> str:
    """Return the name of the range that a point is summed in."""
    return f"{crc32(_encode_id(point_id)) & 0xFF:02x}"


def point_fields(point_id: PointId, payload: Mapping[str, Any] | None, vectors: Any) -> dict[str, str]:
    """Digest a point field by field: ``payload.<top-level key>`` and ``vector.<name>`` to 16 hex digits each.

    The unnamed vector is ``vector.``. Two points with the same fields have the same content hash if their ids agree.
    """
    del point_id  # part of the signature so that a point is passed the same way everywhere
    fields = {f"payload.{key}": _small(_json(value)) for key, value in (payload or {}).items()}
    fields |= {f"vector.{name}": _small(_encode_vector(vector)) for name, vector in _named(vectors).items()}
    return dict(sorted(fields.items()))


def point_sample(point_id: PointId, payload: Mapping[str, Any] | None, vectors: Any) -> PointSample:
    """Return the sample of one point."""
    plain_id = point_id if isinstance(point_id, int) else str(point_id)
    return PointSample(id=plain_id, fields=point_fields(point_id, payload, vectors))


def _hex(total: int) -> str:
    return f"{total & _MASK:064x}"


def _small(data: bytes) -> str:
    return blake2b(data, digest_size=FIELD_HASH_BYTES).hexdigest()


def _encode_id(point_id: PointId) -> bytes:
    if type(point_id) is int:
        try:
            return b"\x00" + point_id.to_bytes(8, "little")
        except OverflowError:
            raise ValueError(f"point id {point_id} is not a 64-bit unsigned number") from None
    if isinstance(point_id, UUID):
        return b"\x01" + point_id.bytes
    if isinstance(point_id, str):
        return b"\x01" + UUID(point_id).bytes
    raise ValueError(f"point id {point_id!r} is neither a number nor a UUID")


def _json(value: Any) -> bytes:
    """Write canonical JSON: what Python's json writes with sorted keys, no spaces and plain Unicode.

    orjson is 20 times as fast and writes the same but for floats with an exponent, which its versions write
    differently (1e16 is 1e16, 1e+16; Python's repr, which is the rule here, has been 1e+16 since 3.1).
    """
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        suspicious = not _SIGNED_EXPONENTS or b"e-" in text or b"e+" in text or b"0.0000" in text
        if suspicious and not _floats_are_plain(value):
            return _python_json(value).encode()
    except TypeError as error:  # orjson.JSONEncodeError is one
        raise ValueError(f"payload is not JSON: {error}") from error
    return text


def _floats_are_plain(value: Any) -> bool:
    """Tell whether all floats are of a size that every writer of shortest floats writes without an exponent."""
    if type(value) is float:
        return value == 0 or 1e-4 <= abs(value) < 1e16
    if type(value) is dict:
        return all(map(_floats_are_plain, value.values()))
    return type(value) is not list or all(map(_floats_are_plain, value))


def _encode_payload(payload: Mapping[str, Any] | None) -> bytes:
    text = _json(payload) if payload else b"{}"
    return _pack_u32(len(text)) + text


def _named(vectors: Any) -> Mapping[str, Any]:
    """Qdrant and qdrant-edge both give the unnamed vector bare, and named ones in a dict."""
    if vectors is None:
        return {}
    if isinstance(vectors, dict):
        return vectors
    return {"": vectors}


def _encode_vectors(vectors: Any) -> bytes:
    if type(vectors) is list:  # the common case, made fast: one unnamed vector
        return b"\x01\x00\x00\x00\x00\x00\x00\x00" + _encode_vector(vectors)
    parts = [(name.encode(), vector) for name, vector in _named(vectors).items() if vector is not None]
    parts.sort(key=lambda part: part[0])
    encoded = (_pack_u32(len(name)) + name + _encode_vector(vector) for name, vector in parts)
    return _pack_u32(len(parts)) + b"".join(encoded)


def _encode_vector(vector: Any) -> bytes:
    if type(vector) is not list:
        return _encode_sparse(vector)
    if vector and type(vector[0]) is list:
        return _encode_multi(vector)
    return _DENSE + _pack_u32(len(vector)) + _floats(vector)


def _encode_multi(rows: Sequence[Sequence[float | None]]) -> bytes:
    dimensions = len(rows[0])
    if any(len(row) != dimensions for row in rows):
        raise ValueError("the rows of a multivector differ in length")
    return _MULTI + _pack_2u32(len(rows), dimensions) + _floats(list(chain.from_iterable(rows)))


def _encode_sparse(vector: Any) -> bytes:
    try:
        pair = (vector["indices"], vector["values"]) if isinstance(vector, dict) else (vector.indices, vector.values)
        entries = sorted(zip(*pair, strict=True), key=lambda entry: entry[0])
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"not a vector: {type(vector).__name__} ({error})") from error
    indices = Struct(f"<{len(entries)}I").pack(*(index for index, _ in entries))
    return _SPARSE + _pack_u32(len(entries)) + indices + _floats([value for _, value in entries])


def _floats(values: Sequence[float | None]) -> bytes:
    pack = _packer(len(values))
    try:
        if isfinite(sum(values)):  # type: ignore[arg-type]  # None raises TypeError, which is meant
            return pack(*values)
    except TypeError:
        pass  # null in JSON stands for what is not finite
    return pack(*(value if value is not None and isfinite(value) else nan for value in values))


@lru_cache(maxsize=4096)
def _packer(count: int) -> Callable[..., bytes]:
    return Struct(f"<{count}f").pack
