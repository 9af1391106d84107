"""Comparing a whole restored collection with the proofs of the shards that its points came from. Pure.

On the points path a target's shards are not the source's, so no replica has a proof of its own. Content digests are
sums: those of one replica of each shard add up to those of the shards that were read.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ferry.archive.digest import ContentDigest, PointSample, ShardDigest
from ferry.archive.proof import Proof
from ferry.models import ShardId, ShardKey
from ferry.verify.replica import ReplicaVerdict

SHOWN_RANGES = 8
SHOWN_POINTS = 8

ByShard = Mapping[ShardId, Sequence[ReplicaVerdict]]


def combined_problems(
    proofs: Sequence[Proof],
    verdicts: Sequence[ReplicaVerdict],
    keys: Mapping[ShardId, ShardKey | None] | None = None,
) -> list[str]:
    """What differs between the replicas together and the proofs together, as sentences; empty when all is equal.

    The verdicts are those of `read_replica`. ``keys`` are the shard keys of the new collection's shards: two keys may
    each hold a point of the same id, and no other two shards may.
    """
    by_shard: dict[ShardId, list[ReplicaVerdict]] = defaultdict(list)
    for verdict in sorted(verdicts, key=lambda verdict: (verdict.shard_id, verdict.peer_id)):
        by_shard[verdict.shard_id].append(verdict)
    problems = [problem for replicas in by_shard.values() for problem in _apart(replicas)]
    one_each = [replicas[0] for replicas in by_shard.values()]
    problems += _count_problems(proofs, one_each)
    if any(verdict.level == "content" for verdict in verdicts):
        problems += _content_problems(proofs, one_each)
    if any(verdict.level == "sample" for verdict in verdicts):
        problems += _sample_problems(proofs, by_shard, keys or {})
    return problems


def summed(contents: Iterable[ContentDigest]) -> ContentDigest:
    """The digest of all these points together."""
    total = ShardDigest()
    for content in contents:
        total.merge(content)
    return total.value()


def _apart(replicas: Sequence[ReplicaVerdict]) -> list[str]:
    """How the replicas of one shard differ from the first of them."""
    first, problems = replicas[0], []
    for other in replicas[1:]:
        both = f"shard {first.shard_id}: its replicas on peers {first.peer_id} and {other.peer_id}"
        if first.points != other.points:
            problems.append(f"{both} hold {first.points} and {other.points} points")
        if first.content and other.content and first.content.digest != other.content.digest:
            problems.append(f"{both} differ in content, {_ranges(first.content, other.content)}")
        mine, others = _fields(first), _fields(other)
        if apart := sorted(name for name in mine.keys() | others.keys() if mine.get(name) != others.get(name)):
            problems.append(f"{both} do not show the same of {_points(apart)}")
    return problems


def _count_problems(proofs: Sequence[Proof], one_each: Sequence[ReplicaVerdict]) -> list[str]:
    if any(proof.points is None for proof in proofs):
        return []
    expected, found = sum(proof.points or 0 for proof in proofs), sum(verdict.points for verdict in one_each)
    if found == expected:
        return []
    return [f"the {len(one_each)} shards hold {found} points, the {len(proofs)} proofs say {expected}"]


def _content_problems(proofs: Sequence[Proof], one_each: Sequence[ReplicaVerdict]) -> list[str]:
    proven = [proof.content for proof in proofs if proof.content is not None]
    read = [verdict.content for verdict in one_each if verdict.content is not None]
    if len(proven) < len(proofs):
        return ["the backup was proven without a content digest, so there is nothing to compare with"]
    if len(read) < len(one_each):
        return ["not every replica was read"]
    expected, found = summed(proven), summed(read)
    if found.digest == expected.digest:
        return []
    return [f"the shards together differ in content from the proofs, {_ranges(expected, found)}"]


def _sample_problems(proofs: Sequence[Proof], by_shard: ByShard, keys: Mapping[ShardId, ShardKey | None]) -> list[str]:
    """Each sampled point is in one shard of a key, on each of its replicas, and equal in one of them."""
    held: dict[str, dict[ShardId, PointSample]] = defaultdict(dict)
    for shard_id, replicas in by_shard.items():
        for verdict in replicas:
            for sample in verdict.found:
                held[str(sample.id)].setdefault(shard_id, sample)
    problems = []
    for sample in (sample for proof in proofs for sample in proof.sample):
        found = held.get(str(sample.id), {})
        if not found:
            problems.append(f"point {sample.id} is missing")
            continue
        problems += [f"point {sample.id} is in shards {twice}" for twice in _twice(found, keys)]
        differing = [sample.differing_fields(other.fields) for other in found.values()]
        if all(differing):
            _, fewest = min((len(names), names) for names in differing)
            problems.append(f"point {sample.id} differs in {', '.join(fewest)}")
    return problems


def _twice(found: Iterable[ShardId], keys: Mapping[ShardId, ShardKey | None]) -> list[str]:
    """Shards of one key that all hold the point."""
    by_key: dict[ShardKey | None, list[ShardId]] = defaultdict(list)
    for shard_id in found:
        by_key[keys.get(shard_id)].append(shard_id)
    return [" and ".join(map(str, shards)) for shards in by_key.values() if len(shards) > 1]


def _fields(verdict: ReplicaVerdict) -> dict[str, dict[str, str]]:
    return {str(sample.id): sample.fields for sample in verdict.found}


def _ranges(first: ContentDigest, second: ContentDigest) -> str:
    ranges = first.differing_ranges(second)
    return f"in {len(ranges)} of 256 sub-ranges: {', '.join(ranges[:SHOWN_RANGES])}"


def _points(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_POINTS} more" if len(ids) > SHOWN_POINTS else ""
    return f"point{'s' if len(ids) > 1 else ''} {', '.join(ids[:SHOWN_POINTS])}{more}"
