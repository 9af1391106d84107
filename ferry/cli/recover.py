"""``recover``: put chosen points of a backup back, without Prefect."""

import argparse
from uuid import uuid4

from ferry.cli import chosen, terminal
from ferry.connections import connect
from ferry.lanes import Job
from ferry.models import now
from ferry.recovery import report
from ferry.recovery.plan import RecoveryPlan, RecoveryRequest
from ferry.recovery.run import look, run_recovery
from ferry.repository.layout import new_backup_id


def run(given: argparse.Namespace) -> int:
    """Show the plan; compare, unless it is a dry run write and read back, and print what was found."""
    repository = terminal.chosen_repository(given.repository)
    connections = connect(given.cluster, repository)
    request = RecoveryRequest(
        recovery_id=new_backup_id(now(), str(uuid4())),
        cluster=given.cluster,
        repository=repository,
        source_cluster=given.source_cluster,
        backup=given.backup,
        collection=given.collection,
        filter=chosen.given_filter(given),
        ids=chosen.given_ids(given),
        into=given.into,
        mode=given.mode,
    )
    with terminal.progress_bars() as tell:
        if given.dry_run:
            recovered = look(connections, request, Job(tell))
            _print_plan(recovered.plan)
        else:
            holder = f"recovery {request.recovery_id} by python -m ferry"
            recovered = run_recovery(connections, request, holder, Job(tell), announce=_print_plan)
    terminal.print_rows(report.recovered_rows(recovered))
    terminal.print_text(report.recovered_text(recovered))
    return 0


def _print_plan(plan: RecoveryPlan) -> None:
    terminal.print_text(report.plan_text(plan))
