"""The source of a migration as a side of a comparison: its points as the target shall show them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Self

import numpy as np
import orjson

from ferry.archive.digest import point_fields
from ferry.errors import MigrationError, PreflightError
from ferry.migration.batch import AnyBatch, Dense, PointBatch, PointId, Refused, WireBatch
from ferry.migration.changes import OWN, Changed, Changing
from ferry.migration.columns import each_point, take
from ferry.migration.copy import MOST_REJECTED, ask_of
from ferry.migration.hashes import hashes_of
from ferry.migration.ids import source_id_of
from ferry.migration.plan import MigrationPlan
from ferry.migration.source import Source, SourceRange
from ferry.models import Progress, ShardId, ShardKey
from ferry.verify.sides import Explain, Note, Side, SideShard

NOT_FINITE = "a vector holds NaN or an infinity"
NAMED_IDS = 10
PAGE_IDS = 1000  # asked of a source at once
# Where ids were mapped nobody can ask for them: the source is read through, once for so many ids (60 bytes each).
SCANNED_IDS = 200_000


class SourceSide(Side):
    """A source read whole, as often as it is asked; its shards are the shard keys of the target.

    ``refused`` are points of the last reading that cannot be in the target; they are left out of the comparison. Where
    an id comes twice under one key, the last in the order of ranges counts, and ``doubles`` counts the others; where
    these are other points and not the same again, ``conflicts`` counts their ids and ``first_conflicts`` names some.
    """

    def __init__(self, source: Source, plan: MigrationPlan, folder: Path) -> None:
        """``folder`` is for scratch, on the spool disk: about 150 bytes a point where ids may come twice."""
        super().__init__(f"{plan.source.name} ({plan.source.kind})", plan.config, plan.payload_schema)
        self._source, self._plan, self._changing = source, plan, Changing.of(plan)
        self.keys = tuple(sorted({shard.key for shard in plan.shards}, key=str))
        self._numbers = {key: ShardId(number) for number, key in enumerate(self.keys)}
        self.shards = tuple(SideShard(shard_id=number, key=key) for key, number in self._numbers.items())
        self._ask = ask_of(plan).model_copy(update={"wire": False})
        self._lock, self._folder = threading.Lock(), folder
        self.refused: dict[PointId, str] = {}
        self.doubles = self.conflicts = 0
        self.first_conflicts: list[PointId] = []

    @property
    def bytes_read(self) -> int:
        return 0  # sources do not count them

    def hashes(self, wanted: Mapping[ShardId, Sequence[str] | None], note: Note, progress: Progress) -> None:
        if not wanted:
            return
        self.refused, self.doubles, self.conflicts, self.first_conflicts = {}, 0, 0, []
        if not self._may_repeat:
            self._read_ranges(note, self._plan.request.readers, progress)
            return
        with _LastOfEach(self._folder) as last:
            self._read_ranges(last.note, 1, progress)
            self.doubles = last.give(note)
            self.conflicts, self.first_conflicts = last.conflicts()

    def _read_ranges(self, note: Note, lanes: int, progress: Progress) -> None:
        stopped = threading.Event()

        def read(part: SourceRange) -> None:
            try:
                for batch in self._range(part, progress, stopped):
                    note(self._number(batch.key), batch.ids, hashes_of(batch))
            except BaseException:
                stopped.set()  # the others need not read to their ends before this is raised
                raise

        with ThreadPoolExecutor(lanes, thread_name_prefix="ferry-compare") as pool:
            list(pool.map(read, self._plan.ranges))

    def fields(
        self, shard_id: ShardId, ids: Iterator[list[PointId]], points: int, explain: Explain, progress: Progress
    ) -> None:
        del points
        for some in ids:
            for batch in self.points(some, self.keys[shard_id], progress):
                rows = zip(batch.ids, batch.payloads, each_point(batch), hashes_of(batch), strict=True)
                for point_id, payload, vectors, value in rows:
                    explain(point_id, value, point_fields(point_id, payload, vectors))

    def points(
        self, ids: Sequence[PointId], key: ShardKey | None, progress: Progress, *, sent: bool = False
    ) -> Iterator[PointBatch]:
        """The points of these ids of the target under a shard key of it, of those that the source has now.

        Each comes once. ``sent`` gives them as they must be sent (see `Changing`).
        """
        change = self._changing.sent if sent else self._changing.apply
        if self._may_repeat:
            yield from _last_of_each(self._found(ids, key, change, progress))
        else:
            yield from self._found(ids, key, change, progress)

    @property
    def page_ids(self) -> int:
        """How many ids `points` is best asked for at a time."""
        return PAGE_IDS if self._asks_by_id else SCANNED_IDS

    @property
    def _asks_by_id(self) -> bool:
        return self._plan.source.kind in OWN

    @property
    def _may_repeat(self) -> bool:
        """Whether an id may come twice under one key of the target: the source says so, or keys come together."""
        keys = {part.key for part in self._plan.ranges}
        return not self._plan.source.unique_ids or len(keys) > len({self._changing.key(key) for key in keys})

    def _found(
        self, ids: Sequence[PointId], key: ShardKey | None, change: _Change, progress: Progress
    ) -> Iterator[PointBatch]:
        wanted = set(ids)
        for batch in self._asked(ids) if self._asks_by_id else self._read_all(progress):
            for changed in _finite(change(batch)).batches:
                if changed.key != key:
                    continue
                rows = [row for row, point_id in enumerate(changed.ids) if point_id in wanted]
                progress(0)
                if rows:
                    yield changed if len(rows) == len(changed.ids) else take(changed, np.array(rows, dtype=np.intp))

    def _asked(self, ids: Sequence[PointId]) -> Iterator[PointBatch]:
        for key in dict.fromkeys(part.key for part in self._plan.ranges):
            yield from self._source.retrieve(ids, key, self._ask)

    def _read_all(self, progress: Progress) -> Iterator[PointBatch]:
        for part in self._plan.ranges:
            for read in self._source.read(part, None, self._ask, progress):
                yield _columns(read.batch)

    def _range(self, part: SourceRange, progress: Progress, stopped: threading.Event) -> Iterator[PointBatch]:
        """A range as it shall be in the target; what is refused is noted."""
        for read in self._source.read(part, None, self._ask, progress):
            if stopped.is_set():
                return
            batch = _columns(read.batch)
            changed = _finite(self._changing.apply(batch))
            if changed.refused:
                self._refuse(changed.refused)
            yield from changed.batches
            progress(len(batch.ids))

    def _refuse(self, points: Sequence[Refused]) -> None:
        """Note points that cannot be in the target; not more of them than a copy leaves out."""
        with self._lock:
            self.refused |= {point.id: point.reason for point in points}
            if len(self.refused) <= MOST_REJECTED * len(self._plan.ranges):
                return
        msg = (
            f"{len(self.refused)} points cannot be in {self._plan.target}, such as {points[0].id}: {points[0].reason}."
        )
        raise MigrationError(msg, "See whether the changes and the new collection's vectors are what you want.")

    def _number(self, key: ShardKey | None) -> ShardId:
        try:
            return self._numbers[key]
        except KeyError:
            msg = f"Points have the shard key {key!r}, which was not planned for {self._plan.target}."
            raise PreflightError(msg, "Stop what writes new keys to the source, or begin anew: restart.") from None


_Change = Callable[[PointBatch], Changed]


class _LastOfEach:
    """Hashes by shard key and id, on disk until all are read: of an id that comes again, the last one counts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "last.sqlite"
        self._noted = 0

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._base = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute("PRAGMA synchronous = OFF")
        self._base.execute(
            "CREATE TABLE last (shard INTEGER, id BLOB, hash TEXT, others INTEGER DEFAULT 0, PRIMARY KEY (shard, id)) "
            "WITHOUT ROWID"
        )
        self._base.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()
        self._path.unlink(missing_ok=True)

    def note(self, shard_id: ShardId, ids: Sequence[PointId], hashes: Sequence[str]) -> None:
        """Note points in their order; by one thread at a time."""
        rows = [(shard_id, orjson.dumps(point_id), value) for point_id, value in zip(ids, hashes, strict=True)]
        self._base.executemany(
            "INSERT INTO last (shard, id, hash) VALUES (?, ?, ?) ON CONFLICT (shard, id) DO UPDATE SET "
            "others = others + (hash != excluded.hash), hash = excluded.hash",
            rows,
        )
        self._noted += len(rows)

    def give(self, note: Note) -> int:
        """Give what counts to ``note``; how many did not."""
        rows, given = self._base.execute("SELECT shard, id, hash FROM last ORDER BY shard"), 0
        while page := rows.fetchmany(PAGE_IDS):
            for shard_id, of_shard in groupby(page, key=itemgetter(0)):
                some = list(of_shard)
                note(ShardId(shard_id), [orjson.loads(row[1]) for row in some], [row[2] for row in some])
            given += len(page)
        return self._noted - given

    def conflicts(self) -> tuple[int, list[PointId]]:
        """How many ids came with different points, and the first of them."""
        [[number]] = self._base.execute("SELECT count(*) FROM last WHERE others")
        named = self._base.execute("SELECT id FROM last WHERE others ORDER BY shard, id LIMIT ?", (NAMED_IDS,))
        return number, [orjson.loads(point_id) for (point_id,) in named]


def _last_of_each(batches: Iterator[PointBatch]) -> Iterator[PointBatch]:
    """The same points, of each id the last one only."""
    held = list(batches)
    last = {point_id: (number, row) for number, batch in enumerate(held) for row, point_id in enumerate(batch.ids)}
    for number, batch in enumerate(held):
        rows = [row for row, point_id in enumerate(batch.ids) if last[point_id] == (number, row)]
        if rows:
            yield take(batch, np.array(rows, dtype=np.intp))


def _columns(batch: AnyBatch) -> PointBatch:
    if isinstance(batch, WireBatch):
        msg = "a source gave messages where columns were asked for"
        raise TypeError(msg)
    return batch


def _finite(changed: Changed) -> Changed:
    """The same without points that hold what is no number, which are refused: Qdrant would take them."""
    batches, refused = [], list(changed.refused)
    for batch in changed.batches:
        wrong = _not_finite(batch)
        refused += [Refused(source_id_of(batch.ids[row], batch.payloads[row]), NOT_FINITE) for row in sorted(wrong)]
        rows = [row for row in range(len(batch.ids)) if row not in wrong] if wrong else []
        if rows:
            batches.append(take(batch, np.array(rows, dtype=np.intp)))
        elif not wrong:
            batches.append(batch)
    return Changed(tuple(batches), tuple(refused))


def _not_finite(batch: PointBatch) -> set[int]:
    """Rows of points with a value that is not finite."""
    wrong: set[int] = set()
    for column in batch.vectors.values():
        places = np.flatnonzero(~np.isfinite(column.values).reshape(len(column.values), -1).all(axis=1))
        if not isinstance(column, Dense):  # which vector a value, or a row, is of
            places = np.searchsorted(column.starts, places, "right") - 1
        wrong |= set((places if column.rows is None else column.rows[places]).tolist())
    return wrong
