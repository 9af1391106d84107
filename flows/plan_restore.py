"""Plan a restore: which path is legal and cheapest, what it needs on each node, how long it takes and what is lost.

Trigger: the form in the UI, or the API. Reads the bucket and asks the target; changes nothing.
"""

from typing import Any

from prefect import flow

from ferry.models import RestorePath, VerifyLevel
from tasks import plan_restore as tasks
from tasks.parameters import ClusterName, Name, Replication, RepositoryName, Shape
from tasks.runners import task_runner


@flow(
    name="plan-restore",
    flow_run_name="plan restore {collection} to {cluster}",
    task_runner=task_runner(),
    persist_result=True,
    result_serializer="json",
)
def plan_restore(
    cluster: ClusterName,
    repository: RepositoryName,
    source_cluster: ClusterName,
    collection: Name,
    backup: Name = "latest",
    into: Name | None = None,
    replication_factor: Replication | None = None,
    shape: Shape | None = None,
    path: RestorePath | None = None,
    alias: Name | None = None,
    verify: VerifyLevel = "sample",
) -> dict[str, Any]:
    """Show how one collection would be restored from a backup, and why; restore-collection takes the same fields.

    Args:
        cluster: The cluster to restore to, by the name it has in the settings.
        repository: Where the backup is, by the name it has in the settings.
        source_cluster: The cluster that the backup was made of.
        collection: The collection's name in the backup.
        backup: The id of the backup, or latest for the newest one that holds this collection.
        into: Name of the new collection. Left out, it is the old name with the backup's id behind it.
        replication_factor: Copies of each shard. Left out, as many as the source had, at most one a node.
        shape: What the new collection shall have otherwise than the backup: shards, shard keys, storage.
        path: shards recovers the archives on every replica, points reads the points out of them and sends those. Left
            out, the cheapest that is possible.
        alias: An alias to point at the new collection at the end.
        verify: How the new collection would be compared with the backup's proof; it decides how long that takes.

    Returns:
        The plan as a JSON document, with neither secrets nor the manifest.
    """
    source = {"source_cluster": source_cluster, "collection": collection, "backup": backup}
    target = {"into": into, "replication_factor": replication_factor, "shape": shape or Shape(), "path": path}
    return tasks.planned(cluster, repository, source | target | {"alias": alias, "verify": verify})
