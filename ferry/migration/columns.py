"""Columns of vectors: made of single vectors, cut to some points, and given back point by point."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferry.migration.batch import Column, Dense, Multi, PointBatch, Sparse

Positions = NDArray[np.intp]


def take(batch: PointBatch, positions: Positions) -> PointBatch:
    """The points of a batch at these positions, which must rise."""
    chosen = positions.tolist()
    return PointBatch(
        ids=[batch.ids[position] for position in chosen],
        payloads=[batch.payloads[position] for position in chosen],
        vectors={name: take_rows(column, positions, len(batch.ids)) for name, column in batch.vectors.items()},
        key=batch.key,
    )


def take_rows(column: Column, positions: Positions, points: int) -> Column:
    """A column of so many points cut to those at ``positions``."""
    if column.rows is None:
        inner, rows = positions, None
    else:
        place = np.full(points, -1, dtype=np.intp)
        place[column.rows] = np.arange(len(column.rows))
        found = place[positions]
        rows, inner = np.flatnonzero(found >= 0), found[found >= 0]
    if isinstance(column, Dense):
        return Dense(column.values[inner], rows)
    starts, entries = _spans(column.starts, inner)
    if isinstance(column, Sparse):
        return Sparse(starts, column.indices[entries], column.values[entries], rows)
    return Multi(starts, column.values[entries], rows)


def _spans(starts: NDArray[np.int64], chosen: Positions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the chosen spans start when they follow each other, and which entries they are."""
    lengths = starts[chosen + 1] - starts[chosen]
    new = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    entries = np.arange(new[-1], dtype=np.int64) + np.repeat(starts[chosen] - new[:-1], lengths)
    return new, entries


def column_of(vectors: Sequence[Any], rows: Positions | None = None) -> Column:
    """Vectors of one name, as Qdrant's JSON or its engine gives them, as a column; at least one.

    Numbers: dense; rows of numbers: multi; ``indices`` and ``values``: sparse. Raises ValueError for rows of several
    lengths.
    """
    first = vectors[0]
    if not isinstance(first, list):
        pairs = [_pair(vector) for vector in vectors]
        indices = [index for pair in pairs for index in pair[0]]
        values = [value for pair in pairs for value in pair[1]]
        starts = _starts([len(pair[0]) for pair in pairs])
        return Sparse(starts, np.array(indices, dtype=np.uint32), np.array(values, dtype=np.float32), rows)
    if first and isinstance(first[0], list):
        flat = [row for vector in vectors for row in vector]
        return Multi(_starts([len(vector) for vector in vectors]), np.array(flat, dtype=np.float32), rows)
    return Dense(np.array(vectors, dtype=np.float32), rows)


def columns_of(points: Sequence[dict[str, Any]]) -> dict[str, Column]:
    """The columns of some points, each given as its vectors by name (the unnamed one as ``""``)."""
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for point in points for name in point):
        rows = [row for row, point in enumerate(points) if point.get(name) is not None]
        if rows:
            every = len(rows) == len(points)
            columns[name] = column_of(
                [points[row][name] for row in rows], None if every else np.array(rows, dtype=np.intp)
            )
    return columns


def each_point(batch: PointBatch) -> Iterator[dict[str, Any]]:
    """The vectors of each point by name, as Qdrant's JSON has them: lists, and for sparse ones indices and values."""
    points: list[dict[str, Any]] = [{} for _ in batch.ids]
    for name, column in batch.vectors.items():
        for row, vector in zip(_rows(column, len(points)), each_vector(column), strict=True):
            points[row][name] = vector
    yield from points


def each_vector(column: Column) -> Iterator[Any]:
    """The vectors of a column one after another, as Qdrant's JSON has them."""
    if isinstance(column, Dense):
        yield from column.values.tolist()
        return
    for start, stop in zip(column.starts[:-1].tolist(), column.starts[1:].tolist(), strict=True):
        values = column.values[start:stop].tolist()
        yield (
            {"indices": column.indices[start:stop].tolist(), "values": values} if isinstance(column, Sparse) else values
        )


def _rows(column: Column, points: int) -> list[int]:
    return list(range(points)) if column.rows is None else column.rows.tolist()


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _pair(vector: Any) -> tuple[list[int], list[float]]:
    """A sparse vector's indices and values, from JSON or from the engine, by rising index."""
    indices, values = (
        (vector["indices"], vector["values"]) if isinstance(vector, dict) else (vector.indices, vector.values)
    )
    if all(before < after for before, after in pairwise(indices)):
        return indices, values
    order = sorted(range(len(indices)), key=indices.__getitem__)
    return [indices[at] for at in order], [values[at] for at in order]
