"""Tasks of the mend flow: find what is stuck, mend it, report."""

from ferry import mend_report
from ferry.qdrant.cluster import Cluster
from ferry.restore.mend import Mended, MendRequest, require_mended, stuck_replicas
from ferry.restore.mend import mend as mend_it
from ferry.settings import load_settings
from tasks.artifacts import show_markdown, show_table
from tasks.policy import progress, step


def request_mend(collection: str, copies: int | None, patience_seconds: float, timeout_seconds: float) -> MendRequest:
    """What this flow run is asked to mend."""
    return MendRequest(
        collection=collection,
        copies=copies,
        patience_seconds=patience_seconds,
        away_seconds=patience_seconds,
        timeout_seconds=timeout_seconds,
    )


@step("find stuck", "find stuck of {request.collection}")
def find_stuck(cluster: str, request: MendRequest) -> int:
    """Show what is stuck, why, and the exact call for each; how many things. Changes nothing."""
    with Cluster(cluster, load_settings().cluster(cluster)) as opened:
        found = stuck_replicas(opened, request)
    rows, text = mend_report.stuck_rows(found), mend_report.stuck_text(request.collection, found)
    show_table(("stuck", cluster, request.collection), rows, text)
    return len(found)


@step("mend", "mend {request.collection}")
def mend(cluster: str, request: MendRequest) -> Mended:
    """Make the calls that cannot lose the last good copy, and wait until every replica is Active everywhere."""
    with Cluster(cluster, load_settings().cluster(cluster)) as opened:
        return mend_it(opened, request, progress(f"mend {request.collection}", 0))


@step("report mend", "report {mended.collection}")
def report_mend(cluster: str, mended: Mended) -> None:
    """Say what was done; raises StuckError with the exact calls when something is left to do."""
    name = ("mended", cluster, mended.collection)
    show_markdown(name, mend_report.mended_text(mended), f"Mend of {mended.collection}")
    require_mended(mended)
