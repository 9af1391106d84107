"""Passes make the target what the source is, whatever differs, and whoever writes to the source meanwhile."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.archive.digest import digest_of
from ferry.errors import MigrationError, PreflightError, StoppedError, VerificationError
from ferry.migration import reconcile as reconciling
from ferry.migration.batch import PointBatch, PointId, Refused
from ferry.migration.columns import columns_of, each_point
from ferry.migration.follow import require_way_back
from ferry.migration.hashes import hashes_of
from ferry.migration.ids import namespace_of, point_id
from ferry.migration.plan import BackupSource, Changes, MigrationPlan, MigrationRequest, QdrantSource
from ferry.migration.reconcile import Pass, Reconciled, Rounds, reconcile
from ferry.migration.sides import NOT_FINITE
from ferry.migration.source import Ask, Cursor, Read, SourceDescription, SourceRange
from ferry.migration.stream import Acknowledged
from ferry.models import Progress, ShardId, ShardKey, no_progress, now
from ferry.profiles import WorkerSettings
from ferry.restore.shape import PlannedShard, Shape
from tests.unit.test_diff import FakeSide, hash_of

Point = dict[str, Any]
Place = tuple[ShardKey | None, PointId]
UUID_ID = "0a000000-0000-0000-0000-000000000001"
IDS: list[PointId] = [0, 1, 2, 2**64 - 1, UUID_ID]
EXACT = Rounds()
CONFIG: dict[str, Any] = {"params": {"vectors": {"size": 2, "distance": "Dot"}, "sparse_vectors": {"s": {}}}}


def a_point(name: PointId, version: int = 0) -> Point:
    return {"id": name, "payload": {"n": version}, "vector": {"": [float(version), 1.0]}}


def batch_of(points: Sequence[Point], key: ShardKey | None) -> PointBatch:
    vectors = columns_of([point["vector"] for point in points])
    return PointBatch([point["id"] for point in points], [point["payload"] for point in points], vectors, key)


@dataclass
class FakeSource:
    """Points by range."""

    ranges: dict[int, tuple[ShardKey | None, list[Point]]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def describe(self) -> SourceDescription:
        raise NotImplementedError

    def plan_ranges(self, wanted: int) -> list[SourceRange]:
        del wanted
        return [SourceRange(number=number, label=str(number), key=key) for number, (key, _) in self.ranges.items()]

    def read(
        self, part: SourceRange, cursor: Cursor | None, ask: Ask, progress: Progress = no_progress
    ) -> Iterator[Read]:
        del cursor, progress
        assert not ask.wire
        for point in list(self.ranges[part.number][1]):
            yield Read(batch_of([point], part.key), 1)

    def retrieve(self, ids: Sequence[PointId], key: ShardKey | None, ask: Ask) -> Iterator[PointBatch]:
        assert not ask.wire
        for of_range, points in self.ranges.values():
            found = [point for point in points if point["id"] in ids and of_range == key]
            if found:
                yield batch_of(found, key)


@dataclass
class Target:
    """A collection in memory, which takes what `reconcile` would send; ``meanwhile`` is called after it was sent."""

    points: dict[Place, Point] = field(default_factory=dict)
    keys: tuple[ShardKey | None, ...] = (None,)
    refuses: dict[PointId, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def side(self, *_: object) -> FakeSide:
        held: dict[tuple[ShardKey | None, int], list[Point]] = {
            (key, number): [] for number, key in enumerate(self.keys)
        }
        for (key, _id), point in self.points.items():
            held[key, self.keys.index(key)].append(point)
        return FakeSide("target", held, known=False)

    def writer(self, *_: object, leave_out: bool) -> "Target":
        del leave_out
        return self

    def write(
        self,
        batches: Iterable[tuple[PointBatch, None]],
        acknowledged: Callable[[Acknowledged[None]], None],
        progress: Progress,
    ) -> None:
        del progress
        sent = set[Place]()
        for batch, cursor in batches:
            places = {(batch.key, name) for name in batch.ids}
            assert len(places | sent) == len(batch.ids) + len(sent), "batches in flight have no order"
            sent |= places
            refused = [Refused(name, self.refuses[name]) for name in batch.ids if name in self.refuses]
            for name, payload, vector in zip(batch.ids, batch.payloads, each_point(batch), strict=True):
                if name not in self.refuses:
                    self.points[batch.key, name] = {"id": name, "payload": payload, "vector": vector}
                    self.changes.append(f"write {name}")
            acknowledged(Acknowledged(cursor, len(batch.ids) - len(refused), tuple(refused)))
        self.meanwhile()

    def delete(self, _cluster: object, _name: str, ids: list[PointId], key: ShardKey | None, _progress: object) -> int:
        for name in ids:
            del self.points[key, name]
            self.changes.append(f"delete {name}")
        return len(ids)


def plan_of(
    source: FakeSource, *, kind: str = "qdrant", keys: Sequence[ShardKey | None] = (None,), **asked: Any
) -> Any:
    description = SourceDescription(
        kind=kind,
        name="docs",
        identity="a source",
        config=asked.pop("config", CONFIG),
        payload_schema={},
        consistency="live",
        unique_ids=asked.pop("unique_ids", True),
    )
    origin = asked.pop("origin", QdrantSource(cluster="source", collection="docs"))
    request = MigrationRequest(cluster="target", repository="main", into="new", source=origin, **asked)
    return MigrationPlan(
        migration_id="a-migration",
        created_at=now(),
        request=request,
        source=description,
        fingerprint={},
        config={},
        payload_schema={},
        shards=tuple(PlannedShard(shard_id=ShardId(number), key=key) for number, key in enumerate(keys)),
        ranges=tuple(source.plan_ranges(0)),
        writer="stream",
    )


def run(folder: Path, source: FakeSource, target: Target, plan: Any, rounds: Rounds = EXACT, **how: Any) -> Reconciled:
    """Passes over a target in memory; points are sent as columns."""
    cluster = SimpleNamespace(name="target", nodes=[])
    connections: Any = SimpleNamespace(cluster=cluster, worker=WorkerSettings(spool_dir=folder / "spool"))
    with (
        patch.object(reconciling, "open_live", target.side),
        patch.object(reconciling, "StreamWriter", target.writer),
        patch.object(reconciling, "delete_points", target.delete),
        patch.object(reconciling, "wire", SimpleNamespace(encode=lambda batch: batch)),
    ):
        found = reconcile(connections, plan, source, rounds, **how)
    assert list((folder / "spool").iterdir()) == []
    return found


def collections() -> st.SearchStrategy[dict[PointId, Point]]:
    return st.fixed_dictionaries(
        {}, optional={name: st.builds(a_point, st.just(name), st.integers(0, 2)) for name in IDS}
    )


def in_ranges(model: dict[PointId, Point], ranges: int) -> FakeSource:
    """By ids, so that a point is always in the same range."""
    parts: dict[int, tuple[ShardKey | None, list[Point]]] = {number: (None, []) for number in range(ranges)}
    for name, point in model.items():
        parts[sum(str(name).encode()) % ranges][1].append(point)
    return FakeSource(parts)


@given(collections(), collections(), st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_the_target_becomes_the_source(
    tmp_path_factory: pytest.TempPathFactory,
    model: dict[PointId, Point],
    before: dict[PointId, Point],
    ranges: int,
    deletes: bool,
) -> None:
    """Any two collections: what is missing or changed is written, surplus goes only if it may, all of it is counted."""
    source, target = in_ranges(model, ranges), Target({(None, name): point for name, point in before.items()})
    found = run(tmp_path_factory.mktemp("pass"), source, target, plan_of(source, deletes=deletes))
    surplus = before.keys() - model.keys()
    first = found.passes[0]
    assert first.missing == len(model.keys() - before.keys())
    assert first.changed == sum(before[name] != model[name] for name in before.keys() & model.keys())
    assert first.surplus == len(surplus)
    assert (first.written, first.deleted) == (first.missing + first.changed, len(surplus) if deletes else 0)
    kept = {} if deletes else {name: before[name] for name in surplus}
    assert target.points == {(None, name): point for name, point in (model | kept).items()}
    assert found.equal is (not kept)
    assert found.last.source_digest == digest_of(model.values()).digest
    assert found.last.target_digest == digest_of(target.points.values()).digest
    if kept:
        with pytest.raises(VerificationError, match=f"{len(kept)} surplus"):
            found.require_equal("new")


def test_a_source_that_is_written_to_is_caught_up_with(tmp_path: Path) -> None:
    """Every pass misses what came after it; passes go on until nothing does, and the last one writes nothing."""
    source = in_ranges({n: a_point(n) for n in range(20)}, 1)
    points, left = source.ranges[0][1], [5, 3]

    def meanwhile() -> None:
        for number in range(left.pop(0) if left else 0):
            points[number] = a_point(number, 9 + len(left))

    target, told = Target(meanwhile=meanwhile), list[Pass]()
    found = run(tmp_path, source, target, plan_of(source), announce=told.append)
    assert found.equal
    assert tuple(told) == found.passes
    assert [(each.missing, each.changed, each.written) for each in told] == [
        (20, 0, 20), (0, 5, 5), (0, 3, 3), (0, 0, 0),
    ]  # fmt: skip
    assert target.points == {(None, point["id"]): point for point in points}


def test_a_small_difference_is_enough_where_it_is_asked_for(tmp_path: Path) -> None:
    """Within the limit no further pass is made, and what differed is written all the same."""
    source = in_ranges({n: a_point(n) for n in range(3)}, 1)
    target = Target()
    found = run(tmp_path, source, target, plan_of(source), Rounds(limit=3))
    assert (len(found.passes), found.within_limit, found.equal, len(target.points)) == (1, True, False, 3)


def test_a_comparison_alone_writes_nothing(tmp_path: Path) -> None:
    source, target = in_ranges({1: a_point(1)}, 1), Target()
    found = run(tmp_path, source, target, plan_of(source), Rounds(write=False))
    assert (target.changes, found.last.missing, len(found.passes)) == ([], 1, 1)
    assert [difference.id for difference in found.last.first] == [1]


def test_a_source_that_never_rests_is_no_endless_loop(tmp_path: Path) -> None:
    source = in_ranges({1: a_point(1)}, 1)
    versions = iter(range(1, 100))

    def meanwhile() -> None:
        source.ranges[0][1][0] = a_point(1, next(versions))

    target = Target(meanwhile=meanwhile)
    found = run(tmp_path, source, target, plan_of(source), Rounds(most=3))
    assert (len(found.passes), found.within_limit) == (3, False)
    with pytest.raises(VerificationError, match="1 changed"):
        found.require_equal("new")


def test_points_of_other_shard_keys(tmp_path: Path) -> None:
    """A point that got another key is written under the new one before it is deleted under the old one."""
    source = FakeSource({0: ("eu", [a_point(1), a_point(2)]), 1: ("us", [a_point(1, 5)])})
    config = {"params": {**CONFIG["params"], "sharding_method": "custom"}}
    target = Target({("us", 2): a_point(2)}, keys=("eu", "us"))
    found = run(tmp_path, source, target, plan_of(source, keys=("eu", "us"), config=config))
    assert found.equal
    assert target.points == {("eu", 1): a_point(1), ("eu", 2): a_point(2), ("us", 1): a_point(1, 5)}
    assert target.changes[-1] == "delete 2"
    first = found.passes[0]
    assert (first.missing, first.surplus, first.written) == (3, 1, 3)


def test_an_id_of_two_keys_that_come_together(tmp_path: Path) -> None:
    """The same point twice is one. Of different ones one would be lost: refused with the id, unless that is asked for.

    Then the last one in the order of ranges counts; the others are counted, and both digests are of what is there.
    """
    target, shape = Target(), Shape(sharding="auto")
    config = {"params": {**CONFIG["params"], "sharding_method": "custom"}}
    same = FakeSource({0: ("eu", [a_point(1), a_point(2)]), 1: ("us", [a_point(1)])})
    assert run(tmp_path, same, Target(), plan_of(same, config=config, shape=shape)).last.doubles == 1

    source = FakeSource({0: ("eu", [a_point(1), a_point(2)]), 1: ("us", [a_point(1, 5)])})
    with pytest.raises(MigrationError, match=r"1 ids of docs stand for different points .*, such as 1: only the last"):
        run(tmp_path, source, Target(), plan_of(source, config=config, shape=shape))
    found = run(tmp_path, source, target, plan_of(source, config=config, shape=shape, leave_out_refused=True))
    assert target.points == {(None, 1): a_point(1, 5), (None, 2): a_point(2)}
    assert found.equal
    assert (found.last.doubles, found.last.source_points) == (1, 2)
    assert found.last.source_digest == found.last.target_digest


def test_ids_that_nobody_can_ask_for(tmp_path: Path) -> None:
    """Where ids had to change, what differs is found by reading the source through, and keeps its own id."""
    source = FakeSource({0: (None, [a_point("a"), a_point("b"), a_point(7)])})
    target, told = Target(), list[Pass]()
    found = run(tmp_path, source, target, plan_of(source, kind="parquet"), announce=told.append)
    assert found.equal
    new = {name: point_id(name, namespace_of("a source")) for name in ("a", "b", 7)}
    assert {name for _, name in target.points} == set(new.values())
    assert target.points[None, new["a"]]["payload"] == {"n": 0, "__id__": "a"}
    assert target.points[None, 7] == a_point(7)


@pytest.mark.parametrize("leave_out", [False, True])
def test_refused_points_are_named(tmp_path: Path, leave_out: bool) -> None:
    """What the source cannot give and what the target does not take is left out by wish only, and told with its id."""
    bad = a_point(1) | {"vector": {"": [float("nan"), 1.0]}}
    source = in_ranges({0: a_point(0), 1: bad, 2: a_point(2)}, 1)
    target = Target(refuses={2: "too large"})
    plan = plan_of(source, leave_out_refused=leave_out)
    if not leave_out:
        with pytest.raises(MigrationError, match="first is 1: a vector holds NaN"):
            run(tmp_path, source, target, plan)
        return
    found = run(tmp_path, source, target, plan)
    assert {point.id: point.reason for point in found.last.refused} == {1: NOT_FINITE, 2: "too large"}
    assert found.equal
    assert list(target.points) == [(None, 0)]


def test_a_target_with_other_shard_keys_is_not_compared(tmp_path: Path) -> None:
    source, target = in_ranges({1: a_point(1)}, 1), Target(keys=("eu",))
    with pytest.raises(VerificationError, match="shard keys"):
        run(tmp_path, source, target, plan_of(source))


def test_a_stop_is_obeyed(tmp_path: Path) -> None:
    source, target = in_ranges({n: a_point(n) for n in range(5)}, 2), Target()

    def stop(_points: int) -> None:
        raise StoppedError("a cancel")

    with pytest.raises(StoppedError):
        run(tmp_path, source, target, plan_of(source), progress=stop)
    assert target.changes == []


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
VECTORS = st.fixed_dictionaries(
    {},
    optional={
        "": st.lists(FLOATS, min_size=3, max_size=3),
        "ü": st.lists(FLOATS, min_size=1, max_size=1),
        "multi": st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=1, max_size=3),
        "sparse": st.dictionaries(st.integers(0, 2**32 - 1), FLOATS, max_size=3).map(
            lambda pairs: {"indices": list(pairs), "values": list(pairs.values())}
        ),
    },
)


@given(st.lists(st.tuples(st.sampled_from(IDS), VECTORS), max_size=5))
def test_hashes_of_columns_are_those_of_the_digest(rows: list[tuple[PointId, Any]]) -> None:
    """The same hash as of a point in JSON, whatever vectors it has and others have not."""
    points = [{"id": name, "payload": {"k": [1, 1.5]}, "vector": vector} for name, vector in rows]
    assert hashes_of(batch_of(points, None)) == [hash_of(point) for point in points]


def test_rows_that_are_not_finite_are_found_in_every_kind_of_vector() -> None:
    from ferry.migration.sides import _not_finite

    nan = float("nan")
    good = {"m": [[1.0], [2.0]], "s": {"indices": [1, 2], "values": [1.0, 2.0]}, "d": [1.0]}
    rows = [good, good | {"m": [[1.0], [nan]]}, {"d": [1.0]}, good | {"s": {"indices": [3], "values": [nan]}}]
    rows += [{"m": [[nan]]}, good | {"d": [np.inf]}]
    assert _not_finite(batch_of([{"id": n, "payload": {}, "vector": row} for n, row in enumerate(rows)], None)) == {
        1, 3, 4, 5,
    }  # fmt: skip


def test_passes_end_where_more_of_them_find_no_less(tmp_path: Path) -> None:
    """While catching up, a pass that finds more than half of the one before is the last: so much comes in meanwhile."""
    source = in_ranges({n: a_point(n) for n in range(20)}, 1)
    versions = iter(range(1, 100))

    def meanwhile() -> None:
        for number in range(4):
            source.ranges[0][1][number] = a_point(number, next(versions))

    target = Target(meanwhile=meanwhile)
    found = run(tmp_path, source, target, plan_of(source), Rounds(limit=3, most=8, steady=True))
    assert [each.differing for each in found.passes] == [20, 4, 4]
    assert not found.within_limit


def test_more_refused_points_than_a_copy_leaves_out_are_an_error(tmp_path: Path) -> None:
    bad = {"payload": {}, "vector": {"": [float("nan"), 1.0]}}
    source = in_ranges({n: {"id": n, **bad} for n in range(101)}, 1)
    with pytest.raises(MigrationError, match="101 points cannot be in new, such as 100"):
        run(tmp_path, source, Target(), plan_of(source, leave_out_refused=True))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"filter": {"must": []}}, "a part of its source"),
        ({"changes": Changes(drop_fields=("n",))}, "changed its points"),
        ({"origin": BackupSource(cluster="source", collection="docs")}, "no live collection"),
        ({"keys": ("eu",)}, "changed the shard keys"),
    ],
)
def test_what_cannot_be_followed_back_is_refused(asked: dict[str, Any], why: str) -> None:
    """Else a reverse sync would write changed points, or delete what was never migrated."""
    source = in_ranges({1: a_point(1)}, 1)
    assert require_way_back(plan_of(source)).collection == "docs"
    with pytest.raises(PreflightError, match=why):
        require_way_back(plan_of(source, **asked))
