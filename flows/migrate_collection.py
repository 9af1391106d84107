"""Migrate a collection from anywhere into a new one: planned once, copied or built, compared point by point, cut over.

Trigger: the form in the UI, or the API. Reads a live collection, a backup or Parquet files; makes one new collection on
the target cluster and, last, moves one alias. The source is never written to. A run that fails or is cancelled leaves
what it has copied and its checkpoints: the same form again goes on there.
"""

from typing import Any

from prefect import flow

from tasks import migrate_collection as tasks
from tasks.parameters import (
    Changes,
    ClusterName,
    KeepDays,
    Name,
    Readers,
    Replication,
    RepositoryName,
    Shape,
    SourceKind,
    WriterKind,
)
from tasks.runners import task_runner


@flow(name="migrate-collection", flow_run_name="migrate into {into} on {cluster}", task_runner=task_runner())
def migrate_collection(
    cluster: ClusterName,
    repository: RepositoryName,
    into: Name,
    source: SourceKind = "live collection",
    source_cluster: ClusterName | None = None,
    collection: Name | None = None,
    backup: Name = "latest",
    folder: Name | None = None,
    filter: dict[str, Any] | None = None,  # noqa: A002 - Qdrant's own word, and the form's
    replication_factor: Replication | None = None,
    shape: Shape | None = None,
    changes: Changes | None = None,
    writer: WriterKind | None = None,
    readers: Readers = 4,
    leave_out_refused: bool = False,
    deletes: bool = True,
    alias: Name | None = None,
    keep_days: KeepDays = 7,
    approve: bool = True,
    restart: bool = False,
    dry_run: bool = False,
) -> str:
    """Bring every point of a source into a new collection, prove that both are equal, and put the new one into service.

    Args:
        cluster: The cluster to migrate to, by the name it has in the settings.
        repository: Where the plan and the checkpoints are kept, by the name it has in the settings. For a backup as the
            source it is where the backup is, too.
        into: Name of the new collection. The same source and name again go on with the migration that was begun.
        source: What is read. A live collection of a cluster in the settings, a collection in a backup, whose cluster
            may be gone, or a folder of Parquet files as Ferry writes them.
        source_cluster: The cluster of the live collection, or the one that the backup was made of.
        collection: The collection to read, by its name or an alias; for a backup its name in the backup.
        backup: For a backup as the source its id, or latest for the newest one that holds this collection.
        folder: For Parquet files the folder that they are in, on the worker's disk.
        filter: Only points that this selects. Qdrant's own filter, as its REST API takes it.
        replication_factor: Copies of each shard. Left out, as many as the source has, at most one a node.
        shape: What the new collection shall have otherwise than the source. Shards, shard keys, storage.
        changes: What its points shall have otherwise. Vectors and payload fields left out, renamed or of another type.
        writer: stream sends the points and the target indexes them. build makes whole shards on this worker, indexed,
            which the target only loads. Left out, the plan chooses, and says why.
        readers: How many ranges are read beside each other. May be another number in each run.
        leave_out_refused: Go on without points that the target cannot have, such as one with NaN, or the first of two
            under one id. The report names or counts them. Otherwise they fail the run.
        deletes: Points that the source has lost while it was copied are deleted from the new collection, too.
        alias: An alias to point at the new collection when it is equal to its source. Moved last, in one request.
        keep_days: How long the collection that the alias pointed at before stays at least, for roll-back. After that
            finish drops it.
        approve: Suspend the run before the alias moves, until somebody has looked at the report, paused what writes to
            a live source, and answers. The worker is free meanwhile. Otherwise the run goes on to its end by itself.
        restart: Forget what earlier runs of this migration have done, and plan and copy anew.
        dry_run: Show the plan, with ranges, time, disk and memory for each node and what each writer costs, and stop.

    Returns:
        The name of the new collection.
    """
    origin = tasks.source_named(source, cluster=source_cluster, collection=collection, backup=backup, location=folder)
    wanted = {"filter": filter, "replication_factor": replication_factor, "shape": shape, "changes": changes}
    how = {"writer": writer, "readers": readers, "leave_out_refused": leave_out_refused, "deletes": deletes}
    then = {"alias": alias, "keep_days": keep_days, "restart": restart}
    request = tasks.request_migration(cluster, repository, {"source": origin, "into": into, **wanted, **how, **then})
    if dry_run:
        return tasks.plan_migration(request).target
    tasks.require_answerable(request, approve=approve)
    with tasks.alone_and_tidied(request) as lease:
        plan = tasks.plan_migration(request)
        tasks.make_target(plan)
        tasks.fill_target(plan, lease)
        report = tasks.finish_migration(plan, lease)
        if alias and tasks.may_cut_over(plan, report, approve=approve):
            tasks.cut_over(plan, lease)
    return plan.target
