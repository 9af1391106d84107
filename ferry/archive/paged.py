"""Points of an open archive as bytes in columns: what a worker process gives to whoever wants vectors, not JSON.

Floats never become text and never a list beyond the engine's own: at 384 dimensions a point costs 10 µs here and 2 µs
where it is read, against 240 µs as JSON. A page is one JSON line, the head, and a body of as many bytes as it says:
for each column, in the order of the head, its lengths (u32, of sparse and multivectors), its indices (u32, of sparse
ones) and its values (f32), all little-endian; then the payloads as one JSON array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

import orjson
from qdrant_edge import Filter, Record

from ferry.archive.points import Selection
from ferry.archive.reader import OpenArchive, PlainId, before, id_order, plain_id
from ferry.archive.scan import FIRST_PAGE_POINTS
from ferry.archive.selected import chosen_by
from ferry.models import Value

MOST_POINTS = 1000  # a page: the engine takes as long for each of 250 as of 1000 (qdrant-edge-py 0.9.0, 384-d)


class Paging(Value):
    """What of the chosen points is wanted, and how: ``stop`` is the first id that is not, ``vectors`` are their names.

    ``page_bytes`` is about the size of a page's body.
    """

    stop: PlainId | None = None
    vectors: tuple[str, ...] | None = None
    payload: bool = True
    page_bytes: int = 1 << 20


class Page(NamedTuple):
    """A page's head, with the id to go on at, and the pieces of its body."""

    head: dict[str, Any]
    body: list[bytes]


def pages(archive: OpenArchive, selection: Selection, paging: Paging) -> Iterator[Page]:
    """Yield the chosen points in Qdrant's order of ids.

    Of the selection, ``filter``, ``ids`` and ``start`` count. Raises what the engine raises as `ArchiveDamagedError`.
    """
    for records, following in _read(archive, selection, paging):
        if records:
            yield _page(records, following, paging)


def _read(archive: OpenArchive, selection: Selection, paging: Paging) -> Iterator[tuple[list[Record], PlainId | None]]:
    if selection.ids is not None and selection.filter is None:
        yield from _retrieved(archive, sorted(set(selection.ids), key=id_order), paging)
        return
    chosen: Filter | None = chosen_by(selection)
    limit, following = FIRST_PAGE_POINTS, selection.start
    while True:
        records, after = archive.page(limit, following, chosen)
        kept = before(records, paging.stop)
        if len(kept) < len(records) or not _is_before(after, paging.stop):
            after = None
        yield kept, after
        if after is None:
            return
        following, limit = after, _next_limit(kept, paging)


def _retrieved(
    archive: OpenArchive, ids: Sequence[PlainId], paging: Paging
) -> Iterator[tuple[list[Record], PlainId | None]]:
    start, limit = 0, FIRST_PAGE_POINTS
    while start < len(ids):
        records = archive.retrieve(ids[start : start + limit])
        yield records, None
        start += limit
        limit = _next_limit(records, paging) if records else limit


def _is_before(following: PlainId | None, stop: PlainId | None) -> bool:
    return following is not None and (stop is None or id_order(following) < id_order(stop))


def _next_limit(records: list[Record], paging: Paging) -> int:
    """As many as fit a page when all are as large as the last one."""
    last = _page(records[-1:], None, paging)
    return max(1, min(MOST_POINTS, paging.page_bytes // max(1, sum(map(len, last.body)))))


def _page(records: list[Record], following: PlainId | None, paging: Paging) -> Page:
    points = [_named(record.vector) for record in records]
    names = {name for point in points for name in point}
    wanted = sorted(names if paging.vectors is None else names.intersection(paging.vectors))
    columns, body = [], []
    for name in wanted:
        rows = [row for row, point in enumerate(points) if point.get(name) is not None]
        head, blocks = _column([points[row][name] for row in rows])
        columns.append({"name": name, "rows": rows if len(rows) < len(points) else None, **head})
        body += blocks
    body.append(orjson.dumps([record.payload or {} for record in records]) if paging.payload else b"")
    ids = [plain_id(record.id) for record in records]
    size_bytes = sum(map(len, body))
    return Page({"ids": ids, "columns": columns, "following": following, "body_bytes": size_bytes}, body)


def _named(vectors: Any) -> dict[str, Any]:
    if isinstance(vectors, dict):
        return vectors
    return {} if vectors is None else {"": vectors}


def _column(vectors: list[Any]) -> tuple[dict[str, Any], list[bytes]]:
    first = vectors[0]
    if not isinstance(first, list):
        pairs = [(vector.indices, vector.values) for vector in vectors]
        lengths = [len(indices) for indices, _ in pairs]
        indices = [index for found, _ in pairs for index in found]
        values = [value for _, found in pairs for value in found]
        body = [_numbers("I", lengths), _numbers("I", indices), _numbers("f", values)]
        return {"kind": "sparse", "vectors": len(vectors), "entries": len(indices), "dimensions": 1}, body
    if first and isinstance(first[0], list):
        lengths = [len(vector) for vector in vectors]
        dimensions = len(first[0])
        pack = _packer("f", dimensions)
        body = [_numbers("I", lengths), b"".join(pack(*row) for vector in vectors for row in vector)]
        return {"kind": "multi", "vectors": len(vectors), "entries": sum(lengths), "dimensions": dimensions}, body
    pack = _packer("f", len(first))
    dense = b"".join([pack(*vector) for vector in vectors])
    return {"kind": "dense", "vectors": len(vectors), "entries": len(vectors), "dimensions": len(first)}, [dense]


def _numbers(kind: str, numbers: Sequence[int | float]) -> bytes:
    return Struct(f"<{len(numbers)}{kind}").pack(*numbers)


@lru_cache(maxsize=64)
def _packer(kind: str, count: int) -> Any:
    return Struct(f"<{count}{kind}").pack
