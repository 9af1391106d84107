"""Points of one replica on one node, or of a whole collection through it."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from ferry.errors import NodeRefusedError
from ferry.models import ShardId
from ferry.qdrant.http import path_of
from ferry.qdrant.node import Node

Point = dict[str, Any]
PointId = int | str

_MOST_IDS = 1000
_FIRST_PAGE_POINTS = 16  # before anybody knows how large a point is
_PAGE_BYTES = 2 * 1024 * 1024
_IDS_A_PAGE = 10_000
# What 1.16.3 answers to an exact count where strict mode has search_allow_exact = false.
_NO_EXACT = "exact search disabled"


def count(node: Node, collection: str, shard_id: ShardId | None = None) -> int:
    """Exact number of points: of the whole collection, or of this node's own replica of one shard.

    The shard routes are not in the published document, but in every version from 1.16.3 to 1.19; they read the local
    replica whatever its state, and answer 404 where the node has none. Where strict mode forbids exact counts every id
    is listed instead, a page of at most ``max_query_limit`` ids a request.
    """
    try:
        answer = node.patient_request("POST", _points(collection, shard_id) + "/count", json={"exact": True})
    except NodeRefusedError as error:
        if _NO_EXACT not in error.message.lower():
            raise
        shown = {"with_vector": False, "with_payload": False}
        return sum(len(page) for page in _scroll(node, collection, shard_id, _IDS_A_PAGE, shown))
    return int(answer["count"])


def scroll_shard(
    node: Node,
    collection: str,
    shard_id: ShardId,
    *,
    batch_points: int = 1000,
    with_vectors: bool = True,
    with_payload: bool = True,
) -> Iterator[list[Point]]:
    """All points of this node's replica, ordered by id, in pages of at most ``batch_points`` and about 2 MiB of JSON.

    Pages also shrink to what strict mode allows. As Python values a page takes several times its JSON.
    """
    shown = {"with_vector": with_vectors, "with_payload": with_payload}
    return _scroll(node, collection, shard_id, batch_points, shown)


def _scroll(
    node: Node, collection: str, shard_id: ShardId | None, batch_points: int, shown: dict[str, bool]
) -> Iterator[list[Point]]:
    most = min(batch_points, _strict_limit(node, collection, "max_query_limit") or batch_points)
    limit = min(most, _FIRST_PAGE_POINTS)
    offset: PointId | None = None
    while True:
        body = {"limit": limit, "offset": offset, **shown}
        page = node.patient_request("POST", _points(collection, shard_id) + "/scroll", json=body)
        if page["points"]:
            limit = max(1, min(most, _PAGE_BYTES // len(orjson.dumps(page["points"][-1]))))
            yield page["points"]
        offset = page.get("next_page_offset")
        if offset is None:
            return


def retrieve_shard(node: Node, collection: str, shard_id: ShardId, ids: Sequence[PointId]) -> list[Point]:
    """The points of these ids on this node's replica, with vectors and payload; missing ones are left out."""
    return [point for page in retrieve_pages(node, collection, shard_id, ids) for point in page]


def retrieve_pages(node: Node, collection: str, shard_id: ShardId, ids: Sequence[PointId]) -> Iterator[list[Point]]:
    """The same in pages of about 2 MiB of JSON."""
    # Strict mode charges one token for each id, and refuses for good what is larger than a minute's worth.
    most = min(_MOST_IDS, _strict_limit(node, collection, "read_rate_limit") or _MOST_IDS)
    size, start = min(most, _FIRST_PAGE_POINTS), 0
    while start < len(ids):
        body = {"ids": list(ids[start : start + size]), "with_vector": True, "with_payload": True}
        page = node.patient_request("POST", _points(collection, shard_id), json=body)
        start += size
        if page:
            size = max(1, min(most, _PAGE_BYTES // len(orjson.dumps(page[-1]))))
            yield page


def _strict_limit(node: Node, collection: str, limit: str) -> int | None:
    strict = node.collection(collection)["config"].get("strict_mode_config") or {}
    return strict.get(limit) if strict.get("enabled") else None


def _points(collection: str, shard_id: ShardId | None) -> str:
    shard = "" if shard_id is None else path_of("shards", shard_id)
    return path_of("collections", collection) + shard + "/points"
