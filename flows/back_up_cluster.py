"""Back up a Qdrant cluster: snapshots of every shard to S3, each read back and proven before it counts.

Trigger: the nightly schedule, the button in the UI, or the API. Reads every node; writes
``<prefix>/backups/<cluster>/<backup_id>/…`` and nothing else. A failure leaves no snapshot on a node, no half upload in
the bucket, and no manifest that lies; collections that were finished before it count.
"""

from prefect import flow

from ferry.models import ProofLevel, SnapshotKind
from tasks import back_up_cluster as tasks
from tasks.parameters import ClusterName, Pattern, PolicyName, RepositoryName
from tasks.runners import task_runner


@flow(name="back-up-cluster", flow_run_name="back up {cluster} to {repository}", task_runner=task_runner())
def back_up_cluster(
    cluster: ClusterName,
    repository: RepositoryName,
    collections: list[Pattern] = ["*"],  # noqa: B006 - Prefect shows the default in the form; nobody changes it
    exclude: list[Pattern] = [],  # noqa: B006
    kind: SnapshotKind = "shard",
    proof: ProofLevel = "content",
    policy: PolicyName | None = None,
    fresh: bool = False,
    dry_run: bool = False,
) -> str:
    """Back up collections of a cluster to a bucket, and prove that the backup can be restored.

    Args:
        cluster: The cluster to back up, by the name it has in the settings (clusters.NAME).
        repository: Where the backup goes, by the name it has in the settings (repositories.NAME).
        collections: Names or patterns (docs-*) of the collections to back up. All of them by default.
        exclude: Names or patterns of collections to leave out.
        kind: shard stores one snapshot of each shard and restores onto any number of nodes. node stores the classic
            collection snapshot of every node, which stock tools can restore, at the cost of storing every replica.
        proof: content opens every archive and fixes its exact count and a digest of every point. count only counts.
            bytes only reads the bytes back.
        policy: How the backup is made and how long it is kept, by its name in the settings (policies.NAME): limits that
            protect the cluster, quiet hours, retention. Without one nothing is limited and nothing is pruned.
        fresh: Begin anew even where a run that died could be continued. Use it right before a risky change: what a
            dead run has backed up is as old as that run, a few hours at most.
        dry_run: Show the plan and stop. Nothing is created anywhere.

    Returns:
        The id of the backup; that of the run that died, where this one went on with it.
    """
    request = tasks.request_backup(
        cluster,
        repository,
        include=tuple(collections),
        exclude=tuple(exclude),
        kind=kind,
        proof=proof,
        policy=policy,
        fresh=fresh,
    )
    layout = tasks.read_layout(request)
    plan = tasks.plan_backup(request, layout)
    if not dry_run:
        with tasks.begun(plan) as run:
            stored = tasks.store_archives(run)
            counting = tasks.look_again(run, stored.proven(), stored.failed())
            entries = tasks.commit_collections(counting)
            tasks.raise_failures(counting)
            tasks.commit_backup(counting.run, entries)
            tasks.prune_after(run)
            return run.plan.backup_id
    return plan.backup_id
