"""``roll-back``: let an alias answer from its old collection again."""

import argparse

from ferry import switch_report
from ferry.cli import terminal
from ferry.connections import connect
from ferry.restore.roll_back import WayBack, look_at_roll_back, roll_back


def run(given: argparse.Namespace) -> int:
    """Say what it does and what is lost by it; unless it is a dry run, do it."""
    connections = connect(given.cluster, terminal.chosen_repository(given.repository))
    if given.dry_run:
        _say(look_at_roll_back(connections, given.alias, given.drop_new))
        terminal.print_text("Nothing was changed.")
        return 0
    way = roll_back(connections, given.alias, given.drop_new, "roll-back by python -m ferry", _say)
    old = way.switch.old.collection if way.switch.old else "nothing"
    terminal.print_text(f"Alias **{given.alias}** points at **{old}**.")
    return 0


def _say(way: WayBack) -> None:
    terminal.print_text(switch_report.roll_back_text(way))
