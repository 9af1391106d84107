"""Which collection a side of a diff is, and which replicas of a live one are read."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from ferry.errors import ConfigurationError, LayoutError
from ferry.models import ClusterLayout, CollectionLayout, Finding, PeerId, ShardId, ShardLayout
from ferry.qdrant.cluster import Cluster
from ferry.verify.sides import LiveSide, SideName, open_live
from tests.unit import builders

Counts = dict[ShardId, dict[PeerId, int]]


class FakeCluster:
    """A cluster that says what it is told to; its nodes are their peer ids."""

    name = "prod"

    def __init__(self, shards: list[ShardLayout], points: dict[int, int], trouble: str | None = None) -> None:
        self.collection, self.points, self.trouble = builders.collection("docs", shards), points, trouble
        self.nodes: list[Any] = []

    def read_layout(self, include: Sequence[str]) -> ClusterLayout:
        held = [self.collection] if include else []
        layout = builders.layout([builders.node(1), builders.node(2)], held, {"live": "docs", "other": "else"})
        return layout.model_copy(update={"names": ("docs", "else")})

    def exact_counts(self, collection: CollectionLayout) -> Counts:
        return {
            shard.shard_id: {replica.peer_id: self.points[replica.peer_id] for replica in shard.replicas}
            for shard in collection.shards
        }

    def node(self, peer_id: PeerId) -> Any:
        return peer_id

    def require_quiet(self, _layout: ClusterLayout) -> list[Finding]:
        if self.trouble:
            raise LayoutError(self.trouble)
        return []


def opened(cluster: FakeCluster, collection: str = "docs") -> LiveSide:
    return open_live(cast("Cluster", cluster), SideName(cluster="prod", backup=None, collection=collection))


def test_the_fullest_active_replica_is_read_and_equal_ones_are_shared_out() -> None:
    """Replicas that differ are a finding; of equal ones each node reads some; one that is not Active never counts."""
    shards = [builders.shard(number, [1, 2]) for number in range(4)]
    even = opened(FakeCluster(shards, {1: 5, 2: 5}))
    assert sorted(even._nodes.values()) == [1, 1, 2, 2]
    assert even.findings == []
    uneven = opened(FakeCluster(shards[:1], {1: 5, 2: 7}))
    assert (uneven._nodes, uneven._counts) == ({0: 2}, {0: 7})
    [finding] = uneven.findings
    assert "The replicas of shard 0 have 5 on peer 1, 7 on peer 2 points" in finding.message
    dead = builders.shard(0, [2], "Dead").replicas
    half = builders.shard(0, [1]).model_copy(update={"replicas": (*builders.shard(0, [1]).replicas, *dead)})
    assert opened(FakeCluster([half], {1: 5, 2: 7}, "shard 0 is Dead"))._nodes == {0: 1}


def test_a_shard_without_an_active_replica_is_refused() -> None:
    """There is nothing to compare with."""
    with pytest.raises(LayoutError, match="Shard 1 of docs has no Active replica"):
        opened(FakeCluster([builders.shard(0, [1]), builders.shard(1, [2], "Dead")], {1: 5, 2: 5}))


def test_a_cluster_that_is_not_at_rest_is_compared_with_a_finding() -> None:
    """A diff is wanted above all when something is wrong."""
    side = opened(FakeCluster([builders.shard(0, [1])], {1: 5}, "Cluster prod is not at rest: resharding."))
    assert [(each.severity, each.message) for each in side.findings] == [
        ("warning", "Cluster prod is not at rest: resharding.")
    ]


def test_an_alias_is_resolved_and_named() -> None:
    """The side is called by the collection, its aliases are known, and an unknown name lists what there is."""
    cluster = FakeCluster([builders.shard(0, [1])], {1: 5})
    side = opened(cluster, "live")
    assert (side.name, side.aliases) == ("docs of prod, live", ("live",))
    assert [each.message for each in side.findings] == ["live is an alias there; it points at docs."]
    with pytest.raises(ConfigurationError, match=r"no collection and no alias nothing, but: docs, else, live, other\."):
        opened(cluster, "nothing")
