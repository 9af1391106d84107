"""``backup``: back up a cluster without Prefect."""

import argparse
from uuid import uuid4

from ferry import report
from ferry.backup.plan import BackupRequest
from ferry.backup.run import prepare, run_backup
from ferry.cli import terminal
from ferry.connections import connect
from ferry.lanes import Job
from ferry.models import now
from ferry.repository.layout import new_backup_id


def run(given: argparse.Namespace) -> int:
    """Plan, show the plan, and unless it is a dry run do it and print the verdict."""
    repository = terminal.chosen_repository(given.repository)
    connections = connect(given.cluster, repository)
    request = BackupRequest(
        backup_id=new_backup_id(now(), str(uuid4())),
        cluster=given.cluster,
        repository=repository,
        include=tuple(given.include or ("*",)),
        exclude=tuple(given.exclude),
        kind=given.kind,
        proof=given.proof,
        policy=given.policy,
        fresh=given.fresh,
    )
    planned = prepare(connections, request)
    terminal.print_text(report.backup_plan_text(planned))
    terminal.print_rows(report.backup_plan_rows(planned))
    if given.dry_run:
        return 0
    with terminal.progress_bars() as tell:
        record = run_backup(connections, planned, f"backup {planned.backup_id} by python -m ferry", Job(tell))
    terminal.print_text(report.backup_verdict(record))
    return 0
