"""Restore a collection from a proven backup: under a new name, in any shape, compared, then put into service.

Trigger: the form in the UI, or the API. Reads the bucket; creates one new collection on the target cluster and, last,
moves one alias. A failure drops the new collection again; the live collection and its alias are untouched.
"""

from prefect import flow

from ferry.models import RestorePath, VerifyLevel
from tasks import restore_collection as tasks
from tasks.parameters import ClusterName, KeepDays, Name, Replication, RepositoryName, Shape
from tasks.runners import task_runner


@flow(name="restore-collection", flow_run_name="restore {collection} to {cluster}", task_runner=task_runner())
def restore_collection(
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
    keep_days: KeepDays = 7,
    verify: VerifyLevel = "sample",
    keep_on_failure: bool = False,
    dry_run: bool = False,
) -> str:
    """Restore one collection from a backup into a new collection, and compare it with the backup's proof.

    Args:
        cluster: The cluster to restore to, by the name it has in the settings. It may have another number of nodes.
        repository: Where the backup is, by the name it has in the settings.
        source_cluster: The cluster that the backup was made of.
        collection: The collection's name in the backup.
        backup: The id of the backup, or latest for the newest one that holds this collection.
        into: Name of the new collection. Left out, it is the old name with the backup's id behind it.
        replication_factor: Copies of each shard. Left out, as many as the source had, at most one a node.
        shape: What the new collection shall have otherwise than the backup: shards, shard keys, storage. Where the
            archives do not fit it, their points are read out and sent.
        path: shards recovers the archives on every replica. points reads the points out and sends them: slower, and the
            target indexes anew. Left out, it is the cheapest that is possible, and the plan says why.
        alias: An alias to point at the new collection when it is restored and equal to its proof. Moved last, in one
            atomic request.
        keep_days: How long the collection that the alias pointed at before stays at least, for roll-back-restore. After
            that finish-restore drops it.
        verify: count compares the exact count of every replica. sample also compares random points field by field.
            content compares every point of every replica, which reads everything once.
        keep_on_failure: Keep the new collection when the restore fails, to look at it. Otherwise it is dropped.
        dry_run: Show the plan, with bytes, disk and memory for each node and the reason of each choice, and stop.

    Returns:
        The name of the new collection.
    """
    source = {"source_cluster": source_cluster, "collection": collection, "backup": backup}
    target = {"into": into, "replication_factor": replication_factor, "shape": shape or Shape(), "path": path}
    then = {"alias": alias, "keep_days": keep_days, "verify": verify, "keep_on_failure": keep_on_failure}
    request = tasks.request_restore(cluster, repository, source | target | then)
    if dry_run:
        return tasks.plan_restore(request).target
    with tasks.alone_and_tidied(request) as lease:
        plan = tasks.plan_restore(request)
        with tasks.reading(plan), tasks.discarded_on_failure(plan):
            replicas = tasks.create_target(plan, lease)
            recovered = tasks.fill_target(plan, replicas, lease)
            tasks.settle_target(plan)
            verdicts = tasks.on_every_replica(tasks.verify_replica, replicas, "verifying", lease)
            tasks.require_equal(plan, recovered, verdicts)
            tasks.keep_target(plan)
        tasks.move_alias(plan)
        tasks.report_restore(plan, recovered, verdicts)
    return plan.target
