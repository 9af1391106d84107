"""The last step of a restore: the alias goes from the old collection to the new one, and both are remembered.

What is meant is noted in the bucket first, so that whoever comes after a kill knows both collections; then the alias
moves in one request. Where it is the cluster says, never the note: each call begins by setting the note right.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from glob import escape

from ferry.connections import Connections
from ferry.errors import FerryError, LeaseHeldError, NodeUnreachableError, RestoreError
from ferry.models import KEEP_DAYS, BackupId, Finding, Value, now
from ferry.qdrant import points
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.node import Node
from ferry.qdrant.view import collection_uuids, each
from ferry.repository.lease import Lease, acquire
from ferry.restore.plan import RestorePlan
from ferry.restore.switch_record import Seen, Side, Switch, SwitchPlace, succeed, where

log = logging.getLogger(__name__)
# A finish or a roll back has the lease for seconds; a restore that took hours waits for it.
LEASE_PATIENCE_SECONDS = 60.0
# Nodes apply what consensus decided one after the other: milliseconds apart, seconds when one catches up (1.16.3).
EVERYWHERE_SECONDS = 15.0
# A search that has looked the alias up before it moved still asks the other nodes for the collection by its name.
DRAIN_SECONDS = 5.0
# The longest wait for a count that does not change any more.
CALM_SECONDS = 3.0
_POLL_SECONDS = 0.1


class Intent(Value):
    """What a switch is to do. ``old`` is what the alias pointed at when it was planned; None for a new alias."""

    alias: str
    old: str | None
    new: str
    restore_id: BackupId
    backup_id: BackupId
    keep_days: int = KEEP_DAYS


@dataclass(frozen=True)
class HeldAlias:
    """An alias whose lease we hold: what may be asked of it and done to it."""

    connections: Connections
    alias: str
    lease: Lease
    place: SwitchPlace

    def at(self) -> datetime:
        """The store's clock, by the lease that is renewed for it. Raises what ``Lease.confirm`` raises."""
        self.lease.confirm()
        renewed = self.connections.store.head(self.lease.key)
        return renewed.modified if renewed else now()

    def seen(self) -> Seen:
        """What all nodes agree on at this moment."""
        return look(self.connections.cluster)

    def settled(self, switch: Switch, seen: Seen) -> Switch:
        """The record that was read, set right by what is seen."""
        place = where(switch, seen)
        if place == "new" and switch.state in ("planned", "rolled_back"):
            return self.note_moved(switch)
        if place == "old" and switch.state == "moved":
            return self.place.write(switch.ended("rolled_back", self.at()))
        return switch

    def note_moved(self, switch: Switch) -> Switch:
        """Note that the alias is at the new collection, and how many points the old one has now that it is left."""
        counted = _calm_count(self.connections.cluster, switch.old)
        return self.place.write(switch.moved(self.at(), counted))

    def point_at(self, collection: str, expected: str | None) -> None:
        """Point the alias at a collection in one atomic request, and wait until every node shows it.

        Raises RestoreError when the alias is not where it is expected, LeaseHeldError when we have lost our lease, and
        NodeUnreachableError when no answer came and the alias did not move: then the same call may be made again.
        """
        self.lease.confirm()
        first = self.connections.cluster.nodes[0]
        current = first.aliases().get(self.alias)
        require_at(self.alias, current, expected, f"Nothing was changed; see who moved it. {collection} is complete.")
        point(self.connections.cluster, {self.alias: collection})

    def drop(self, collection: str) -> None:
        """Drop a collection; the look that allows it was the last thing before. One that is not there is fine."""
        self.lease.confirm()
        cluster = self.connections.cluster
        cluster.nodes[0].delete_collection(collection)
        if not _everywhere(cluster, lambda node: not node.exists(collection)):
            log.warning("%s is dropped, which not every node shows yet", collection)


@contextmanager
def held(connections: Connections, alias: str, holder: str, patience_seconds: float = 0.0) -> Iterator[HeldAlias]:
    """Be the only one who works on that alias. Raises LeaseHeldError, which says who else does."""
    keys, cluster = connections.keys, connections.cluster.name
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            key = keys.lease(f"{cluster}.alias.{alias}")
            lease = acquire(connections.store, key, holder, connections.profile.lease_seconds)
            break
        except LeaseHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)
    with lease:
        yield HeldAlias(connections, alias, lease, SwitchPlace(connections.store, keys, cluster, alias))


def plan_move(connections: Connections, plan: RestorePlan) -> None:
    """Note the switch of a restore while its new collection is still the run's to drop.

    So there is no moment when a kill leaves a finished collection that nobody knows the alias of. Raises nothing of
    Ferry's: the restore is good without the note, and ``move_alias`` says what is wrong.
    """
    intent = _intent(plan)
    if intent is None:
        return
    try:
        with held(connections, intent.alias, _holder(plan), LEASE_PATIENCE_SECONDS) as alias:
            ready(alias, intent, alias.seen())
    except FerryError as error:
        log.warning("the move of alias %s is not noted beforehand: %s", intent.alias, error.message)


def move_alias(connections: Connections, plan: RestorePlan) -> Switch | None:
    """Put the new collection of a restore into service; refused when somebody moved the alias meanwhile.

    None where the restore has no alias, or has it already because it was made in place. Raises what ``make_switch``
    raises.
    """
    intent = _intent(plan)
    return None if intent is None else make_switch(connections, intent, _holder(plan))


def _holder(plan: RestorePlan) -> str:
    return f"restore {plan.request.restore_id}"


def _intent(plan: RestorePlan) -> Intent | None:
    request = plan.request
    if not request.alias or plan.alias_from == plan.target:
        return None
    return Intent(
        alias=request.alias,
        old=plan.alias_from,
        new=plan.target,
        restore_id=request.restore_id,
        backup_id=plan.manifest.backup_id,
        keep_days=request.keep_days,
    )


def make_switch(connections: Connections, intent: Intent, holder: str) -> Switch:
    """Note the switch, move the alias, and note that it has moved. May be called again after any failure or kill.

    Once this call has moved the alias it does not fail any more: what it could not note the next one notes. Raises
    RestoreError when the alias is neither at the old nor at the new collection, LeaseHeldError when somebody else works
    on it for longer than a minute, and what ``HeldAlias.point_at`` raises.
    """
    with held(connections, intent.alias, holder, LEASE_PATIENCE_SECONDS) as alias:
        seen = alias.seen()
        switch = ready(alias, intent, seen)
        if switch.state == "moved":
            return switch
        if seen.aliases.get(intent.alias) != intent.new:
            alias.point_at(intent.new, intent.old)
        return ended(alias, switch)


def ready(alias: HeldAlias, intent: Intent, seen: Seen) -> Switch:
    """The switch, noted as planned; or as it was made, where an earlier call came to its end.

    Raises RestoreError when the alias is neither at the old nor at the new collection.
    """
    known = alias.place.find()
    before = alias.settled(known, seen) if known else None
    current = seen.aliases.get(intent.alias)
    if before and before.state == "moved" and current == before.new.collection == intent.new:
        return before
    if current != intent.new:
        remedy = f"{intent.new} is restored and verified; move the alias yourself if that is still what you want."
        require_at(intent.alias, current, intent.old, remedy)
    if before and before.state == "planned" and before.restore_id == intent.restore_id and seen.holds(before.new):
        return before  # noted by ``plan_move``, and counted when it was as fresh as now
    return alias.place.write(_planned(alias, intent, seen, before))


def ended(alias: HeldAlias, switch: Switch) -> Switch:
    """The switch noted as made, once its alias has moved; a note that fails is left to the next finish."""
    try:
        return alias.note_moved(switch)
    except FerryError as error:
        log.warning("alias %s has moved; the next finish notes it: %s", alias.alias, error.message)
        return switch


def point(cluster: Cluster, at: Mapping[str, str]) -> None:
    """Point aliases at collections in one request, and wait until every node shows it.

    Of several, each moves by itself: where one collection has gone, those before it have moved (seen on 1.16.3). Raises
    NodeUnreachableError when no answer came and they did not move: then the same call may be made again.
    """

    def moved(node: Node) -> bool:
        return node.aliases().items() >= at.items()

    # create_alias alone replaces what is there. Of the pair [delete_alias, create_alias] the first stays done when
    # the second is refused, as when the collection has gone meanwhile: the alias is away then (seen on 1.16.3).
    actions = [{"create_alias": {"alias_name": alias, "collection_name": name}} for alias, name in at.items()]
    told = ", ".join(f"{alias} → {name}" for alias, name in at.items())
    try:
        cluster.nodes[0].update_aliases(actions)
    except NodeUnreachableError as error:
        if not _everywhere(cluster, moved):
            raise
        log.info("aliases have moved although the answer was lost (%s): %s", told, error.message)
    else:
        if not _everywhere(cluster, moved):
            log.warning("aliases have moved, which not every node shows yet: %s", told)


def _everywhere(cluster: Cluster, true_of: Callable[[Node], bool]) -> bool:
    """Whether it becomes true of every node; one that does not answer may still be behind."""

    def shows(node: Node) -> bool:
        try:
            return true_of(node)
        except NodeUnreachableError:
            return False

    deadline = time.monotonic() + EVERYWHERE_SECONDS
    while not all(each(cluster.nodes, shows)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _planned(alias: HeldAlias, intent: Intent, seen: Seen, before: Switch | None) -> Switch:
    cluster = alias.connections.cluster
    new = seen.side(intent.new, None)
    switch = Switch(
        cluster=cluster.name,
        alias=intent.alias,
        old=None if intent.old is None else seen.side(intent.old, None),
        new=new.model_copy(update={"points": count_of(cluster, new)}),
        restore_id=intent.restore_id,
        backup_id=intent.backup_id,
        keep_days=intent.keep_days,
        planned_at=alias.at(),
    )
    return succeed(switch, before)


def require_at(alias: str, current: str | None, expected: str | None, remedy: str) -> None:
    """Raise RestoreError unless the alias is where it is expected."""
    if current != expected:
        msg = f"Alias {alias} pointed at {expected or 'nothing'} when planned and at {current or 'nothing'} now."
        raise RestoreError(msg, remedy)


def look(cluster: Cluster) -> Seen:
    """Aliases and collections as all nodes agree on them; raises LayoutError or NodeUnreachableError when they do not.

    None of the collections is looked into, for one of them may be broken.
    """
    layout = cluster.read_layout(include=())
    uuids = collection_uuids(cluster.nodes[0].telemetry(2))
    return Seen(aliases=layout.aliases, uuids={name: uuids.get(name) for name in layout.names})


def count_of(cluster: Cluster, side: Side | None) -> int | None:
    """The exact number of points of a collection now; None where there is none, or it cannot be counted."""
    if side is None:
        return None
    try:
        return points.count(cluster.nodes[0], side.collection)
    except FerryError as error:
        log.warning("%s cannot be counted: %s", side.collection, error.message)
        return None


def _calm_count(cluster: Cluster, side: Side | None) -> int | None:
    """The same once it does not change any more: what was written with ``wait=false`` is still being applied."""
    deadline, counted = time.monotonic() + CALM_SECONDS, count_of(cluster, side)
    while counted is not None and time.monotonic() < deadline:
        time.sleep(CALM_SECONDS / 10)
        before, counted = counted, count_of(cluster, side)
        if counted == before:
            break
    return counted


def require_healthy(cluster: Cluster, collection: str) -> list[Finding]:
    """Raise LayoutError unless every replica of a collection is Active on every node's view, and nothing moves."""
    return cluster.require_quiet(cluster.read_layout([escape(collection)]))
