"""Put chosen points of a proven backup back: into the live collection, or into a new one.

Trigger: the form in the UI, or the API. Reads the bucket; writes points to one collection, which it may make. Nothing
is ever deleted. A failure leaves what was written by then, each point as in the backup; the next run goes on. A new
collection is dropped again when it fails.
"""

from typing import Any

from prefect import flow

from ferry.models import RecoveryMode
from tasks import recover_points as tasks
from tasks.parameters import ClusterName, Name, RepositoryName
from tasks.runners import task_runner


@flow(name="recover-points", flow_run_name="recover points of {collection} to {cluster}", task_runner=task_runner())
def recover_points(
    cluster: ClusterName,
    repository: RepositoryName,
    source_cluster: ClusterName,
    collection: Name,
    backup: Name = "latest",
    filter: dict[str, Any] | None = None,  # noqa: A002 - Qdrant's own word, and the form's
    ids: list[int | str] | None = None,
    into: Name | None = None,
    mode: RecoveryMode = "missing",
    dry_run: bool = False,
) -> dict[str, int]:
    """Read chosen points out of a backup, compare them with the live ones, and write those that are wanted.

    Args:
        cluster: The cluster to write to, by the name it has in the settings.
        repository: Where the backup is, by the name it has in the settings.
        source_cluster: The cluster that the backup was made of.
        collection: The collection's name in the backup.
        backup: The id of the backup, or latest for the newest one that holds this collection.
        filter: Qdrant's own filter, as its REST API takes it. {} selects every point of the backup.
        ids: Ids of points. With a filter, those of them that it selects.
        into: The live collection, or an alias of it. Left out, it has the collection's name. For a new collection its
            name; left out, the old one with the backup's id behind it.
        mode: missing writes points whose ids the live collection lacks. overwrite also replaces those that differ. new
            collection makes one with the backup's schema, and writes all of them.
        dry_run: Show how many were selected, are missing, differ and are equal, with the first ids, and stop.

    Returns:
        How many points were selected, missing, differing, equal and written.
    """
    chosen = {"collection": collection, "backup": backup, "filter": filter, "ids": ids}
    request = tasks.request_recovery(
        cluster, repository, chosen | {"source_cluster": source_cluster, "into": into, "mode": mode}
    )
    if dry_run:
        return tasks.report_recovery(tasks.recover_from_shards(tasks.plan_recovery(request), write=False))
    with tasks.alone(request) as plan:
        with tasks.target_made(plan):
            recovered = tasks.recover_from_shards(plan, write=True)
        return tasks.report_recovery(recovered)
