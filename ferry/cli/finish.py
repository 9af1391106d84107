"""``finish``: drop the old collections of restores whose time is over."""

import argparse

from ferry import switch_report
from ferry.cli import terminal
from ferry.connections import connect
from ferry.restore.finish import finish, look_at_finish
from ferry.restore.switch_record import FinishWishes


def run(given: argparse.Namespace) -> int:
    """Print one row for each old collection, and what became of it."""
    connections = connect(given.cluster, terminal.chosen_repository(given.repository))
    wishes = FinishWishes(now=given.now, drop_changed=given.drop_changed)
    if given.dry_run:
        finished = look_at_finish(connections, given.alias, wishes)
    else:
        finished = finish(connections, given.alias, wishes, "finish by python -m ferry")
    terminal.print_rows(switch_report.finish_rows(finished))
    terminal.print_text(switch_report.finish_text(finished, dry_run=given.dry_run))
    return 0
