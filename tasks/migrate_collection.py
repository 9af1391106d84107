"""Tasks of the migration flow, in order: plan, make the target, copy or build, finish, ask, cut over."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import Field

from ferry import migration_report
from ferry.connections import Connections, connect
from ferry.errors import ConfigurationError
from ferry.migration import conclude, prepare, records, run, target
from ferry.migration import copy as copying
from ferry.migration import cut_over as switching
from ferry.migration.cut_over import CutOver
from ferry.migration.plan import (
    BackupSource,
    MigrationPlan,
    MigrationRequest,
    ParquetSource,
    QdrantSource,
    SourceName,
)
from ferry.migration.report import CompletenessReport, RangeState
from ferry.migration.source import SourceRange
from ferry.repository.lease import Lease
from tasks.artifacts import show_markdown, show_table
from tasks.migration_progress import job_of, shown_as_a_whole
from tasks.parameters import SourceKind
from tasks.policy import lease_watch, progress, step
from tasks.restore_collection import in_lanes
from tasks.runs import holder, run_id
from tasks.shared_source import shared

PROGRESS_POINTS = 100_000  # fewer are copied before anybody looks

_SOURCES: dict[str, Any] = {"live collection": QdrantSource, "backup": BackupSource, "parquet": ParquetSource}
_NEEDED = {kind: tuple(name for name in model.model_fields if name != "kind") for kind, model in _SOURCES.items()}
_FIELDS = {"cluster": "source_cluster", "collection": "collection", "backup": "backup", "location": "folder"}


class Answer(RunInput):
    """What is asked before the new collection is put into service."""

    go_on: bool = Field(
        default=False,
        title="Put it into service",
        description="On: what was written since is carried over, both are compared, and the alias moves. Off: nothing.",
    )


def source_named(kind: SourceKind, **names: str | None) -> SourceName:
    """The source that the form names; raises ConfigurationError where a field that it needs is empty."""
    kept = {name: names[name] for name in _NEEDED[kind] if names[name] is not None}
    if missing := [name for name in _NEEDED[kind] if name not in kept]:
        msg = f"A {kind} as the source needs {' and '.join(_FIELDS[name] for name in missing)}; nothing was asked."
        raise ConfigurationError(msg, "Fill them in.")
    source: SourceName = _SOURCES[kind](**kept)
    return source


def request_migration(cluster: str, repository: str, wishes: Mapping[str, Any]) -> MigrationRequest:
    """The request of this flow run; raises ConfigurationError for an unknown profile before anything is asked."""
    connect(cluster, repository)
    given = {name: value for name, value in wishes.items() if value is not None}
    request = MigrationRequest(cluster=cluster, repository=repository, **given)
    if not request.restart:
        return request
    began, saved = _began(), records.saved_plan(_connections(request), records.migration_id_of(request))
    # A run that was suspended or retried begins from the top: it has restarted the migration already.
    return request.model_copy(update={"restart": began is None or saved is None or saved.created_at < began})


def _began() -> datetime | None:
    """When this flow run first began; None while it has not been suspended, and was not retried."""
    context = FlowRunContext.get()
    return context.flow_run.start_time if context and context.flow_run else None


def require_answerable(request: MigrationRequest, *, approve: bool) -> None:
    """Raise ConfigurationError when the run shall ask before the alias moves, and Prefect could not suspend it."""
    if approve and request.alias and not deployment.id:
        msg = "Only a run of a deployment can be suspended to ask for an approval; nothing was changed."
        raise ConfigurationError(msg, "Start it from its deployment, or with approve=False.")


def _connections(request: MigrationRequest) -> Connections:
    return connect(request.cluster, request.repository)


def alone_and_tidied(request: MigrationRequest) -> AbstractContextManager[Lease]:
    """Hold the lease on the new name, and put back what dead migrations left on the cluster."""
    return run.alone(_connections(request), request, holder(f"migration {run_id()}"))


@step("plan migration", "plan migration into {request.into}")
def plan_migration(request: MigrationRequest) -> MigrationPlan:
    """Find the plan of the migration's first run, or make one, and refuse what would not work; changes nothing."""
    connections = _connections(request)
    planned = prepare.prepare_migration(connections, request)
    nodes = migration_report.need_rows(planned, connections.cluster.read_layout(include=()))
    name = ("migration", request.cluster, request.into)
    show_table((*name, "nodes"), nodes, f"What {planned.target} needs of each node, at most")
    show_table((*name, "ranges"), migration_report.plan_rows(planned), f"Ranges of {planned.target}")
    show_table((*name, "writers"), migration_report.cost_rows(planned), f"What each writer costs for {planned.target}")
    show_markdown(name, migration_report.plan_text(planned), f"Migration into {planned.target}")
    return planned


@step("make target", "make {planned.target}")
def make_target(planned: MigrationPlan) -> None:
    """Keep the plan, and make the new collection ready for its points."""
    run.begin(_connections(planned.request), planned)


@step("copy range", "copy {part.label}")
def copy_range(planned: MigrationPlan, part: SourceRange, lease: tuple[str, int]) -> RangeState:
    """Copy what is left of one range of the source."""
    connections = _connections(planned.request)
    watch = lease_watch(connections.store, *lease)
    tell = progress(f"copy {part.label}", part.points or 0, watch, worth=PROGRESS_POINTS)
    with shared(planned) as source:
        return copying.copy_range(connections, planned, source, part, tell)


def fill_target(planned: MigrationPlan, lease: Lease) -> None:
    """Give the new collection its points by the planned writer, unless it is the operator's; raises what failed."""
    if conclude.over(_connections(planned.request), planned) is not None:
        return
    if planned.writer == "build":
        build_shards(planned, lease)
        return
    held = (lease.key, lease.fencing)
    submitted: Any = copy_range
    lanes = run.lanes_of_ranges(planned)
    with shared(planned), shown_as_a_whole(planned):
        in_lanes(
            lambda part, after: submitted.submit(planned, part, held, wait_for=after), lanes, lease, "copying ranges"
        )


@step("build shards", "build shards of {planned.target}")
def build_shards(planned: MigrationPlan, lease: Lease) -> None:
    """Build every shard that is not finished yet, and give it to all of its replicas."""
    with shared(planned) as source:
        run.build(_connections(planned.request), planned, job_of(planned, lease), source)


@step("finish migration", "finish {planned.target}")
def finish_migration(planned: MigrationPlan, lease: Lease) -> CompletenessReport:
    """Wait until the new collection is indexed, compare it with the source, write again what differs, and report."""
    connections = _connections(planned.request)
    if (report := _finished_before(planned)) is None:
        with shared(planned) as source:
            report = run.finish(connections, planned, job_of(planned, lease), source)
    show_markdown(
        ("migrated", planned.request.cluster, planned.target),
        migration_report.report_text(report),
        f"Migration into {planned.target}",
    )
    return report


def _finished_before(planned: MigrationPlan) -> CompletenessReport | None:
    """The report that this very flow run made before it was suspended; the cut-over compares again anyway."""
    report, began = records.saved_report(_connections(planned.request), planned.migration_id), _began()
    if report is None or began is None or report.finished_at < began:
        return None
    return report


def may_cut_over(planned: MigrationPlan, report: CompletenessReport, *, approve: bool) -> bool:
    """Suspend the flow run until somebody answers, where that is wanted; it begins from the top then."""
    if not approve or target.in_service(_connections(planned.request), planned):
        return True
    asked = Answer.with_initial_data(description=migration_report.approval_text(planned, report))
    return suspend_flow_run(wait_for_input=asked, key="cut-over").go_on


@step("cut over", "cut over to {planned.target}")
def cut_over(planned: MigrationPlan, lease: Lease) -> CutOver:
    """Carry the last differences over, compare until both are equal, move the alias, and hand the collection over."""
    connections = _connections(planned.request)
    tell = progress(f"compare {planned.target}", 0, lease_watch(connections.store, lease.key, lease.fencing))
    with shared(planned) as source:
        done = switching.cut_over(connections, planned, source, progress=tell)
    name = ("cut-over", planned.request.cluster, planned.target)
    show_markdown(name, migration_report.cut_over_text(planned, done), f"Cut-over to {planned.target}")
    return done
