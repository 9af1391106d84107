"""How batches are streamed: over channels in memory that take, lose, refuse or delay what they are told."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ferry.errors import NodeError, NodeRefusedError, NodeUnreachableError, StoppedError
from ferry.migration import stream
from ferry.migration.batch import Dense, PointBatch, PointId, WireBatch
from ferry.migration.stream import MOST_BYTES, Acknowledged, StreamWriter
from ferry.models import Progress, no_progress
from ferry.qdrant import rota, wire
from ferry.qdrant.grpc import TooLargeError
from ferry.qdrant.http import BusyError, NotFoundError, WrongRequestError
from ferry.qdrant.messages import MESSAGES
from ferry.qdrant.writer import PointRefusedError

BATCH_POINTS = 8
Rule = Callable[[str, list[PointId]], None]


class Target:
    """Some nodes. ``before`` may raise or wait before points are applied, ``after`` when they are."""

    def __init__(self, nodes: int = 2) -> None:
        self.labels = [f"node-{number}" for number in range(nodes)]
        self.before: Rule = lambda _label, _ids: None
        self.after: Rule = lambda _label, _ids: None
        self.applied: dict[tuple[Any, PointId], bytes] = {}
        self.asked: list[tuple[str, list[PointId]]] = []
        self.told: list[Acknowledged[int]] = []
        self.in_flight = self.most_in_flight = 0
        self.closed = 0
        self.lock = threading.Lock()

    @property
    def ids(self) -> list[Any]:
        """Ids of what was applied, sorted."""
        return sorted(point_id for _, point_id in self.applied)

    def channels(self) -> list[Any]:
        return [SimpleNamespace(unary_unary=self._call(label), close=self._close) for label in self.labels]

    def _close(self) -> None:
        self.closed += 1

    def _call(self, label: str) -> Any:
        def upsert(request: bytes, timeout: float | None = None) -> bytes:
            message = MESSAGES["UpsertPoints"].FromString(request)
            assert (message.collection_name, message.wait) == ("docs", True)
            assert timeout is not None
            assert timeout >= 60
            keys = [key.keyword for key in message.shard_key_selector.shard_keys]
            points = {wire.point_id(point): point for point in message.points}
            with self.lock:
                self.asked.append((label, list(points)))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                self.before(label, list(points))
                with self.lock:
                    self.applied |= {(keys[0] if keys else None, name): point for name, point in points.items()}
                self.after(label, list(points))
            finally:
                with self.lock:
                    self.in_flight -= 1
            return b""

        return lambda method: upsert if method == "/qdrant.Points/Upsert" else None

    def write(
        self, batches: Iterable[WireBatch], progress: Progress = no_progress, **wishes: Any
    ) -> list[Acknowledged[int]]:
        """Write them, each with its number as cursor."""
        cluster: Any = SimpleNamespace(nodes=self.labels, profile=SimpleNamespace(timeout_seconds=1.0))
        writer = StreamWriter(cluster, "docs", **wishes)
        writer.write(((batch, number) for number, batch in enumerate(batches)), self.told.append, progress)
        return self.told


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rests of milliseconds."""
    monkeypatch.setattr(rota, "FIRST_REST_SECONDS", 0.002)
    monkeypatch.setattr(rota, "LONGEST_REST_SECONDS", 0.02)
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.01)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    """Two nodes."""
    made = Target()
    monkeypatch.setattr(stream, "open_channels", lambda _profile: made.channels())
    return made


def batch(first: int, points: int = BATCH_POINTS, size: int = 2, payload: dict[str, Any] | None = None) -> WireBatch:
    """Points with ids from ``first`` on."""
    ids = list(range(first, first + points))
    values = np.arange(points * size, dtype=np.float32).reshape(points, size)
    return wire.encode(PointBatch(ids, [payload or {"n": n} for n in ids], {"": Dense(values)}))


def batches(count: int, points: int = BATCH_POINTS) -> list[WireBatch]:
    return [batch(points * number, points) for number in range(count)]


def test_every_point_is_written_as_it_came_over_all_nodes(target: Target) -> None:
    """The bytes of each point pass unchanged with the batch's key, and each node gets its share."""
    written = [WireBatch(each.points, "ü") for each in batches(30)]
    told: list[int] = []
    assert [each.cursor for each in target.write(written, told.append)] == list(range(30))
    assert {each.points for each in target.told} == {BATCH_POINTS}
    assert target.applied == {("ü", wire.point_id(point)): point for each in written for point in each.points}
    assert set(Counter(label for label, _ in target.asked).values()) == {15}
    assert sum(told) == 240
    assert target.closed == 2


def test_a_batch_is_acknowledged_only_after_all_before_it(target: Target) -> None:
    """Though later ones are applied first; the cursor says where to go on."""
    release = threading.Event()

    def hold_first(_label: str, ids: list[PointId]) -> None:
        if ids[0] == 0:
            release.wait(10)

    def progress(_points: int) -> None:
        if len(target.ids) >= 3 * BATCH_POINTS and not release.is_set():
            assert target.told == []
            release.set()

    target.before = hold_first
    target.write(batches(6), progress)
    assert release.is_set()
    assert [each.cursor for each in target.told] == list(range(6))


@pytest.mark.parametrize(("nodes", "wish", "most"), [(1, None, 2), (3, None, 3), (9, None, 4), (2, 1, 1)])
def test_few_more_batches_are_in_memory_than_in_flight(target: Target, nodes: int, wish: int | None, most: int) -> None:
    """The next batch is not asked for before there is room for it, and the room is used."""
    target.labels = [f"node-{number}" for number in range(nodes)]
    held = []

    def numbered() -> Iterator[WireBatch]:
        for number, each in enumerate(batches(40)):
            held.append(number + 1 - len(target.applied) // BATCH_POINTS)
            yield each

    target.before = lambda _label, _ids: time.sleep(0.002)
    target.write(numbered(), in_flight=wish)
    assert max(held) == most + 1
    assert target.most_in_flight == most


def test_a_lost_answer_is_sent_again_and_counted_once(target: Target) -> None:
    """Whether or not the node had applied it."""
    lost: list[PointId] = []

    def lose(label: str, ids: list[PointId]) -> None:
        if ids[0] not in lost:
            lost.append(ids[0])
            raise NodeUnreachableError(f"{label} closed the connection")

    target.before = lambda label, ids: lose(label, ids) if ids[0] == 16 else None
    target.after = lambda label, ids: lose(label, ids) if ids[0] == 24 else None
    target.write(batches(10))
    assert target.ids == list(range(80))
    assert sum(each.points for each in target.told) == 80
    assert len(target.asked) == 12


def test_nodes_that_stay_away_fail_the_write_with_what_they_said(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the limit, with what was acknowledged before; it is none that is tried again at once."""
    monkeypatch.setattr(rota, "AWAY_SECONDS", 0.1)

    def away(label: str, ids: list[PointId]) -> None:
        if ids[0] != 0:
            raise NodeUnreachableError(f"{label}: 1 of 2 shards failed")

    target.before = away
    with pytest.raises(NodeError, match=r"no node has taken points of docs; the last said: node-.: 1 of 2") as caught:
        target.write(batches(6), in_flight=2)
    assert not caught.value.transient
    assert [each.cursor for each in target.told] == [0]
    assert target.closed == 2


def test_a_limit_is_waited_for_as_long_as_asked(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure, however often."""
    monkeypatch.setattr(rota, "AWAY_SECONDS", 0.0)
    times: list[float] = []

    def busy(_label: str, _ids: list[PointId]) -> None:
        times.append(time.monotonic())
        if len(times) <= 3:
            error = BusyError("Rate limiting exceeded")
            error.retry_after_seconds = 0.05
            raise error

    target.before = busy
    target.write([batch(0)])
    assert target.ids == list(range(8))
    assert times[3] - times[0] >= 0.15


def refusing(*wrong: PointId) -> Rule:
    """Refuse any request with one of these points in it, as Qdrant does for a vector of another size."""

    def refuse(_label: str, ids: list[PointId]) -> None:
        if not set(wrong).isdisjoint(ids):
            raise WrongRequestError("Vector dimension error: expected dim: 2, got 1")

    return refuse


@pytest.mark.parametrize("wrong", [16, 20, 23])
def test_a_refused_point_is_named(target: Target, wrong: int) -> None:
    """The batch is halved until the point is alone; it is not acknowledged, and nothing long after it is begun."""
    target.before = refusing(wrong)
    with pytest.raises(NodeRefusedError, match=f"Point {wrong} cannot be written to docs: .*expected dim: 2, got 1"):
        target.write(batches(300))
    assert set(range(16, wrong)) <= set(target.ids)
    assert wrong not in target.ids
    assert all(each.cursor < 2 for each in target.told)
    assert len(target.ids) < 100


def test_refused_points_may_be_left_out_and_are_named_with_their_batch(target: Target) -> None:
    """By the id that they have in the source; all others of their batches are written."""
    named = "0cf0d6f5-6a7c-5d3e-8a53-6f6a5e0f8f5a"
    odd = wire.encode(PointBatch([named], [{"__id__": "row 7"}], {"": Dense(np.ones((1, 2), np.float32))}))
    target.before = refusing(11, 12, named)
    target.write([batch(0), batch(8), odd, batch(16)], leave_out=True)
    assert target.ids == [number for number in range(24) if number not in (11, 12)]
    assert [each.points for each in target.told] == [8, 6, 0, 8]
    assert [[point.id for point in each.refused] for each in target.told] == [[], [11, 12], ["row 7"], []]
    assert "expected dim" in target.told[1].refused[0].reason


def test_when_no_point_is_taken_it_is_no_single_point(target: Target) -> None:
    """Ten are tried, and what is under way then."""
    target.before = refusing(*range(1000))
    with pytest.raises(NodeRefusedError, match=r"None of the first 1. points can be written to docs.*expected dim"):
        target.write(batches(9, 100), leave_out=True)
    assert len(target.asked) < 60
    assert target.told == []


def test_more_refused_points_than_a_hundred_are_too_many(target: Target) -> None:
    """However many were written."""
    target.before = refusing(*range(0, 2000, 4))
    with pytest.raises(NodeRefusedError, match=r"10. points cannot be written to docs, the last of them"):
        target.write(batches(20, 100), leave_out=True)
    assert sum(len(each.refused) for each in target.told) <= 109


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_not_sent(target: Target, value: float) -> None:
    """Qdrant would take them."""
    values = np.ones((4, 2), np.float32)
    values[2, 1] = value
    wrong = wire.encode(PointBatch([1, 2, 3, 4], [{}] * 4, {"": Dense(values)}))
    target.write([wrong], leave_out=True)
    assert target.ids == [1, 2, 4]
    assert [(point.id, "NaN or an infinity" in point.reason) for point in target.told[0].refused] == [(3, True)]
    with pytest.raises(NodeRefusedError, match="Point 3 cannot be written to docs"):
        target.write([wrong])


def test_batches_that_are_too_large_are_cut_and_the_size_is_learnt(target: Target) -> None:
    """By bytes before they are sent, and by what a proxy takes when it says so."""
    most = 200_000
    sizes: list[int] = []

    def limited(_label: str, ids: list[PointId]) -> None:
        sizes.append(len(ids) * 4000)
        if sizes[-1] > most:
            raise TooLargeError("Received message larger than max")

    target.before = limited
    target.write([batch(2000 * number, 2000, size=1000) for number in range(2)])  # 8 MB each
    assert target.ids == list(range(4000))
    assert max(sizes) <= MOST_BYTES
    assert len([size for size in sizes if size > most]) <= 12
    assert max(sizes[-30:]) <= most
    assert min(sizes) > most / 4


def test_batches_of_too_many_points_are_cut_and_the_number_is_learnt(target: Target) -> None:
    """As strict mode's upsert_max_batchsize asks."""

    def limited(_label: str, ids: list[PointId]) -> None:
        if len(ids) > 30:
            raise WrongRequestError(f"Limit exceeded {len(ids)} > 30")

    target.before = limited
    target.write(batches(20, 100))
    assert target.ids == list(range(2000))
    assert len([ids for _, ids in target.asked if len(ids) > 30]) <= 6
    assert {len(ids) for _, ids in target.asked[12:]} == {25}


@pytest.mark.parametrize("error", [NotFoundError("no such collection"), NodeRefusedError("Forbidden")])
def test_what_no_waiting_mends_is_raised_at_once(target: Target, error: NodeRefusedError) -> None:
    """Neither tried again nor halved, and left out by no wish."""

    def refuse(_label: str, _ids: list[PointId]) -> None:
        raise error

    target.before = refuse
    with pytest.raises(NodeRefusedError) as caught:
        target.write(batches(50), leave_out=True)
    assert caught.value is error
    assert len(target.asked) <= 4


def test_a_cancel_ends_it_while_every_node_is_silent(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is called while nothing happens, may raise, and then every thread ends, those that rest among them."""
    monkeypatch.setattr(rota, "LONGEST_REST_SECONDS", 60.0)
    monkeypatch.setattr(rota, "FIRST_REST_SECONDS", 60.0)

    def away(_label: str, _ids: list[PointId]) -> None:
        raise NodeUnreachableError("away")

    target.before = away
    calls: list[int] = []

    def cancel(points: int) -> None:
        calls.append(points)
        if len(calls) > 8:
            raise StoppedError("cancelled")

    began = time.monotonic()
    with pytest.raises(StoppedError, match="cancelled"):
        target.write(batches(9), cancel)
    assert time.monotonic() - began < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ferry-stream")]


def test_a_cancel_does_not_wait_for_the_deadline_of_a_call(target: Target) -> None:
    """Closing the channels ends the calls that are under way."""
    ended = threading.Event()

    def hang(_label: str, _ids: list[PointId]) -> None:
        if ended.wait(20):
            raise NodeUnreachableError("CANCELLED")

    target.before = hang
    target._close = ended.set  # type: ignore[method-assign]

    def cancel(_points: int) -> None:
        if target.in_flight == 2:
            raise StoppedError("cancelled")

    began = time.monotonic()
    with pytest.raises(StoppedError, match="cancelled"):
        target.write(batches(9), cancel)
    assert time.monotonic() - began < 5


def test_a_failure_does_not_wait_for_the_batches_before_it(target: Target) -> None:
    """The first one hangs until its channel is closed."""
    ended = threading.Event()

    def hang(_label: str, ids: list[PointId]) -> None:
        if ids[0] == 0 and ended.wait(20):
            raise NodeUnreachableError("CANCELLED")
        if ids[0] == 8:
            raise NotFoundError("no such collection")

    target.before = hang
    target._close = ended.set  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(NotFoundError):
        target.write(batches(3))
    assert time.monotonic() - began < 5


def test_a_failing_source_stops_the_writing(target: Target) -> None:
    """What the batches raise is raised, after what was in flight has ended."""

    def damaged() -> Iterator[WireBatch]:
        yield from batches(3)
        raise ValueError("the archive is damaged")

    with pytest.raises(ValueError, match="damaged"):
        target.write(damaged())
    assert target.in_flight == 0
    assert set(target.ids) <= set(range(24))


def test_points_that_only_rest_carries_are_written_with_their_batch(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its key; one that is refused is left out by the same rule, and the others are written again."""
    sent: list[tuple[bytes, Any]] = []

    def write_points(_cluster: Any, name: str, bodies: Sequence[Any], *, shard_key: Any, progress: Progress) -> int:
        assert name == "docs"
        progress(0)
        sent.append((bodies[0].body, shard_key))
        if len(sent) == 1:
            error = PointRefusedError("Point 2 cannot be written to docs")
            error.point_id, error.reason = 2, "no vector of that name"
            raise error
        return len(bodies[0].ids)

    monkeypatch.setattr(stream, "write_points", write_points)
    plain: list[dict[str, Any]] = [{"id": number, "payload": {"x": 2.0**60}, "vector": [1.0]} for number in (1, 2)]
    plain.append({"id": 3, "payload": {"deep": [{"x": 2**63}]}, "vector": [1.0]})  # the two nodes cannot pass it on
    target.write([WireBatch(batch(10, 3).points, "k", plain)], leave_out=True)
    assert target.told[0].points == 4
    refused = {point.id: point.reason for point in target.told[0].refused}
    assert refused == {2: "no vector of that name", 3: stream._TOO_LARGE}
    assert [body.count(b'"id"') for body, _ in sent] == [2, 1]
    assert {key for _, key in sent} == {"k"}


def test_a_batch_without_points_is_acknowledged_and_not_sent(target: Target) -> None:
    """A filter may leave nothing of a batch."""
    target.write([batch(0), WireBatch([]), batch(8)])
    assert [each.points for each in target.told] == [8, 0, 8]
    assert len(target.asked) == 2
