"""Tasks of the hold flow: put a hold on a backup, or take it back."""

from ferry.connections import connect_repository
from ferry.repository.holds import put_hold, release_hold
from tasks.policy import step


@step("hold", "hold {backup} of {cluster}")
def hold(repository: str, cluster: str, backup: str, by: str, reason: str) -> str:
    """Put a hold on a backup; its id."""
    opened = connect_repository(repository)
    return put_hold(opened.store, opened.keys, cluster, backup, by, reason).backup_id


@step("release", "release {backup} of {cluster}")
def release(repository: str, cluster: str, backup: str) -> str:
    """Take a hold back; the id of the backup."""
    opened = connect_repository(repository)
    return release_hold(opened.store, opened.keys, cluster, backup).backup_id
