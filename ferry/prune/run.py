"""A prune from beginning to end: alone on its cluster, by the store's clock, one backup after the other."""

import logging

from ferry.connections import Connections, Repository
from ferry.errors import ConfigurationError, FerryError
from ferry.models import Finding, Progress, Value, no_progress
from ferry.profiles import PolicyProfile
from ferry.prune.plan import PrunePlan, plan_prune
from ferry.prune.steps import Outcome, Pruning, delete_backup
from ferry.repository.deletions import forget_deletion
from ferry.repository.lease import Lease, acquire
from ferry.repository.upkeep import store_time

log = logging.getLogger(__name__)


class Pruned(Value):
    """What a prune found and did; without outcomes it was a dry run, or there was nothing to delete."""

    plan: PrunePlan
    outcomes: tuple[Outcome, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of the plan, and what was to be deleted and was not."""
        return (*self.plan.findings, *(_finding(outcome) for outcome in self.outcomes if outcome.state != "deleted"))

    @property
    def freed_bytes(self) -> int:
        """Bytes of what was deleted."""
        return sum(outcome.bytes for outcome in self.outcomes)


def look(repository: Repository, cluster: str, policy: PolicyProfile) -> Pruned:
    """What a prune would do now; changes nothing."""
    at = store_time(repository.store, repository.keys.repository)
    return Pruned(plan=plan_prune(repository, cluster, policy, at))


def prune(
    repository: Repository, cluster: str, policy: PolicyProfile, holder: str, progress: Progress = no_progress
) -> Pruned:
    """Take the lease of the cluster and delete what no rule keeps. ``progress`` may raise to stop between backups.

    Raises ConfigurationError when the repository's keys may not delete, LeaseHeldError when a run is at work.
    """
    require_deletes(repository)
    key = repository.keys.lease(cluster)
    with acquire(repository.store, key, holder, repository.profile.lease_seconds, progress=progress) as lease:
        return prune_under(repository, cluster, policy, lease, holder, progress)


def prune_under(
    repository: Repository,
    cluster: str,
    policy: PolicyProfile,
    lease: Lease,
    by: str,
    progress: Progress = no_progress,
) -> Pruned:
    """The same by who holds the lease already. All facts are read anew, now that nobody else is at work."""
    pruning = begin(repository, cluster, policy, lease, by)
    plan = plan_prune(repository, cluster, policy, pruning.at)
    _forget_given_up(pruning, plan)
    outcomes = []
    for verdict in plan.deletes:
        progress(0)
        outcome = delete_backup(pruning, plan, verdict)
        log.info("%s of %s: %s %s", outcome.backup_id, cluster, outcome.state, outcome.reason or verdict.reasons[0])
        outcomes.append(outcome)
    return Pruned(plan=plan, outcomes=tuple(outcomes))


def prune_after_backup(connections: Connections, policy: PolicyProfile, lease: Lease) -> list[Finding]:
    """The last step of a backup that succeeded: prune under its lease, unless the policy or the keys forbid it.

    Nothing that fails here makes the backup a failed one: it becomes a warning. Raises nothing of Ferry's.
    """
    if not policy.prune_after_backup or policy.retention.keeps_all or not connections.profile.can_delete:
        return []
    cluster = connections.cluster.name
    try:
        return list(prune_under(connections, cluster, policy, lease, "the prune after a backup").findings)
    except FerryError as error:
        log.warning("the backup is good, the prune after it failed: %s", error.message)
        remedy = error.remedy or f"Try it alone: python -m ferry prune --cluster {cluster} --apply"
        message = f"The backup is good; the prune after it ended early: {error.message}"
        return [Finding(severity="warning", subject="prune", message=message, remedy=remedy)]


def begin(repository: Repository, cluster: str, policy: PolicyProfile, lease: Lease, by: str) -> Pruning:
    """Renew the lease; the time that the store wrote on it is the present."""
    lease.confirm()
    renewed = repository.store.head(repository.keys.lease(cluster))
    if renewed is None:
        msg = f"The lease of {cluster} is gone right after it was renewed; nothing was deleted."
        raise ConfigurationError(msg, "Somebody deletes objects under leases/: end that, then run it again.")
    return Pruning(repository, cluster, lease, renewed.modified, policy.retention.grace_hours, by)


def require_deletes(repository: Repository) -> None:
    """Raise ConfigurationError when the keys of the repository may not delete."""
    if not repository.profile.can_delete:
        where = f"s3://{repository.profile.bucket}/{repository.profile.prefix}"
        msg = f"The keys for {where} may not delete (can_delete = false), so nothing was pruned."
        raise ConfigurationError(
            msg, "Prune from a machine whose profile of this repository has keys that may delete and can_delete = true."
        )


def _forget_given_up(pruning: Pruning, plan: PrunePlan) -> None:
    """Notes of deletions that are finished, or whose backup is to stay with what is left of it."""
    kept = {verdict.backup_id for verdict in plan.verdicts if verdict.keep}
    for backup_id in plan.begun:
        facts = plan.facts.get(backup_id)
        goes_on_later = facts is not None and facts.being_deleted and (facts.readers or facts.locked_until)
        if facts is None or (backup_id in kept and not goes_on_later):
            forget_deletion(pruning.repository.store, pruning.repository.keys, plan.cluster, backup_id)


def _finding(outcome: Outcome) -> Finding:
    waits = outcome.state == "waiting"
    return Finding(
        severity="info" if waits else "warning",
        subject=outcome.backup_id,
        message=f"{'Its archives wait' if waits else 'It was not deleted'}: {outcome.reason}",
        remedy="The next prune goes on with it." if waits else None,
    )
