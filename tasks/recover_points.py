"""Tasks of the recovery flow: plan, make a new collection where one is wanted, recover from each shard, report."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ferry.connections import Connections, connect
from ferry.recovery import report, run, steps
from ferry.recovery.plan import RecoveryPlan, RecoveryRequest
from ferry.recovery.steps import RecoveredShard, ShardWork
from tasks.artifacts import show_markdown, show_table
from tasks.policy import progress, step
from tasks.runs import holder, run_id

PROGRESS_POINTS = 100_000  # fewer are compared before anybody looks


def request_recovery(cluster: str, repository: str, wishes: Mapping[str, Any]) -> RecoveryRequest:
    """The request of this flow run; raises ConfigurationError for an unknown profile or a wrong filter."""
    connect(cluster, repository)
    request = RecoveryRequest(recovery_id=run_id(), cluster=cluster, repository=repository, **wishes)
    request.selection()
    return request


def _connections(request: RecoveryRequest) -> Connections:
    return connect(request.cluster, request.repository)


@step("plan recovery", "plan recovery of {request.collection}")
def plan_recovery(request: RecoveryRequest) -> RecoveryPlan:
    """Find the backup, ask the cluster, and refuse what would not work; changes nothing."""
    return run.prepare(_connections(request), request)


def alone(request: RecoveryRequest) -> AbstractContextManager[RecoveryPlan]:
    """Hold the lease on the collection and a reader's mark on the backup, and plan."""
    return run.alone(_connections(request), request, holder(f"recovery {request.recovery_id}"))


def target_made(plan: RecoveryPlan) -> AbstractContextManager[None]:
    """Make the new collection where one is wanted; a failure drops it again."""
    return run.target_made(_connections(plan.request), plan)


@step("recover shard", "recover {work.label}")
def recover_shard(work: ShardWork) -> RecoveredShard:
    """Compare the chosen points of one shard of the backup with the live ones, write, and read them back."""
    points = dict(work.plan.manifest.proofs())[work.shard_id].points or 0
    tell = progress(f"recover {work.label}", points, worth=PROGRESS_POINTS)
    return steps.recover_shard(_connections(work.plan.request), work, tell)


def recover_from_shards(plan: RecoveryPlan, *, write: bool) -> run.Recovered:
    """Every shard of the backup in turn; show what was found, and what was written."""
    show_markdown(("recovery", plan.request.cluster, plan.target), report.plan_text(plan), f"Recovery to {plan.target}")
    shards = run.in_turn(_connections(plan.request), plan, recover_shard, write=write)
    return run.Recovered(plan=plan, shards=tuple(shards), dry_run=not write)


def report_recovery(recovered: run.Recovered) -> dict[str, int]:
    """Say how it went; the sums."""
    name = ("recovered", recovered.plan.request.cluster, recovered.plan.target)
    show_table(name, report.recovered_rows(recovered), report.recovered_text(recovered))
    kinds = ("selected", "missing", "differing", "equal", "written")
    return {kind: sum(getattr(shard, kind) for shard in recovered.shards) for kind in kinds}
