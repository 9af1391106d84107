"""When a mend acts, waits and gives up: the loop over what it sees, without a server."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ferry.errors import HeadroomError, NodeRefusedError, StoppedError, StuckError
from ferry.models import PeerId
from ferry.qdrant.condition import Condition
from ferry.restore import mend as module
from ferry.restore.mend import Mended, MendRequest, mend, require_mended
from tests.unit.test_stuck import ACTIVE, BROKEN, TRANSFER, condition, replica

DEAD = ("Dead", 3)


class FakeCluster:
    """Shows one condition after the other, the last for good, and notes what is asked of its nodes."""

    def __init__(self, *conditions: Condition, refuse: str | None = None) -> None:
        self.name = "test"
        self.shown = list(conditions)
        self.looks = 0
        self.calls: list[Any] = []
        self.refuse = refuse
        self.after_call: list[Condition] = []
        urls = [f"http://node-{number}:6333" for number in (1, 2, 3)]
        self.nodes = [SimpleNamespace(url=url, require_identity=lambda: None, request=self._request) for url in urls]

    def read(self, *_: Any, **__: Any) -> Condition:
        self.looks += 1
        return self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]

    def _request(self, _method: str, _path: str, json: Any = None) -> None:
        self.calls.append(json)
        self.shown = self.after_call or self.shown
        if self.refuse:
            raise NodeRefusedError(self.refuse)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mended]:
    """Mend what such a cluster shows, quickly."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)

    def do(cluster: FakeCluster, progress: Any = lambda _done: None, **asked: Any) -> Mended:
        monkeypatch.setattr(module, "read_condition", cluster.read)
        usual = {"patience_seconds": 0.05, "away_seconds": 0.05, "timeout_seconds": 0.6}
        return mend(cluster, MendRequest(collection="docs", **{**usual, **asked}), progress)  # type: ignore[arg-type]

    return do


def test_a_collection_that_is_well_costs_one_look(run: Callable[..., Mended]) -> None:
    """Nothing is changed and nothing waited for."""
    cluster = FakeCluster(condition(ACTIVE, ACTIVE))
    done = run(cluster)
    assert (done.made, done.left, cluster.looks, cluster.calls) == ((), (), 1, [])
    require_mended(done)


def test_what_passes_by_itself_is_given_its_time(run: Callable[..., Mended]) -> None:
    """A Dead replica that comes back within the patience, or changes on its way, is not touched."""
    steps = [condition(ACTIVE, DEAD)] * 2 + [condition(ACTIVE, ("Recovery", 3))] * 2 + [condition(ACTIVE, ACTIVE)]
    cluster = FakeCluster(*steps)
    assert run(cluster).made == ()
    assert cluster.calls == []


def test_what_stays_is_mended_by_one_call_after_its_time(run: Callable[..., Mended]) -> None:
    """Then its transfer is waited for, however long it goes on, until all is well."""
    began = time.monotonic()
    going = [
        condition(ACTIVE, ("Partial", 3), transfers=(TRANSFER.model_copy(update={"told": f"({n}/9)"}),))
        for n in range(20)
    ]
    cluster = FakeCluster(condition(ACTIVE, DEAD))
    cluster.after_call = [*going, condition(ACTIVE, ACTIVE)]
    done = run(cluster)
    assert time.monotonic() - began >= 0.05
    assert [(each.stuck.kind, each.refused) for each in done.made] == [("inactive", None)]
    assert cluster.calls == [{"replicate_shard": {"shard_id": 0, "from_peer_id": 1, "to_peer_id": 2}}]
    assert done.left == ()


def test_a_call_that_does_nothing_or_is_refused_is_made_twice_and_then_told(run: Callable[..., Mended]) -> None:
    """Whatever the reason, it ends, and the report has the call."""
    for refuse in (None, "Bad request: no"):
        cluster = FakeCluster(condition(ACTIVE, DEAD), refuse=refuse)
        done = run(cluster)
        assert len(cluster.calls) == 2
        assert {each.refused for each in done.made} == {refuse}
        with pytest.raises(StuckError, match=r"docs/shard 0 on node-2:6333: It is Dead.*2 calls were made") as caught:
            require_mended(done)
        assert "curl -X POST" in (caught.value.remedy or "")


def test_what_is_not_ours_to_mend_ends_it_soon(run: Callable[..., Mended]) -> None:
    """After its patience, and long before the time for transfers, which is for what goes on."""
    cluster = FakeCluster(condition(BROKEN))
    done = run(cluster, timeout_seconds=60)
    assert done.seconds < 1
    assert cluster.calls == []
    with pytest.raises(StuckError, match="Nothing was changed") as caught:
        require_mended(done)
    assert "Ferry does not do it itself: no sound copy is left" in (caught.value.remedy or "")


def test_a_transfer_that_never_ends_is_told_when_the_time_is_over(run: Callable[..., Mended]) -> None:
    """It is not ended: only slow, perhaps."""
    cluster = FakeCluster(condition(ACTIVE, ("Partial", 3), transfers=(TRANSFER,)))
    done = run(cluster, timeout_seconds=0.2)
    assert done.seconds >= 0.2
    assert cluster.calls == []
    assert [stuck.kind for stuck in done.left] == ["transfer"]


def test_a_node_that_is_away_is_waited_for_as_long_as_was_asked(run: Callable[..., Mended]) -> None:
    """It comes back within its time: nothing is told and nothing done."""
    replicas = [replica(1, ACTIVE), replica(2, ("Active", None))]
    gone = condition(replicas=replicas, nodes=condition().nodes[::2], away=("node-2:6333",), silent=(PeerId(2),))
    cluster = FakeCluster(*[gone] * 20, condition(ACTIVE, ACTIVE))
    assert run(cluster, away_seconds=5, timeout_seconds=5).left == ()
    assert [stuck.kind for stuck in run(FakeCluster(gone)).left] == ["away"]


def test_a_missing_copy_needs_room_for_it(run: Callable[..., Mended], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can tell what the node has free the call is not sent, and the reason is told."""

    def none(*_: Any) -> None:
        raise HeadroomError("Not enough room: node-2:6333 needs 9 TiB of disk.")

    monkeypatch.setattr(module, "_require_room", none)
    cluster = FakeCluster(condition(ACTIVE))
    done = run(cluster)
    assert cluster.calls == []
    assert {each.refused for each in done.made} == {"Not enough room: node-2:6333 needs 9 TiB of disk."}


def test_a_cancel_ends_it(run: Callable[..., Mended]) -> None:
    """Progress is told at every look, and its error is the end."""

    def stop(_done: int) -> None:
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        run(FakeCluster(condition(ACTIVE, DEAD)), stop)
