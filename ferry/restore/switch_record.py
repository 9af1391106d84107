"""What is noted of a switch: which alias goes from which collection to which, and how long the old one stays.

The record says what was meant. Whether it came true the cluster alone says, by where the alias points; ``where`` puts
both together, and everything else here is pure, too, save the reading and writing at the end.
"""

import logging
from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field, ValidationError

from ferry.errors import BackupNotFoundError, RepositoryError
from ferry.models import KEEP_DAYS, BackupId, Value
from ferry.repository.layout import Keys
from ferry.repository.records import Record
from ferry.repository.store import ObjectStore

_log = logging.getLogger(__name__)
SwitchState = Literal["planned", "moved", "rolled_back", "finished", "void"]
EndState = Literal["rolled_back", "finished", "void"]
Place = Literal["old", "new", "elsewhere"]


class Side(Value):
    """One collection of a switch, so that it is known again: its uuid, and how many points it had, exactly.

    ``points`` of the old one are counted right after the alias has left it, of the new one before the alias comes.
    None: it could not be told.
    """

    collection: str
    uuid: str | None = None
    points: int | None = None


class Kept(Side):
    """An old collection that stays until a moment of the store's clock."""

    keep_until: datetime


class Switch(Record):
    """The last switch of one alias. ``earlier``: old collections of the switches before it that are still kept.

    Its state is planned until the alias was seen at the new collection (moved). It ends as finished (the old one is
    gone), rolled_back (the alias is at the old one again), or void (never moved, and somebody moved the alias).
    """

    cluster: str
    alias: str
    state: SwitchState = "planned"
    old: Side | None
    new: Side
    restore_id: BackupId
    backup_id: BackupId
    keep_days: int = Field(default=KEEP_DAYS, ge=0)
    planned_at: datetime
    moved_at: datetime | None = None
    keep_until: datetime | None = None
    ended_at: datetime | None = None
    earlier: tuple[Kept, ...] = ()

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Every old collection that waits for its end, in the order in which they were replaced."""
        if self.state != "moved" or self.old is None or self.keep_until is None:
            return self.earlier
        return (*self.earlier, Kept(**self.old.model_dump(), keep_until=self.keep_until))

    def moved(self, at: datetime, old_points: int | None) -> "Switch":
        """The same once the alias was seen at the new collection; the old one is kept from then on."""
        old = self.old and self.old.model_copy(update={"points": old_points})
        until = at + timedelta(days=self.keep_days)
        update = {"state": "moved", "old": old, "moved_at": at, "keep_until": until, "ended_at": None}
        return self.model_copy(update=update)

    def ended(self, state: EndState, at: datetime) -> "Switch":
        """The same once there is nothing more to do for this switch."""
        return self.model_copy(update={"state": state, "ended_at": at})

    def without(self, dropped: set[str]) -> "Switch":
        """The same without kept collections that are gone."""
        earlier = tuple(kept for kept in self.earlier if kept.collection not in dropped)
        return self.model_copy(update={"earlier": earlier})


class Seen(Value):
    """What all nodes agree on: what each alias points at, and the uuid of every collection (None: not told)."""

    aliases: dict[str, str]
    uuids: dict[str, str | None]

    def holds(self, side: Side) -> bool:
        """Whether that very collection is there, and not another one under its name."""
        if side.collection not in self.uuids:
            return False
        found = self.uuids[side.collection]
        return side.uuid is None or found is None or found == side.uuid

    def side(self, collection: str, points: int | None) -> Side:
        """A collection as it is now."""
        return Side(collection=collection, uuid=self.uuids.get(collection), points=points)

    def aliases_of(self, collection: str) -> list[str]:
        """The aliases that point at a collection."""
        return sorted(alias for alias, name in self.aliases.items() if name == collection)


class Verdict(Value):
    """What becomes of one kept collection. ``gone``: somebody else has dropped it, so there is nothing left to do."""

    collection: str
    state: Literal["drop", "dropped", "waits", "gone", "refused"]
    reason: str
    remedy: str | None = None


class FinishWishes(Value):
    """What an operator asks of a finish. ``drop_changed``: the typed name of a collection to drop although changed."""

    now: bool = False
    drop_changed: str | None = None


def where(switch: Switch, seen: Seen) -> Place:
    """Where the alias points: at the new collection of the switch, at the old one, or elsewhere (also: nowhere).

    An alias that was to be new is at its old place while there is none.
    """
    current = seen.aliases.get(switch.alias)
    if current == switch.new.collection:
        return "new" if seen.holds(switch.new) else "elsewhere"
    if switch.old is None:
        return "old" if current is None else "elsewhere"
    return "old" if current == switch.old.collection and seen.holds(switch.old) else "elsewhere"


def succeed(switch: Switch, before: Switch | None) -> Switch:
    """A planned switch with the old collections that the one before it has left; none of its own two is among them."""
    own = {switch.new.collection, switch.old.collection if switch.old else None}
    kept = before.kept if before else ()
    return switch.model_copy(update={"earlier": tuple(each for each in kept if each.collection not in own)})


def is_due(kept: Kept, wishes: FinishWishes, at: datetime) -> bool:
    """Whether its time is over, or the operator does not want to wait."""
    return wishes.now or kept.keep_until <= at


def judge(kept: Kept, seen: Seen, points: int | None, wishes: FinishWishes, at: datetime) -> Verdict:
    """Whether a kept collection may be dropped. ``points`` is its exact count now; only asked for when it is due.

    Refused is what anybody may be using: an alias points at it, its points are not those of the switch (or could not
    be counted) and its name was not typed, or nobody can tell whether it is the same collection.
    """
    name, until = kept.collection, f"{kept.keep_until:%Y-%m-%d %H:%M} UTC"
    if name not in seen.uuids:
        return Verdict(collection=name, state="gone", reason="it is not there any more")
    if not seen.holds(kept):
        reason = f"the collection of that name is another one now ({seen.uuids[name]}), which stays"
        return Verdict(collection=name, state="gone", reason=reason)
    if not is_due(kept, wishes, at):
        return Verdict(collection=name, state="waits", reason=f"it is kept until {until}")
    if refused := _in_use(kept, seen, points, wishes):
        return Verdict(collection=name, state="refused", reason=refused[0], remedy=refused[1])
    reason = f"its time is over since {until}" if kept.keep_until <= at else f"its time would last until {until}"
    return Verdict(collection=name, state="drop", reason=reason)


def _in_use(kept: Kept, seen: Seen, points: int | None, wishes: FinishWishes) -> tuple[str, str] | None:
    """Why somebody may be using it, and what to do."""
    name = kept.collection
    if aliases := seen.aliases_of(name):
        return f"alias {', '.join(aliases)} points at it", "Move that alias away, then run it again."
    if kept.uuid is not None and seen.uuids[name] is None:
        return "Qdrant does not tell its uuid any more, so it may be another one", "Look, and drop it yourself."
    if wishes.drop_changed == name or (points is not None and points == kept.points):
        return None
    remedy = f"See who uses it. To drop it all the same: --drop-changed {name} (parameter `drop_changed`)."
    if kept.points is None or points is None:
        when = "at the switch" if kept.points is None else "now"
        return f"its points could not be counted {when}, so nobody knows whether it is in use", remedy
    return f"it has {points} points and had {kept.points} at the switch, so somebody writes to it", remedy


class SwitchUnknownError(RepositoryError):
    """A record of a switch that this Ferry does not understand: damaged, or of a newer one."""


class SwitchPlace:
    """The object that holds the record of one alias. It is written only over what was read: somebody else's stays."""

    def __init__(self, store: ObjectStore, keys: Keys, cluster: str, alias: str) -> None:
        self._store = store
        self.key = keys.switch(cluster, alias)
        self._etag: str | None = None

    def read(self) -> Switch | None:
        """The record, or None. Raises SwitchUnknownError for one that this Ferry does not understand."""
        try:
            data, self._etag = self._store.get_document(self.key)
        except BackupNotFoundError:
            self._etag = None
            return None
        return _parse(data, self.key)

    def find(self) -> Switch | None:
        """The record, or None also for one that is not understood: it must not keep a restore out of service."""
        try:
            return self.read()
        except SwitchUnknownError as error:
            _log.warning("%s Its old collections are yours to drop.", error.message)
            return None

    def write(self, switch: Switch) -> Switch:
        """Put it in the place of what was read. Raises ConflictError when somebody else has written meanwhile."""
        data = switch.to_bytes()
        if self._etag is None:
            self._etag = self._store.put_document(self.key, data, if_absent=True)
        else:
            self._etag = self._store.put_document(self.key, data, if_match=self._etag)
        return switch


def switches(store: ObjectStore, keys: Keys, cluster: str) -> tuple[list[Switch], list[str]]:
    """The records of all aliases of a cluster, and what is wrong with those that are not understood."""
    found, problems = [], []
    for info in store.list(keys.switches_prefix(cluster)):
        data, _ = store.get_document(info.key)
        try:
            found.append(_parse(data, info.key))
        except SwitchUnknownError as error:
            problems.append(error.message)
    return found, problems


def _parse(data: bytes, key: str) -> Switch:
    try:
        return Switch.model_validate_json(data)
    except ValidationError:
        msg = f"{key} is no record of a switch that this Ferry understands; nothing was changed."
        remedy = "Use the Ferry that wrote it, or delete that object: its old collections are then yours to drop."
        raise SwitchUnknownError(msg, remedy) from None
