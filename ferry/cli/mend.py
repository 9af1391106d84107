"""``mend``: find what is stuck in a collection, and mend what cannot lose the last good copy."""

import argparse

from ferry import mend_report
from ferry.cli import terminal
from ferry.qdrant.cluster import Cluster
from ferry.restore.mend import MendRequest, mend, require_mended, stuck_replicas
from ferry.settings import load_settings


def run(given: argparse.Namespace) -> int:
    """Show what is stuck; unless it is a dry run mend it, and raise StuckError with the calls that are left."""
    request = MendRequest(
        collection=given.collection,
        copies=given.replication_factor,
        patience_seconds=given.patience,
        away_seconds=given.patience,
        timeout_seconds=given.timeout,
    )
    with Cluster(given.cluster, load_settings().cluster(given.cluster)) as cluster:
        found = stuck_replicas(cluster, request)
        terminal.print_rows(mend_report.stuck_rows(found))
        if given.dry_run or not found:
            terminal.print_text(mend_report.stuck_text(given.collection, found))
            return 1 if found else 0
        with terminal.progress_bars() as tell, tell(f"mend {given.collection}", None) as show:
            mended = mend(cluster, request, show)
    terminal.print_text(mend_report.mended_text(mended))
    require_mended(mended)
    return 0
