"""Tasks of the flow that restores in place: plan, see the backup of before, recover, settle, verify, finish."""

from contextlib import AbstractContextManager
from typing import Any

from ferry import report
from ferry.connections import Connections, connect
from ferry.in_place_report import in_place_verdict
from ferry.models import BackupId
from ferry.repository.lease import Lease
from ferry.restore import overwrite, preflight, run, steps
from ferry.restore.in_place import InPlaceRequest, require_meant
from ferry.restore.overwrite import Overwritten
from ferry.restore.plan import RestorePlan
from ferry.restore.present import Prepared, prepare_in_place
from ferry.restore.steps import ReplicaWork
from ferry.verify.replica import ReplicaVerdict
from tasks import restore_collection
from tasks.artifacts import show_markdown, show_table
from tasks.policy import lease_watch, progress, step
from tasks.runs import holder, run_id


def request_in_place(cluster: str, repository: str, **wishes: Any) -> InPlaceRequest:
    """The request of this flow run, before anything is asked of any server.

    Raises ConfigurationError for an unknown profile, PreflightError when the name was not typed.
    """
    connect(cluster, repository)
    request = InPlaceRequest(restore_id=run_id(), cluster=cluster, repository=repository, **wishes)
    require_meant(request)
    return request


def _connections(request: InPlaceRequest) -> Connections:
    return connect(request.cluster, request.repository)


def alone_and_tidied(request: InPlaceRequest) -> AbstractContextManager[Lease]:
    """Hold the lease on the collection's name, and drop what dead restores left behind."""
    return preflight.alone_and_tidied(_connections(request), request.target, _holder(request))


def _holder(request: InPlaceRequest) -> str:
    return holder(f"restore {request.restore_id} in place")


@step("plan in place", "plan restore of {request.collection} in place")
def plan_in_place(request: InPlaceRequest) -> Prepared:
    """Find the backup, ask the live collection on every node, and refuse what would not work; changes nothing."""
    prepared = prepare_in_place(_connections(request), request)
    plan = prepared.plan
    show_table(("plan", request.cluster, plan.target), report.restore_plan_rows(plan), report.restore_plan_text(plan))
    return prepared


def reading(prepared: Prepared) -> AbstractContextManager[None]:
    """Hold a reader's mark on the backup, so that no prune takes it away meanwhile."""
    return run.reading(_connections(prepared.request), prepared.plan)


def only(prepared: Prepared) -> str:
    """The pattern that chooses the live collection and no other."""
    return overwrite.only(prepared.plan.target)


@step("see backup of before", "see backup {before}")
def require_present(prepared: Prepared, before: str) -> BackupId:
    """See that the state of before is backed up whole, and is of the collection that was planned to be overwritten."""
    overwrite.require_present(_connections(prepared.request), prepared, BackupId(before))
    return BackupId(before)


def overwriting(prepared: Prepared, before: BackupId | None) -> AbstractContextManager[list[ReplicaWork]]:
    """Hold the cluster's lease; a failure in the body says what every replica holds."""
    request = prepared.request
    return overwrite.overwriting(_connections(request), prepared, before, _holder(request))


def recover_all(works: list[ReplicaWork], lease: Lease) -> list[steps.RecoveredReplica]:
    """Overwrite every replica: nodes beside each other, one replica at a time on each."""
    held = [work.model_copy(update={"lease": (lease.key, lease.fencing)}) for work in works]
    return restore_collection.on_every_replica(recover_in_place, held, "recovering", lease)


@step("recover in place", "recover {work.label}")
def recover_in_place(work: ReplicaWork) -> steps.RecoveredReplica:
    """Overwrite one replica with its shard's archive."""
    connections = connect(work.plan.request.cluster, work.plan.request.repository)
    watch = lease_watch(connections.store, *work.lease) if work.lease else None
    size = work.plan.bytes_to_move // max(1, sum(shard.copies for shard in work.plan.shards))
    return overwrite.recover_in_place(connections, work, progress(f"recover {work.label}", size, watch))


@step("settle in place", "settle {planned.target}")
def settle_in_place(planned: RestorePlan) -> None:
    """Wait until every node sees every replica Active."""
    connections = connect(planned.request.cluster, planned.request.repository)
    overwrite.settle_in_place(connections, planned, progress(f"settle {planned.target}", 0))


def verify_all(works: list[ReplicaWork], lease: Lease) -> list[ReplicaVerdict]:
    """Compare every replica with the proof of its shard."""
    return restore_collection.on_every_replica(restore_collection.verify_replica, works, "verifying", lease)


def require_overwritten(
    prepared: Prepared,
    before: BackupId | None,
    recovered: list[steps.RecoveredReplica],
    verdicts: list[ReplicaVerdict],
) -> Overwritten:
    """Show what was compared; raise VerificationError when one replica differs from the proof."""
    plan = prepared.plan
    names = {int(node.peer_id): node.label for node in plan.layout.nodes}
    title = f"Replicas of {plan.target} compared with the proof of backup {plan.manifest.backup_id}"
    show_table(("verdict", plan.request.cluster, plan.target), report.verdict_rows(verdicts, names), title)
    return overwrite.require_overwritten(_connections(prepared.request), prepared, before, recovered, verdicts)


@step("finish in place", "finish {done.plan.target}")
def finish(done: Overwritten) -> None:
    """Wake the optimizers, write the record, and say how it went."""
    request = done.plan.request
    overwrite.finish(connect(request.cluster, request.repository), done)
    title = f"Restore of {done.plan.target} in place"
    show_markdown(("restored", request.cluster, done.plan.target), in_place_verdict(done), title)
