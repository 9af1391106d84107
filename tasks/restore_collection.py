"""Tasks of the restore flow, in order: plan, create, recover, settle, verify, move the alias, report."""

from collections.abc import Callable, Mapping, Sequence
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
from ferry.restore import preflight, records, run, steps, stream, switch
from ferry.restore.plan import RestorePlan, RestoreRequest
from ferry.restore.records import Filled
from ferry.restore.shape import PlannedStream
from ferry.restore.stream import StreamedShard
from ferry.verify.replica import ReplicaVerdict
from tasks.artifacts import show_markdown, show_table
from tasks.policy import lease_watch, progress, raise_failures, step, stop_with_the_flow
from tasks.runs import holder, run_id

PROGRESS_POINTS = 100_000  # fewer are sent before anybody looks


def request_restore(cluster: str, repository: str, wishes: Mapping[str, Any]) -> RestoreRequest:
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


def fill_target(planned: RestorePlan, replicas: list[steps.ReplicaWork], lease: Lease) -> list[Filled]:
    """Give the new collection its points by the planned path; raises what failed."""
    if planned.path == "shards":
        return on_every_replica(recover_replica, replicas, "recovering", lease)
    held = (lease.key, lease.fencing)
    lanes = run.lanes_of_streams(_connections(planned.request), planned)
    send: Any = stream_shard
    return in_lanes(lambda source, after: send.submit(planned, source, held, wait_for=after), lanes, lease)


@step("stream shard", "stream shard {source.source}")
def stream_shard(planned: RestorePlan, source: PlannedStream, lease: tuple[str, int]) -> StreamedShard:
    """Read the points of one shard of the backup out of its archive, and send them."""
    connections = _connections(planned.request)
    points = dict(planned.manifest.proofs())[source.source].points or 0
    watch = lease_watch(connections.store, *lease)
    tell = progress(f"stream shard {source.source}", points, watch, worth=PROGRESS_POINTS)
    return stream.stream_shard(connections, planned, source, tell)


def on_every_replica(work: Any, replicas: list[steps.ReplicaWork], what: str, lease: Lease) -> list[Any]:
    """Run a task for each replica: nodes beside each other, one replica at a time on each; raises what failed."""
    lanes = steps.lanes_of_replicas(replicas)
    return in_lanes(lambda replica, after: work.submit(replica, wait_for=after), lanes, lease, what)


def in_lanes(
    submit: Callable[[Any, Any], PrefectFuture[Any]],
    lanes: Sequence[Sequence[Any]],
    lease: Lease,
    what: str = "sending points",
) -> list[Any]:
    """Submit what is in the lanes, one after another in each; a failure does not stop the lane."""
    futures: list[PrefectFuture[Any]] = []
    tails: dict[int, list[Any]] = {}
    with stop_with_the_flow(futures, partial(call_back_tasks, lease)):
        for row in zip_longest(*lanes):
            for lane, item in enumerate(row):
                if item is not None:
                    futures.append(submit(item, tails.get(lane)))
                    tails[lane] = [allow_failure(futures[-1])]
        wait(futures)
    raise_failures(futures, what)
    return [future.result() for future in futures]


def require_equal(planned: RestorePlan, filled: list[Filled], verdicts: list[ReplicaVerdict]) -> None:
    """Show what was compared; raise VerificationError when one replica differs from the proof."""
    names = {int(node.peer_id): node.label for node in planned.layout.nodes}
    show_table(
        ("verdict", planned.request.cluster, planned.target),
        report.verdict_rows(verdicts, names),
        f"Replicas of {planned.target} compared with the proof of backup {planned.manifest.backup_id}",
    )
    run.require_equal(planned, filled, verdicts)


@step("keep target", "keep {planned.target}")
def keep_target(planned: RestorePlan) -> None:
    """Give the new collection to the operator: it is equal to its proof, and no later failure may drop it."""
    steps.keep_target(_connections(planned.request), planned)


@step("move alias", "move alias {planned.request.alias}")
def move_alias(planned: RestorePlan) -> None:
    """Put the new collection into service, in one atomic request."""
    switch.move_alias(_connections(planned.request), planned)


@step("report restore", "report {planned.target}")
def report_restore(planned: RestorePlan, recovered: list[Filled], verdicts: list[ReplicaVerdict]) -> None:
    """Say how it went, also in the bucket: the next plan expects the time that this one took."""
    records.note_finished(_connections(planned.request), planned, recovered, verdicts)
    findings = planned.findings + tuple(finding for part in recovered for finding in part.findings)
    text = report.restore_verdict(planned, verdicts, findings)
    show_markdown(("restored", planned.request.cluster, planned.target), text, f"Restore of {planned.target}")
