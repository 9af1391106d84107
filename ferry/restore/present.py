"""The live collection before it is overwritten: asked on every node, as far as it answers.

A replica whose recovering failed or was cut short holds nothing and answers no read. Where it was the only one,
``GET /collections/{c}`` is a 500 on every node; where there is another, the collection is green and the replica Active,
and only the node's own count shows it. ``/collections/{c}/cluster`` and telemetry answer in both cases (all seen on
1.16.3), so a restore that goes on with such a collection plans by them.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ferry.connections import Connections
from ferry.errors import LayoutError, NodeUnreachableError
from ferry.models import CollectionLayout, Finding, PeerId, Replica, ShardId, ShardLayout, Value
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.condition import Condition, read_condition
from ferry.qdrant.node import Node
from ferry.qdrant.view import each
from ferry.restore.in_place import InPlaceRequest, plan_in_place, require_meant, unreadable_remedy
from ferry.restore.plan import RestorePlan
from ferry.restore.preflight import find_manifest, require_feasible
from ferry.restore.rates import with_expectation
from ferry.restore.steps import ReplicaWork
from ferry.restore.writes import NodeWrites, counted, of_collection

# A replica that turned Dead is filled again by the others as soon as there is one; small ones take seconds.
TRANSFER_SECONDS = 30.0
_POLL_SECONDS = 0.5
_SIZES = ("vectors_size_bytes", "payloads_size_bytes")


class Prepared(Value):
    """The plan of a restore in place, and what the live collection held when it was made: None where unreadable."""

    request: InPlaceRequest
    plan: RestorePlan
    points: dict[ShardId, dict[PeerId, int | None]]
    writes: tuple[NodeWrites, ...]

    @property
    def works(self) -> list[ReplicaWork]:
        """Every replica, those that are Active first: the others may be filled from them at any time."""
        live = self.plan.in_place
        pairs = [(shard.shard_id, replica) for shard in (live.shards if live else ()) for replica in shard.replicas]
        pairs.sort(key=lambda pair: pair[1].state != "Active")
        return [
            ReplicaWork(
                plan=self.plan,
                shard_id=shard_id,
                node=self.plan.layout.node(replica.peer_id),
                points_planned=self.points[shard_id][replica.peer_id],
            )
            for shard_id, replica in pairs
        ]


def prepare_in_place(connections: Connections, request: InPlaceRequest) -> Prepared:
    """Plan and preflight: confirmation, names, shards, settings, versions, archives, every node's health and room.

    Raises a PreflightError that says what was found; nothing was changed.
    """
    require_meant(request)
    manifest, cluster, name = find_manifest(connections, request), connections.cluster, request.target
    layout = cluster.read_layout(include=())
    told = each([cluster.node(info.peer_id) for info in layout.nodes], lambda node: node.telemetry(3))
    seen = _at_rest(cluster, name) if name in layout.names else None
    if seen is not None:
        live = _live(cluster, seen, told, manifest.payload_schema)
        layout = layout.model_copy(update={"collections": (live,)})
    by_node = list(zip(layout.nodes, told, strict=True))
    plan = plan_in_place(request, manifest, layout, {info.peer_id: _held_bytes(said, name) for info, said in by_node})
    findings, points = _readable(request, plan, seen)
    # A half restored collection is not at rest; what of that forbids to go on was looked at when it was read.
    quiet = layout.model_copy(update={"collections": ()}) if request.waive_backup else layout
    try:
        findings += require_feasible(connections, quiet, [plan], plan.needs)
    except LayoutError as error:
        raise LayoutError(error.message, unreadable_remedy(request)) from error
    plan = with_expectation(connections, plan.model_copy(update={"findings": (*plan.findings, *findings)}))
    writes = tuple(counted(info.label, name, said) for info, said in by_node)
    return Prepared(request=request, plan=plan, points=points, writes=writes)


def _at_rest(cluster: Cluster, collection: str) -> Condition:
    """How every node sees the collection, once they agree and no shard of it moves.

    Raises LayoutError for what does not end within ``TRANSFER_SECONDS``, with the call to make.
    """
    deadline = time.monotonic() + TRANSFER_SECONDS
    while True:
        condition = read_condition(cluster, collection)
        problems = _unrest(condition)
        if not problems:
            return condition
        if time.monotonic() >= deadline:
            msg = f"{collection} on {cluster.name} is not at rest: {'; '.join(problems)}. Nothing was changed."
            ended = '{"abort_transfer": {"shard_id": …, "from_peer_id": …, "to_peer_id": …}}'
            remedy = f"Wait until it is, or end a transfer that stays: POST /collections/{collection}/cluster {ended}"
            raise LayoutError(msg, remedy)
        time.sleep(_POLL_SECONDS)


def _unrest(condition: Condition) -> list[str]:
    problems = [f"{label} does not answer" for label in condition.away]
    problems += ["it is being resharded"] if condition.resharding else []
    for moved in condition.transfers:
        problems.append(f"shard {moved.shard_id} is transferred from peer {moved.source} to peer {moved.target}")
    for replica in condition.replicas:
        if len(set(replica.states.values())) > 1:
            where = condition.label(replica.peer_id)
            problems.append(f"nodes see shard {replica.shard_id} on {where} as {sorted(set(replica.states.values()))}")
    return problems


def _live(
    cluster: Cluster, condition: Condition, told: Sequence[Mapping[str, Any]], payload_schema: Mapping[str, Any]
) -> CollectionLayout:
    """The live collection. Its settings are telemetry's, which are those of ``GET /collections/{c}`` and the uuid.

    ``payload_schema`` stands for its payload indexes where no node shows them, which they do only in that document.
    """
    name = condition.collection
    config = dict(next(entry["config"] for telemetry in told for entry in of_collection(telemetry, name)))
    document = next((found for found in each(cluster.nodes, lambda node: _document(node, name)) if found), {})
    return CollectionLayout(
        name=name,
        uuid=config.pop("uuid", None),
        config=config,
        payload_schema=document.get("payload_schema", payload_schema),
        status=document.get("status", "red"),
        shards=tuple(
            ShardLayout(
                shard_id=shard_id,
                key=key,
                replicas=tuple(
                    Replica(peer_id=seen.peer_id, state=seen.state) for seen in condition.of_shard(shard_id)
                ),
            )
            for shard_id, key in sorted(condition.keys.items())
        ),
    )


def _document(node: Node, collection: str) -> dict[str, Any] | None:
    try:
        return node.collection(collection)
    except NodeUnreachableError:  # a shard cannot be read
        return None


def _readable(
    request: InPlaceRequest, plan: RestorePlan, condition: Condition | None
) -> tuple[list[Finding], dict[ShardId, dict[PeerId, int | None]]]:
    """What every replica holds, and a finding for each that cannot be read.

    Raises LayoutError where the present state of such a one was to be backed up.
    """
    findings: list[Finding] = []
    points: dict[ShardId, dict[PeerId, int | None]] = {}
    for replica in condition.replicas if condition else ():
        points.setdefault(replica.shard_id, {})[replica.peer_id] = replica.points
        if replica.points is not None:
            continue
        what = f"{plan.target}/shard {replica.shard_id} on {plan.layout.node(replica.peer_id).label}"
        why = f" ({replica.broken})" if replica.broken else ""
        if not request.waive_backup:
            msg = f"{what} cannot be read{why}, so its present state cannot be backed up. Nothing was changed."
            raise LayoutError(msg, unreadable_remedy(request))
        message = f"{what} cannot be read{why}; it is overwritten like the others."
        findings.append(Finding(severity="warning", subject=what, message=message))
    return findings, points


def _held_bytes(telemetry: Mapping[str, Any], collection: str) -> int:
    """What a node holds of a collection, at least: Qdrant's estimate of vectors and payloads."""
    local = [shard.get("local") or {} for entry in of_collection(telemetry, collection) for shard in entry["shards"]]
    return sum(int(shard.get(of) or 0) for shard in local for of in _SIZES)
