"""Columns of vectors out of Qdrant's gRPC messages, and into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ferry.migration.batch import Column, Dense, Floats, Multi, Sparse
from ferry.qdrant.messages import DENSE, FIRST, MESSAGES, MULTI, SPARSE, field

_Vector, _Vectors = MESSAGES["Vector"], MESSAGES["Vectors"]
# The deprecated field of floats as 1.16.3 sends it: not packed, so each has a tag before it (25 % more bytes).
_TAG = b"\x0d"
_TAGGED = np.dtype([("tag", "u1"), ("value", "<f4")])


def named(vectors: bytes) -> Iterable[tuple[str, bytes]]:
    """Name and ``Vector`` message of each vector of a point's ``Vectors``; the name of an unnamed one is empty."""
    message = _Vectors.FromString(vectors)
    if message.HasField("vector"):
        return (("", message.vector),)
    return ((entry.key, entry.value) for entry in message.vectors.vectors)


def finite(vectors: Iterable[bytes]) -> bool:
    """Whether none of the floats of these ``Vectors`` is NaN or an infinity."""
    values = _floats([_values(vector) for each in vectors for _, vector in named(each)])
    return bool(np.isfinite(values).all())


def column(entries: Sequence[tuple[int, bytes]], points: int) -> Column:
    """The vectors of one name, of the points that have one."""
    rows = None if len(entries) == points else np.array([row for row, _ in entries], np.intp)
    vectors = [vector for _, vector in entries]
    values, first = _floats([_values(vector) for vector in vectors]), _Vector.FromString(vectors[0])
    if first.HasField("sparse") or first.HasField("indices"):
        messages = map(_Vector.FromString, vectors)
        indices = [message.sparse.indices or message.indices.data for message in messages]
        joined = np.fromiter((index for each in indices for index in each), np.uint32)
        return Sparse(_starts(len(each) for each in indices), joined, values, rows)
    if first.HasField("multi_dense") or first.HasField("vectors_count"):
        messages = map(_Vector.FromString, vectors)
        counts = [len(message.multi_dense.vectors) or message.vectors_count for message in messages]
        return Multi(_starts(counts), values.reshape(sum(counts), -1), rows)
    return Dense(values.reshape(len(vectors), -1), rows)


def _values(vector: bytes) -> bytes:
    """All floats of a ``Vector``, of whichever kind, packed."""
    if vector.startswith(_TAG):
        tags = vector[:: _TAGGED.itemsize]
        return np.frombuffer(vector, _TAGGED, len(tags) - len(tags.lstrip(_TAG)))["value"].tobytes()
    message = _Vector.FromString(vector)
    rows = b"".join(row.data for row in message.multi_dense.vectors)
    return bytes(message.data or message.dense.data or message.sparse.values or rows)


def _floats(datas: Sequence[bytes]) -> Floats:
    return np.frombuffer(b"".join(datas), "<f4")


def _starts(counts: Iterable[int]) -> Any:
    return np.cumsum([0, *counts], dtype=np.int64)


def encoded(column: Column) -> Iterable[tuple[int, bytes]]:
    """Row of the point and ``Vector`` message, of each vector of a column."""
    if isinstance(column, Dense):
        messages = [field(DENSE, field(FIRST, data)) for data in _each_row(column.values)]
    elif isinstance(column, Sparse):
        ends = pairwise(column.starts.tolist())
        messages = [field(SPARSE, _sparse_message(column, start, end)) for start, end in ends]
    else:
        parts = [field(FIRST, field(FIRST, data)) for data in _each_row(column.values)]
        messages = [field(MULTI, b"".join(parts[start:end])) for start, end in pairwise(column.starts.tolist())]
    return zip(range(len(messages)) if column.rows is None else column.rows.tolist(), messages, strict=True)


def _each_row(values: Floats) -> Iterable[bytes]:
    data, width = np.ascontiguousarray(values, "<f4").tobytes(), 4 * values.shape[1]
    return (data[start : start + width] for start in range(0, len(data), width))


def _sparse_message(column: Sparse, start: int, end: int) -> bytes:
    values = np.ascontiguousarray(column.values[start:end], "<f4").tobytes()
    return bytes(
        MESSAGES["SparseVector"](values=values, indices=column.indices[start:end].tolist()).SerializeToString()
    )
