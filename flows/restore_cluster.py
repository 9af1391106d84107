"""Restore many collections of one backup, or a whole cluster: planned together, restored one after the other.

Trigger: the form in the UI, or the API. Reads the bucket; creates new collections on the target cluster, each by a flow
run of restore-collection, and, last, moves aliases in one request. A collection that fails is dropped again and does
not stop the others; then no alias moves, and the same run again restores only what is missing.
"""

from prefect import flow

from ferry.models import RestorePath, VerifyLevel
from flows.restore_collection import restore_collection
from tasks import restore_cluster as tasks
from tasks.parameters import ClusterName, KeepDays, Name, Pattern, Replication, RepositoryName
from tasks.runners import task_runner


@flow(name="restore-cluster", flow_run_name="restore {source_cluster} to {cluster}", task_runner=task_runner())
def restore_cluster(
    cluster: ClusterName,
    repository: RepositoryName,
    source_cluster: ClusterName,
    backup: Name = "latest",
    collections: list[Pattern] = ["*"],  # noqa: B006 - Prefect shows the default in the form; nobody changes it
    exclude: list[Pattern] = [],  # noqa: B006
    name: Name = "{collection}",
    rename: dict[str, Name] = {},  # noqa: B006
    aliases: list[Pattern] = [],  # noqa: B006
    rename_aliases: dict[str, Name] = {},  # noqa: B006
    keep_days: KeepDays = 7,
    replication_factor: Replication | None = None,
    path: RestorePath | None = None,
    verify: VerifyLevel = "sample",
    dry_run: bool = False,
) -> dict[str, str]:
    """Restore collections of a whole cluster from one backup, compare each with its proof, then move the aliases.

    Everything is planned and refused for all collections together before the first one is touched. What is there
    already and equal to its proof, as after a run that was killed, is not restored again.

    Args:
        cluster: The cluster to restore to, by the name it has in the settings. It may have another number of nodes.
        repository: Where the backup is, by the name it has in the settings.
        source_cluster: The cluster that the backup was made of.
        backup: The id of the backup, or latest for the newest complete one.
        collections: Names or patterns (docs-*) of the collections to restore. All of the backup's by default.
        exclude: Names or patterns of collections to leave out.
        name: What new collections are called. {collection} and {backup_id} stand for both, as in {collection}-restored.
            By default they are called as they were.
        rename: New name by old one, for single collections.
        aliases: Names or patterns of the backup's aliases to move; * is every alias of the restored collections. None
            by default. They move at the very end, in one request, when all collections are there and equal.
        rename_aliases: New name by old one, for single aliases.
        keep_days: How long collections that aliases have left are kept at least, for roll-back-restore.
        replication_factor: Copies of each shard. Left out, as many as the source had, at most one a node.
        path: shards recovers the archives on every replica. points reads the points out of them and sends those. Left
            out, the cheapest that is possible, for each collection.
        verify: How each collection is compared with its proof, also one that is there already. count compares exact
            counts, sample also random points, content every point.
        dry_run: Show the whole plan and stop. Nothing is created anywhere.

    Returns:
        The name of each new collection by its name in the backup.
    """
    names = {"name": name, "rename": rename, "aliases": tuple(aliases), "rename_aliases": rename_aliases}
    chosen = {"include": tuple(collections), "exclude": tuple(exclude), "keep_days": keep_days}
    how = {"replication_factor": replication_factor, "path": path, "verify": verify}
    source = {"source_cluster": source_cluster, "backup": backup}
    request = tasks.request_cluster(cluster, repository, source | chosen | names | how)
    if dry_run:
        return tasks.plan_cluster(request).targets
    with tasks.alone_on_cluster(request):
        plan = tasks.plan_cluster(request)
        with tasks.reading_all(plan):
            ended = {
                each.manifest.collection: restore_collection(**tasks.wishes_of(each), return_state=True)
                for each in plan.missing
            }
            tasks.require_all(plan, ended)
            tasks.move_aliases(plan)
    tasks.report_cluster(plan)
    return plan.targets
