"""What happened to a plan's collections while their backup ran: asked right before the commits, compared purely.

A backup of many collections takes hours, and nobody stops the cluster for it. What was dropped meanwhile is not in the
backup and the rest counts; what was made anew or changed its shards or settings has archives that do not fit together,
so it does not count.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic import Field

from ferry.backup.plan import BackupPlan
from ferry.connections import Connections
from ferry.errors import NodeError
from ferry.models import CollectionLayout, Finding, ShardId, ShardKey, Value
from ferry.qdrant.cluster import is_chosen
from ferry.qdrant.node import Node
from ferry.qdrant.schema import schema_differences
from ferry.qdrant.view import CollectionView, collection_uuids, each, read_collection_view

# A node that was busy with a snapshot applies what consensus decided some seconds later (up to 1.16, qdrant 7489).
_AGREEMENT_SECONDS = 15.0
_POLL_SECONDS = 0.5
_AT_A_TIME = 8
_MOST_NAMED = 10
_SOUND = frozenset({"Active", "Listener"})


class Recheck(Value):
    """What became of the collections of a plan. What is in neither ``dropped`` nor ``changed`` is as it was planned.

    ``changed`` says in a sentence why a collection's archives do not count together.
    """

    dropped: tuple[str, ...] = ()
    changed: dict[str, str] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class NodeNames:
    """What one node lists."""

    names: frozenset[str]
    aliases: dict[str, str]
    uuids: dict[str, str]


@dataclass(frozen=True)
class Seen:
    """The cluster as it is now: what each node lists, which ones do not answer, and the planned collections."""

    nodes: dict[str, NodeNames] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    collections: dict[str, CollectionView] = field(default_factory=dict)


def recheck(connections: Connections, plan: BackupPlan) -> Recheck:
    """Ask every node once more, and compare with the plan; changes nothing, and raises no NodeError.

    A few requests a node and two a collection. A node that does not answer gives a finding: what is proven must count
    most of all when the cluster is lost.
    """
    return compare(plan, look(connections.cluster.nodes, plan))


def look(nodes: Sequence[Node], plan: BackupPlan) -> Seen:
    """Read what nodes list until those that answer agree, at most 15 seconds, and each planned collection from one."""
    deadline = time.monotonic() + _AGREEMENT_SECONDS
    while True:
        lists = dict(zip(nodes, each(nodes, _listed), strict=True))
        listed = {node: found for node, found in lists.items() if isinstance(found, NodeNames)}
        first = next(iter(listed.values()), None)
        if all(found == first for found in listed.values()) or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    return Seen(
        nodes={node.label: found for node, found in listed.items()},
        silent={node.label: found for node, found in lists.items() if isinstance(found, str)},
        collections=_views(listed, plan),
    )


def _listed(node: Node) -> NodeNames | str:
    try:
        return NodeNames(frozenset(node.collections()), node.aliases(), collection_uuids(node.telemetry(2)))
    except NodeError as error:
        return error.message


def _views(listed: dict[Node, NodeNames], plan: BackupPlan) -> dict[str, CollectionView]:
    """Each collection from one node that has it, spread over the nodes; one that cannot be read is left out."""
    asked: list[tuple[Node, str]] = []
    for number, collection in enumerate(plan.layout.collections):
        if having := [node for node, found in listed.items() if collection.name in found.names]:
            asked.append((having[number % len(having)], collection.name))

    def read(pair: tuple[Node, str]) -> CollectionView | None:
        try:
            return read_collection_view(*pair)
        except NodeError:
            return None

    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="ferry-recheck") as pool:
        views = list(pool.map(read, asked))
    return {name: view for (_, name), view in zip(asked, views, strict=True) if view is not None}


def compare(plan: BackupPlan, seen: Seen) -> Recheck:
    """What the difference between the plan and what is there now means. Pure."""
    if not seen.nodes:
        return Recheck(findings=tuple(_silent(seen)))
    dropped: list[str] = []
    changed: dict[str, str] = {}
    findings: list[Finding] = _silent(seen)
    for collection in plan.layout.collections:
        name = collection.name
        knowing = [label for label, listed in seen.nodes.items() if name in listed.names]
        if not knowing:
            dropped.append(name)
        elif why := _changed(collection, seen, knowing):
            changed[name] = f"{name} changed while the backup ran: {why}."
        elif name in seen.collections:
            findings += _moved(plan, collection, seen.collections[name])
        else:
            findings.append(_unread(name))
    findings += [_dropped(name) for name in dropped] + _created(plan, seen) + _other_aliases(plan, seen)
    return Recheck(dropped=tuple(dropped), changed=changed, findings=tuple(findings))


def _changed(collection: CollectionLayout, seen: Seen, knowing: list[str]) -> str | None:
    if missing := sorted(seen.nodes.keys() - set(knowing)):
        return f"{', '.join(knowing)} still has it and {', '.join(missing)} has not"
    uuids = {uuid for label in knowing if (uuid := seen.nodes[label].uuids.get(collection.name))}
    if collection.uuid and uuids - {collection.uuid}:
        return "it was dropped and made again under the same name"
    view = seen.collections.get(collection.name)
    if view is None:
        return None
    planned = {shard.shard_id: shard.key for shard in collection.shards}
    if planned != view.keys:
        return _shards_differ(planned, view.keys)
    if view.resharding:
        return "it is being resharded"
    called = ("before", "now")
    differences = schema_differences(
        collection.config, collection.payload_schema, view.info["config"], view.info["payload_schema"], called
    )
    return "; ".join(differences) or None


def _shards_differ(before: dict[ShardId, ShardKey | None], now: dict[ShardId, ShardKey | None]) -> str:
    def shown(ids: set[ShardId], keys: dict[ShardId, ShardKey | None]) -> str:
        return ", ".join(f"{n}" if keys[n] is None else f"{n} (key {keys[n]!r})" for n in sorted(ids))

    came = {number for number in now if number not in before or before[number] != now[number]}
    went = {number for number in before if number not in now or before[number] != now[number]}
    told = [
        f"shards {shown(ids, keys)} {verb}" for ids, keys, verb in ((came, now, "came"), (went, before, "went")) if ids
    ]
    return " and ".join(told)


def _moved(plan: BackupPlan, collection: CollectionLayout, view: CollectionView) -> list[Finding]:
    """Replicas on other nodes than before: the archives are what their nodes held, so they count."""
    before = {(shard.shard_id, replica.peer_id) for shard in collection.shards for replica in shard.replicas}
    read = {
        (shard.shard_id, archive.node.peer_id)
        for archive in plan.of_collection(collection.name)
        for shard in archive.shards
    }
    sick = sorted((pair, state) for pair, state in view.replicas.items() if pair in read and state not in _SOUND)
    findings = []
    if sick:
        told = ", ".join(f"shard {shard} on peer {peer} is {state}" for (shard, peer), state in sick)
        findings.append(
            _finding(
                "warning",
                collection.name,
                f"Replicas that were read are not Active any more: {told}.",
                "Compare the counts in the manifest with what you expect; repair the replicas, and run it again.",
            )
        )
    if before != view.replicas.keys():
        shards = sorted({shard for shard, _ in before ^ view.replicas.keys()})
        findings.append(
            _finding(
                "info",
                collection.name,
                f"Replicas of shards {_named([str(shard) for shard in shards])} of {collection.name} were moved, added "
                "or dropped while the backup ran; the manifest has the places of its start.",
                None,
            )
        )
    return findings


def _dropped(name: str) -> Finding:
    return _finding(
        "warning",
        name,
        f"{name} was dropped while the backup ran, and is not in this backup.",
        "If that was a mistake, restore it from an earlier backup: python -m ferry list",
    )


def _unread(name: str) -> Finding:
    return _finding(
        "warning", name, f"{name} is there, and could not be looked at once more before its backup was committed.", None
    )


def _created(plan: BackupPlan, seen: Seen) -> list[Finding]:
    known = {*plan.layout.names, *(collection.name for collection in plan.layout.collections)}
    everywhere = frozenset[str]().union(*(listed.names for listed in seen.nodes.values()))
    created = sorted(name for name in everywhere - known if is_chosen(name, plan.include, plan.exclude))
    if not created:
        return []
    message = f"Created while the backup ran, and not in this backup: {_named(created)}."
    return [_finding("info", plan.cluster, message, "The next run has them.")]


def _other_aliases(plan: BackupPlan, seen: Seen) -> list[Finding]:
    aliases = next(iter(seen.nodes.values())).aliases
    names = sorted(alias for alias, _ in aliases.items() ^ plan.layout.aliases.items())
    unique = list(dict.fromkeys(names))
    if not unique:
        return []
    told = [f"{alias} ({plan.layout.aliases.get(alias, 'none')} → {aliases.get(alias, 'none')})" for alias in unique]
    message = f"Aliases changed while the backup ran: {_named(told)}. The record has those of its start."
    return [_finding("info", plan.cluster, message, None)]


def _silent(seen: Seen) -> list[Finding]:
    return [
        _finding(
            "warning",
            label,
            f"{label} could not be asked whether anything changed while the backup ran: {why}",
            "What was proven counts. See that node, and run it again.",
        )
        for label, why in seen.silent.items()
    ]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _finding(severity: str, subject: str, message: str, remedy: str | None) -> Finding:
    return Finding.model_validate({"severity": severity, "subject": subject, "message": message, "remedy": remedy})
