"""A recovery from beginning to end without Prefect: the same steps as flows/recover_points.py, shard after shard."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from glob import escape

from ferry.archive.reader import PlainId
from ferry.connections import Connections
from ferry.errors import PreflightError
from ferry.lanes import Job
from ferry.models import Value
from ferry.qdrant.rights import MANAGE, require_right
from ferry.recovery.plan import RecoveryPlan, RecoveryRequest, plan_recovery, target_of
from ferry.recovery.steps import RecoveredShard, ShardWork, live_target, recover_shard
from ferry.repository import readers
from ferry.repository.manifest import CollectionManifest
from ferry.restore import run as restore_run
from ferry.restore import steps as restore_steps
from ferry.restore.preflight import alone_and_tidied
from ferry.verify.spool import require_spool


class Recovered(Value):
    """A finished recovery, or a dry run: what was found in each shard that was read, and what was written."""

    plan: RecoveryPlan
    shards: tuple[RecoveredShard, ...]
    dry_run: bool

    @property
    def not_found(self) -> tuple[PlainId, ...]:
        """The ids that were asked for and that the backup does not hold, or the filter does not select."""
        return still_sought(self.plan, self.shards) or ()


def find_manifest(connections: Connections, request: RecoveryRequest) -> CollectionManifest:
    """The manifest asked for; ``latest`` is the newest backup that holds the collection.

    Raises ConfigurationError for a wrong selection before anything is asked, BackupNotFoundError, or
    ArchiveDamagedError when the manifest is damaged.
    """
    request.selection()
    if request.backup == "latest":
        return connections.catalog.latest_with(request.source_cluster, request.collection)
    return connections.catalog.read_manifest(request.source_cluster, request.backup, request.collection)


def prepare(connections: Connections, request: RecoveryRequest) -> RecoveryPlan:
    """Find the backup, ask the cluster, and plan; changes nothing.

    Raises what `plan_recovery` raises, LayoutError when the cluster is not at rest, HeadroomError when the spool disk
    is too small, and PreflightError when the key may not make a new collection.
    """
    manifest, cluster = find_manifest(connections, request), connections.cluster
    # No other collection is looked into: one of them may be broken.
    layout = cluster.read_layout(include=())
    target = target_of(request, manifest, layout)
    if target in layout.names:
        layout = cluster.read_layout(include=(escape(target),))
    plan = plan_recovery(request, manifest, layout)
    if plan.restore is not None:
        require_right(cluster, MANAGE)
    findings = cluster.require_quiet(layout)
    require_spool(connections.worker, max(archive.bytes for archive in manifest.archives))
    return plan.model_copy(update={"findings": plan.findings + tuple(findings)})


@contextmanager
def alone(connections: Connections, request: RecoveryRequest, holder: str) -> Iterator[RecoveryPlan]:
    """Hold the lease on the collection that is written to, as restores do, and a reader's mark on the backup; the plan.

    Raises LeaseHeldError when a restore or another recovery works on it.
    """
    manifest = find_manifest(connections, request)
    target = target_of(request, manifest, connections.cluster.read_layout(include=()))
    with alone_and_tidied(connections, target, holder):
        plan = prepare(connections, request)
        if plan.target != target:
            msg = f"{request.into or request.collection} pointed at {target}, and points at {plan.target} now."
            raise PreflightError(msg, "Nothing was changed; run it again.")
        with _reading(connections, plan):
            yield plan


def _reading(connections: Connections, plan: RecoveryPlan) -> AbstractContextManager[None]:
    keys, found = connections.keys, plan.manifest
    point = keys.manifest(found.cluster, found.backup_id, found.collection)
    who = f"recovery {plan.request.recovery_id} of points of {found.collection} to {plan.request.cluster}"
    return readers.reading(connections.store, keys, found.cluster, found.backup_id, [point], who)


@contextmanager
def target_made(connections: Connections, plan: RecoveryPlan) -> Iterator[None]:
    """Make the new collection where one is wanted, and keep it when all has gone well; a failure drops it again."""
    if plan.restore is None:
        yield
        return
    with restore_run.discarded_on_failure(connections, plan.restore):
        restore_steps.create_target(connections, plan.restore)
        yield
        restore_run.require_same_schema(plan.restore, restore_steps.settle_target(connections, plan.restore))
        restore_steps.keep_target(connections, plan.restore)


def in_turn(
    connections: Connections, plan: RecoveryPlan, recover: Callable[[ShardWork], RecoveredShard], *, write: bool
) -> list[RecoveredShard]:
    """Recover from each shard of the backup, until every id that was asked for is found.

    Under shard keys every shard is asked for all of them: each key may have a point of the same id.
    """
    done: list[RecoveredShard] = []
    live = live_target(connections, plan)
    for shard, _ in plan.manifest.best_shards():
        ids = still_sought(plan, () if plan.by_key else done)
        if ids != ():
            done.append(recover(ShardWork(plan=plan, live=live, shard_id=shard.shard_id, ids=ids, write=write)))
    return done


def still_sought(plan: RecoveryPlan, done: Sequence[RecoveredShard]) -> tuple[PlainId, ...] | None:
    """The ids asked for that were not found yet; None where none were asked for."""
    ids = plan.request.selection().ids
    found = {point_id for shard in done for point_id in shard.found}
    return None if ids is None else tuple(point_id for point_id in ids if point_id not in found)


def run_recovery(
    connections: Connections,
    request: RecoveryRequest,
    holder: str,
    job: Job,
    announce: Callable[[RecoveryPlan], None] = lambda _plan: None,
) -> Recovered:
    """Plan, announce the plan, and for each shard of the backup compare, write and read back what was written.

    Raises LeaseHeldError when another run writes to that collection, and what any step raises. Every point that was
    written until then is as in the backup; the same request again goes on.
    """
    with alone(connections, request, holder) as plan:
        announce(plan)
        with target_made(connections, plan):
            shards = _in_job(connections, plan, job, write=True)
    return Recovered(plan=plan, shards=tuple(shards), dry_run=False)


def look(connections: Connections, request: RecoveryRequest, job: Job) -> Recovered:
    """What a recovery would write: the same comparison, and not one request that changes anything."""
    plan = prepare(connections, request)
    return Recovered(plan=plan, shards=tuple(_in_job(connections, plan, job, write=False)), dry_run=True)


def _in_job(connections: Connections, plan: RecoveryPlan, job: Job, *, write: bool) -> list[RecoveredShard]:
    def recover(work: ShardWork) -> RecoveredShard:
        return job.step(f"recover {work.label}", None, lambda tell: recover_shard(connections, work, tell))

    return in_turn(connections, plan, recover, write=write)
