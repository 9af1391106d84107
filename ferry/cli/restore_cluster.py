"""``restore-cluster``: restore many collections of one backup, or a whole cluster, without Prefect."""

import argparse
from uuid import uuid4

from ferry import cluster_report
from ferry.cli import terminal
from ferry.cli.restore import pairs
from ferry.connections import connect
from ferry.lanes import Job
from ferry.models import now
from ferry.repository.layout import new_backup_id
from ferry.restore.cluster_run import prepare_cluster, run_cluster
from ferry.restore.whole_cluster import ClusterRestorePlan, ClusterRestoreRequest


def run(given: argparse.Namespace) -> int:
    """Show the whole plan; unless it is a dry run restore what is missing, move the aliases, and print the verdict."""
    repository = terminal.chosen_repository(given.repository)
    connections = connect(given.cluster, repository)
    request = ClusterRestoreRequest(
        restore_id=new_backup_id(now(), str(uuid4())),
        cluster=given.cluster,
        repository=repository,
        source_cluster=given.source_cluster,
        backup=given.backup,
        include=tuple(given.include or ("*",)),
        exclude=tuple(given.exclude),
        name=given.name,
        rename=pairs(given.rename, "--rename"),
        aliases=tuple(given.alias),
        rename_aliases=pairs(given.rename_alias, "--rename-alias"),
        keep_days=given.keep_days,
        replication_factor=given.replication_factor,
        path=given.path,
        verify=given.verify,
    )
    with terminal.progress_bars() as tell:
        if given.dry_run:
            _print_plan(prepare_cluster(connections, request, Job(tell)))
            return 0
        holder = f"restore {request.restore_id} of many by python -m ferry"
        restored = run_cluster(connections, request, holder, lambda: Job(tell), announce=_print_plan)
    terminal.print_text(cluster_report.cluster_verdict(restored.plan))
    return 0


def _print_plan(plan: ClusterRestorePlan) -> None:
    terminal.print_text(cluster_report.cluster_plan_text(plan))
    terminal.print_rows(cluster_report.cluster_plan_rows(plan))
