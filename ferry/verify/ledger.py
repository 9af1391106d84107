"""Ids and hashes of the points of two sides, joined by id on disk: what a diff compares, without holding it in memory.

The file is scratch: it is never synced, and goes with its folder. SQLite keeps at most CACHE_KIB of it in memory.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from uuid import UUID

import orjson

from ferry.archive.digest import range_of
from ferry.archive.reader import PlainId
from ferry.errors import HeadroomError
from ferry.models import ShardId, ShardKey, Value

Letter = Literal["a", "b"]  # the first side and the second
What = Literal["added", "removed", "changed"]
CACHE_KIB = 32 << 10
PAGE_IDS = 1000
_ON_BOTH = "a IS NOT NULL AND b IS NOT NULL"
_POINTS = (
    "CREATE TABLE points (place INTEGER, id BLOB, a BLOB, a_shard INTEGER, a_fields BLOB, b BLOB, b_shard INTEGER, "
    "b_fields BLOB, PRIMARY KEY (place, id)) WITHOUT ROWID"
)


class Difference(Value):
    """One point that is not the same on both sides; ``fields`` as `ferry.archive.digest.point_fields` names them.

    An added one is on the second side only, a removed one on the first side only.
    """

    id: int | str
    what: What
    fields: tuple[str, ...] = ()
    shard_key: ShardKey | None = None


class Ledger:
    """The file, from ``with`` to its end. Safe to use from several threads. Raises HeadroomError when the disk is full.

    A ``place`` is a set of shards within which an id names one point: those of a shard key, or of the collection.
    Where an id is twice in one place of a side (restored from several keys into one), its hashes are added up, its
    shard is forgotten, and ``doubles`` counts it.
    """

    def __init__(self, path: Path) -> None:
        self.doubles: dict[Letter, int] = {"a": 0, "b": 0}
        self._path = path
        self._lock = threading.Lock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)

    def __enter__(self) -> Self:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._base.execute(f"PRAGMA {pragma}")
        self._base.execute(_POINTS)
        sides: tuple[Letter, Letter] = ("a", "b")
        for side in sides:
            self._base.create_function(f"both_{side}", 2, self._adder(side))
        self._base.execute("BEGIN")  # never committed: there is nobody to read it later
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            msg = f"The spool disk ran full while points were compared in {self._path.parent}; nothing was changed."
            raise HeadroomError(msg, "Point worker.spool_dir at a larger disk.") from error

    def note(self, side: Letter, shard_id: ShardId, ids: Sequence[PlainId], hashes: Sequence[str]) -> None:
        """Note points that were read, by their content hashes in hex."""
        rows = [
            (range_of(point_id), _key(point_id), bytes.fromhex(value))
            for point_id, value in zip(ids, hashes, strict=True)
        ]
        notes = f"notes_{side}_{shard_id}"
        with self._lock:
            self._base.execute(f"CREATE TABLE IF NOT EXISTS {notes} (range TEXT, id BLOB, hash BLOB)")
            self._base.executemany(f"INSERT INTO {notes} VALUES (?, ?, ?)", rows)  # noqa: S608 - a letter, a number

    def join(self, side: Letter, shard_id: ShardId, place: int, ranges: Sequence[str]) -> None:
        """Put what was noted of these ranges beside the other side, and forget the shard's other notes."""
        notes = f"notes_{side}_{shard_id}"
        statement = (
            f"INSERT INTO points (place, id, {side}, {side}_shard) SELECT ?, id, hash, ? FROM {notes} "  # noqa: S608
            f"WHERE range IN ({', '.join('?' * len(ranges))}) ON CONFLICT (place, id) DO UPDATE SET "
            f"{side}_shard = CASE WHEN {side} IS NULL THEN excluded.{side}_shard END, "
            f"{side} = CASE WHEN {side} IS NULL THEN excluded.{side} ELSE both_{side}({side}, excluded.{side}) END"
        )
        with self._lock:
            self._base.execute(statement, (place, shard_id, *ranges))
            self._base.execute(f"DROP TABLE {notes}")

    def drop_equal(self) -> None:
        """Forget the points that are the same on both sides."""
        self._base.execute("DELETE FROM points WHERE a = b")

    def changed(self, side: Letter) -> dict[ShardId, int]:
        """How many points of each shard of a side are on the other side as well, and were not forgotten as equal."""
        rows = self._base.execute(
            f"SELECT {side}_shard, count(*) FROM points "  # noqa: S608 - a letter
            f"WHERE {_ON_BOTH} AND {side}_shard IS NOT NULL GROUP BY 1"
        )
        return {ShardId(shard): number for shard, number in rows}

    def changed_ids(self, side: Letter, shard_id: ShardId) -> Iterator[list[PlainId]]:
        """The ids of those points, at most PAGE_IDS at a time."""
        after: tuple[int, bytes] = (-1, b"")
        while True:
            with self._lock:
                rows = self._base.execute(
                    f"SELECT place, id FROM points WHERE {_ON_BOTH} AND {side}_shard = ? "  # noqa: S608 - a letter
                    "AND (place, id) > (?, ?) ORDER BY place, id LIMIT ?",
                    (shard_id, *after, PAGE_IDS),
                ).fetchall()
            if not rows:
                return
            after = rows[-1]
            yield [_id(key) for _, key in rows]

    def explain(self, side: Letter, place: int, point: tuple[PlainId, str], fields: Mapping[str, str]) -> bool:
        """Keep the fields of a point (id and hash) that was read once more, if it is one of the changed.

        Returns whether it is, and as it was noted first.
        """
        row = (place, _key(point[0]))
        with self._lock:
            noted = self._base.execute(
                f"SELECT {side} FROM points WHERE place = ? AND id = ? AND {_ON_BOTH} "  # noqa: S608 - a letter
                f"AND {side}_shard IS NOT NULL",
                row,
            ).fetchone()
            if noted is None:
                return False
            update = f"UPDATE points SET {side}_fields = ? WHERE place = ? AND id = ?"  # noqa: S608 - a letter
            self._base.execute(update, (orjson.dumps(fields), *row))
        return bool(noted[0] == bytes.fromhex(point[1]))

    def differences(self, keys: Sequence[ShardKey | None]) -> Iterator[Difference]:
        """The points that are left, by place and in Qdrant's order of ids; ``keys`` are the shard keys by place."""
        rows = self._base.execute("SELECT place, id, a, b, a_fields, b_fields FROM points ORDER BY place, id")
        for place, key, a, b, a_fields, b_fields in rows:
            what: What = "added" if a is None else "removed" if b is None else "changed"
            fields = _differing(a_fields, b_fields) if what == "changed" else ()
            yield Difference(id=_id(key), what=what, fields=fields, shard_key=keys[place])

    def _adder(self, side: Letter) -> Callable[[bytes, bytes], bytes]:
        def both(first: bytes, second: bytes) -> bytes:
            self.doubles[side] += 1
            return ((int.from_bytes(first) + int.from_bytes(second)) % (1 << 256)).to_bytes(32)

        return both


def _key(point_id: PlainId) -> bytes:
    """An id as bytes in Qdrant's order: numbers first, then UUIDs."""
    return b"\0" + point_id.to_bytes(16) if isinstance(point_id, int) else b"\1" + UUID(point_id).bytes


def _id(key: bytes) -> PlainId:
    return int.from_bytes(key[1:]) if key[0] == 0 else str(UUID(bytes=key[1:]))


def _differing(a: bytes | None, b: bytes | None) -> tuple[str, ...]:
    """Names of the fields that changed, appeared or vanished; none when one side's are not known."""
    if a is None or b is None:
        return ()
    first, second = orjson.loads(a), orjson.loads(b)
    return tuple(sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)))
