"""Chosen points of a live collection, by their ids, each read from nodes that hold them.

Never through another node: what it passes on is not always what is stored (1.16.3 shows integers above 2^63 of another
node's payload as floats).
"""

from collections.abc import Sequence
from functools import partial

from ferry.archive.decimals import as_meant
from ferry.archive.digest import ShardDigest
from ferry.archive.reader import PlainId
from ferry.errors import LayoutError, NodeUnreachableError
from ferry.models import ShardId, ShardLayout
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.node import Node
from ferry.qdrant.points import retrieve_shard
from ferry.qdrant.view import each

Hashes = dict[PlainId, str]


class LiveShards:
    """Some shards of a live collection, by their Active replicas. Raises LayoutError for a shard without any."""

    def __init__(self, cluster: Cluster, collection: str, shards: Sequence[ShardLayout]) -> None:
        self._collection = collection
        self._nodes: dict[ShardId, list[Node]] = {
            shard.shard_id: [cluster.node(replica.peer_id) for replica in shard.replicas if replica.state == "Active"]
            for shard in shards
        }
        if silent := [str(shard_id) for shard_id, nodes in self._nodes.items() if not nodes]:
            msg = f"Shards {', '.join(silent)} of {collection} have no Active replica, so nobody knows what they hold."
            raise LayoutError(msg, f"See GET /collections/{collection}/cluster on each node of {cluster.name}.")

    def hashes(self, ids: Sequence[PlainId]) -> Hashes:
        """The content hashes of these points by one replica of each shard; what is not there is left out."""
        found: Hashes = {}
        for shard_id in self._nodes:
            found |= self._by_first(shard_id, ids)
        return found

    def problems(self, expected: Hashes) -> list[str]:
        """Where a replica does not hold these points with these hashes; every replica is asked."""
        problems: list[str] = []
        seen: set[PlainId] = set()
        for shard_id, nodes in self._nodes.items():
            answers = each(nodes, partial(self._read, shard_id=shard_id, ids=list(expected)))
            held = {point_id for answer in answers for point_id in answer}
            seen |= held
            for node, answer in zip(nodes, answers, strict=True):
                wrong = [point_id for point_id in held if answer.get(point_id) != expected[point_id]]
                where = f"in shard {shard_id} on {node.label}"
                problems += [f"point {one} {'differs' if one in answer else 'is missing'} {where}" for one in wrong]
        return problems + [f"point {point_id} is missing" for point_id in expected if point_id not in seen]

    def _by_first(self, shard_id: ShardId, ids: Sequence[PlainId]) -> Hashes:
        """What the first replica says whose node answers."""
        *others, last = self._nodes[shard_id]
        for node in others:
            try:
                return self._read(node, shard_id, ids)
            except NodeUnreachableError:
                continue
        return self._read(last, shard_id, ids)

    def _read(self, node: Node, shard_id: ShardId, ids: Sequence[PlainId]) -> Hashes:
        digest = ShardDigest()
        return {
            point["id"]: f"{digest.add(point['id'], point.get('payload'), as_meant(point.get('vector'))):064x}"
            for point in retrieve_shard(node, self._collection, shard_id, ids)
        }
