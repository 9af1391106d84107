"""Tasks of the restore of many collections: plan all, restore each by a flow run of its own, move the aliases."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from prefect import State

from ferry import cluster_report
from ferry.connections import Connections, connect
from ferry.lanes import Job
from ferry.repository.lease import Lease
from ferry.restore import cluster_aliases, cluster_run
from ferry.restore.plan import RestorePlan
from ferry.restore.whole_cluster import ClusterRestorePlan, ClusterRestoreRequest
from tasks.artifacts import show_markdown, show_table
from tasks.policy import step
from tasks.runs import holder, run_id


def request_cluster(cluster: str, repository: str, wishes: Mapping[str, Any]) -> ClusterRestoreRequest:
    """The request of this flow run; raises ConfigurationError for an unknown profile before anything is asked."""
    connect(cluster, repository)
    return ClusterRestoreRequest(restore_id=run_id(), cluster=cluster, repository=repository, **wishes)


def _connections(request: ClusterRestoreRequest) -> Connections:
    return connect(request.cluster, request.repository)


def alone_on_cluster(request: ClusterRestoreRequest) -> AbstractContextManager[Lease]:
    """Be the only restore of many into this cluster, and drop what dead restores left behind."""
    return cluster_run.alone_on_cluster(_connections(request), holder(f"restore {request.restore_id} of many"))


@step("plan cluster", "plan restore of {request.source_cluster} to {request.cluster}")
def plan_cluster(request: ClusterRestoreRequest) -> ClusterRestorePlan:
    """Plan every collection, compare what is there already, and refuse what would not work; changes nothing."""
    planned = cluster_run.prepare_cluster(_connections(request), request, Job())
    rows, text = cluster_report.cluster_plan_rows(planned), cluster_report.cluster_plan_text(planned)
    show_table(("plan", request.cluster, "many"), rows, text)
    return planned


def reading_all(planned: ClusterRestorePlan) -> AbstractContextManager[None]:
    """Hold a reader's mark on the whole backup until the last collection is restored."""
    return cluster_run.reading_all(_connections(planned.request), planned)


def wishes_of(planned: RestorePlan) -> dict[str, Any]:
    """The parameters of one collection's own flow run."""
    names = {"cluster", "repository", "source_cluster", "collection", "backup", "into", "path", "verify"}
    return planned.request.model_dump(include={*names, "replication_factor"})


def require_all(planned: ClusterRestorePlan, ended: Mapping[str, State[Any]]) -> None:
    """Raise RestoreError when a collection's flow run failed: what is done, what failed, the command for the rest."""
    failed = {
        name: str(state.result(raise_on_failure=False)) for name, state in ended.items() if not state.is_completed()
    }
    cluster_run.require_all(planned, failed)


@step("move aliases", "move aliases on {planned.request.cluster}")
def move_aliases(planned: ClusterRestorePlan) -> None:
    """Put every new collection into service, in one atomic request."""
    request = planned.request
    cluster_aliases.move_aliases(_connections(request), planned, holder(f"restore {request.restore_id} of many"))


@step("report cluster", "report {planned.request.cluster}")
def report_cluster(planned: ClusterRestorePlan) -> None:
    """Say how it went."""
    text = cluster_report.cluster_verdict(planned)
    show_markdown(("restored", planned.request.cluster, "many"), text, f"Restore of backup {planned.backup_id}")
