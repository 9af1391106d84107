"""Copying one range with the stream writer: read, changed, encoded, written, and only then counted as done."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ferry.connections import Connections
from ferry.errors import MigrationError
from ferry.migration import records
from ferry.migration.batch import Refused, WireBatch
from ferry.migration.changed_config import wanted_vectors
from ferry.migration.changes import Changing
from ferry.migration.plan import MigrationPlan
from ferry.migration.report import RangeState, RejectedPoint
from ferry.migration.source import Ask, Cursor, Read, Source, SourceRange
from ferry.migration.stream import Acknowledged, StreamWriter
from ferry.models import Progress, no_progress
from ferry.qdrant import wire
from ferry.qdrant.writer import MOST_IN_FLIGHT

CHECKPOINT_SECONDS = 2.0
# So many points of one range may be left out; more are no odd points, but a wrong plan.
MOST_REJECTED = 100


def ask_of(plan: MigrationPlan) -> Ask:
    """What is wanted of the source: undecoded where nothing of a point is changed."""
    return Ask(
        filter=plan.request.filter,
        vectors=wanted_vectors(plan.source.config, plan.request.changes),
        wire=plan.source.wire and Changing.of(plan).undecoded,
        batch_bytes=plan.request.batch_bytes,
    )


def copy_range(
    connections: Connections,
    plan: MigrationPlan,
    source: Source,
    part: SourceRange,
    progress: Progress = no_progress,
) -> RangeState:
    """Copy what is left of a range; ``progress`` gets the points that the target has applied, and may raise to stop.

    May be called again after any failure or kill, by any worker: it goes on after the last checkpoint. Raises
    MigrationError for a point that cannot be in the target, unless these are to be left out, and what reading and
    writing raise.
    """
    state = records.range_state(connections, plan, part.number)
    if state.done:
        return state
    copy = _Copy(connections, plan, state)
    writer = StreamWriter(
        connections.cluster, plan.target, leave_out=plan.request.leave_out_refused, in_flight=_in_flight(plan)
    )
    try:
        reads = source.read(part, state.cursor, ask_of(plan), progress)
        writer.write(copy.batches(reads), copy.acknowledged, progress)
    except BaseException:
        copy.keep_quietly()
        raise
    return copy.end()


def _in_flight(plan: MigrationPlan) -> int:
    """Batches that one range has under way: 4 of all ranges together, for more only wait in the nodes' queues."""
    lanes = max(1, min(plan.request.readers, len(plan.ranges)))
    return max(1, MOST_IN_FLIGHT // lanes)


@dataclass(frozen=True)
class _Turn:
    """What counts as done when the last batch of a read is applied: so many points, and all up to ``cursor``."""

    read: int = 0
    rejected: tuple[Refused, ...] = ()
    cursor: Cursor | None = None

    def after(self, loose: "_Turn") -> "_Turn":
        """The same with points before it, of which none was to be written."""
        return _Turn(loose.read + self.read, (*loose.rejected, *self.rejected), self.cursor)


class _Copy:
    """One run over a range. A cursor lies only between two reads, so what is applied counts read by read."""

    def __init__(self, connections: Connections, plan: MigrationPlan, state: RangeState) -> None:
        self._connections, self._plan = connections, plan
        self._changing = Changing.of(plan)
        self._state = self._kept = state
        self._loose = _Turn()  # read, and nothing of it is to be written
        self._applied, self._refused = 0, list[Refused]()  # of a read that is not applied whole
        self._since = self._kept_at = time.monotonic()

    def batches(self, reads: Iterator[Read]) -> Iterator[tuple[WireBatch, _Turn | None]]:
        """What is to be written, in order; the last batch of each read comes with what is done then."""
        for read in reads:
            batches, rejected = self._changed(read)
            self._require_few(rejected)
            turn = _Turn(sum(map(_points, batches)) + len(rejected), rejected, read.cursor).after(self._loose)
            self._loose = _Turn() if batches else turn
            for number, batch in enumerate(batches, 1):
                yield batch, turn if number == len(batches) else None

    def acknowledged(self, told: Acknowledged[_Turn | None]) -> None:
        """Count a batch that is applied, as are all before it; the checkpoint is written now and then."""
        self._applied += told.points
        self._refused += told.refused
        if told.cursor is not None:
            self._count(told.cursor)
        if time.monotonic() - self._kept_at >= CHECKPOINT_SECONDS:
            self._keep()

    def end(self) -> RangeState:
        """Note that nothing is left of the range."""
        if not self._state.done:
            self._count(_Turn().after(self._loose))
        self._keep()
        return self._state

    def keep_quietly(self) -> None:
        """Keep what was applied before a failure, which must not be hidden by another one."""
        if self._state is not self._kept:
            records.keep_quietly(self._connections, self._plan, self._timed())

    def _changed(self, read: Read) -> tuple[list[WireBatch], tuple[Refused, ...]]:
        if isinstance(read.batch, WireBatch):
            same = read.batch
            moved = WireBatch(same.points, self._changing.key(same.key), same.plain)
            return [moved] if _points(moved) else [], ()
        changed = self._changing.sent(read.batch)
        return [wire.encode(batch) for batch in changed.batches], changed.refused

    def _count(self, turn: _Turn) -> None:
        state = self._state
        named = [RejectedPoint(id=point.id, reason=point.reason) for point in (*turn.rejected, *self._refused)]
        update = {
            "read": state.read + turn.read,
            "written": state.written + self._applied,
            "rejected": (*state.rejected, *named),
            "cursor": turn.cursor,
            "done": turn.cursor is None,
        }
        self._state, self._applied, self._refused = state.model_copy(update=update), 0, []

    def _require_few(self, rejected: Sequence[Refused]) -> None:
        if rejected and not self._plan.request.leave_out_refused:
            first = rejected[0]
            msg = f"Point {first.id} of {self._plan.source.name} cannot be in {self._plan.target}: {first.reason}."
            raise MigrationError(msg, "Correct it in the source, or leave such points out: leave_out_refused.")
        if len(self._state.rejected) + len(rejected) > MOST_REJECTED:
            last = rejected[-1]
            msg = f"More than {MOST_REJECTED} points cannot be in {self._plan.target}; {last.id}: {last.reason}."
            raise MigrationError(msg, "See whether the changes and the new collection's vectors are what you want.")

    def _timed(self) -> RangeState:
        now = time.monotonic()
        spent, self._since = now - self._since, now
        return self._state.model_copy(update={"seconds": round(self._state.seconds + spent, 3)})

    def _keep(self) -> None:
        self._state = self._kept = self._timed()
        records.keep_range_state(self._connections, self._plan, self._state)
        self._kept_at = time.monotonic()


def _points(batch: WireBatch) -> int:
    return len(batch.points) + len(batch.plain)
