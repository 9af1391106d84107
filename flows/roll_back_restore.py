"""Roll a restore back: its alias answers from the old collection again, as long as that one is kept.

Trigger: the form in the UI, or the API. Moves one alias in one request, drops the new collection where asked, and
writes one record under ``<prefix>/switches/<cluster>/``. A failure leaves the alias at one of the two collections, and
the same run again ends it.
"""

from prefect import flow

from tasks import roll_back_restore as tasks
from tasks.parameters import ClusterName, Name, RepositoryName
from tasks.runners import task_runner


@flow(name="roll-back-restore", flow_run_name="roll back {alias} on {cluster}", task_runner=task_runner())
def roll_back_restore(
    cluster: ClusterName, repository: RepositoryName, alias: Name, drop_new: bool = False, dry_run: bool = False
) -> str:
    """Point an alias back at the collection that it pointed at before the last restore.

    Args:
        cluster: The cluster that was restored to, by the name it has in the settings.
        repository: The repository of the backup that was restored, by the name it has in the settings.
        alias: The alias that the restore has moved. What was written to the new collection since then is not in the
            old one; the plan says how many points that are.
        drop_new: Drop the new collection when the alias has left it. Otherwise it stays.
        dry_run: Show what would be done, and what is lost by it, and stop.

    Returns:
        The name of the collection that the alias points at, or would.
    """
    planned = tasks.plan_roll_back(cluster, repository, alias, drop_new)
    return planned if dry_run else tasks.roll_back(cluster, repository, alias, drop_new)
