"""Comparing one replica on a live node with the proof of its shard, or reading it for a comparison of many."""

import time
from collections.abc import Sequence

from ferry.archive.decimals import as_meant
from ferry.archive.digest import ContentDigest, PointSample, ShardDigest, point_fields, point_sample
from ferry.archive.proof import Proof
from ferry.models import PeerId, Progress, ShardId, Value, VerifyLevel, no_progress
from ferry.qdrant import points as qdrant_points
from ferry.qdrant.node import Node

SCROLL_POINTS = 1000


class ReplicaVerdict(Value):
    """What was compared on one replica, and what differs; ``problems`` is empty when all is equal.

    ``content`` and ``found`` (those of the sampled points that it holds) are there when it was only read.
    """

    collection: str
    shard_id: ShardId
    peer_id: PeerId
    level: VerifyLevel
    points: int
    compared: int
    digest: str | None = None
    seconds: float = 0.0
    problems: tuple[str, ...] = ()
    content: ContentDigest | None = None
    found: tuple[PointSample, ...] = ()


def verify_replica(
    node: Node, collection: str, shard_id: ShardId, proof: Proof, level: VerifyLevel, progress: Progress = no_progress
) -> ReplicaVerdict:
    """Compare one replica: exact count always; ``sample`` field by field; ``content`` the full digest.

    Reads that node's own replica through the local-shard routes, so another node's copy never answers for it.
    """
    began, points = time.monotonic(), qdrant_points.count(node, collection, shard_id)
    problems = []
    if proof.points is not None and points != proof.points:
        problems.append(f"{points} points, the proof says {proof.points}")
    compared, digest = 0, None
    if level == "sample":
        compared = len(proof.sample)
        problems += _sample_problems(node, collection, shard_id, proof)
    elif level == "content":
        found = shard_digest(node, collection, shard_id, progress)
        compared, digest = found.points, found.hexdigest
        if proof.content is None:
            problems.append("the backup was proven without a content digest, so there is nothing to compare with")
        elif digest != proof.content.digest:
            ranges = proof.content.differing_ranges(found.value())
            problems.append(f"content digest differs in {len(ranges)} of 256 sub-ranges: {', '.join(ranges[:8])}")
    return ReplicaVerdict(
        collection=collection,
        shard_id=shard_id,
        peer_id=node.peer_id,
        level=level,
        points=points,
        compared=compared,
        digest=digest,
        seconds=round(time.monotonic() - began, 3),
        problems=tuple(problems),
    )


def read_replica(
    node: Node,
    collection: str,
    shard_id: ShardId,
    level: VerifyLevel,
    sample: Sequence[PointSample] = (),
    progress: Progress = no_progress,
) -> ReplicaVerdict:
    """Read one replica that no proof of its own is there for: its exact count, and its digest or its sampled points.

    `ferry.verify.combined` compares all of a collection's replicas with the proofs together.
    """
    began, points = time.monotonic(), qdrant_points.count(node, collection, shard_id)
    content, found = None, []
    if level == "content":
        content = shard_digest(node, collection, shard_id, progress).value()
    elif level == "sample":
        ids = [point.id for point in sample]
        answers = qdrant_points.retrieve_shard(node, collection, shard_id, ids)
        found = [point_sample(each["id"], each.get("payload"), as_meant(each.get("vector"))) for each in answers]
    return ReplicaVerdict(
        collection=collection,
        shard_id=shard_id,
        peer_id=node.peer_id,
        level=level,
        points=points,
        compared=content.points if content else len(found),
        digest=content.digest if content else None,
        seconds=round(time.monotonic() - began, 3),
        content=content,
        found=tuple(found),
    )


def shard_digest(node: Node, collection: str, shard_id: ShardId, progress: Progress = no_progress) -> ShardDigest:
    """The content digest of one replica, read point by point from its node."""
    digest = ShardDigest()
    for batch in qdrant_points.scroll_shard(node, collection, shard_id, batch_points=SCROLL_POINTS):
        for point in batch:
            digest.add(point["id"], point.get("payload"), as_meant(point.get("vector")))
        progress(len(batch))
    return digest


def _sample_problems(node: Node, collection: str, shard_id: ShardId, proof: Proof) -> list[str]:
    ids = [sample.id for sample in proof.sample]
    found = {str(point["id"]): point for point in qdrant_points.retrieve_shard(node, collection, shard_id, ids)}
    problems = []
    for sample in proof.sample:
        point = found.get(str(sample.id))
        if point is None:
            problems.append(f"point {sample.id} is missing")
            continue
        fields = point_fields(sample.id, point.get("payload"), as_meant(point.get("vector")))
        if differing := sample.differing_fields(fields):
            problems.append(f"point {sample.id} differs in {', '.join(differing)}")
    return problems
