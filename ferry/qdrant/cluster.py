"""A cluster as all its nodes together: who they are, what they agree on, and whether anything moves."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Self

from ferry.errors import ConfigurationError, LayoutError, NodeUnreachableError
from ferry.models import (
    ClusterLayout,
    CollectionLayout,
    Finding,
    NodeInfo,
    PeerId,
    Progress,
    Replica,
    ShardId,
    ShardLayout,
    no_progress,
    now,
)
from ferry.profiles import ClusterProfile
from ferry.qdrant import points
from ferry.qdrant.http import NotFoundError
from ferry.qdrant.node import STANDALONE_PEER, Node
from ferry.qdrant.quiet import quiet_findings, quiet_problems, unready_replicas
from ferry.qdrant.versions import cluster_findings
from ferry.qdrant.view import NodeView, disagreements, each, read_collection_view, read_collection_views, read_view

# Connections asked at each address: enough to see a round-robin balancer over any number of nodes at once.
_PROBES = 3
# Nodes differ for some 20 ms after a change, and for seconds while one catches up (seen after a pause of 1 s).
_AGREEMENT_SECONDS = 15.0
_POLL_SECONDS = 0.5
_STATUS_ORDER = ("green", "yellow", "grey", "red")
_BALANCED = "Configure the address of every node itself, never one that is balanced over them."


def select_collections(names: Sequence[str], include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> list[str]:
    """The names that match a pattern of ``include`` and none of ``exclude``, sorted.

    Patterns know ``*``, ``?`` and ``[ab]``; case counts. Every name is also a pattern of its own: ``docs[1]``. Raises
    ConfigurationError for a pattern of ``include`` that matches nothing, save ``*`` on an empty cluster; one of
    ``exclude`` may match nothing, for a schedule that leaves ``tmp-*`` out must run on nights without any, too.
    """
    for pattern in include:
        if pattern != "*" and not any(_matches(name, pattern) for name in names):
            there = ", ".join(sorted(names)) or "none"
            msg = f"The pattern {pattern!r} matches no collection. There are: {there}."
            raise ConfigurationError(msg, "Correct the pattern, or leave it out.")
    return sorted(name for name in names if is_chosen(name, include, exclude))


def is_chosen(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the patterns choose a collection of that name."""
    return any(_matches(name, pattern) for pattern in include) and not any(
        _matches(name, pattern) for pattern in exclude
    )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


class Cluster:
    """The nodes of one cluster profile. ``node`` and everything after ``read_layout`` knows which peer is where."""

    def __init__(self, name: str, profile: ClusterProfile) -> None:
        self.name = name
        self.profile = profile
        self.nodes = [Node(url, profile) for url in profile.nodes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to every node."""
        for node in self.nodes:
            node.close()

    def node(self, peer_id: PeerId) -> Node:
        """The node of that peer; raises LayoutError when no configured address is that peer."""
        if any(node.peer_id is None for node in self.nodes):
            self.identify()
        for node in self.nodes:
            if node.peer_id == peer_id:
                return node
        msg = f"No configured address of cluster {self.name} is peer {peer_id}."
        raise LayoutError(msg, f"Add its address to clusters.{self.name}.nodes.")

    def identify(self) -> list[NodeInfo]:
        """Ask every address, over several connections, who answers there.

        Raises LayoutError for an address that answers as different peers, and for two addresses of one peer.
        """
        infos = each(self.nodes, self._identify_one)
        by_peer: dict[PeerId, NodeInfo] = {}
        for node, info in zip(self.nodes, infos, strict=True):
            if info.peer_id in by_peer:
                msg = self._twice(by_peer[info.peer_id], info)
                raise LayoutError(msg, _BALANCED)
            by_peer[info.peer_id] = info
            node.peer_id = info.peer_id
        return infos

    def read_layout(self, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> ClusterLayout:
        """What all nodes agree on, of the collections that the patterns select.

        Differences are given a few seconds to go away, because consensus may be in motion. Raises LayoutError naming
        the nodes and what differs, NodeUnreachableError for a node that does not answer, ConfigurationError for a
        pattern that matches nothing.
        """
        infos = self.identify()
        views = self._agreeing_views(infos, lambda names: select_collections(names, include, exclude))
        self._require_same_members(views)
        first = views[0]
        return ClusterLayout(
            cluster=self.name,
            taken_at=now(),
            nodes=tuple(infos),
            collections=tuple(collection_layout(name, views) for name in sorted(first.collections)),
            aliases=first.aliases,
            names=tuple(first.names),
        )

    def require_quiet(self, layout: ClusterLayout) -> list[Finding]:
        """Look again at every collection of the layout; raise LayoutError when a snapshot must not be taken now.

        That is: a replica that is not Active, a shard transfer, resharding, a recovery, recovery mode, a red
        collection. Returns what is only worth knowing: a yellow or grey collection, mixed or unsafe versions.
        """
        names = [collection.name for collection in layout.collections]
        problems: list[str] = []
        findings = cluster_findings(layout.nodes)
        self.identify()
        answers = each(self.nodes, lambda node: (node.telemetry(2), read_collection_views(node, names)))
        for node, (telemetry, views) in zip(self.nodes, answers, strict=True):
            problems += quiet_problems(node.label, views, telemetry)
            findings += [finding for finding in quiet_findings(views) if finding not in findings]
        if problems:
            msg = f"Cluster {self.name} is not at rest: " + "; ".join(dict.fromkeys(problems)) + "."
            raise LayoutError(msg, "Nothing was changed. Wait until it is at rest, or repair it, then run this again.")
        return findings

    def wait_until_active(
        self,
        collection: str,
        expect: Mapping[ShardId, set[PeerId]] | None,
        timeout_seconds: float,
        progress: Progress = no_progress,
    ) -> None:
        """Wait until every node sees every replica Active, those of ``expect`` among them, and no transfer runs.

        A 200 from recovering says nothing about consensus, so every node's own view is asked. ``progress`` is called
        with 0 at every poll and may raise StoppedError. Raises LayoutError naming what is still missing.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            progress(0)
            missing = [
                problem
                for problems in each(self.nodes, lambda node: _unready(node, collection, expect))
                for problem in problems
            ]
            if not missing:
                return
            if time.monotonic() >= deadline:
                msg = f"After {timeout_seconds:.0f} s {collection} is not Active everywhere: {'; '.join(missing)}."
                raise LayoutError(msg, f"See the logs of these nodes, and GET /collections/{collection}/cluster.")
            time.sleep(_POLL_SECONDS)

    def exact_counts(self, collection: CollectionLayout) -> dict[ShardId, dict[PeerId, int]]:
        """Exact number of points of every replica, each counted on its own node."""
        return self.all_exact_counts([collection])[collection.name]

    def all_exact_counts(self, collections: Sequence[CollectionLayout]) -> dict[str, dict[ShardId, dict[PeerId, int]]]:
        """The same of many collections: nodes beside each other, and on each one replica after the other."""
        counts: dict[str, dict[ShardId, dict[PeerId, int]]] = {
            collection.name: {shard.shard_id: {} for shard in collection.shards} for collection in collections
        }
        held: dict[PeerId, list[tuple[str, ShardId]]] = defaultdict(list)
        for collection in collections:
            for shard in collection.shards:
                for replica in shard.replicas:
                    held[replica.peer_id].append((collection.name, shard.shard_id))
        peers = list(held)

        def count_on(node: Node) -> list[int]:
            return [points.count(node, name, shard_id) for name, shard_id in held[node.peer_id or STANDALONE_PEER]]

        for peer_id, answers in zip(peers, each([self.node(peer_id) for peer_id in peers], count_on), strict=True):
            for (name, shard_id), found in zip(held[peer_id], answers, strict=True):
                counts[name][shard_id][peer_id] = found
        return counts

    def _identify_one(self, node: Node) -> NodeInfo:
        info = node.identify()
        seen = {node.fresh_identity() for _ in range(_PROBES)}
        if len(seen) > 1 or (info.peer_id != STANDALONE_PEER and seen != {str(info.peer_id)}):
            named = ", ".join(sorted(seen | {str(info.peer_id)}))
            msg = f"The address {node.label} answers as different peers: {named}."
            raise LayoutError(msg, _BALANCED)
        if node.peer_id is not None and node.peer_id != info.peer_id:
            msg = f"{node.label} answered as peer {info.peer_id}, and as peer {node.peer_id} before."
            raise LayoutError(msg, _BALANCED)
        return info

    def _twice(self, first: NodeInfo, second: NodeInfo) -> str:
        if first.peer_id == STANDALONE_PEER:
            return (
                f"{first.label} and {second.label} are two nodes without cluster mode, which is no cluster: "
                "each needs a profile of its own."
            )
        return f"{first.label} and {second.label} are the same peer {first.peer_id}."

    def _agreeing_views(self, infos: list[NodeInfo], select: Callable[[list[str]], list[str]]) -> list[NodeView]:
        by_url = {info.url: info for info in infos}
        deadline = time.monotonic() + _AGREEMENT_SECONDS
        while True:
            late = time.monotonic() >= deadline
            names = each(self.nodes, Node.collections)
            # Where the names differ there is nothing to select from yet; the difference itself is found below.
            selected = select(names[0]) if all(others == names[0] for others in names) else []
            try:
                views = each(self.nodes, lambda node: read_view(node, by_url[node.url], selected))  # noqa: B023 - done before the next turn
                problems = disagreements(views)
            except (NotFoundError, NodeUnreachableError):
                # A collection went between two requests, or has no shards yet: 500, "Local shard 0 not found" (1.16.3).
                if late:
                    raise
            else:
                if not problems:
                    return views
                if late:
                    self._require_same_members(views)
                    msg = f"The nodes of cluster {self.name} do not agree: {'; '.join(problems)}."
                    raise LayoutError(msg, "Nothing was changed. See GET /cluster on each node, repair, run it again.")
            time.sleep(_POLL_SECONDS)

    def _require_same_members(self, views: list[NodeView]) -> None:
        configured = {view.info.peer_id for view in views}
        for view in views:
            if foreign := sorted(configured - view.peers):
                named = ", ".join(
                    f"{other.info.label} (peer {other.info.peer_id})"
                    for other in views
                    if other.info.peer_id in foreign
                )
                msg = f"{view.info.label} does not know {named}: they are not one cluster."
                raise LayoutError(msg, f"Correct clusters.{self.name}.nodes.")
            if missing := sorted(view.peers - configured):
                uris = ", ".join(f"{peer} ({view.cluster['peers'][str(peer)]['uri']})" for peer in missing)
                msg = f"Cluster {self.name} has peers without a configured address: {uris}."
                raise LayoutError(msg, f"Add the REST address of each to clusters.{self.name}.nodes.")


def collection_layout(name: str, views: list[NodeView]) -> CollectionLayout:
    """The collection as nodes see it that agree."""
    first = views[0].collections[name]
    shard_ids = sorted({shard_id for shard_id, _ in first.replicas})
    status = max((view.collections[name].info["status"] for view in views), key=_STATUS_ORDER.index)
    return CollectionLayout(
        name=name,
        uuid=views[0].uuids.get(name),
        config=first.info["config"],
        payload_schema=first.info["payload_schema"],
        status=status,
        shards=tuple(
            ShardLayout(
                shard_id=shard_id,
                key=first.keys[shard_id],
                replicas=tuple(
                    Replica(peer_id=peer_id, state=state)
                    for (of_shard, peer_id), state in sorted(first.replicas.items())
                    if of_shard == shard_id
                ),
            )
            for shard_id in shard_ids
        ),
    )


def _unready(node: Node, collection: str, expect: Mapping[ShardId, set[PeerId]] | None) -> list[str]:
    try:
        return unready_replicas(node.label, read_collection_view(node, collection), expect)
    except NotFoundError:
        return [f"{node.label} does not know it yet"]
    except NodeUnreachableError as error:
        return [error.message.rstrip(".")]  # the node loads a shard, and answers when it is done
