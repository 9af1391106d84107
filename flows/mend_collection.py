"""Mend a collection whose replicas are stuck: surplus, missing, Partial, Dead, unreadable, or seen differently.

Trigger: the form in the UI, or the API. Asks every node for its own view and every replica for its points, and makes
only calls that cannot lose the last good copy; what is left to do is told with the exact call. A failure leaves nothing
behind: run it again, and it reads and goes on.
"""

from prefect import flow

from tasks import mend_collection as tasks
from tasks.parameters import ClusterName, Name, Replication, Seconds
from tasks.runners import task_runner


@flow(name="mend-collection", flow_run_name="mend {collection} on {cluster}", task_runner=task_runner())
def mend_collection(
    cluster: ClusterName,
    collection: Name,
    replication_factor: Replication | None = None,
    patience_seconds: Seconds = 30,
    timeout_seconds: Seconds = 3600,
    dry_run: bool = True,
) -> int:
    """Find what is stuck in a collection and mend it, or show the exact calls.

    Args:
        cluster: The cluster, by the name it has in the settings.
        collection: The collection's name; an alias is none.
        replication_factor: Copies that each shard should have. Left out, what the collection says. A collection with
            shard keys needs it before copies are dropped or made, for a key may have a number of its own.
        patience_seconds: How long a thing must be seen unchanged before it counts as stuck. Qdrant mends some by
            itself: a Dead replica within seconds, a node's Initializing replicas when it is back.
        timeout_seconds: When to stop waiting for shard transfers that still go on.
        dry_run: Show what is stuck, and the call for each. Nothing is changed. Take it off to mend.

    Returns:
        How many things were stuck at the first look.
    """
    request = tasks.request_mend(collection, replication_factor, patience_seconds, timeout_seconds)
    found = tasks.find_stuck(cluster, request)
    if found and not dry_run:
        tasks.report_mend(cluster, tasks.mend(cluster, request))
    return found
