"""Compare two backups of a collection, or a backup with a live collection: which points differ, and in what.

Trigger: the form in the UI, or the API. Reads the bucket and the nodes; changes nothing but readers' marks of its own,
which keep a prune from the backups meanwhile. Differences are no failure.
"""

from prefect import flow

from tasks import compare_backups as tasks
from tasks.parameters import Name, RepositoryName
from tasks.runners import task_runner


@flow(name="compare-backups", flow_run_name="compare {first} with {second}", task_runner=task_runner())
def compare_backups(repository: RepositoryName, first: Name, second: Name, out: Name | None = None) -> int:
    """Name the points that were added, removed or changed from the first collection to the second one.

    Args:
        repository: Where the backups are, by the name it has in the settings.
        first: The older side. CLUSTER/BACKUP/COLLECTION, such as source/latest/words, or live:CLUSTER/COLLECTION. An
            alias is as good as a name.
        second: The newer side, in the same form.
        out: A new file on the worker's disk for the whole list, with a line of JSON for each point. Left out, only the
            first points of each kind are named.

    Returns:
        How many points differ.
    """
    found = tasks.compare(repository, first, second, out)
    return tasks.report_differences(first, second, found)
