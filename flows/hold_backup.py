"""Hold a backup, so that no retention deletes it, or release it again.

Trigger: the form in the UI, or the API. Writes or deletes ``<prefix>/holds/<cluster>/<backup_id>.json`` and nothing
else. A hold stays until somebody releases it.
"""

from prefect import flow

from tasks import hold_backup as tasks
from tasks.parameters import ClusterName, Name, RepositoryName
from tasks.runners import task_runner


@flow(name="hold-backup", flow_run_name="hold backup {backup} of {cluster}", task_runner=task_runner())
def hold_backup(
    repository: RepositoryName,
    cluster: ClusterName,
    by: Name,
    reason: Name,
    backup: Name = "latest",
    release: bool = False,
) -> str:
    """Keep a backup whatever the policy says, until it is released.

    Args:
        repository: Where the backup is, by the name it has in the settings.
        cluster: The cluster that the backup was made of.
        by: Who wants it kept, or released. The parameters of this run say it for a release.
        reason: Why, for whoever asks in some years.
        backup: The id of the backup, or latest for the newest complete one. A release needs the id.
        release: Take the hold back instead. From then on the retention decides again.

    Returns:
        The id of the backup.
    """
    if release:
        return tasks.release(repository, cluster, backup)
    return tasks.hold(repository, cluster, backup, by, reason)
