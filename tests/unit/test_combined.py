"""All replicas of a restored collection against all proofs of what went into it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ferry.archive.digest import ContentDigest, digest_of, point_sample, range_of
from ferry.archive.proof import Proof
from ferry.models import PeerId, ShardId, VerifyLevel
from ferry.verify.combined import combined_problems, summed
from ferry.verify.replica import ReplicaVerdict
from tests.unit import builders

Points = Mapping[int, int]


def point(number: int, value: int) -> dict[str, Any]:
    return {"id": number, "vector": [float(value), 1.0], "payload": {"value": value}}


def content(points: Points) -> ContentDigest:
    return digest_of([point(*each) for each in points.items()])


def proof(points: Points, sample: Sequence[int] = ()) -> Proof:
    sampled = [point_sample(n, {"value": points[n]}, [float(points[n]), 1.0]) for n in sample]
    return builders.proof(len(points)).model_copy(update={"content": content(points), "sample": sampled})


def verdict(
    shard: int, peer: int, points: Points, level: VerifyLevel = "content", sample: Sequence[int] = ()
) -> ReplicaVerdict:
    """What reading a replica with these points gives."""
    found = content(points) if level == "content" else None
    sample = sample if level == "sample" else ()
    return ReplicaVerdict(
        collection="docs",
        shard_id=ShardId(shard),
        peer_id=PeerId(peer),
        level=level,
        points=len(points),
        compared=len(points),
        digest=found.digest if found else None,
        content=found,
        found=tuple(point_sample(n, {"value": points[n]}, [float(points[n]), 1.0]) for n in sample if n in points),
    )


SOURCE = [{n: n for n in range(10)}, {n: n for n in range(10, 30)}]
TARGET = {shard: {n: n for n in range(30) if n % 3 == shard} for shard in range(3)}
PROOFS = [proof(points, sample=list(points)[:4]) for points in SOURCE]
SAMPLED = [sample.id for proven in PROOFS for sample in proven.sample]


def replicas(level: VerifyLevel, changed: Mapping[tuple[int, int], Points] = {}) -> list[ReplicaVerdict]:
    """Two replicas of each of three shards; some of them with other points than they should have."""
    return [
        verdict(shard, peer, changed.get((shard, peer), points), level, [int(n) for n in SAMPLED])
        for shard, points in TARGET.items()
        for peer in (1, 2)
    ]


@pytest.mark.parametrize("level", ["count", "sample", "content"])
def test_equal_whatever_the_shards(level: VerifyLevel) -> None:
    """Two shards that became three, two replicas each."""
    assert combined_problems(PROOFS, replicas(level)) == []


def test_a_point_that_is_lost_everywhere() -> None:
    """Count, sub-range and, where it was sampled, the point itself are told."""
    short = {n: n for n in TARGET[0] if n != 12}
    both = {(0, 1): short, (0, 2): short}
    name = range_of(12)
    assert combined_problems(PROOFS, replicas("count", both)) == ["the 3 shards hold 29 points, the 2 proofs say 30"]
    assert combined_problems(PROOFS, replicas("content", both)) == [
        "the 3 shards hold 29 points, the 2 proofs say 30",
        f"the shards together differ in content from the proofs, in 1 of 256 sub-ranges: {name}",
    ]
    assert combined_problems(PROOFS, replicas("sample", both)) == [
        "the 3 shards hold 29 points, the 2 proofs say 30",
        "point 12 is missing",
    ]


def test_a_point_that_changed_everywhere() -> None:
    """The counts are right; the digest and the sample are not."""
    other = TARGET[1] | {10: 99}
    both = {(1, 1): other, (1, 2): other}
    assert combined_problems(PROOFS, replicas("count", both)) == []
    assert [range_of(10) in problem for problem in combined_problems(PROOFS, replicas("content", both))] == [True]
    assert combined_problems(PROOFS, replicas("sample", both)) == ["point 10 differs in payload.value, vector."]


def test_replicas_of_a_shard_that_differ() -> None:
    """A sum takes one replica of each shard, so the others are held against that one, whichever is wrong."""
    short, other = {n: n for n in TARGET[2] if n != 2}, TARGET[2] | {2: 7}
    problems = combined_problems(PROOFS, replicas("content", {(2, 2): short}))
    assert problems[0] == "shard 2: its replicas on peers 1 and 2 hold 10 and 9 points"
    assert problems[1:] == [
        f"shard 2: its replicas on peers 1 and 2 differ in content, in 1 of 256 sub-ranges: {range_of(2)}"
    ]
    assert combined_problems(PROOFS, replicas("sample", {(2, 2): other})) == [
        "shard 2: its replicas on peers 1 and 2 do not show the same of point 2"
    ]
    assert combined_problems(PROOFS, replicas("sample", {(2, 2): {}}))[1] == (
        "shard 2: its replicas on peers 1 and 2 do not show the same of points 11, 2"
    )


def test_a_point_in_two_shards() -> None:
    """An error in a ring of shards; under two keys each may hold the id, if one of them is the sampled point."""
    twice = TARGET[0] | {10: 10}
    found = replicas("sample", {(0, 1): twice, (0, 2): twice})
    assert "point 10 is in shards 0 and 1" in combined_problems(PROOFS, found)
    keys: dict[ShardId, Any] = {ShardId(0): "a", ShardId(1): "b", ShardId(2): "b"}
    assert combined_problems(PROOFS, found, keys) == ["the 3 shards hold 31 points, the 2 proofs say 30"]
    other = TARGET[0] | {10: 11}
    found = replicas("sample", {(0, 1): other, (0, 2): other})
    assert combined_problems(PROOFS, found, keys) == ["the 3 shards hold 31 points, the 2 proofs say 30"]
    wrong = TARGET[1] | {10: 12}
    found = replicas("sample", {(0, 1): other, (0, 2): other, (1, 1): wrong, (1, 2): wrong})
    assert "point 10 differs in payload.value, vector." in combined_problems(PROOFS, found, keys)


def test_proofs_that_know_less() -> None:
    """Without counts none are compared; a digest that is not there is told and not passed over."""
    blind = [proven.model_copy(update={"points": None, "content": None, "sample": []}) for proven in PROOFS]
    assert combined_problems(blind, replicas("count", {(0, 1): {}, (0, 2): {}})) == []
    assert combined_problems([PROOFS[0], blind[1]], replicas("content")) == [
        "the backup was proven without a content digest, so there is nothing to compare with"
    ]
    unread = [*replicas("content")[2:], verdict(0, 1, TARGET[0], "count")]
    assert combined_problems(PROOFS, unread) == ["not every replica was read"]
    assert combined_problems([], []) == []


def test_digests_add_up() -> None:
    """The sum of parts is the digest of the whole, in every sub-range."""
    assert summed(map(content, SOURCE)) == summed(map(content, TARGET.values())) == content({n: n for n in range(30)})
