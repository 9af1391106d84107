"""Reverse sync: after a cut-over the old collection follows the new one, so that a roll back loses nothing."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape

from ferry.connections import Connections, connect
from ferry.errors import FerryError, PreflightError
from ferry.lanes import Job
from ferry.migration.plan import Changes, MigrationPlan, MigrationRequest, QdrantSource
from ferry.migration.reconcile import CATCH_UP, PROOF, Pass, Reconciled, Rounds, reconcile
from ferry.migration.source import Source
from ferry.migration.sources.qdrant import QdrantLive
from ferry.models import CollectionLayout, Progress, no_progress, now
from ferry.repository.lease_watch import LeaseWatch
from ferry.restore.shape import PlannedShard
from ferry.restore.switch import LEASE_PATIENCE_SECONDS, HeldAlias, count_of, held
from ferry.restore.switch_record import Switch, SwitchPlace, where

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


def follow(
    connections: Connections,
    plan: MigrationPlan,
    every_seconds: float | None,
    announce: Callable[[Pass], None] = lambda _pass: None,
    progress: Progress = no_progress,
) -> Reconciled:
    """Reverse sync after a cut-over: carry what is written to the new collection back to the old one, again and again.

    The old one becomes what the new one is: what others write to it meanwhile is lost. Every ``every_seconds`` until
    the switch is finished or rolled back (``progress`` may raise to stop before); None: once, until both are equal, for
    writers that pause for a roll back. Raises PreflightError where the way back is not open: a source that is no live
    collection, changes, a filter, other shard keys, or an alias that has not moved; LeaseHeldError when somebody else
    works on the alias for a minute. While a pass is under way nobody can roll back or finish.
    """
    source = require_way_back(plan)
    rounds = PROOF if every_seconds is None else CATCH_UP
    done: Reconciled | None = None
    with _reverse_of(plan, source) as way:
        while True:
            with _going_back_is_shut(connections, plan) as work:
                if work is not None and not _is_moved(work, plan):
                    if done is None:
                        raise _not_moved(plan)
                    return done
                done = _pass(work, way, rounds, announce, progress)
            if every_seconds is None:
                done.require_equal(way.plan.target)
                return done
            _rest(every_seconds, progress)


def switch_of(connections: Connections, plan: MigrationPlan) -> Switch | None:
    """The last switch of a migration's alias; None without an alias, or where it was never moved."""
    alias = plan.request.alias
    if alias is None:
        return None
    return SwitchPlace(connections.store, connections.keys, connections.cluster.name, alias).read()


def require_way_back(plan: MigrationPlan) -> QdrantSource:
    """The source, as points can be carried back to it as they were. Raises PreflightError where they cannot."""
    request = plan.request
    if not isinstance(request.source, QdrantSource):
        why = "its source is no live collection"
    elif request.filter is not None or request.shape.only_keys:
        why = "it took a part of its source only"
    elif request.changes != Changes():
        why = "it changed its points"
    elif {part.key for part in plan.ranges} != {shard.key for shard in plan.shards}:
        why = "it changed the shard keys"
    else:
        return request.source
    msg = f"Migration {plan.migration_id} cannot be followed back, for {why}. Nothing was changed."
    raise PreflightError(msg, "Write to both collections yourself while a roll back shall stay possible.")


@dataclass(frozen=True)
class _Way:
    """The way back: clients of the old collection's cluster, a plan for it, and the new collection as the source."""

    old: Connections
    plan: MigrationPlan
    new: Source


@contextmanager
def _going_back_is_shut(connections: Connections, plan: MigrationPlan) -> Iterator[HeldAlias | None]:
    """Hold the alias, if there is one: what is written after a roll back in the midst of a pass would be lost."""
    alias = plan.request.alias
    if alias is None:
        yield None
        return
    with held(connections, alias, f"follow of migration {plan.migration_id}", LEASE_PATIENCE_SECONDS) as work:
        yield work


def _is_moved(work: HeldAlias, plan: MigrationPlan) -> bool:
    """Whether the alias is where the migration has moved it, by its record and by the cluster."""
    switch = work.place.read()
    if switch is None or switch.state != "moved" or switch.new.collection != plan.target:
        return False
    return where(switch, work.seen()) == "new"


def _not_moved(plan: MigrationPlan) -> PreflightError:
    alias, target = plan.request.alias, plan.target
    msg = f"Alias {alias} was not moved to {target} by migration {plan.migration_id}, or not any more."
    return PreflightError(f"{msg} Nothing was changed.", "Cut over first: python -m ferry migrate.")


def _pass(
    work: HeldAlias | None, way: _Way, rounds: Rounds, announce: Callable[[Pass], None], progress: Progress
) -> Reconciled:
    """Make the old collection what the new one is; a node that is restarted meanwhile is waited for."""
    watch = None if work is None else LeaseWatch(work.connections.store, work.lease.key, work.lease.fencing)

    def unless_taken(points: int) -> None:
        if watch is not None:
            watch.require_held()
        progress(points)

    label = f"follow {way.plan.source.name}"
    done = Job().step(label, None, lambda _: reconcile(way.old, way.plan, way.new, rounds, announce, unless_taken))
    if work is not None:
        _note_points(work, way.plan, done)
    return done


@contextmanager
def _reverse_of(plan: MigrationPlan, source: QdrantSource) -> Iterator[_Way]:
    request, from_new = plan.request, QdrantSource(cluster=plan.request.cluster, collection=plan.target)
    old = connect(source.cluster, request.repository)
    layout = _old_collection(old, plan, source.cluster)
    back = MigrationRequest(
        cluster=source.cluster,
        repository=request.repository,
        source=from_new,
        into=layout.name,
        readers=request.readers,
        batch_bytes=request.batch_bytes,
        leave_out_refused=True,
        deletes=request.deletes,
    )
    with QdrantLive(from_new) as new:
        yield _Way(old, _plan_of(plan.migration_id, back, layout, new), new)


def _plan_of(migration_id: str, back: MigrationRequest, layout: CollectionLayout, new: Source) -> MigrationPlan:
    return MigrationPlan(
        migration_id=migration_id,
        created_at=now(),
        request=back,
        source=new.describe(),
        fingerprint={},
        config=layout.config,
        payload_schema=layout.payload_schema,
        shards=tuple(
            PlannedShard(shard_id=shard.shard_id, key=shard.key, copies=len(shard.replicas)) for shard in layout.shards
        ),
        ranges=tuple(new.plan_ranges(back.readers)),
        writer="stream",
    )


def _old_collection(old: Connections, plan: MigrationPlan, cluster: str) -> CollectionLayout:
    """The very collection that was migrated; the name that was asked for may be an alias, which has moved."""
    name, _, uuid = plan.source.identity.removeprefix(f"qdrant/{cluster}/").rpartition("/")
    layout = old.cluster.read_layout([escape(name)]).collection(name)
    if layout is None or (uuid and layout.uuid and layout.uuid != uuid):
        msg = f"{name}, which {plan.target} was migrated from, is gone from cluster {cluster}, or is another one now."
        raise PreflightError(f"{msg} Nothing was changed.", "There is no way back but a backup.")
    return layout


def _note_points(work: HeldAlias, back: MigrationPlan, done: Reconciled) -> None:
    """Note how many points both have now: else a finish takes the old one for in use, and a roll back for behind."""
    cluster = work.connections.cluster
    try:
        switch = work.place.read()
        if switch is None:
            return
        new, old = switch.new.model_copy(update={"points": done.last.source_points}), switch.old
        if old is not None and old.collection == back.target and back.request.cluster == cluster.name:
            old = old.model_copy(update={"points": count_of(cluster, old)})
        work.place.write(switch.model_copy(update={"new": new, "old": old}))
    except FerryError as error:
        log.warning("the switch of alias %s does not know of this pass: %s", work.alias, error.message)


def _rest(seconds: float, progress: Progress) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        progress(0)
        time.sleep(min(left, _POLL_SECONDS))
