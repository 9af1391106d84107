"""Making the target equal to the source: compare, write what is missing or changed, delete surplus, and again.

Nothing but the points themselves says what has changed in a source that lives: no watermark sees a delete, and few
collections have one. So each pass reads both sides, as hashes; only what differs is read once more, and written.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson
from pydantic import Field

from ferry.connections import Connections
from ferry.errors import MigrationError, VerificationError
from ferry.migration.batch import PointId, Refused, WireBatch
from ferry.migration.ids import namespace_of, point_id
from ferry.migration.plan import MigrationPlan
from ferry.migration.report import RejectedPoint
from ferry.migration.sides import SourceSide
from ferry.migration.source import Source
from ferry.migration.stream import Acknowledged, StreamWriter
from ferry.models import Finding, Progress, ShardKey, Value, no_progress
from ferry.qdrant import wire
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import path_of
from ferry.qdrant.rota import Rota
from ferry.verify import spool
from ferry.verify.diff import Comparison, compare
from ferry.verify.ledger import Difference, What
from ferry.verify.sides import SideName, open_live

FIRST = 20  # named of each kind
DELETED_AT_ONCE = 1000
DELETE_SECONDS = 60.0  # a node answers for a replica that is away only after 30 s of consensus (seen on 1.16.3)


class Rounds(Value):
    """How passes are repeated: until at most ``limit`` points differ, ``most`` times. ``write``: mend differences.

    ``steady``: also until a pass finds more than half as much as the one before it, which is what is written to the
    source during a pass, and more passes find no less. What differs is written in any case; only a pass that finds no
    difference proves that both sides are equal.
    """

    limit: int = Field(default=0, ge=0)
    most: int = Field(default=8, ge=1)
    write: bool = True
    steady: bool = False

    def over(self, passes: Sequence["Pass"]) -> bool:
        """Whether there is no use in another pass."""
        last = passes[-1]
        if last.differing <= self.limit or len(passes) == self.most or not (last.written or last.deleted):
            return True
        return self.steady and len(passes) > 1 and last.differing > passes[-2].differing / 2


# With so few points left to carry over, writers that pause wait about as long as both sides take to be read.
CATCH_UP = Rounds(limit=100, most=8, steady=True)
# While writers pause one pass writes and one proves; others are for writes that were still under way.
PROOF = Rounds(limit=0, most=4)


class Pass(Value):
    """One comparison of the source, as it shall be in the target, with the target; and what was written by it.

    ``missing`` points are in the source only, ``surplus`` in the target only; ``first`` names the first of each kind.
    Digests are of all points of a side (see `ferry.archive.digest`). ``refused`` points cannot be in the target, and
    are in none of the numbers. ``doubles`` came more than once under one id and key; the last one counts.
    """

    number: int
    source_points: int
    target_points: int
    source_digest: str
    target_digest: str
    missing: int
    changed: int
    surplus: int
    written: int = 0
    deleted: int = 0
    doubles: int = 0
    refused: tuple[RejectedPoint, ...] = ()
    first: tuple[Difference, ...] = ()
    seconds: float

    @property
    def differing(self) -> int:
        """How many points differ."""
        return self.missing + self.changed + self.surplus


class Reconciled(Value):
    """What came of the passes; the last one is the verdict."""

    passes: tuple[Pass, ...]
    within_limit: bool
    findings: tuple[Finding, ...] = ()

    @property
    def last(self) -> Pass:
        """The last pass."""
        return self.passes[-1]

    @property
    def equal(self) -> bool:
        """Whether every point was the same on both sides, and none on one side only."""
        return self.last.differing == 0

    def require_equal(self, target: str) -> None:
        """Raise VerificationError, with numbers and names, unless both sides were equal."""
        if self.equal:
            return
        last = self.last
        names = ", ".join(str(difference.id) for difference in last.first[:FIRST])
        msg = (
            f"After {len(self.passes)} passes {target} is not equal to its source: {last.missing} points are missing, "
            f"{last.changed} changed, {last.surplus} surplus, such as {names}."
        )
        raise VerificationError(msg, "Pause whatever writes to the source or to the target, then run it again.")


def reconcile(
    connections: Connections,
    plan: MigrationPlan,
    source: Source,
    rounds: Rounds = Rounds(),  # noqa: B008 - frozen
    announce: Callable[[Pass], None] = lambda _pass: None,
    progress: Progress = no_progress,
) -> Reconciled:
    """Compare and mend until the difference is within the limit; ``announce`` gets each pass. ``source`` is open.

    May be run again at any time. Surplus is only deleted with ``plan.request.deletes``. ``progress`` gets the points
    read, and may raise to stop. Disk: 300 bytes a point on the worker's spool. Raises what reading and writing raise; a
    difference that stays is no error here.
    """
    passes: list[Pass] = []
    findings: tuple[Finding, ...] = ()
    refused: dict[PointId, Refused] = {}
    while True:
        with spool.folder(connections.worker) as folder:
            work = _Work(connections, plan, SourceSide(source, plan, folder), refused, progress)
            done, findings = work.compare_and_mend(len(passes) + 1, rounds, folder)
        passes.append(done)
        announce(done)
        if rounds.over(passes):
            within = done.differing <= rounds.limit
            return Reconciled(passes=tuple(passes), within_limit=within, findings=findings)


class _Work:
    """One pass. ``refused`` are points that the target does not take, by any pass so far."""

    def __init__(
        self,
        connections: Connections,
        plan: MigrationPlan,
        side: SourceSide,
        refused: dict[PointId, Refused],
        progress: Progress,
    ) -> None:
        self._connections, self._plan, self._side = connections, plan, side
        self._refused, self._progress = refused, progress
        self._written = 0

    def compare_and_mend(self, number: int, rounds: Rounds, folder: Path) -> tuple[Pass, tuple[Finding, ...]]:
        """Compare both sides, and write what differs where that is asked for."""
        began, path = time.monotonic(), folder / "differences"
        with path.open("wb") as file:
            found = _Found(file, self._refused)
            compared = self._compare(found)
        deleted = self._mend(path, found) if rounds.write else 0
        self._require_taken()
        self._require_apart()
        done = Pass(
            number=number,
            source_points=compared.a.points,
            target_points=compared.b.points,
            source_digest=compared.a.digest,
            target_digest=compared.b.digest,
            missing=found.numbers["removed"],
            changed=found.numbers["changed"],
            surplus=found.numbers["added"],
            written=self._written,
            deleted=deleted,
            doubles=self._side.doubles,
            refused=tuple(RejectedPoint(id=point.id, reason=point.reason) for point in self._left_out()),
            first=tuple(found.first),
            seconds=time.monotonic() - began,
        )
        return done, compared.findings

    def _compare(self, found: "_Found") -> Comparison:
        name = SideName(cluster=self._connections.cluster.name, backup=None, collection=self._plan.target)
        target = open_live(self._connections.cluster, name)
        self._require_keys({shard.key for shard in target.shards})
        return compare(self._side, target, self._connections.worker, found, self._progress, explain=False)

    def _require_keys(self, there: set[ShardKey | None]) -> None:
        """Else points of an id under two keys would be taken for one."""
        if there != set(self._side.keys):
            msg = f"{self._plan.target} has the shard keys {there}, and was planned with {set(self._side.keys)}."
            raise VerificationError(msg, "Put back its shard keys, or begin anew: restart. Nothing was written.")

    def _mend(self, path: Path, found: "_Found") -> int:
        """Write what is missing or changed, then delete what is surplus, so that a point that got another shard key is
        never away; how many were deleted."""
        if found.numbers["removed"] + found.numbers["changed"]:
            writer = StreamWriter(
                self._connections.cluster, self._plan.target, leave_out=self._plan.request.leave_out_refused
            )
            writer.write(self._sent(path), self._acknowledged, lambda _points: self._progress(0))
        if not found.numbers["added"] or not self._plan.request.deletes:
            return 0
        return sum(
            delete_points(self._connections.cluster, self._plan.target, ids, key, self._progress)
            for key, ids in _pages(path, ("added",), DELETED_AT_ONCE)
        )

    def _sent(self, path: Path) -> Iterator[tuple[WireBatch, None]]:
        """The points that are missing or changed, as the source has them now."""
        for key, ids in _pages(path, ("removed", "changed"), self._side.page_ids):
            for batch in self._side.points(ids, key, self._progress, sent=True):
                yield wire.encode(batch), None

    def _acknowledged(self, batch: Acknowledged[None]) -> None:
        self._written += batch.points
        namespace = namespace_of(self._plan.source.identity)
        self._refused.update({point_id(point.id, namespace): point for point in batch.refused})

    def _left_out(self) -> list[Refused]:
        """Every point that the target does not have, for it cannot."""
        of_source = [Refused(name, reason) for name, reason in self._side.refused.items()]
        return [*of_source, *self._refused.values()]

    def _require_taken(self) -> None:
        left_out = self._left_out()
        if not left_out or self._plan.request.leave_out_refused:
            return
        first = left_out[0]
        msg = f"{len(left_out)} points cannot be in {self._plan.target}; the first is {first.id}: {first.reason}."
        raise MigrationError(msg, "Correct them, or run the migration again with leave_out_refused.")

    def _require_apart(self) -> None:
        if not self._side.conflicts or self._plan.request.leave_out_refused:
            return
        names = ", ".join(map(str, self._side.first_conflicts))
        msg = (
            f"{self._side.conflicts} ids of {self._plan.source.name} stand for different points under one shard "
            f"key of {self._plan.target}, such as {names}: only the last point of each would be left."
        )
        raise MigrationError(msg, "Keep their shard keys apart, mend the ids in the source, or leave_out_refused.")


class _Found:
    """What a comparison finds: counted, the first named, and all of it in a file of JSON lines."""

    def __init__(self, file: BinaryIO, refused: dict[PointId, Refused]) -> None:
        self._file, self._refused = file, refused
        self.numbers: dict[What, int] = {"removed": 0, "changed": 0, "added": 0}
        self.first: list[Difference] = []

    def __call__(self, difference: Difference) -> None:
        if difference.id in self._refused and difference.what != "added":
            return
        self.numbers[difference.what] += 1
        if self.numbers[difference.what] <= FIRST:
            self.first.append(difference)
        self._file.write(orjson.dumps(difference.model_dump(exclude_none=True)) + b"\n")


def _pages(path: Path, kinds: tuple[What, ...], size: int) -> Iterator[tuple[ShardKey | None, list[PointId]]]:
    """The ids of the differences of these kinds, by shard key, at most ``size`` at a time."""
    page: list[PointId] = []
    of_page: ShardKey | None = None
    with path.open("rb") as file:
        for line in file:
            found = Difference.model_validate(orjson.loads(line))
            if found.what not in kinds:
                continue
            if page and (len(page) == size or found.shard_key != of_page):
                yield of_page, page
                page = []
            of_page = found.shard_key
            page.append(found.id)
    if page:
        yield of_page, page


def delete_points(
    cluster: Cluster, collection: str, ids: list[PointId], key: ShardKey | None, progress: Progress = no_progress
) -> int:
    """Delete points, under one shard key where there are keys, and return how many were named; again is fine.

    Raises NodeError when no node has done it for two minutes, and NodeRefusedError. ``progress`` gets 0, may raise.
    """
    path = path_of("collections", collection, "points", "delete")
    body = {"points": ids} | ({} if key is None else {"shard_key": key})

    def pause(seconds: float) -> None:
        progress(0)
        time.sleep(seconds)

    rota = Rota(cluster.nodes, f"has deleted points of {collection}")
    rota.ask(lambda node: node.request("POST", path, json=body, params={"wait": "true"}, timeout=DELETE_SECONDS), pause)
    return len(ids)
