"""What one node says of its cluster at one moment, and where such views differ."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ferry.errors import SnapshotError
from ferry.models import NodeInfo, PeerId, ShardId, ShardKey
from ferry.qdrant.node import STANDALONE_PEER, Node

ReplicaStates = dict[tuple[ShardId, PeerId], str]
T = TypeVar("T")
# Requests to one node at a time: hides the way to it, and is no load worth speaking of.
_AT_A_TIME = 4


@dataclass(frozen=True)
class CollectionView:
    """One collection as one node sees it: Qdrant's two documents, and what is in them."""

    info: dict[str, Any]
    replicas: ReplicaStates
    keys: dict[ShardId, ShardKey | None]
    transfers: list[dict[str, Any]]
    resharding: list[dict[str, Any]]


@dataclass(frozen=True)
class NodeView:
    """One node's own view of the whole cluster."""

    info: NodeInfo
    cluster: dict[str, Any]
    names: list[str]
    aliases: dict[str, str]
    collections: dict[str, CollectionView]
    uuids: dict[str, str]

    @property
    def peers(self) -> set[PeerId]:
        """The peers that this node knows, itself included."""
        return {PeerId(int(peer)) for peer in self.cluster.get("peers", {self.info.peer_id: None})}


def each(nodes: Sequence[Node], ask: Callable[[Node], T]) -> list[T]:
    """Ask every node at the same time; answers in the order of nodes, the first error raised."""
    with ThreadPoolExecutor(max_workers=max(1, len(nodes)), thread_name_prefix="ferry-node") as pool:
        return list(pool.map(ask, nodes))


def read_collection_view(node: Node, name: str) -> CollectionView:
    """Read one collection from one node."""
    return collection_view(node, node.collection(name), node.collection_cluster(name))


def collection_view(node: Node, info: dict[str, Any], places: Mapping[str, Any]) -> CollectionView:
    """What the two documents say, as that node showed them."""
    # A single node without cluster mode has a number of its own here that nothing else shows: it is peer 0 in Ferry.
    own = STANDALONE_PEER if node.peer_id == STANDALONE_PEER else PeerId(places["peer_id"])
    replicas: ReplicaStates = {(ShardId(shard["shard_id"]), own): shard["state"] for shard in places["local_shards"]}
    for shard in places["remote_shards"]:
        replicas[ShardId(shard["shard_id"]), PeerId(shard["peer_id"])] = shard["state"]
    shards = [*places["local_shards"], *places["remote_shards"]]
    return CollectionView(
        info=info,
        replicas=replicas,
        keys={ShardId(shard["shard_id"]): shard.get("shard_key") for shard in shards},
        transfers=places["shard_transfers"],
        resharding=places.get("resharding_operations") or [],
    )


def read_collection_views(node: Node, names: Sequence[str]) -> dict[str, CollectionView]:
    """Read many collections from one node, a few at a time."""
    with ThreadPoolExecutor(max_workers=_AT_A_TIME, thread_name_prefix="ferry-view") as pool:
        return dict(zip(names, pool.map(lambda name: read_collection_view(node, name), names), strict=True))


def require_active(node: Node, name: str, shard_id: ShardId | None) -> None:
    """Raise SnapshotError unless this node's own replica of the shard (None: each it has) is Active, or a Listener.

    Qdrant makes a snapshot of a replica in any state (1.16 to 1.19): of one that is being filled, after a move or after
    it was Dead, the archive opens and lacks points (tests/integration/test_changing_collections.py).
    """
    local = {ShardId(shard["shard_id"]): shard["state"] for shard in node.collection_cluster(name)["local_shards"]}
    for number in local if shard_id is None else [shard_id]:
        if (state := local.get(number, "not here any more")) not in ("Active", "Listener"):
            msg = f"Shard {number} of {name} on {node.label} is {state}: a snapshot of it would lack points."
            raise SnapshotError(msg, "Wait until its replicas are Active, or repair them, then run the backup again.")


def collection_uuids(telemetry: Mapping[str, Any]) -> dict[str, str]:
    """The uuid of each collection, from telemetry of level 2 or higher; every node tells the same (seen on 1.16.3).

    No other request shows it. A collection that is dropped and made again has another one.
    """
    told = (telemetry.get("collections") or {}).get("collections") or []
    return {entry["id"]: uuid for entry in told if (uuid := (entry.get("config") or {}).get("uuid"))}


def read_view(node: Node, info: NodeInfo, selected: Sequence[str]) -> NodeView:
    """Read everything that one node says, and of the selected collections the details."""
    return NodeView(
        info=info,
        cluster=node.cluster_info(),
        names=node.collections(),
        aliases=node.aliases(),
        collections=read_collection_views(node, selected),
        uuids=collection_uuids(node.telemetry(2)) if selected else {},
    )


def disagreements(views: Sequence[NodeView]) -> list[str]:
    """Where nodes see the same thing differently, or say that consensus does not work; empty when all is well."""
    problems: list[str] = []
    first = views[0]
    for view in views:
        problems += _consensus_problems(view) + _missing_shards(view)
        pair = f"{first.info.label} and {view.info.label}"
        if view.peers != first.peers:
            problems.append(f"{pair} know different peers: {_listed(first.peers)} and {_listed(view.peers)}")
        if view.names != first.names:
            only = set(view.names) ^ set(first.names)
            problems.append(f"{pair} do not both have the collections {_listed(only)}")
        if view.aliases != first.aliases:
            only_aliases = {alias for alias, _ in set(view.aliases.items()) ^ set(first.aliases.items())}
            problems.append(f"{pair} do not agree on the aliases {_listed(only_aliases)}")
        if made_anew := [name for name in view.collections if view.uuids.get(name) != first.uuids.get(name)]:
            problems.append(f"{pair} have different collections under the names {_listed(made_anew)}")
        problems += _collection_problems(first, view, pair)
    return problems


def _consensus_problems(view: NodeView) -> list[str]:
    if view.info.peer_id == STANDALONE_PEER:
        return []
    problems = []
    thread = view.cluster["consensus_thread_status"]["consensus_thread_status"]
    if thread != "working":
        problems.append(f"consensus on {view.info.label} is {thread}")
    if pending := view.cluster["raft_info"]["pending_operations"]:
        problems.append(f"{view.info.label} has {pending} operations of consensus still to apply")
    leader = view.cluster["raft_info"].get("leader")
    leaders_uri = view.cluster["peers"].get(str(leader), {}).get("uri")
    for uri, failure in view.cluster["message_send_failures"].items():
        # Followers exchange messages with the leader alone, so what one noted of another stays for good after that one
        # was restarted (seen on 1.16.3): a backup would be refused for ever.
        if leader is not None and leader != view.info.peer_id and uri != leaders_uri:
            continue
        problems.append(f"{view.info.label} cannot reach the peer at {uri} ({failure.get('count')} messages failed)")
    return problems


def _missing_shards(view: NodeView) -> list[str]:
    """Right after a collection was created nodes show some of its shards or none (seen on 1.16.3 under load)."""
    problems = []
    for name, collection in view.collections.items():
        params, shown = collection.info["config"]["params"], len(collection.keys)
        wanted = params.get("shard_number", shown)
        if params.get("sharding_method") != "custom" and shown < wanted:
            problems.append(f"{view.info.label} shows {shown} of {wanted} shards of {name}")
    return problems


def _collection_problems(first: NodeView, view: NodeView, pair: str) -> list[str]:
    problems = []
    for name in sorted(first.collections.keys() & view.collections.keys()):
        ours, theirs = first.collections[name], view.collections[name]
        if ours.replicas != theirs.replicas:
            different = sorted(set(ours.replicas.items()) ^ set(theirs.replicas.items()))
            shards = _listed({shard for (shard, _), _ in different})
            problems.append(f"{pair} see the replicas of shards {shards} of {name} differently")
        if ours.keys != theirs.keys:
            problems.append(f"{pair} see the shard keys of {name} differently")
        if _config(ours) != _config(theirs):
            problems.append(f"{pair} have different configurations of {name}")
        if _schema(ours) != _schema(theirs):
            problems.append(f"{pair} have different payload indexes on {name}")
    return problems


def _config(view: CollectionView) -> dict[str, Any]:
    """The configuration with empty metadata as null: a node that asks another one shows {} as null (1.16.3)."""
    return {**view.info["config"], "metadata": view.info["config"].get("metadata") or None}


def _schema(view: CollectionView) -> dict[str, Any]:
    """The payload indexes without their number of points, which is each node's own."""
    return {field: {**info, "points": 0} for field, info in view.info["payload_schema"].items()}


def _listed(things: Iterable[object]) -> str:
    return ", ".join(sorted(str(thing) for thing in things)) or "none"
