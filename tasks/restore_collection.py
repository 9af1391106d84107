"""Tasks of the restore flow, in order: plan, create, recover, settle, verify, move the alias, report."""

from contextlib import AbstractContextManager
from functools import partial
from itertools import zip_longest
from typing import Any

from prefect import allow_failure
from prefect.futures import PrefectFuture, wait

from ferry import report
from ferry.connections import Connections, connect
from ferry.models import Progress
from ferry.repository.lease import Lease
from ferry.repository.lease_watch import call_back_tasks
from ferry.restore import preflight, run, steps
from ferry.restore.plan import RestorePlan, RestoreRequest
from ferry.verify.replica import ReplicaVerdict
from tasks.artifacts import show_markdown, show_table
from tasks.policy import lease_watch, progress, raise_failures, step, stop_with_the_flow
from tasks.runs import holder, run_id


def request_restore(cluster: str, repository: str, **wishes: Any) -> RestoreRequest:
    """The request of this flow run; raises ConfigurationError for an unknown profile before anything is asked."""
    connect(cluster, repository)
    return RestoreRequest(restore_id=run_id(), cluster=cluster, repository=repository, **wishes)


def _connections(request: RestoreRequest) -> Connections:
    return connect(request.cluster, request.repository)


def alone_and_tidied(request: RestoreRequest) -> AbstractContextManager[Lease]:
    """Hold the lease on the new name, and drop what dead restores left behind."""
    connections = _connections(request)
    target = preflight.find_target(connections, request)
    return preflight.alone_and_tidied(connections, target, holder(f"restore {request.restore_id}"))


@step("plan restore", "plan restore of {request.collection}")
def plan_restore(request: RestoreRequest) -> RestorePlan:
    """Find the backup, ask the target, and refuse what would not work; changes nothing."""
    planned = preflight.prepare(_connections(request), request)
    name = ("plan", request.cluster, request.collection)
    show_table(name, report.restore_plan_rows(planned), report.restore_plan_text(planned))
    return planned


@step("create target", "create {planned.target}")
def create_target(planned: RestorePlan, lease: Lease) -> list[steps.ReplicaWork]:
    """Create the new collection and its payload indexes, and see where its replicas are."""
    replicas = steps.create_target(_connections(planned.request), planned)
    return [replica.model_copy(update={"lease": (lease.key, lease.fencing)}) for replica in replicas]


def reading(planned: RestorePlan) -> AbstractContextManager[None]:
    """Hold a reader's mark on the backup, so that no prune takes it away meanwhile."""
    return run.reading(_connections(planned.request), planned)


def discarded_on_failure(planned: RestorePlan) -> AbstractContextManager[None]:
    """Drop the new collection again when anything fails before the restore is finished."""
    return run.discarded_on_failure(_connections(planned.request), planned)


@step("recover replica", "recover {work.label}")
def recover_replica(work: steps.ReplicaWork) -> steps.RecoveredReplica:
    """Give one replica its shard's archive."""
    size = work.plan.bytes_to_move // max(1, len(work.plan.manifest.layout))
    return steps.recover_replica(_connections(work.plan.request), work, _progress(work, "recover", size))


@step("settle target", "settle {planned.target}")
def settle_target(planned: RestorePlan) -> None:
    """Wait until every replica is Active on every node, and compare the schema with the source's."""
    tell = progress(f"settle {planned.target}", 0)
    run.require_same_schema(planned, steps.settle_target(_connections(planned.request), planned, tell))


@step("verify replica", "verify {work.label}")
def verify_replica(work: steps.ReplicaWork) -> ReplicaVerdict:
    """Compare one replica with the proof of its shard."""
    return steps.verify_restored(_connections(work.plan.request), work, _progress(work, "verify", 0))


def _progress(work: steps.ReplicaWork, verb: str, total: int) -> Progress:
    watch = lease_watch(_connections(work.plan.request).store, *work.lease) if work.lease else None
    return progress(f"{verb} {work.label}", total, watch)


def on_every_replica(work: Any, replicas: list[steps.ReplicaWork], what: str, lease: Lease) -> list[Any]:
    """Run a task for each replica: nodes beside each other, one replica at a time on each; raises what failed."""
    futures: list[PrefectFuture[Any]] = []
    tails: dict[int, list[Any]] = {}
    with stop_with_the_flow(futures, partial(call_back_tasks, lease)):
        for row in zip_longest(*steps.lanes_of_replicas(replicas)):
            for lane, replica in enumerate(row):
                if replica is not None:
                    futures.append(work.submit(replica, wait_for=tails.get(lane)))
                    tails[lane] = [allow_failure(futures[-1])]
        wait(futures)
    raise_failures(futures, what)
    return [future.result() for future in futures]


def require_equal(planned: RestorePlan, verdicts: list[ReplicaVerdict]) -> None:
    """Show what was compared; raise VerificationError when one replica differs from the proof."""
    names = {int(node.peer_id): node.label for node in planned.layout.nodes}
    show_table(
        ("verdict", planned.request.cluster, planned.target),
        report.verdict_rows(verdicts, names),
        f"Replicas of {planned.target} compared with the proof of backup {planned.manifest.backup_id}",
    )
    run.require_equal(planned, verdicts)


@step("keep target", "keep {planned.target}")
def keep_target(planned: RestorePlan) -> None:
    """Give the new collection to the operator: it is equal to its proof, and no later failure may drop it."""
    steps.keep_target(_connections(planned.request), planned)


@step("move alias", "move alias {planned.request.alias}")
def move_alias(planned: RestorePlan) -> None:
    """Put the new collection into service, in one atomic request."""
    steps.move_alias(_connections(planned.request), planned)


@step("report restore", "report {planned.target}")
def report_restore(
    planned: RestorePlan, recovered: list[steps.RecoveredReplica], verdicts: list[ReplicaVerdict]
) -> None:
    """Say how it went."""
    findings = planned.findings + tuple(finding for replica in recovered for finding in replica.findings)
    text = report.restore_verdict(planned, verdicts, findings)
    show_markdown(("restored", planned.request.cluster, planned.target), text, f"Restore of {planned.target}")
