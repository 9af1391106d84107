"""A recovery in rows and words: the same in the Prefect UI and in the terminal."""

from collections.abc import Sequence
from typing import Any

from ferry.archive.reader import PlainId
from ferry.recovery.plan import NAMED_IDS, RecoveryPlan
from ferry.recovery.run import Recovered
from ferry.recovery.steps import RecoveredShard
from ferry.report import findings_text, size

_WRITES = {
    "missing": "points are written whose ids it lacks; what is there stays as it is",
    "overwrite": "points are written that it lacks, and those that are there with another content are replaced",
    "new collection": "it is made with the backup's schema, and all chosen points are written",
}


def plan_text(plan: RecoveryPlan) -> str:
    """What will be done, in words."""
    request, manifest = plan.request, plan.manifest
    into = f"**{plan.target}**" + (f", which the alias {plan.alias} points at," if plan.alias else "")
    chosen = [] if request.filter is None else ["a filter"]
    chosen += [] if request.ids is None else [f"{len(request.ids)} ids"]
    return (
        f"Recover points of {manifest.collection} of {request.source_cluster}, chosen by {' and '.join(chosen)}, from "
        f"backup {manifest.backup_id} into {into} on {request.cluster}: {_WRITES[request.mode]}.\n\n"
        f"{findings_text(plan.findings)}"
    )


def recovered_rows(recovered: Recovered) -> list[dict[str, Any]]:
    """One row a shard of the backup that was read."""
    plan = recovered.plan
    return [
        {
            "shard": shard.shard_id if plan.key_of(shard.shard_id) is None else _keyed(plan, shard),
            "selected": shard.selected,
            "missing": shard.missing,
            "differ": shard.differing,
            "equal": shard.equal,
            "written": shard.written,
            "from the bucket": size(shard.fetched_bytes),
            "from the nodes": size(shard.live_bytes),
        }
        for shard in recovered.shards
    ]


def recovered_text(recovered: Recovered) -> str:
    """How it went, in words: counts, the first ids, and the bytes that were read."""
    plan, shards = recovered.plan, recovered.shards
    selected, written = sum(shard.selected for shard in shards), sum(shard.written for shard in shards)
    missing, differing = sum(shard.missing for shard in shards), sum(shard.differing for shard in shards)
    equal = selected - missing - differing
    if recovered.dry_run:
        did = "Nothing was changed."
    else:
        did = f"**{written} were written** and read back from every replica, as they are in the backup."
    lines = [
        f"{selected} points of backup {plan.manifest.backup_id} were selected: {missing} are missing in {plan.target}, "
        f"{differing} differ there, {equal} are equal. {did if written or recovered.dry_run else 'None was written.'}",
        _bytes_read(shards),
    ]
    named = {
        "Missing": [point_id for shard in shards for point_id in shard.first_missing],
        "Differ": [point_id for shard in shards for point_id in shard.first_differing],
        "Not in the backup, or not selected": list(recovered.not_found),
    }
    lines += [f"{what}: {_some(ids)}" for what, ids in named.items() if ids]
    return "\n\n".join(lines)


def _bytes_read(shards: Sequence[RecoveredShard]) -> str:
    fetched, held = sum(shard.fetched_bytes for shard in shards), sum(shard.archive_bytes for shard in shards)
    kept = f", for archives of {size(held)} of which the others were on this disk" if fetched < held else ""
    live = size(sum(shard.live_bytes for shard in shards))
    return f"Read: {size(fetched)} from the bucket{kept}; {live} from the nodes."


def _some(ids: Sequence[PlainId]) -> str:
    more = ", …" if len(ids) > NAMED_IDS else ""
    return ", ".join(map(str, ids[:NAMED_IDS])) + more


def _keyed(plan: RecoveryPlan, shard: RecoveredShard) -> str:
    return f"{shard.shard_id} of {plan.key_of(shard.shard_id)}"
