"""Looking for the nearest points of one shard's archive: what `ferry.verify.query` has a worker do."""

from __future__ import annotations

from typing import Any

import orjson
from qdrant_edge import Query, QueryRequest, SearchParams, SparseVector

from ferry.archive.points import Selection
from ferry.archive.reader import OpenArchive
from ferry.archive.selected import chosen_by, plain_sparse
from ferry.models import Value


class Search(Value):
    """What to look for: a vector as Qdrant's REST API takes it, in the vectors of that name ("" is the unnamed one).

    ``exact`` compares with every point instead of following the index. ``selection`` says among which points.
    """

    vector: Any
    using: str = ""
    limit: int = 10
    exact: bool = False
    with_vectors: bool = False
    selection: Selection = Selection()


def nearest(archive: OpenArchive, search: Search) -> orjson.Fragment:
    """The nearest points of a shard, the best first: a JSON array of id, score, payload and, if wanted, vector."""
    vector = SparseVector(**search.vector) if isinstance(search.vector, dict) else search.vector
    request = QueryRequest(
        limit=search.limit,
        query=Query.Nearest(vector, using=search.using or None),
        filter=chosen_by(search.selection),
        params=SearchParams(exact=search.exact),
        with_payload=True,
        with_vector=search.with_vectors,
    )
    points = [
        {"id": point.id, "score": point.score, "payload": point.payload or {}, "vector": point.vector}
        for point in archive.query(request)
    ]
    return orjson.Fragment(orjson.dumps(points, default=plain_sparse))
