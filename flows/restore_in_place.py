"""Restore a live collection in place: back its present state up, overwrite every replica, compare with the proof.

Trigger: the form in the UI, or the API. Reads the bucket; replaces every point of one live collection, whose name must
be typed. What the collection held is in a backup that is made first. Nothing is rolled back: a failure says what each
replica holds and how to go on.
"""

from prefect import flow

from ferry.models import VerifyLevel
from flows.back_up_cluster import back_up_cluster
from tasks import restore_in_place as tasks
from tasks.parameters import ClusterName, Name, RepositoryName
from tasks.runners import task_runner


@flow(
    name="restore-in-place",
    flow_run_name="restore {collection} in place on {cluster}",
    task_runner=task_runner(),
)
def restore_in_place(
    cluster: ClusterName,
    repository: RepositoryName,
    source_cluster: ClusterName,
    collection: Name,
    backup: Name,
    confirm: Name,
    into: Name | None = None,
    waive_backup: bool = False,
    verify: VerifyLevel = "content",
    dry_run: bool = False,
) -> str | None:
    """Replace every point of a live collection by those of a backup. Stop what writes to it first.

    Args:
        cluster: The cluster of the live collection, by the name it has in the settings.
        repository: Where the backup is, by the name it has in the settings. The present state is backed up there, too.
        source_cluster: The cluster that the backup was made of.
        collection: The collection's name in the backup.
        backup: The id of the backup. Not latest, because the present state is backed up first.
        confirm: Type the name of the live collection that is overwritten. Without it nothing is done.
        into: The live collection, where it has another name than in the backup.
        waive_backup: Do not back the present state up first. Then nothing can bring it back. Needed where it cannot be
            read any more, as after a restore in place that stopped half-way.
        verify: content compares every point of every replica with the backup's proof. sample compares counts and random
            points, count only the exact counts.
        dry_run: Show the plan and what every node needs, and stop. Nothing is created or changed anywhere.

    Returns:
        The id of the backup of the state before; nothing where that was waived, and in a dry run.
    """
    request = tasks.request_in_place(
        cluster,
        repository,
        source_cluster=source_cluster,
        collection=collection,
        backup=backup,
        confirm=confirm,
        into=into,
        waive_backup=waive_backup,
        verify=verify,
    )
    if dry_run:
        tasks.plan_in_place(request)
        return None
    with tasks.alone_and_tidied(request) as lease:
        prepared, before = tasks.plan_in_place(request), None
        with tasks.reading(prepared):
            if not waive_backup:
                made = back_up_cluster(cluster, repository, collections=[tasks.only(prepared)], fresh=True)
                before = tasks.require_present(prepared, made)
            with tasks.overwriting(prepared, before) as works:
                recovered = tasks.recover_all(works, lease)
                tasks.settle_in_place(prepared.plan)
                verdicts = tasks.verify_all(works, lease)
                done = tasks.require_overwritten(prepared, before, recovered, verdicts)
        tasks.finish(done)
    return before
