"""``diff``: what differs between two backups of a collection, or a backup and a live collection."""

import argparse

from ferry.cli import terminal
from ferry.lanes import Job
from ferry.verify.diff import diff
from ferry.verify.diff_report import comparison_text, difference_rows


def run(given: argparse.Namespace) -> int:
    """Print how many points differ and the first of them; the whole list goes to a file. Changes nothing."""
    repository = terminal.chosen_repository(given.repository)
    names = (given.first, given.second)
    who = f"diff of {given.first} and {given.second} by python -m ferry"
    with terminal.progress_bars() as tell:
        found = Job(tell).step("read", None, lambda told: diff(repository, names, who, given.out, told))
    if given.json:
        terminal.print_json(found.model_dump(mode="json"))
        return 0
    terminal.print_text(comparison_text(found))
    terminal.print_rows(difference_rows(found), "The first points of each kind")
    if given.out is not None:
        terminal.print_raw(f"The whole list is in {given.out}.")
    return 0
