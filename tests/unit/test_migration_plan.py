"""Plans of migrations: what may change between runs, ranges and lanes, what both writers cost; and how copies count."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.connections import Connections
from ferry.errors import MigrationError, PreflightError, StoppedError
from ferry.migration import copy, records
from ferry.migration.batch import Dense, PointBatch, Refused, WireBatch
from ferry.migration.costs import build_cost, data_bytes, needs_of, stream_cost
from ferry.migration.fingerprint import fingerprint_of, require_unchanged
from ferry.migration.plan import Changes, Cost, MigrationPlan, MigrationRequest
from ferry.migration.prepare import _choose, _ranges
from ferry.migration.run import lanes_of_ranges
from ferry.migration.source import Ask, Cursor, Read, Source, SourceRange
from ferry.migration.stream import Acknowledged
from ferry.models import ClusterLayout, NodeInfo, PeerId, ShardId, ShardLayout, now
from ferry.profiles import WorkerSettings
from ferry.qdrant import wire
from ferry.qdrant.schema import MIGRATION_MARK, creation_body, migration_mark, schema_differences
from ferry.repository.layout import Keys
from ferry.restore.shape import Shape
from tests.unit.fakes import MemoryStore
from tests.unit.test_migration_records import CONFIG, description, plan, request

MIB = 1 << 20


def begun(**others: Any) -> MigrationPlan:
    return plan(fingerprint=fingerprint_of(request(), description()), **others)


@pytest.mark.parametrize(
    "wish",
    [
        {"readers": 9},
        {"batch_bytes": 2048},
        {"alias": "docs", "keep_days": 1},
        {"leave_out_refused": True},
        {"deletes": False},
        {"writer": "stream"},
    ],
)
def test_what_does_not_touch_points_may_change_between_runs(wish: dict[str, Any]) -> None:
    """Workers, batches, and what is done at the end."""
    require_unchanged(begun(), request(**wish), description())


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"filter": {"must": []}}, 'filter: null then, {"must":[]} now'),
        ({"changes": Changes(drop_fields=("x",))}, 'changes: null then, {"drop_fields":["x"]} now'),
        ({"shape": Shape(shard_number=4)}, 'shape: null then, {"shard_number":4} now'),
        ({"replication_factor": 2}, "replication_factor: null then, 2 now"),
        ({"writer": "build"}, "the writer: stream then, build now"),
    ],
)
def test_another_wish_is_refused_by_its_name(wish: dict[str, Any], said: str) -> None:
    """With what it was and what it is, and how to begin anew."""
    with pytest.raises(PreflightError) as refusal:
        require_unchanged(begun(), request(**wish), description())
    assert said in refusal.value.message
    assert "restart" in str(refusal.value.remedy)


def test_another_source_is_refused_by_what_is_otherwise_in_it() -> None:
    """Its identity, its vectors, its payload indexes, its shard keys; how it is indexed or stored does not matter."""
    params: dict[str, Any] = CONFIG["params"]
    keyed = ShardLayout(shard_id=ShardId(1), key="k", replicas=())
    for others, said in (
        ({"identity": "other"}, "the source: qdrant/source/docs/1 then, other now"),
        (
            {"config": {"params": params | {"vectors": {"size": 8, "distance": "Dot"}}}},
            "params.vectors.size: 4 then, 8",
        ),
        ({"payload_schema": {}}, "payload index city"),
        ({"shards": (keyed,)}, "the source's shard keys: none went, k came"),
    ):
        with pytest.raises(PreflightError) as refusal:
            require_unchanged(begun(), request(), description(**others))
        assert said in refusal.value.message
    stored = CONFIG | {"params": params | {"on_disk_payload": True}, "optimizer_config": {}, "hnsw_config": {"m": 9}}
    counted = {"city": {"data_type": "keyword", "points": 99}}
    require_unchanged(begun(), request(), description(config=stored, payload_schema=counted, points=5))


def test_the_mark_of_a_migration_is_no_part_of_the_schema() -> None:
    """It is there from the first moment, beside the user's own metadata, and neither copied nor compared."""
    config = CONFIG | {"metadata": {"owner": "team"}}
    body = creation_body(config, migration_id="0123456789abcdef")
    assert body["metadata"] == {"owner": "team", MIGRATION_MARK: "0123456789abcdef"}
    marked = config | {"metadata": body["metadata"]}
    assert migration_mark(marked) == "0123456789abcdef"
    assert schema_differences(config, {}, marked, {}) == []
    assert creation_body(marked)["metadata"] == {"owner": "team"}


class Ranges:
    """A source that gives as many ranges as are wanted for each of two keys."""

    def plan_ranges(self, wanted: int) -> list[SourceRange]:
        return [SourceRange(number=n, label=str(n), key="ab"[n % 2], points=n) for n in range(wanted)]


@pytest.mark.parametrize(("points", "readers", "wanted"), [(0, 4, 4), (10, 3, 3), (341_479, 4, 8), (10**9, 4, 256)])
def test_there_are_about_as_many_ranges_as_keep_every_reader_at_work(points: int, readers: int, wanted: int) -> None:
    """A multiple of the readers; and each is in one lane, the largest first."""
    found = _ranges(cast("Source", Ranges()), description(points=points), request(readers=readers))
    assert len(found) == wanted
    lanes = lanes_of_ranges(plan(request(readers=readers), ranges=tuple(found)))
    assert len(lanes) == readers
    assert sorted(part.number for lane in lanes for part in lane) == list(range(wanted))
    assert all(lane == sorted(lane, key=lambda part: -(part.points or 0)) for lane in lanes)


def test_only_the_ranges_of_wanted_shard_keys_are_planned() -> None:
    """The others are not read at all."""
    shards = tuple(ShardLayout(shard_id=ShardId(n), key=key, replicas=()) for n, key in enumerate("ab", 1))
    wanted = request(shape=Shape(only_keys=("b",)))
    found = _ranges(cast("Source", Ranges()), description(shards=shards), wanted)
    assert {part.key for part in found} == {"b"}


def test_costs_grow_with_copies_and_say_why_a_writer_cannot_be_used() -> None:
    """Streaming costs the target an index for each copy; building costs it none, and needs the worker's disk."""
    source = description(points=100_000)
    once, twice = (stream_cost(source, CONFIG, copies, nodes=2) for copies in (1, 2))
    assert once.target_cpu_seconds is not None
    assert twice.target_cpu_seconds == pytest.approx(2 * once.target_cpu_seconds, rel=0.05)
    flat = CONFIG | {"hnsw_config": {"m": 0}}
    assert stream_cost(source, flat, 1, 2).target_cpu_seconds == pytest.approx(2.5, rel=0.01)
    assert build_cost(source, CONFIG, 7, []).target_cpu_seconds == 0
    assert build_cost(source, CONFIG, 7, ["no", "never"]).reason == "no; never"


def test_the_writer_that_spares_the_target_is_chosen_where_it_can_be(tmp_path: Path) -> None:
    """Build for much to index; not for little, not where it cannot be used or has no room, and as it was asked for."""
    worker = WorkerSettings(spool_dir=tmp_path / "not" / "yet")
    much, little = Cost(writer="stream", target_cpu_seconds=600), Cost(writer="stream", target_cpu_seconds=5)
    fits, huge = Cost(writer="build", spool_bytes=MIB), Cost(writer="build", spool_bytes=1 << 60)
    never = Cost(writer="build", reason="of this storage")
    cases = [(much, fits, "build"), (little, fits, "stream"), (much, huge, "stream"), (much, never, "stream")]
    for stream, build, chosen in cases:
        assert _choose(request(), (stream, build), worker)[0] == chosen
    assert _choose(request(writer="stream"), (much, fits), worker)[0] == "stream"
    with pytest.raises(PreflightError, match="of this storage"):
        _choose(request(writer="build"), (much, never), worker)


def test_every_node_needs_its_share_of_the_copies() -> None:
    """Twice the data on disk; vectors in memory unless they are kept on disk."""
    nodes = tuple(NodeInfo(url=f"http://n{n}", peer_id=PeerId(n), version="1.16.3") for n in (1, 2))
    layout = ClusterLayout(cluster="target", taken_at=now(), nodes=nodes, collections=(), aliases={})
    source = description(points=1000, bytes=10 * MIB)
    need = needs_of(source, CONFIG, 1, layout)[PeerId(1)]
    assert data_bytes(source, CONFIG) == 10 * MIB
    assert need.disk_bytes == 10 * MIB
    assert need.ram_bytes > 0
    stored = {"params": {"vectors": {"size": 4, "distance": "Dot", "on_disk": True}}}
    assert needs_of(source, stored, 2, layout)[PeerId(2)].ram_bytes == 0


class Numbers:
    """A source of points 0, 1, 2, …, in pages; a cursor is the number that follows."""

    def __init__(self, pages: Iterable[int]) -> None:
        self._pages = list(pages)

    def read(self, _part: SourceRange, cursor: Cursor | None, _ask: Ask, _progress: Any) -> Iterator[Read]:
        start, first = (0 if cursor is None else cursor), 0
        for number, size in enumerate(self._pages):
            if first >= int(start):
                ids = list(range(first, first + size))
                payloads = [{"group": "" if each % 5 == 0 else "ab"[each % 2]} for each in ids]
                payloads = [{} if each % 5 == 0 else payload for each, payload in zip(ids, payloads, strict=True)]
                vectors = {"": Dense(np.ones((size, 4), np.float32))}
                last = number == len(self._pages) - 1
                yield Read(PointBatch(ids, payloads, vectors), None if last else first + size)
            first += size


class Writer:
    """A stream writer that applies batches late, refuses some points, and dies when it is told to."""

    dies_after: int | None = None
    applied: list[int]

    def __init__(self, _cluster: Any, _collection: str, *, leave_out: bool, in_flight: int) -> None:
        assert leave_out
        assert in_flight == 2

    def write(
        self,
        batches: Iterable[tuple[WireBatch, Any]],
        acknowledged: Callable[[Acknowledged[Any]], None],
        _progress: Any,
    ) -> None:
        late: list[tuple[WireBatch, Any]] = []
        for pair in [*batches, None]:  # all are read before the first one is acknowledged
            late += [] if pair is None else [pair]
        for batch, cursor in late:
            if Writer.dies_after is not None:
                if Writer.dies_after == 0:
                    raise StoppedError("killed")
                Writer.dies_after -= 1
            ids = [int(wire.point_id(point)) for point in batch.points]
            taken = [each for each in ids if each % 7]
            Writer.applied += taken
            acknowledged(Acknowledged(cursor, len(taken), tuple(Refused(each, "no") for each in ids if not each % 7)))


@given(
    pages=st.lists(st.integers(0, 12), min_size=0, max_size=6),
    deaths=st.lists(st.integers(0, 8), max_size=4),
    checkpoint_seconds=st.sampled_from([0.0, 1e9]),
)
def test_whatever_batch_a_copy_dies_at_every_point_counts_once(
    pages: list[int], deaths: list[int], checkpoint_seconds: float
) -> None:
    """Points are split by shard key, left out by us and by the target; a page counts when all of it is applied."""
    store = MemoryStore()
    connections = cast("Connections", SimpleNamespace(store=store, keys=Keys("ferry"), cluster=None))
    asked = MigrationRequest.model_validate(
        request(leave_out_refused=True).model_dump()
        | {"shape": {"sharding": "custom", "key_field": "group"}, "source": request().source.model_dump()}
    )
    planned = plan(asked)
    total, Writer.applied = sum(pages), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copy, "StreamWriter", Writer)
        patched.setattr(copy, "CHECKPOINT_SECONDS", checkpoint_seconds)
        for death in [*deaths, None]:
            Writer.dies_after = death
            try:
                copy.copy_range(connections, planned, cast("Source", Numbers(pages)), planned.ranges[0])
            except StoppedError:
                state = records.range_state(connections, planned, 0)
                # What counts is applied, and the cursor lies behind exactly that.
                assert state.read == (state.cursor or 0)
                assert set(_written(state.read)) <= set(Writer.applied)
    state = records.range_state(connections, planned, 0)
    assert state.done
    assert set(Writer.applied) == set(_written(total))
    assert (state.read, state.written) == (total, len(_written(total)))
    assert {point.id for point in state.rejected} == set(range(total)) - set(_written(total))
    assert len(state.rejected) == total - state.written


def _written(points: int) -> list[int]:
    """Those that have a group, and are not refused."""
    return [each for each in range(points) if each % 5 and each % 7]


def test_a_point_that_cannot_be_in_the_target_stops_the_copy_unless_it_may_be_left_out() -> None:
    """Named by the id that it has in the source, with the reason."""
    connections = cast("Connections", SimpleNamespace(store=MemoryStore(), keys=Keys("ferry"), cluster=None))
    planned = plan(request(shape=Shape(sharding="custom", key_field="group")))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copy, "StreamWriter", lambda *_, **__: SimpleNamespace(write=lambda batches, *_: list(batches)))
        with pytest.raises(MigrationError, match="Point 0 of docs of source cannot be in new: it has nothing in group"):
            copy.copy_range(connections, planned, cast("Source", Numbers([3])), planned.ranges[0])
