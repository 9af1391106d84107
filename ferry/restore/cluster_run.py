"""A restore of many collections: planned and refused together, done one after the other, put into service at once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from glob import escape

from ferry.connections import Connections
from ferry.errors import FerryError, HeadroomError, NodeError, PreflightError, RestoreError
from ferry.lanes import Job
from ferry.models import ClusterLayout, Finding, Value
from ferry.qdrant.resources import read_headroom, require_headroom
from ferry.qdrant.schema import restore_mark, schema_differences
from ferry.repository import readers
from ferry.repository.lease import Lease
from ferry.restore import rates
from ferry.restore.cluster_aliases import move_aliases
from ferry.restore.plan import RestorePlan
from ferry.restore.preflight import alone_and_tidied, require_feasible
from ferry.restore.run import Restored, on_every_replica, run_restore
from ferry.restore.steps import ReplicaWork, verify_restored
from ferry.restore.whole_cluster import (
    ClusterRestorePlan,
    ClusterRestoreRequest,
    choose,
    cluster_findings,
    command,
    needs_of_all,
    plan_aliases,
    plan_each,
    raise_refusals,
)
from ferry.verify.combined import combined_problems

log = logging.getLogger(__name__)
# What the lease on a restore of many is called: no collection can have this name.
EVERY_COLLECTION = "/"


class ClusterRestored(Value):
    """A finished restore of many collections; ``restored`` are those that were not there before."""

    plan: ClusterRestorePlan
    restored: tuple[Restored, ...]


def alone_on_cluster(connections: Connections, holder: str) -> AbstractContextManager[Lease]:
    """Be the only restore of many into this cluster, and drop what dead restores left behind: it would be in the way.

    Raises LeaseHeldError. Each collection's restore holds the lease on its own name besides.
    """
    return alone_and_tidied(connections, EVERY_COLLECTION, holder)


def reading_all(connections: Connections, plan: ClusterRestorePlan) -> AbstractContextManager[None]:
    """Hold a reader's mark on the whole backup until the last collection is restored.

    Raises BackupNotFoundError when a prune was faster.
    """
    keys, request = connections.keys, plan.request
    point = keys.backup(request.source_cluster, plan.backup_id)
    who = f"restore {request.restore_id} of {len(plan.plans)} collections to {request.cluster}"
    return readers.reading(connections.store, keys, request.source_cluster, plan.backup_id, [point], who)


def prepare_cluster(connections: Connections, request: ClusterRestoreRequest, job: Job) -> ClusterRestorePlan:
    """Plan every collection, compare those that are there already, and refuse what would not work for all together.

    Reads only. Raises a PreflightError, ConfigurationError or BackupNotFoundError that says what was found.
    """
    catalog, cluster = connections.catalog, connections.cluster
    record = catalog.read_backup(request.source_cluster, request.backup)
    restores = choose(request, record)
    layout = cluster.read_layout(include=())
    targets = {restore.collection: restore.into or "" for restore in restores}
    moves = plan_aliases(request, record, targets, layout)
    manifests = [catalog.read_manifest(record.cluster, record.backup_id, name) for name in targets]
    plans = plan_each(restores, manifests, layout)
    there = _equal_already(connections, [plan for plan in plans if plan.target in layout.names], job)
    missing = [plan for plan in plans if plan.manifest.collection not in there]
    even, _ = needs_of_all(missing, layout)
    findings = cluster_findings(record, targets, moves, there)
    findings += require_feasible(connections, layout, missing, even)
    findings += _uneven_findings(connections, layout, missing)
    return ClusterRestorePlan(
        request=request,
        backup_id=record.backup_id,
        layout=layout,
        plans=tuple(rates.with_expectations(connections, plans)),
        there=there,
        aliases=tuple(moves),
        needs=even,
        findings=tuple(findings),
    )


def _equal_already(connections: Connections, standing: Sequence[RestorePlan], job: Job) -> tuple[str, ...]:
    """The collections whose targets are there and equal, as after a run that died; raises for those that differ."""
    errors: list[FerryError] = []
    for plan in standing:
        if different := differences(connections, plan, job):
            msg = (
                f"{plan.target} is already a collection on cluster {plan.request.cluster}, and not what backup "
                f"{plan.manifest.backup_id} holds: {'; '.join(different)}. Nothing was changed."
            )
            remedy = "Drop it if nobody needs it, or name the new one otherwise: --rename OLD=NEW (parameter `rename`)."
            errors.append(PreflightError(msg, remedy))
    raise_refusals(errors)
    return tuple(plan.manifest.collection for plan in standing)


def differences(connections: Connections, plan: RestorePlan, job: Job) -> list[str]:
    """What a collection that is there has otherwise than the planned restore would give it; empty when it is equal.

    Compared as a restore compares: schema, shards and keys, then every replica by the level of the request. Raises what
    may pass by itself, such as a node that does not answer.
    """
    try:
        found = connections.cluster.read_layout([escape(plan.target)]).collection(plan.target)
        if found is None:
            return ["it went while it was looked at"]
        if mark := restore_mark(found.config):
            return [f"restore {mark} has not finished it, and may be at work"]
        different = schema_differences(
            plan.config, plan.manifest.payload_schema, found.config, found.payload_schema, ("planned", "there")
        )
        shards = {shard.shard_id: shard.key for shard in found.shards}
        if shards != {shard.shard_id: shard.key for shard in plan.shards}:
            different.append(f"its shards and their keys are {shards}")
        if different:
            return different
        replicas = [
            ReplicaWork(plan=plan, shard_id=shard.shard_id, node=plan.layout.node(replica.peer_id))
            for shard in found.shards
            for replica in shard.replicas
        ]
        verdicts = on_every_replica(
            job, "compare", replicas, lambda work, tell: verify_restored(connections, work, tell)
        )
    except (NodeError, PreflightError) as error:
        if error.transient:
            raise
        return [f"it cannot be compared: {error.message}"]
    different = [problem for verdict in verdicts for problem in verdict.problems]
    if plan.path == "points":
        proofs = [proof for shard, proof in plan.manifest.proofs() if shard in plan.sources]
        different += combined_problems(proofs, verdicts, {shard.shard_id: shard.key for shard in plan.shards})
    return different


def _uneven_findings(connections: Connections, layout: ClusterLayout, missing: Sequence[RestorePlan]) -> list[Finding]:
    """A warning where everything fits only if Qdrant happens to spread the collections evenly over the nodes."""
    _, most = needs_of_all(missing, layout)
    try:
        require_headroom(read_headroom(connections.cluster, layout), most, "warn")
    except HeadroomError as error:
        return [
            Finding(
                severity="warning",
                subject=f"cluster {connections.cluster.name}",
                message=f"Spread evenly it fits. Should one node get the larger share of every collection: "
                f"{error.message.removesuffix(' Nothing was changed.')}",
                remedy="Each collection is refused, before it is made, when its turn comes and there is no room.",
            )
        ]
    return []


def run_cluster(
    connections: Connections,
    request: ClusterRestoreRequest,
    holder: str,
    new_job: Callable[[], Job] = Job,
    announce: Callable[[ClusterRestorePlan], None] = lambda _plan: None,
) -> ClusterRestored:
    """Plan all, announce the plan, restore what is missing, and move the aliases when everything is there and equal.

    A collection that fails does not stop the others. Raises LeaseHeldError when another restore of many is at work,
    and RestoreError in the end when a collection failed, with what is done and the command for the rest.
    """
    with alone_on_cluster(connections, holder):
        plan = prepare_cluster(connections, request, new_job())
        announce(plan)
        with reading_all(connections, plan):
            restored: list[Restored] = []
            failed: dict[str, str] = {}
            for each in plan.missing:
                try:
                    restored.append(run_restore(connections, each.request, holder, new_job()))
                except FerryError as error:
                    log.warning("%s was not restored: %s", each.manifest.collection, error.message)
                    failed[each.manifest.collection] = str(error)
            require_all(plan, failed)
            move_aliases(connections, plan, holder)
    return ClusterRestored(plan=plan, restored=tuple(restored))


def require_all(plan: ClusterRestorePlan, failed: Mapping[str, str]) -> None:
    """Raise RestoreError when a collection failed: what is done, what failed and why, and the command for the rest."""
    if not failed:
        return
    done = [f"{name} as {target}" for name, target in plan.targets.items() if name not in failed]
    aliases = " No alias was moved." if plan.aliases else ""
    why = "\n".join(f"- {name}: {said}" for name, said in failed.items())
    msg = (
        f"{len(failed)} of {len(plan.plans)} collections of backup {plan.backup_id} were not restored: "
        f"{', '.join(failed)}. There and equal: {', '.join(done) or 'none'}.{aliases}\n{why}"
    )
    raise RestoreError(msg, f"See why, then: {command(plan.request, plan.backup_id, failed)}")
