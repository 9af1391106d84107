"""Sending one shard's points, and waiting until the target has applied them."""

from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from ferry.archive.points import Batch, Selection
from ferry.connections import Connections
from ferry.errors import NodeUnreachableError, RestoreError
from ferry.models import Progress, ShardId
from ferry.qdrant.writer import KeyedBatch
from ferry.restore import stream
from ferry.restore.plan import RestorePlan, plan_restore
from ferry.restore.shape import PlannedStream
from ferry.restore.stream import await_applied, stream_shard
from tests.unit.builders import archive, collection, layout, manifest, node, shard
from tests.unit.test_restore_plan import request

BACKUP = manifest(collection("docs", [shard(0, [1])]), [archive(0, points=6)])
Said = dict[str, Any] | Exception


def plan_of() -> RestorePlan:
    return plan_restore(request(path="points", into="new"), BACKUP, layout([node(1)], []))


class Node:
    """Says one thing after another of the new collection; the last one for ever."""

    def __init__(self, *said: Said) -> None:
        self.label, self._said, self.asked = "node-1:6333", list(said), 0

    def collection(self, name: str) -> dict[str, Any]:
        assert name == "new"
        self.asked += 1
        answer = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def cluster_of(*nodes: Node) -> Connections:
    made: Any = SimpleNamespace(cluster=SimpleNamespace(nodes=nodes))
    return made  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.001)


def queue(length: int) -> Said:
    return {"status": "yellow", "update_queue": {"length": length}}


def test_it_waits_until_every_queue_is_empty() -> None:
    """Also for a node that is away for a moment; versions without a queue have applied what they answered for."""
    nodes = Node({"status": "green"}), Node(queue(3), NodeUnreachableError("away"), queue(1), queue(0))
    ticks: list[int] = []
    await_applied(cluster_of(*nodes), plan_of(), ticks.append)
    assert [each.asked for each in nodes] == [1, 4]
    assert ticks == [0] * 5


def test_a_red_collection_fails() -> None:
    """The node and what its optimizer says are told."""
    broken: Said = {"status": "red", "optimizer_status": {"error": "disk full"}}
    with pytest.raises(RestoreError, match=r"new is red on node-1:6333: .*disk full"):
        await_applied(cluster_of(Node(queue(1), broken)), plan_of())


def test_a_node_that_stays_away_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit its own error is raised."""
    monkeypatch.setattr(stream, "AWAY_SECONDS", 0.02)
    with pytest.raises(NodeUnreachableError, match="gone"):
        await_applied(cluster_of(Node(NodeUnreachableError("gone"))), plan_of())


def test_progress_is_what_the_target_has_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points that were only read are not told, and a reader whose points nobody takes any more is closed."""
    closed: list[bool] = []

    def stored(*_: Any) -> Generator[Batch, None, None]:
        tell: Progress = _[-1]
        assert _[2:4] == (ShardId(0), Selection())
        try:
            for first in (0, 3):
                tell(3)
                yield Batch([first], [], orjson.dumps([{"id": first, "vector": [1.0], "payload": {}}]))
        finally:
            closed.append(True)

    def write(_cluster: Any, name: str, batches: Iterator[KeyedBatch], tell: Progress) -> int:
        assert name == "new"
        assert next(batches)[0] == "key"
        tell(1)
        return 1

    monkeypatch.setattr(stream, "stored_points", stored)
    monkeypatch.setattr(stream, "write_keyed_points", write)
    told: list[int] = []
    planned = PlannedStream(source=ShardId(0), key="key")
    sent = stream_shard(cluster_of(Node({"status": "green"})), plan_of(), planned, told.append)
    assert (sent.points, sent.source, sent.proof.points) == (1, 0, 6)
    assert sum(told) == 1
    assert closed == [True]
