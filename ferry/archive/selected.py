"""Choosing points of an open archive and writing them as JSON: what `ferry.archive.points` has a worker do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from typing import Any

import orjson
from qdrant_edge import Filter, HasIdCondition, Record, SparseVector

from ferry.archive.digest import ShardDigest, point_fields, range_of
from ferry.archive.doubles import as_read, payload_json
from ferry.archive.filters import to_filter
from ferry.archive.points import Batch, Selection
from ferry.archive.reader import OpenArchive, PlainId, id_order, plain_id
from ferry.archive.scan import FIRST_PAGE_POINTS, page_points
from ferry.errors import FerryError

BATCH_BYTES = 1 << 20  # of JSON; Qdrant takes requests up to 32 MiB (service.max_request_size_mb)
BATCH_POINTS = 10_000
FIELD_BYTES = 40  # a field's name and digest, about
PAGE_IDS = 10_000  # a page of ids alone


def batches(archive: OpenArchive, selection: Selection) -> Iterator[Batch]:
    """Yield the chosen points in Qdrant's order of ids, about 1 MiB at a time and at least one point.

    Raises `FerryError` for a vector that JSON cannot carry, and what the engine raises as `ArchiveDamagedError`.
    """
    tray, digest, carried = _Tray(), ShardDigest(), ShardDigest()
    for record in islice(_records(archive, selection), selection.limit):
        point_id = plain_id(record.id)
        if selection.hashes:
            seen_bytes = digest.encoded_bytes
            tray.hashes.append(f"{digest.add(point_id, record.payload, record.vector):064x}")
            if (read := as_read(record.payload or {})) != (record.payload or {}):
                tray.carried[point_id] = f"{carried.add(point_id, read, record.vector):064x}"
            tray.size_bytes += 0 if selection.with_points else digest.encoded_bytes - seen_bytes
        if selection.fields:
            tray.fields.append(point_fields(point_id, record.payload, record.vector))
            tray.size_bytes += FIELD_BYTES * len(tray.fields[-1])
        tray.put(point_id, encoded(record) if selection.with_points else b"")
        if tray.size_bytes >= BATCH_BYTES or len(tray.ids) >= BATCH_POINTS:
            yield tray.batch()
            tray = _Tray()
    if tray.ids:
        yield tray.batch()


def encoded(record: Record) -> bytes:
    """A point as Qdrant's REST API takes it. Raises `FerryError` for NaN and ±∞, which JSON cannot carry."""
    point_id = plain_id(record.id)
    vectors: Any = record.vector or {}
    for name, vector in vectors.items() if isinstance(vectors, dict) else [("", vectors)]:
        if not _finite(vector):
            raise FerryError(
                f"Vector {name!r} of point {point_id} holds NaN or an infinity, which Qdrant's REST API cannot carry.",
                "Leave this point out (filter or ids), or restore its shard as a snapshot: python -m ferry restore.",
            )
    # Every float is a single, written as the double that it is, so Qdrant reads the very same single back.
    payload = orjson.Fragment(payload_json(record.payload or {}))
    return orjson.dumps({"id": point_id, "vector": vectors, "payload": payload}, default=plain_sparse)


@dataclass
class _Tray:
    """A batch being filled."""

    ids: list[PlainId] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    points: list[bytes] = field(default_factory=list)
    fields: list[dict[str, str]] = field(default_factory=list)
    carried: dict[PlainId, str] = field(default_factory=dict)
    size_bytes: int = 0

    def put(self, point_id: PlainId, point: bytes) -> None:
        self.ids.append(point_id)
        if point:
            self.points.append(point)
            self.size_bytes += len(point)

    def batch(self) -> Batch:
        return Batch(self.ids, self.hashes, b"[" + b",".join(self.points) + b"]", self.fields, self.carried)


def _records(archive: OpenArchive, selection: Selection) -> Iterator[Record]:
    """The chosen records in order, with payload and vectors where something is asked of them."""
    full = selection.with_points or selection.hashes or selection.fields
    named = selection.ids is not None and selection.filter is None
    if selection.ranges is None and not named:
        return _scrolled(archive, selection, full)
    if named:
        ids: Iterable[PlainId] = sorted(set(selection.ids or ()), key=id_order)
    else:  # bare ids are read at a tenth of the cost, and most ranges are not wanted
        ids = (plain_id(record.id) for record in _scrolled(archive, selection, full=False))
    return _retrieved(archive, filter(_belongs(selection), ids), full)


def _scrolled(archive: OpenArchive, selection: Selection, full: bool) -> Iterator[Record]:
    limit, following = FIRST_PAGE_POINTS if full else PAGE_IDS, selection.start
    chosen = chosen_by(selection)
    while True:
        records, following = archive.page(limit, following, chosen, full)
        yield from records
        if following is None:
            return
        limit = _next_limit(records) if full else limit


def _retrieved(archive: OpenArchive, ids: Iterator[PlainId], full: bool) -> Iterator[Record]:
    limit = FIRST_PAGE_POINTS if full else PAGE_IDS
    while page := list(islice(ids, limit)):
        records = archive.retrieve(page, full)
        yield from records
        limit = _next_limit(records) if full and records else limit


def _belongs(selection: Selection) -> Callable[[PlainId], bool]:
    ranges = None if selection.ranges is None else frozenset(selection.ranges)
    start = selection.start
    first = None if start is None else id_order(start)

    def belongs(point_id: PlainId) -> bool:
        wanted = ranges is None or range_of(point_id) in ranges
        return wanted and (first is None or id_order(point_id) >= first)

    return belongs


def chosen_by(selection: Selection) -> Filter | None:
    """The engine's filter for a selection; ranges and start are none that it knows."""
    conditions: list[Any] = [] if selection.filter is None else [to_filter(selection.filter)]
    if selection.ids is not None:
        conditions.append(HasIdCondition(set(selection.ids)))
    return Filter(must=conditions) if conditions else None


def _next_limit(records: list[Record]) -> int:
    """As many as fit a page when all are as large as the last one."""
    return page_points(len(orjson.dumps([records[-1].payload, records[-1].vector], default=plain_sparse)))


def _finite(vector: Any) -> bool:
    """Whether all values are finite. A sum of singles is no infinity in doubles unless one of them is."""
    if isinstance(vector, SparseVector):
        return isfinite(sum(vector.values))
    if vector and isinstance(vector[0], list):
        return all(isfinite(sum(row)) for row in vector)
    return isfinite(sum(vector))


def plain_sparse(vector: Any) -> dict[str, Any]:
    """What orjson does not know: the engine's sparse vectors."""
    if not isinstance(vector, SparseVector):
        raise TypeError(type(vector).__name__)
    return {"indices": vector.indices, "values": vector.values}
