"""The condition of a collection: how every node sees its replicas, and what each replica's own node reads of it.

Made for collections and clusters that are not well, so nothing here fails because a shard is broken or a node is away:
that is what is to be found. ``ferry/qdrant/stuck.py`` judges it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ferry.errors import NodeUnreachableError, PreflightError
from ferry.models import NodeInfo, PeerId, ShardId, ShardKey, Value
from ferry.qdrant import points
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import NodeFaultError, NotFoundError, path_of
from ferry.qdrant.node import Node
from ferry.qdrant.schema import restore_mark
from ferry.qdrant.view import CollectionView, collection_view, each

# What a transfer's source tells changes with the clock; only how far it got says whether it goes on.
_CLOCK = re.compile(r", (started|ETA).*")


class SeenNode(Value):
    """A node that answered. ``trouble`` is what it says of its consensus when that does not work."""

    info: NodeInfo
    trouble: str | None = None
    leads: bool = False


class SeenReplica(Value):
    """One replica: its state by the peer that says so, and what its own node counts, or why it could not."""

    shard_id: ShardId
    peer_id: PeerId
    states: dict[PeerId, str]
    points: int | None = None
    broken: str | None = None

    @property
    def state(self) -> str:
        """The state, where all nodes see the same."""
        return next(iter(self.states.values()))


class SeenTransfer(Value):
    """A transfer of one shard. ``told`` is how far it is, as its source says; None when its source says nothing."""

    shard_id: ShardId
    source: PeerId
    target: PeerId
    told: str | None = None


class Condition(Value):
    """One collection at one moment. ``copies`` of each shard are wanted; ``certain`` tells whether that is known.

    ``counted`` tells whether points are exact. ``silent`` are the peers of ``away`` and those without an address.
    """

    cluster: str
    collection: str
    nodes: tuple[SeenNode, ...]
    away: tuple[str, ...] = ()
    silent: tuple[PeerId, ...] = ()
    copies: dict[ShardId, int]
    keys: dict[ShardId, ShardKey | None]
    certain: bool = True
    counted: bool = True
    keyed: bool = False
    replicas: tuple[SeenReplica, ...] = ()
    transfers: tuple[SeenTransfer, ...] = ()
    resharding: bool = False
    restore_id: str | None = None

    def of_shard(self, shard_id: ShardId) -> list[SeenReplica]:
        """The replicas of one shard, by peer."""
        return sorted((each for each in self.replicas if each.shard_id == shard_id), key=lambda each: each.peer_id)

    def label(self, peer_id: PeerId) -> str:
        """What an operator calls the node of that peer."""
        found = next((node.info.label for node in self.nodes if node.info.peer_id == peer_id), None)
        return found or f"peer {peer_id}, which does not answer"


@dataclass
class _Told:
    """What one node said of everything that was asked."""

    seen: SeenNode
    peers: set[PeerId]
    configs: dict[str, dict[str, Any]]
    views: dict[str, CollectionView] = field(default_factory=dict)
    counts: dict[tuple[str, ShardId], int | str | None] = field(default_factory=dict)


def read_condition(
    cluster: Cluster, collection: str, *, copies: Mapping[ShardId, int] | int | None = None, count: bool = True
) -> Condition:
    """The condition of one collection; ``copies`` are wanted of each shard, else what its configuration says.

    ``count`` counts every replica exactly; without it each is only asked whether it can be read. Raises PreflightError
    when no node knows a collection of that name, NodeUnreachableError when no node answers.
    """
    told, away = _ask_all(cluster, [collection], count=count)
    if not any(collection in each.configs for each in told):
        msg = f"No node of cluster {cluster.name} knows a collection {collection}. Nothing was changed."
        raise PreflightError(msg, "Name a collection; an alias is none.")
    return _condition(cluster, collection, (told, away), copies, count)


def read_conditions(cluster: Cluster) -> list[Condition]:
    """The conditions of all collections, each replica only asked whether it can be read."""
    names = sorted({name for found in each(cluster.nodes, _names) for name in found})
    told = _ask_all(cluster, names, count=False)
    return [_condition(cluster, name, told, None, False) for name in names]


def _names(node: Node) -> list[str]:
    try:
        return node.collections()
    except NodeUnreachableError:
        return []


def _ask_all(cluster: Cluster, names: Sequence[str], *, count: bool) -> tuple[list[_Told], list[str]]:
    def ask(node: Node) -> _Told | str:
        try:
            return _ask(node, names, count=count)
        except NodeUnreachableError as error:
            failures.append(error)
            return node.label

    failures: list[NodeUnreachableError] = []
    answers = each(cluster.nodes, ask)
    told = [answer for answer in answers if isinstance(answer, _Told)]
    if not told:
        raise failures[0]
    return told, [answer for answer in answers if isinstance(answer, str)]


def _ask(node: Node, names: Sequence[str], *, count: bool) -> _Told:
    node.require_identity()
    info, cluster = node.identify(), node.cluster_info()
    told = _Told(
        seen=SeenNode(info=info, trouble=_trouble(cluster), leads=_leads(cluster)),
        peers={PeerId(int(peer)) for peer in cluster.get("peers", {info.peer_id: None})},
        configs=_configs(node),
    )
    for name in names:
        try:
            view = collection_view(node, {}, node.collection_cluster(name))
        except NotFoundError:
            continue
        told.views[name] = view
        for shard_id, peer_id in view.replicas:
            if peer_id == info.peer_id:
                told.counts[name, shard_id] = _count(node, name, shard_id, exact=count)
    return told


def _configs(node: Node) -> dict[str, dict[str, Any]]:
    """Configurations by name. From telemetry, since ``GET /collections/{c}`` is a 500 where a shard is broken."""
    told = (node.telemetry(2).get("collections") or {}).get("collections") or []
    return {entry["id"]: entry["config"] for entry in told if entry.get("config")}


def _trouble(cluster: Mapping[str, Any]) -> str | None:
    if "consensus_thread_status" not in cluster:
        return None  # no cluster mode
    thread = cluster["consensus_thread_status"]
    said = thread["consensus_thread_status"]
    return None if said == "working" else f"{said}: {thread.get('err', 'it does not say why')}"


def _leads(cluster: Mapping[str, Any]) -> bool:
    return bool("raft_info" in cluster and cluster["raft_info"].get("leader") == cluster["peer_id"])


def _count(node: Node, collection: str, shard_id: ShardId, *, exact: bool) -> int | str | None:
    """The points of the node's own replica, or the words in which it says that it cannot read it.

    Qdrant shows a shard that it could not load as Active with 0 points, and answers 500 to whoever reads it (1.16.3):
    "Dirty shard", "Failed to restore local replica". So a replica is read, and its state not trusted.
    """
    try:
        if exact:
            return points.count(node, collection, shard_id)
        path = path_of("collections", collection, "shards", shard_id) + "/points/count"
        node.patient_request("POST", path, json={"exact": False})
    except NodeFaultError as error:
        return error.message.partition(" with 5")[2].partition(": ")[2].rstrip(".") or error.message
    except NotFoundError:
        return None  # it went between two requests
    return None


def _condition(
    cluster: Cluster,
    name: str,
    answers: tuple[list[_Told], list[str]],
    copies: Mapping[ShardId, int] | int | None,
    counted: bool,
) -> Condition:
    told, away = answers
    views = {each.seen.info.peer_id: each.views[name] for each in told if name in each.views}
    counts = {
        (shard, each.seen.info.peer_id): count
        for each in told
        for (of, shard), count in each.counts.items()
        if of == name
    }
    keys = {shard: key for view in views.values() for shard, key in view.keys.items()}
    config = next((each.configs[name] for each in told if name in each.configs), {})
    params = config.get("params", {})
    if copies is None or isinstance(copies, int):
        wanted = dict.fromkeys(sorted(keys), copies or int(params.get("replication_factor", 1)))
    else:
        wanted = dict(copies)
    answered = {each.seen.info.peer_id for each in told}
    return Condition(
        cluster=cluster.name,
        collection=name,
        nodes=tuple(each.seen for each in told),
        away=tuple(away),
        silent=tuple(sorted({peer for each in told for peer in each.peers} - answered)),
        copies=wanted,
        # A shard key may have a replication factor of its own, and no request shows it (1.16 to 1.19).
        certain=copies is not None or (bool(params) and params.get("sharding_method") != "custom"),
        counted=counted,
        keyed=cluster.profile.api_key is not None,
        keys=keys,
        replicas=tuple(_replicas(views, counts, answered)),
        transfers=tuple(_transfers(views)),
        resharding=any(view.resharding for view in views.values()),
        restore_id=restore_mark(config) if config else None,
    )


def _replicas(
    views: Mapping[PeerId, CollectionView],
    counts: Mapping[tuple[ShardId, PeerId], int | str | None],
    answered: set[PeerId],
) -> list[SeenReplica]:
    found = []
    for shard_id, peer_id in sorted({replica for view in views.values() for replica in view.replicas}):
        count = counts.get((shard_id, peer_id))
        states = {
            peer: views[peer].replicas.get((shard_id, peer_id), "absent") if peer in views else "absent"
            for peer in sorted(answered)
        }
        found.append(
            SeenReplica(
                shard_id=shard_id,
                peer_id=peer_id,
                states=states,
                points=count if isinstance(count, int) else None,
                broken=count if isinstance(count, str) else None,
            )
        )
    return found


def _transfers(views: Mapping[PeerId, CollectionView]) -> list[SeenTransfer]:
    found: dict[tuple[ShardId, PeerId, PeerId], str | None] = {}
    for peer, view in views.items():
        for entry in view.transfers:
            source, target = PeerId(entry["from"]), PeerId(entry["to"])
            key = (ShardId(entry["shard_id"]), source, target)
            told = entry.get("comment") if peer == source else None
            found[key] = found.get(key) or (_CLOCK.sub("", told) if told else None)
    return [
        SeenTransfer(shard_id=shard, source=source, target=target, told=told)
        for (shard, source, target), told in sorted(found.items())
    ]
