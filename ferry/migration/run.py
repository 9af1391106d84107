"""A migration from beginning to end without Prefect: the same steps as flows/migrate_collection.py, in threads.

Every step may be called again at any time, by any worker that holds the lease of `alone`: what is done already is found
in the repository and in the target. Where the alias is to be moved, `ferry.migration.cut_over` comes after it all.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from ferry.connections import Connections
from ferry.lanes import Job, raise_failures
from ferry.migration import conclude, records, target
from ferry.migration.build import build_shards
from ferry.migration.copy import copy_range
from ferry.migration.plan import MigrationPlan, MigrationRequest
from ferry.migration.prepare import open_source, prepare_migration
from ferry.migration.reconcile import CATCH_UP, Reconciled, Rounds, reconcile
from ferry.migration.report import CompletenessReport, RangeState
from ferry.migration.source import Source, SourceRange
from ferry.models import Progress
from ferry.repository.lease import Lease
from ferry.restore.preflight import alone_and_tidied


@contextmanager
def alone(connections: Connections, request: MigrationRequest, holder: str) -> Iterator[Lease]:
    """Be the only run that makes this collection, and put back what dead migrations left on the target cluster.

    However it ends, nothing is held back any more. Raises LeaseHeldError.
    """
    with alone_and_tidied(connections, request.into, holder) as lease:
        target.put_back_dead(connections, request.into, holder)
        with target.put_back_afterwards(connections, records.migration_id_of(request)):
            yield lease


def begin(connections: Connections, plan: MigrationPlan) -> None:
    """Keep the plan, and make the new collection ready for its points; again is fine. Needs the lease of `alone`.

    Raises PreflightError for a collection of that name that is not this migration's, or has no plan in this repository.
    """
    if conclude.over(connections, plan) is not None:
        return
    before = records.saved_plan(connections, plan.migration_id)
    if before is None or records.stamp_of(before) != records.stamp_of(plan):
        target.clear_target(connections, plan)
    records.keep_plan(connections, plan)
    target.open_target(connections, plan)


def lanes_of_ranges(plan: MigrationPlan) -> list[list[SourceRange]]:
    """``request.readers`` lanes of the plan's ranges, the largest first."""
    ranges = sorted(plan.ranges, key=lambda part: part.points or 0, reverse=True)
    lanes = max(1, min(plan.request.readers, len(ranges)))
    return [ranges[lane::lanes] for lane in range(lanes)]


def copy(
    connections: Connections, plan: MigrationPlan, source: Source, job: Job, lease: Lease | None = None
) -> list[RangeState]:
    """Copy every range that is not copied yet, in lanes, while the lease is ours.

    Raises what failed; the other ranges went on.
    """

    def work(part: SourceRange) -> RangeState:
        return job.step(
            f"copy {part.label}",
            part.points,
            lambda tell: copy_range(connections, plan, source, part, _while_held(lease, tell)),
        )

    futures = job.run(lanes_of_ranges(plan), work)
    raise_failures(futures, "copying ranges")
    return [future.result() for future in futures]


def build(connections: Connections, plan: MigrationPlan, job: Job, source: Source | None = None) -> None:
    """Build every shard that is not finished yet, and give it to all of its replicas."""
    if conclude.over(connections, plan) is not None:
        return
    with _opened(plan, source) as opened:
        build_shards(connections, plan, opened, job)


def finish(connections: Connections, plan: MigrationPlan, job: Job, source: Source | None = None) -> CompletenessReport:
    """Let the target index, compare and mend until both sides are equal, wait until it is green, and keep the report.

    The collection is the operator's then, unless an alias is still to be moved to it. Raises VerificationError when
    both sides stay different; the report says so, too, and the same call goes on.
    """
    if (report := conclude.over(connections, plan)) is not None:
        return report
    job.step(f"let {plan.target} index", None, lambda _tell: target.put_back(connections, plan.migration_id))
    with _opened(plan, source) as opened:
        rounds = _rounds(plan)
        reconciled = job.step(
            f"compare {plan.target}", None, lambda tell: reconcile(connections, plan, opened, rounds, progress=tell)
        )
    job.step(f"settle {plan.target}", None, lambda tell: target.settle_target(connections, plan, tell))
    return job.step(f"report on {plan.target}", None, lambda _tell: _concluded(connections, plan, reconciled))


def run_migration(
    connections: Connections,
    request: MigrationRequest,
    holder: str,
    job: Job,
    announce: Callable[[MigrationPlan], None] = lambda _plan: None,
) -> CompletenessReport:
    """Plan or find the plan, announce it, make the target, fill it, compare and mend, and report.

    The same call again goes on where any other ended. Raises LeaseHeldError when another run makes that collection, and
    what any step raises; then the target stays as it is, for the next run, and indexes what it has.
    """
    with alone(connections, request, holder) as lease:
        plan = prepare_migration(connections, request)
        announce(plan)
        with open_source(plan.request) as source:
            job.step(f"make {plan.target}", None, lambda _tell: begin(connections, plan))
            if plan.writer == "build":
                build(connections, plan, job, source)
            elif conclude.over(connections, plan) is None:
                copy(connections, plan, source, job, lease)
            return finish(connections, plan, job, source)


def _concluded(connections: Connections, plan: MigrationPlan, reconciled: Reconciled) -> CompletenessReport:
    """Keep the report, and hand the collection over where both sides are equal and no alias is still to be moved."""
    report = conclude.report_of(connections, plan, reconciled)
    records.keep_report(connections, report)
    if plan.request.alias is None:
        reconciled.require_equal(plan.target)
        target.hand_over(connections, plan)
    return report


def _while_held(lease: Lease | None, tell: Progress) -> Progress:
    """Progress that stops a writer whose lease another has taken: the collection may be in service by then."""

    def told(done: int) -> None:
        if lease is not None and lease.lost:
            lease.confirm()
        tell(done)

    return told


def _rounds(plan: MigrationPlan) -> Rounds:
    """Where a cut-over follows, which pauses the writers, the last few differences are left to it."""
    return CATCH_UP if plan.request.alias is not None and plan.source.consistency == "live" else Rounds()


@contextmanager
def _opened(plan: MigrationPlan, source: Source | None) -> Iterator[Source]:
    """The source that is open already, or one opened for this."""
    with ExitStack() as stack:
        yield source or stack.enter_context(open_source(plan.request))
