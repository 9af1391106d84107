"""Verify a backup in the bucket: read every archive back, open it, and compare it with its manifest.

Trigger: a schedule, the UI or the API. Reads the bucket; changes nothing but a reader's mark of its own, which keeps a
prune from the backup meanwhile.
"""

from prefect import flow

from tasks import verify_backup as tasks
from tasks.parameters import ClusterName, Name, RepositoryName
from tasks.runners import task_runner


@flow(name="verify-backup", flow_run_name="verify backup {backup} of {cluster}", task_runner=task_runner())
def verify_backup(repository: RepositoryName, cluster: ClusterName, backup: Name = "latest") -> str:
    """Prove once more that a backup can be restored: its bytes, its exact counts and its content digests.

    Args:
        repository: Where the backup is, by the name it has in the settings.
        cluster: The cluster that the backup was made of.
        backup: The id of the backup, or latest.

    Returns:
        The id of the backup.
    """
    record, manifests = tasks.find_backup(repository, cluster, backup)
    with tasks.reading(repository, cluster, record):
        verdicts = tasks.verify_archives(repository, manifests)
    tasks.require_intact(cluster, record, verdicts)
    return record.backup_id
