"""Rolling a switch back: the alias answers from the old collection again; the new one stays or goes."""

import time
from collections.abc import Callable

from ferry.connections import Connections
from ferry.errors import PreflightError
from ferry.models import Finding, Value
from ferry.restore.finish import unknown_switch
from ferry.restore.switch import DRAIN_SECONDS, HeldAlias, count_of, held, look, require_healthy
from ferry.restore.switch_record import Seen, Switch, SwitchPlace, where


class WayBack(Value):
    """What a roll back will do. ``moves``: the alias is not at the old collection yet.

    ``points``: what the new collection has now; None where it cannot be counted. ``drops``: the new one goes.
    """

    switch: Switch
    moves: bool
    points: int | None = None
    drops: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def lost_points(self) -> int | None:
        """Points that the new collection has more (or less) than at the switch: the old one has never heard of them.

        Overwritten points are not seen by a count. None when nobody knows.
        """
        return None if self.points is None or self.switch.new.points is None else self.points - self.switch.new.points


def look_at_roll_back(connections: Connections, alias: str, drop_new: bool) -> WayBack:
    """What a roll back would do now; changes nothing. Raises what ``roll_back`` raises before it begins."""
    switch = SwitchPlace(connections.store, connections.keys, connections.cluster.name, alias).read()
    if switch is None:
        raise unknown_switch(connections, alias)
    return _plan(connections, switch, look(connections.cluster), drop_new)


def roll_back(
    connections: Connections,
    alias: str,
    drop_new: bool,
    holder: str,
    announce: Callable[[WayBack], None] = lambda _way: None,
) -> WayBack:
    """Point the alias back at the old collection in one atomic request, after the way was announced.

    May be called again after any failure or kill. Raises PreflightError when there is no way back: the old collection
    is gone or is another one, or the alias points at a third; LayoutError when the old one is not healthy on every
    node; LeaseHeldError when somebody else works on the alias. In all these cases nothing was changed.
    """
    with held(connections, alias, holder) as work:
        seen = work.seen()
        known = work.place.read()
        if known is None:
            raise unknown_switch(connections, alias)
        switch = work.settled(known, seen)
        way = _plan(connections, switch, seen, drop_new)
        announce(way)
        if way.moves and switch.old is not None:
            work.point_at(switch.old.collection, seen.aliases.get(alias))
        if switch.state in ("planned", "moved"):
            switch = work.place.write(switch.ended("rolled_back", work.at()))
        if way.drops:
            _drop_new(work, way)
    return way.model_copy(update={"switch": switch})


def _plan(connections: Connections, switch: Switch, seen: Seen, drop_new: bool) -> WayBack:
    moves = where(switch, seen) != "old"
    findings: list[Finding] = []
    if moves:
        old = _require_way(switch, seen)
        findings = require_healthy(connections.cluster, old)
    there = seen.holds(switch.new)
    users = [alias for alias in seen.aliases_of(switch.new.collection) if alias != switch.alias]
    if drop_new and there and users:
        msg = f"{switch.new.collection} cannot be dropped: alias {', '.join(users)} points at it, too."
        raise PreflightError(f"{msg} Nothing was changed.", "Roll back without dropping it.")
    return WayBack(
        switch=switch,
        moves=moves,
        points=count_of(connections.cluster, switch.new) if there else None,
        drops=drop_new and there,
        findings=tuple(findings),
    )


def _require_way(switch: Switch, seen: Seen) -> str:
    """The old collection; raises PreflightError when the alias must not, or cannot, go back to it."""
    alias, current = switch.alias, seen.aliases.get(switch.alias)
    if switch.old is None:
        msg = f"Alias {alias} was new with {switch.new.collection}: there is no collection to go back to."
        raise PreflightError(f"{msg} Nothing was changed.", "Delete the alias yourself if nobody is to use it.")
    old = switch.old.collection
    if current is not None and where(switch, seen) == "elsewhere" and current != old:
        msg = (
            f"Alias {alias} points at {current}, which is neither {old} nor the {switch.new.collection} of the restore."
        )
        raise PreflightError(f"{msg} Nothing was changed.", f"Move it to {old} yourself if that is what you want.")
    if not seen.holds(switch.old):
        how = "is another collection now" if old in seen.uuids else "is gone"
        if switch.state == "finished" and switch.ended_at:
            how += f"; it was dropped at {switch.ended_at:%Y-%m-%d %H:%M} UTC when its time was over"
        msg = f"{old}, which alias {alias} pointed at before, {how}. Nothing was changed."
        raise PreflightError(msg, "Restore it from a backup: python -m ferry restore --alias … (docs/blue-green.md).")
    return old


def _drop_new(work: HeldAlias, way: WayBack) -> None:
    """Drop the new collection, unless somebody has taken it into use since it was announced."""
    if way.moves:
        time.sleep(DRAIN_SECONDS)
    new, seen = way.switch.new, work.seen()
    if seen.aliases_of(new.collection):
        msg = f"Alias {work.alias} is rolled back; {new.collection} was not dropped, for an alias points at it."
        raise PreflightError(msg, "Look who uses it.")
    if seen.holds(new):
        work.drop(new.collection)
