"""Whether the target places points as `ferry.archive.routing` says: asked of the new collection itself.

Points without vectors are written under random ids, one for each arc of the ring, looked for in every shard, and
deleted again. What other versions of Qdrant do, or a fork of it, shows here, before a shard is built that nobody would
find points in.
"""

import random
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

from ferry.archive.routing import Router
from ferry.errors import MigrationError
from ferry.models import CollectionLayout, ShardId, ShardKey, ShardLayout
from ferry.qdrant import points
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import path_of
from ferry.qdrant.node import Node

CANDIDATES = 30  # for each arc of a ring, of which the first one there is tried
MOST_PROBES = 2000
_AT_ONCE = 50
_VISIBLE_SECONDS = 15.0  # until every replica shows what a write with wait has acknowledged
_POLL_SECONDS = 0.2


def rings(shards: Sequence[ShardLayout]) -> dict[ShardKey | None, list[ShardId]]:
    """The shards of each ring: those of a key, or all where there are no keys."""
    found: dict[ShardKey | None, list[ShardId]] = {}
    for shard in shards:
        found.setdefault(shard.key, []).append(shard.shard_id)
    return found


def require_ring(
    cluster: Cluster, layout: CollectionLayout, chosen: Mapping[ShardKey | None, Sequence[ShardId]]
) -> None:
    """Try the rings of these keys that have several shards. The points that are written are deleted, however it ends.

    Raises MigrationError when one is in another shard than it should be, or is not found.
    """
    node = cluster.nodes[0]
    strict = layout.config.get("strict_mode_config") or {}
    most = min(_AT_ONCE, strict.get("upsert_max_batchsize") or _AT_ONCE)
    for key, shards in chosen.items():
        if len(shards) < 2:
            continue
        ring = Router(shards)
        ids = ring.first_of_arcs(_random_ids(CANDIDATES * ring.arcs))
        if len(ids) > MOST_PROBES:
            ids = random.SystemRandom().sample(ids, MOST_PROBES)
        parts = [ids[start : start + most] for start in range(0, len(ids), most)]
        try:
            for part in parts:
                rows = [dict[str, object](id=point_id, vector={}) for point_id in part]
                _change(node, "PUT", layout.name, key, rows)
            _require_there(cluster, layout, shards, ids)
        finally:
            for part in parts:
                _change(node, "POST", layout.name, key, part)


def require_empty(cluster: Cluster, collection: str, shard: ShardLayout) -> None:
    """Delete what a run that was killed over its trial has left in a shard that is to be empty."""
    node = cluster.node(shard.replicas[0].peer_id)
    pages = points.scroll_shard(node, collection, shard.shard_id, with_vectors=False, with_payload=False)
    for page in list(pages):
        _change(node, "POST", collection, shard.key, [point["id"] for point in page])


def _change(node: Node, method: str, collection: str, key: ShardKey | None, given: Sequence[object]) -> None:
    """Write points (PUT), or delete those of some ids (POST)."""
    path = f"/collections{path_of(collection)}/points{'' if method == 'PUT' else '/delete'}"
    named = {} if key is None else {"shard_key": key}
    node.request(method, path, json={"points": list(given), **named}, params={"wait": "true"})


def _random_ids(number: int) -> list[int | str]:
    """Numbers and UUIDs in turn, among 2^64 and 2^122: no point of a collection has them."""
    chance = random.SystemRandom()
    return [
        chance.getrandbits(64) if index % 2 else str(UUID(int=chance.getrandbits(128), version=4))
        for index in range(number)
    ]


def _require_there(
    cluster: Cluster, layout: CollectionLayout, shards: Sequence[ShardId], ids: Sequence[int | str]
) -> None:
    routed = Router(shards).shards_of(ids).tolist()
    wanted = {shard: {point for point, where in zip(ids, routed, strict=True) if where == shard} for shard in shards}
    nodes = {shard.shard_id: cluster.node(shard.replicas[0].peer_id) for shard in layout.shards}
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while True:
        found = {shard: _held(nodes[shard], layout.name, shard, ids) for shard in shards}
        if found == wanted:
            return
        everywhere = sum(map(len, found.values()))
        if everywhere >= len(ids) or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    right = sum(len(found[shard] & wanted[shard]) for shard in shards)
    msg = (
        f"Cluster {cluster.name} places points of {layout.name} otherwise than Ferry knows: of {len(ids)} trial points "
        f"{right} were in the shard where they belong, {everywhere} were found at all. No shard was built."
    )
    raise MigrationError(msg, "Let the points stream (writer: stream), and tell Ferry's maintainers.")


def _held(node: Node, collection: str, shard: ShardId, ids: Sequence[int | str]) -> set[int | str]:
    return {point["id"] for point in points.retrieve_shard(node, collection, shard, ids)}
