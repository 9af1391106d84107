"""``gc``: take away what no backup, run or reader needs; without --apply only show it."""

import argparse

from ferry import report
from ferry.cli import terminal
from ferry.connections import connect_repository
from ferry.prune.gc import collect, look_for_garbage
from ferry.settings import load_settings


def run(given: argparse.Namespace) -> int:
    """Print one row a thing."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    policy = load_settings().policy(given.policy)
    if given.apply:
        found = collect(repository, given.cluster, policy, "gc by python -m ferry", every=given.all)
    else:
        found = look_for_garbage(repository, given.cluster, policy, every=given.all)
    terminal.print_rows(report.garbage_rows(found))
    terminal.print_text(report.garbage_text(found))
    if not given.apply and found.garbage:
        terminal.print_text("Take it away with `--apply`.")
    return 0
