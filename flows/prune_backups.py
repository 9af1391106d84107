"""Prune the backups of a cluster: delete what no rule of a policy keeps, and say of each backup why it stays or goes.

Trigger: the form in the UI, a schedule, or the API; a backup whose policy says so prunes as its own last step. Deletes
under ``<prefix>/backups/<cluster>/`` and nothing else, manifests first, while it holds the cluster's lease. A failure
leaves no manifest without its archives; the next prune finishes what was begun.
"""

from prefect import flow

from tasks import prune_backups as tasks
from tasks.parameters import ClusterName, PolicyName, RepositoryName
from tasks.runners import task_runner


@flow(name="prune-backups", flow_run_name="prune {cluster} in {repository}", task_runner=task_runner())
def prune_backups(
    repository: RepositoryName, cluster: ClusterName, policy: PolicyName, dry_run: bool = True
) -> list[str]:
    """Delete the backups that no rule of a policy keeps, or show which these are.

    Args:
        repository: Where the backups are, by the name it has in the settings.
        cluster: The cluster that the backups were made of.
        policy: Whose retention decides, by its name in the settings (policies.NAME).
        dry_run: Show what would be deleted, and why each backup stays or goes. Nothing is deleted. Take it off to
            delete.

    Returns:
        The ids of the backups that were deleted; in a dry run of those that would be.
    """
    pruned = tasks.prune_cluster(repository, cluster, policy, dry_run)
    return tasks.report_prune(cluster, pruned)
