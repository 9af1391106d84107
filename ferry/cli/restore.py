"""``restore``: restore one collection without Prefect."""

import argparse
from uuid import uuid4

from ferry import report
from ferry.cli import terminal
from ferry.connections import connect
from ferry.lanes import Job
from ferry.models import now
from ferry.repository.layout import new_backup_id
from ferry.restore.plan import RestorePlan, RestoreRequest
from ferry.restore.preflight import prepare
from ferry.restore.run import Restored, run_restore


def run(given: argparse.Namespace) -> int:
    """Show the plan; unless it is a dry run restore, compare, and print the verdict."""
    repository = terminal.chosen_repository(given.repository)
    connections = connect(given.cluster, repository)
    request = RestoreRequest(
        restore_id=new_backup_id(now(), str(uuid4())),
        cluster=given.cluster,
        repository=repository,
        source_cluster=given.source_cluster,
        backup=given.backup,
        collection=given.collection,
        into=given.into,
        replication_factor=given.replication_factor,
        alias=given.alias,
        verify=given.verify,
        keep_on_failure=given.keep_on_failure,
    )
    if given.dry_run:
        _print_plan(prepare(connections, request))
        return 0
    with terminal.progress_bars() as tell:
        holder = f"restore {request.restore_id} by python -m ferry"
        restored = run_restore(connections, request, holder, Job(tell), announce=_print_plan)
    _print_verdict(restored)
    return 0


def _print_plan(plan: RestorePlan) -> None:
    terminal.print_text(report.restore_plan_text(plan))
    terminal.print_rows(report.restore_plan_rows(plan))


def _print_verdict(restored: Restored) -> None:
    plan = restored.plan
    names = {int(node.peer_id): node.label for node in plan.layout.nodes}
    verdicts = list(restored.verdicts)
    findings = plan.findings + tuple(finding for replica in restored.recovered for finding in replica.findings)
    terminal.print_rows(report.verdict_rows(verdicts, names))
    terminal.print_text(report.restore_verdict(plan, verdicts, findings))
