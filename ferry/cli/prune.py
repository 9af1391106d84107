"""``prune``: delete the backups that no rule of a policy keeps; without --apply only show them."""

import argparse

from ferry import report
from ferry.cli import terminal
from ferry.connections import connect_repository
from ferry.prune.run import look, prune
from ferry.settings import load_settings


def run(given: argparse.Namespace) -> int:
    """Print one row a backup, with every reason."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    policy = load_settings().policy(given.policy)
    if given.apply:
        pruned = prune(repository, given.cluster, policy, "prune by python -m ferry")
    else:
        pruned = look(repository, given.cluster, policy)
    terminal.print_rows(report.prune_rows(pruned))
    terminal.print_text(report.prune_text(pruned))
    if not given.apply and pruned.plan.deletes:
        terminal.print_text("Delete them with `--apply`.")
    return 0
