"""``show``: one backup with its collections, shards, digests, aliases and findings."""

import argparse

from ferry import report
from ferry.cli import terminal
from ferry.cli.stored import StoredBackup, find_backup
from ferry.connections import connect_repository


def run(given: argparse.Namespace) -> int:
    """Print the record of the run and each manifest."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    found = find_backup(repository, given.cluster, given.backup)
    if given.json:
        terminal.print_json(
            {
                "backup_id": found.backup_id,
                "cluster": found.cluster,
                "complete": found.record is not None,
                "record": found.record and found.record.model_dump(mode="json"),
                "collections": [manifest.model_dump(mode="json") for manifest in found.manifests],
            }
        )
    else:
        _print(found)
    return 0


def _print(found: StoredBackup) -> None:
    if found.record is not None:
        terminal.print_text(report.backup_verdict(found.record))
    else:
        terminal.print_text(
            f"## Backup {found.backup_id} of {found.cluster} is incomplete\n\nIts run did not finish, or runs still. "
            "Each collection below is proven and can be restored by this backup's id; the aliases were not saved."
        )
    for manifest in found.manifests:
        terminal.print_text(f"## {manifest.collection}\n\n{report.collection_text(manifest)}")
        rows = report.collection_rows(manifest, {})
        terminal.print_rows({name: cell for name, cell in row.items() if name != "MB/s"} for row in rows)
