"""Content hashes of points in columns: the same as `ferry.archive.digest` makes of JSON, without lists of floats."""

from collections.abc import Iterator
from itertools import pairwise
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from ferry.archive.digest import encoded_point_hash
from ferry.migration.batch import Column, Dense, Floats, PointBatch, Sparse

_u32, _2u32 = Struct("<I").pack, Struct("<II").pack
_DENSE, _SPARSE, _MULTI = b"\x00", b"\x01", b"\x02"
_FLOAT_BYTES = 4


def hashes_of(batch: PointBatch) -> list[str]:
    """The hash of each point of a batch, as hex."""
    vectors: list[list[bytes]] = [[] for _ in batch.ids]
    for name in sorted(batch.vectors, key=str.encode):
        column, encoded_name = batch.vectors[name], name.encode()
        prefix = _u32(len(encoded_name)) + encoded_name
        rows = range(len(vectors)) if column.rows is None else column.rows.tolist()
        for row, encoded in zip(rows, _encoded(column), strict=True):
            vectors[row].append(prefix + encoded)
    points = zip(batch.ids, batch.payloads, vectors, strict=True)
    return [f"{encoded_point_hash(point_id, payload, parts):064x}" for point_id, payload, parts in points]


def _encoded(column: Column) -> Iterator[bytes]:
    """Each vector of a column as the digest's table says."""
    data = _bytes(column.values)
    if isinstance(column, Dense):
        prefix, width = _DENSE + _u32(column.values.shape[1]), column.values.shape[1] * _FLOAT_BYTES
        for start in range(0, len(column.values) * width, width):
            yield prefix + data[start : start + width]
        return
    starts = column.starts.tolist()
    if isinstance(column, Sparse):
        indices = column.indices.astype("<u4", copy=False).tobytes()
        for start, stop in pairwise(starts):
            part = slice(start * _FLOAT_BYTES, stop * _FLOAT_BYTES)
            yield _SPARSE + _u32(stop - start) + indices[part] + data[part]
        return
    dimensions = column.values.shape[1]
    for start, stop in pairwise(starts):
        part = slice(start * dimensions * _FLOAT_BYTES, stop * dimensions * _FLOAT_BYTES)
        yield _MULTI + _2u32(stop - start, dimensions) + data[part]


def _bytes(values: Floats) -> bytes:
    """Little-endian floats; what is not finite as the one NaN that the digest has for it."""
    finite: NDArray[np.bool_] = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, np.float32(np.nan))
    return values.astype("<f4", copy=False).tobytes()
