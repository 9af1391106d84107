"""Live points by their ids: from a replica that answers, and from every replica when it is about what was written."""

from types import SimpleNamespace
from typing import Any

import pytest

from ferry.archive.digest import digest_of
from ferry.errors import LayoutError, NodeUnreachableError
from ferry.recovery import live
from ferry.recovery.live import LiveShards
from tests.unit import builders

POINTS: dict[int, dict[str, Any]] = {
    number: {"id": number, "payload": {"n": number}, "vector": [0.5]} for number in range(4)
}
HASHES = {number: digest_of([point]).digest for number, point in POINTS.items()}


class Cluster:
    """Three nodes; what each holds of which shard, and which is away."""

    name = "test"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
        self.away: set[int] = set()
        monkeypatch.setattr(live, "retrieve_shard", self._retrieve)

    def node(self, peer_id: int) -> Any:
        return SimpleNamespace(peer_id=peer_id, label=f"node-{peer_id}")

    def _retrieve(self, node: Any, collection: str, shard_id: int, ids: list[int]) -> list[dict[str, Any]]:
        assert collection == "docs"
        if node.peer_id in self.away:
            raise NodeUnreachableError(f"{node.label} is away")
        return [point for number, point in self.held[shard_id, node.peer_id].items() if number in ids]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Shard 0 with points 0 and 1 on peers 1 and 2, shard 1 with point 2 on peers 2 and 3."""
    made = Cluster(monkeypatch)
    made.held = {
        (0, 1): {0: POINTS[0], 1: POINTS[1]},
        (0, 2): {0: POINTS[0], 1: POINTS[1]},
        (1, 2): {2: POINTS[2]},
        (1, 3): {2: POINTS[2]},
    }
    return made


def shards(cluster: Any) -> LiveShards:
    return LiveShards(cluster, "docs", [builders.shard(0, [1, 2]), builders.shard(1, [2, 3])])


def test_points_are_found_in_whatever_shard_they_are(cluster: Any) -> None:
    """With their content hash; a node that is away is replaced by another replica's, until none is left."""
    found = shards(cluster)
    assert found.hashes([0, 2, 3]) == {0: HASHES[0], 2: HASHES[2]}
    cluster.away = {2}
    assert found.hashes([0, 1, 2]) == {number: HASHES[number] for number in (0, 1, 2)}
    cluster.away = {1, 2}
    with pytest.raises(NodeUnreachableError):
        found.hashes([0])


def test_every_replica_must_hold_what_was_written(cluster: Any) -> None:
    """One that lacks a point, or has it otherwise, is named with its node; so is a point that is nowhere."""
    found = shards(cluster)
    expected: live.Hashes = {number: HASHES[number] for number in (0, 1, 2)}
    assert found.problems(expected) == []
    del cluster.held[0, 2][1]
    cluster.held[1, 3][2] = POINTS[2] | {"payload": {"n": 2.0}}
    assert found.problems(expected | {3: HASHES[3]}) == [
        "point 1 is missing in shard 0 on node-2",
        "point 2 differs in shard 1 on node-3",
        "point 3 is missing",
    ]
    cluster.away = {3}
    with pytest.raises(NodeUnreachableError):
        found.problems(expected)


def test_a_shard_without_an_active_replica_is_refused(cluster: Any) -> None:
    """Nobody knows what it holds; a replica that is not Active is not asked."""
    silent = [builders.shard(0, [1]), builders.shard(1, [2, 3], state="Dead")]
    with pytest.raises(LayoutError, match="Shards 1 of docs have no Active replica"):
        LiveShards(cluster, "docs", silent)
