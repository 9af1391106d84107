"""Finish restores: drop the old collections that aliases have left, once the time is over for which they were kept.

Trigger: a schedule, the form in the UI, or the API. Drops collections that a restore's alias has left and nobody uses,
and writes their records under ``<prefix>/switches/<cluster>/``. A failure leaves nothing half done; the next run goes
on.
"""

from prefect import flow

from tasks import finish_restore as tasks
from tasks.parameters import ClusterName, Name, RepositoryName
from tasks.runners import task_runner


@flow(name="finish-restore", flow_run_name="finish restores on {cluster}", task_runner=task_runner())
def finish_restore(
    cluster: ClusterName,
    repository: RepositoryName,
    alias: Name | None = None,
    now: bool = False,
    drop_changed: Name | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Drop the old collections of restores whose time is over, unless somebody uses them.

    Args:
        cluster: The cluster that was restored to, by the name it has in the settings.
        repository: The repository of the backups that were restored, by the name it has in the settings.
        alias: Only this alias. A restore that died before it moved its alias is brought to its end, too. Left out, it
            is every alias that a restore has moved.
        now: Drop the old collection of that alias although its time is not over.
        drop_changed: Type the name of an old collection to drop it although its points are not those of the switch.
        dry_run: Show what would be dropped, and why each old collection stays or goes, and stop.

    Returns:
        The names of the collections that were dropped; in a dry run of those that would be.
    """
    wishes = tasks.wishes(now, drop_changed)
    finished = tasks.finish_switches(cluster, repository, alias, wishes, dry_run=dry_run)
    return tasks.report_finish(cluster, finished, dry_run=dry_run)
