"""``restore-in-place``: overwrite a live collection from a backup, without Prefect."""

import argparse
from uuid import uuid4

from ferry import report
from ferry.cli import terminal
from ferry.connections import connect
from ferry.in_place_report import in_place_verdict
from ferry.lanes import Job
from ferry.models import now
from ferry.repository.layout import new_backup_id
from ferry.restore.in_place import InPlaceRequest
from ferry.restore.overwrite import run_in_place
from ferry.restore.plan import RestorePlan
from ferry.restore.present import prepare_in_place


def run(given: argparse.Namespace) -> int:
    """Show the plan; unless it is a dry run back the present state up, overwrite, compare, and print the verdict."""
    repository = terminal.chosen_repository(given.repository)
    request = InPlaceRequest(
        restore_id=new_backup_id(now(), str(uuid4())),
        cluster=given.cluster,
        repository=repository,
        source_cluster=given.source_cluster,
        backup=given.backup,
        collection=given.collection,
        into=given.into,
        confirm=given.confirm,
        waive_backup=given.waive_backup,
        verify=given.verify,
    )
    connections = connect(given.cluster, repository)
    if given.dry_run:
        _print_plan(prepare_in_place(connections, request).plan)
        return 0
    with terminal.progress_bars() as tell:
        holder = f"restore {request.restore_id} in place by python -m ferry"
        done = run_in_place(connections, request, holder, Job(tell), announce=_print_plan)
    names = {int(node.peer_id): node.label for node in done.plan.layout.nodes}
    terminal.print_rows(report.verdict_rows(list(done.verdicts), names))
    terminal.print_text(in_place_verdict(done))
    return 0


def _print_plan(plan: RestorePlan) -> None:
    terminal.print_text(report.restore_plan_text(plan))
    terminal.print_rows(report.restore_plan_rows(plan))
