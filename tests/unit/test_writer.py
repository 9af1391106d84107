"""How points are written: to nodes in memory that take, lose, refuse or delay what they are told."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from ferry.archive.points import Batch
from ferry.errors import NodeError, NodeRefusedError, NodeUnreachableError, StoppedError
from ferry.qdrant import rota, writer
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import BusyError, NotFoundError, ReplyLostError, WrongRequestError
from ferry.qdrant.writer import write_keyed_points, write_points

Points = list[dict[str, Any]]
Rule = Callable[["FakeNode", Points], None]
BATCH_POINTS = 8


class Target:
    """A collection on some nodes. ``before`` may raise or wait before points are applied, ``after`` when they are."""

    def __init__(self, nodes: int, vectors: dict[str, Any] | None = None) -> None:
        self.nodes = [FakeNode(self, f"node-{number}") for number in range(nodes)]
        self.vectors = vectors or {"size": 2, "distance": "Dot"}
        self.before: Rule = lambda _node, _points: None
        self.after: Rule = lambda _node, _points: None
        self.applied: dict[tuple[Any, Any], dict[str, Any]] = {}
        self.asked: list[tuple[str, int]] = []
        self.bodies: list[bytes] = []
        self.params: Any = None
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def cluster(self) -> Cluster:
        """As the writer takes it."""
        made: Any = SimpleNamespace(nodes=self.nodes, profile=SimpleNamespace(timeout_seconds=1.0))
        return made  # type: ignore[no-any-return]

    @property
    def ids(self) -> list[Any]:
        """Ids of what was applied, sorted."""
        return sorted(point_id for _, point_id in self.applied)


class FakeNode:
    """One node of a target."""

    def __init__(self, target: Target, label: str) -> None:
        self.target, self.label = target, label

    def collection(self, _name: str) -> dict[str, Any]:
        return {"config": {"params": {"vectors": self.target.vectors}}}

    def translated(self, _method: str, _path: str) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def stream(
        self, method: str, path: str, *, content: bytes, params: dict[str, str], timeout: float
    ) -> Iterator[SimpleNamespace]:
        target, body = self.target, orjson.loads(content)
        assert (method, path) == ("PUT", "/collections/docs/points")
        assert timeout >= 60
        target.params = params
        with target.lock:
            target.asked.append((self.label, len(body["points"])))
            target.bodies.append(content)
            target.in_flight += 1
            target.most_in_flight = max(target.most_in_flight, target.in_flight)
        try:
            target.before(self, body["points"])
            with target.lock:
                target.applied |= {(body["shard_key"], point["id"]): point for point in body["points"]}
            target.after(self, body["points"])
            yield SimpleNamespace(read=bytes)
        finally:
            with target.lock:
                target.in_flight -= 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rests of milliseconds."""
    monkeypatch.setattr(rota, "FIRST_REST_SECONDS", 0.002)
    monkeypatch.setattr(rota, "LONGEST_REST_SECONDS", 0.02)
    monkeypatch.setattr(writer, "HEARTBEAT_SECONDS", 0.01)


def batch(first: int, points: int = BATCH_POINTS) -> Batch:
    """Points with ids from ``first`` on."""
    rows: list[dict[str, Any]] = [{"id": first + n, "vector": [1.0, 2.0], "payload": {"n": n}} for n in range(points)]
    return Batch([row["id"] for row in rows], [], orjson.dumps(rows))


def batches(count: int, points: int = BATCH_POINTS) -> list[Batch]:
    return [batch(points * number, points) for number in range(count)]


def test_every_batch_is_written_as_it_came_over_all_nodes() -> None:
    """The bytes of a batch pass undecoded with its key, waited for, and each node gets its share."""
    target = Target(3)
    told: list[int] = []
    assert write_points(target.cluster, "docs", batches(30), shard_key="ü", progress=told.append) == 240
    assert target.ids == list(range(240))
    assert {key for key, _ in target.applied} == {"ü"}
    tail = ',"shard_key":"ü"}'.encode()
    assert sorted(target.bodies) == sorted(b'{"points":' + each.body + tail for each in batches(30))
    assert target.params == {"wait": "true", "ordering": "weak"}
    assert set(Counter(label for label, _ in target.asked).values()) == {10}
    assert sum(told) == 240


def test_batches_of_several_keys_keep_theirs() -> None:
    """Each batch is written under its own key, or none."""
    target = Target(1)
    write_keyed_points(target.cluster, "docs", [(7, batch(0)), (None, batch(100)), ("7", batch(200))])
    assert {key: len([1 for other, _ in target.applied if other == key]) for key in (7, None, "7")} == {
        7: 8, None: 8, "7": 8,
    }  # fmt: skip


@pytest.mark.parametrize(("nodes", "most"), [(1, 2), (3, 3), (9, 4)])
def test_no_more_batches_are_in_memory_than_in_flight(nodes: int, most: int) -> None:
    """The next batch is not asked for before there is room for it, and the room is used."""
    target, done, held = Target(nodes), [0], []

    def told(points: int) -> None:
        done[0] += points

    def numbered() -> Iterator[Batch]:
        for number, each in enumerate(batches(40)):
            held.append(number + 1 - done[0] // BATCH_POINTS)
            yield each

    target.before = lambda _node, _points: time.sleep(0.001)
    write_points(target.cluster, "docs", numbered(), progress=told)
    assert max(held) == most
    assert target.most_in_flight == most


def test_a_lost_answer_is_sent_again_and_counted_once() -> None:
    """Whether or not the node had applied it, the batch is written again, by another node at once."""
    target = Target(2)
    lost: list[int] = []

    def lose(node: FakeNode, points: Points) -> None:
        if len(lost) < 3:
            lost.append(points[0]["id"])
            raise ReplyLostError(f"{node.label} closed the connection")

    target.before = lambda node, points: lose(node, points) if points[0]["id"] % 16 == 0 else None
    target.after = lambda node, points: lose(node, points) if points[0]["id"] % 16 == 8 else None
    assert write_points(target.cluster, "docs", batches(10)) == 80
    assert target.ids == list(range(80))
    assert len(target.asked) == 13


def test_a_node_that_is_away_is_left_alone_and_used_again_when_it_is_back() -> None:
    """Others take its batches; it is asked by one request at a time, and gets its share when it answers again."""
    target, refused, taken = Target(3), [0], [0]
    at_once = threading.Lock()

    def away(node: FakeNode, _points: Points) -> None:
        if node.label != "node-1":
            time.sleep(0.0005)
        elif refused[0] < 6:
            if refused[0]:  # from the first failure on
                assert at_once.acquire(blocking=False)
                time.sleep(0.002)
                at_once.release()
            refused[0] += 1
            raise NodeUnreachableError("node-1 refused the connection")
        else:
            taken[0] += 1

    def until_it_is_back() -> Iterator[Batch]:
        deadline = time.monotonic() + 20
        while taken[0] < 20:
            assert time.monotonic() < deadline
            yield batch(0)

    target.before = away
    write_points(target.cluster, "docs", until_it_is_back())
    assert refused[0] >= 6
    assert Counter(label for label, _ in target.asked[-30:])["node-1"] >= 8


def test_a_whole_cluster_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are all away come back within the limit, and nothing is missing."""
    monkeypatch.setattr(rota, "AWAY_SECONDS", 5.0)
    target, until = Target(2), time.monotonic() + 0.15

    def away(_node: FakeNode, _points: Points) -> None:
        if time.monotonic() < until:
            raise NodeUnreachableError("connection refused")

    target.before = away
    assert write_points(target.cluster, "docs", batches(6)) == 48
    assert target.ids == list(range(48))


def test_nodes_that_stay_away_fail_the_write_with_what_they_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit the error says how long, where and why, and is none that is tried again at once."""
    monkeypatch.setattr(rota, "AWAY_SECONDS", 0.1)
    target = Target(2)

    def away(node: FakeNode, _points: Points) -> None:
        raise NodeUnreachableError(f"{node.label}: 1 of 2 shards failed")

    target.before = away
    with pytest.raises(NodeError, match=r"no node has taken points of docs; the last said: node-.: 1 of 2") as caught:
        write_points(target.cluster, "docs", batches(6))
    assert not caught.value.transient
    assert len(target.asked) < 60


def test_a_limit_is_waited_for_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After is no failure, however often; the pause is the one that Qdrant asks for."""
    monkeypatch.setattr(rota, "AWAY_SECONDS", 0.0)
    target, times = Target(1), []

    def busy(_node: FakeNode, _points: Points) -> None:
        times.append(time.monotonic())
        if len(times) <= 4:
            error = BusyError("Rate limiting exceeded")
            error.retry_after_seconds = 0.05
            raise error

    target.before = busy
    assert write_points(target.cluster, "docs", [batch(0)]) == 8
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(times))


def refusing(wrong: int) -> Rule:
    """Refuse any request with that point in it, as Qdrant does for a vector of another size."""

    def refuse(_node: FakeNode, points: Points) -> None:
        if wrong in [point["id"] for point in points]:
            raise WrongRequestError("answered 400: Vector dimension error: expected dim: 2, got 1")

    return refuse


@pytest.mark.parametrize("wrong", [16, 20, 23])
def test_a_refused_point_is_named_and_the_others_of_its_batch_are_kept(wrong: int) -> None:
    """The batch is halved until the point is alone; what lies before it was written; nothing after it is begun."""
    target = Target(2)
    target.before = refusing(wrong)
    with pytest.raises(NodeRefusedError, match=f"Point {wrong} cannot be written to docs.*expected dim: 2, got 1"):
        write_points(target.cluster, "docs", batches(300))
    assert set(range(16, wrong)) <= set(target.ids)
    assert wrong not in target.ids
    assert len(target.ids) < 100


def limited(most: int) -> Rule:
    """As strict mode's upsert_max_batchsize."""

    def refuse(_node: FakeNode, points: Points) -> None:
        if len(points) > most:
            raise WrongRequestError(f"answered 400: Limit exceeded {len(points)} > {most}")

    return refuse


def test_batches_that_are_too_large_are_cut_and_the_size_is_learnt() -> None:
    """Everything is written in parts that are taken, and only the first batches are refused before."""
    target = Target(2)
    target.before = limited(30)
    assert write_points(target.cluster, "docs", batches(20, 100)) == 2000
    assert target.ids == list(range(2000))
    assert len([size for _, size in target.asked if size > 30]) <= 3 * 2  # at most the batches in flight at first
    assert {size for _, size in target.asked[12:]} == {25}


@pytest.mark.parametrize("error", [NotFoundError("no such collection"), NodeRefusedError("answered 403: Forbidden")])
def test_what_no_waiting_mends_is_raised_at_once(error: NodeRefusedError) -> None:
    """Neither tried again nor halved; batches that were not sent yet stay unsent, and no more are asked for."""
    target, asked_for = Target(2), []

    def refuse(_node: FakeNode, _points: Points) -> None:
        raise error

    def counted() -> Iterator[Batch]:
        for each in batches(50):
            asked_for.append(each)
            yield each

    target.before = refuse
    with pytest.raises(NodeRefusedError) as caught:
        write_points(target.cluster, "docs", counted())
    assert caught.value is error
    assert len(target.asked) <= len(asked_for) <= 4


def test_a_cancel_ends_it_while_every_node_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is called while nothing happens, may raise, and then every thread ends, those that rest among them."""
    monkeypatch.setattr(rota, "LONGEST_REST_SECONDS", 60.0)
    monkeypatch.setattr(rota, "FIRST_REST_SECONDS", 60.0)
    target = Target(2)

    def away(_node: FakeNode, _points: Points) -> None:
        raise NodeUnreachableError("away")

    target.before = away
    calls: list[int] = []

    def cancel(points: int) -> None:
        calls.append(points)
        if len(calls) > 8:
            raise StoppedError("cancelled")

    began = time.monotonic()
    with pytest.raises(StoppedError, match="cancelled"):
        write_points(target.cluster, "docs", batches(9), progress=cancel)
    assert time.monotonic() - began < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ferry-write")]


def test_a_failing_source_stops_the_writing() -> None:
    """What the batches raise is raised, after what was in flight has ended."""
    target = Target(2)

    def damaged() -> Iterator[Batch]:
        yield from batches(3)
        raise ValueError("the archive is damaged")

    with pytest.raises(ValueError, match="damaged"):
        write_points(target.cluster, "docs", damaged())
    assert target.in_flight == 0
    assert set(target.ids) <= set(range(24))


def test_vectors_that_would_be_rounded_again_are_sent_as_they_were_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for a collection that has such vectors are batches decoded."""
    seen: list[tuple[bytes, Sequence[str]]] = []

    def exactly(body: bytes, names: Sequence[str]) -> bytes:
        seen.append((body, names))
        return body.replace(b"1.0", b"1.5")

    monkeypatch.setattr(writer, "sent_exactly", exactly)
    write_points(Target(1).cluster, "docs", [batch(0)])
    assert seen == []
    target = Target(1, {"a": {"size": 2, "distance": "Cosine", "datatype": "float16"}})
    write_points(target.cluster, "docs", [batch(0)])
    assert seen == [(batch(0).body, ["a"])]
    assert {tuple(point["vector"]) for point in target.applied.values()} == {(1.5, 2.0)}
