"""``hold`` and ``release``: keep a backup whatever the policy says, and let it go again."""

import argparse

from ferry.cli import terminal
from ferry.connections import connect_repository
from ferry.repository.holds import put_hold, release_hold


def run(given: argparse.Namespace) -> int:
    """Put a hold on a backup, or take it back; say what holds."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    store, keys = repository.store, repository.keys
    if given.command == "release":
        hold = release_hold(store, keys, given.cluster, given.backup)
        terminal.print_text(f"Backup {hold.backup_id} of {given.cluster} is held no more. It was, by {hold.words}.")
        return 0
    hold = put_hold(store, keys, given.cluster, given.backup, given.by, given.reason)
    terminal.print_text(f"Backup {hold.backup_id} of {given.cluster} is held by {hold.words}.")
    return 0
