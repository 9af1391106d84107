"""Why a restore does what it will do, and what the new collection will not have of the old one, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ferry.restore.shape import is_custom

if TYPE_CHECKING:
    from ferry.restore.plan import RestorePlan


def reasons(plan: RestorePlan, why_points: Sequence[str], lowered_from: int | None) -> tuple[str, ...]:
    """The reason of each choice. ``lowered_from`` copies were wanted where there are fewer nodes."""
    nodes = len(plan.layout.nodes)
    found = [f"{len(plan.shards)} shards on {nodes} nodes: {_path(plan, why_points)}"]
    if plan.in_place is None:
        found.append(
            "created first with the source's configuration: a recover into a missing collection loses replicas "
            "(Qdrant 6575, 7851)"
        )
    if plan.path == "shards":
        found.append(
            "priority no_sync on every replica from the same archive: no replica goes Dead, nothing is re-sent"
        )
        found += _sealed(plan)
    if plan.key_steps:
        found.append(f"shard keys made in the order that gives their shards these numbers: {_numbers(plan)}")
    if lowered_from:
        factor = plan.replication_factor
        found.append(f"replication factor {factor} instead of {lowered_from}: there are {nodes} nodes")
    if alias := plan.request.alias:
        found.append(f"alias {alias}: {plan.alias_from or 'new'} → the new collection, last, in one request")
    return tuple(found)


def losses(plan: RestorePlan) -> tuple[str, ...]:
    """What the new collection will not have, or will have otherwise, than the old one."""
    found = []
    left_out = [shard for shard in plan.manifest.layout if shard.shard_id not in plan.sources]
    if left_out:
        keys = ", ".join(sorted({str(shard.key) for shard in left_out}))
        points = sum(proof.points or 0 for shard_id, proof in plan.manifest.proofs() if shard_id not in plan.sources)
        found.append(f"shard keys {keys} are left out: {points} points")
    if is_custom(plan.manifest.config) and not is_custom(plan.config):
        found.append("shard keys: which key a point had is written nowhere in the new collection")
    if _come_together(plan):
        found.append(
            "points of several shard keys come together: of points with the same id only one would be left, "
            "and the restore then fails its comparison"
        )
    if plan.path == "points":
        found.append("the vector index: the target builds it anew, and searches are slower until it has")
    if plan.config.get("quantization_config") != plan.manifest.config.get("quantization_config"):
        found.append("the quantization of the backup: searches may rank close points otherwise")
    return tuple(found)


def _path(plan: RestorePlan, why_points: Sequence[str]) -> str:
    if plan.path == "points":
        return f"points read out of {len(plan.streams)} archives and sent, because {'; '.join(why_points)}"
    if plan.manifest.kind == "shard":
        return "shard archives recovered on every replica: same shards, so no re-indexing and no transfers"
    return "shards cut out of the nodes' collection snapshots and uploaded to every replica"


def _come_together(plan: RestorePlan) -> bool:
    """Whether points of several keys get the same key, or none: ids are unique only within a key."""
    old = {shard.shard_id: shard.key for shard in plan.manifest.layout}
    new: dict[str, set[str]] = {}
    for stream in plan.streams:
        new.setdefault(repr(stream.key), set()).add(repr(old[stream.source]))
    return any(len(keys) > 1 for keys in new.values())


def _sealed(plan: RestorePlan) -> list[str]:
    sealed = sorted({archive.key_id or "" for archive in plan.manifest.archives if archive.encoding != "plain"})
    if not sealed:
        return []
    return [
        f"encrypted for {', '.join(sealed)}: nodes cannot read it from the bucket, so this worker decrypts each "
        "archive and uploads it"
    ]


def _numbers(plan: RestorePlan) -> str:
    by_key: dict[str, list[str]] = {}
    for shard in plan.shards:
        by_key.setdefault(str(shard.key), []).append(str(shard.shard_id))
    return "; ".join(f"{key} {', '.join(numbers)}" for key, numbers in by_key.items())
