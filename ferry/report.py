"""Reports as plain rows and Markdown: the same in the Prefect UI, in the terminal and in files."""

from collections.abc import Iterable
from typing import Any

from ferry.backup.plan import BackupPlan
from ferry.models import Finding
from ferry.prune.gc import Collected
from ferry.prune.plan import PrunePlan
from ferry.prune.run import Pruned
from ferry.repository.manifest import BackupRecord, CollectionEntry, CollectionManifest
from ferry.restore.plan import RestorePlan, planned_points
from ferry.verify.replica import ReplicaVerdict

Row = dict[str, Any]


def size(number: float) -> str:
    """Bytes as people read them, in powers of ten as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def findings_text(findings: tuple[Finding, ...]) -> str:
    """Findings as a Markdown list, or a sentence that there are none."""
    if not findings:
        return "No findings."
    lines = []
    for finding in findings:
        lines.append(f"- **{finding.severity}** {finding.subject}: {finding.message}")
        if finding.remedy:
            lines.append(f"  → {finding.remedy}")
    return "\n".join(lines)


def backup_plan_rows(plan: BackupPlan) -> list[Row]:
    """One row an archive: what is read from where, and why there."""
    return [
        {
            "collection": archive.collection,
            "shard": "all" if archive.shard_id is None else archive.shard_id,
            "from node": archive.node.label,
            "points": sum(max((c.points for c in shard.replica_counts), default=0) for shard in archive.shards),
            "at most": size(archive.estimated_bytes),
            "why": archive.reason,
        }
        for archive in plan.archives
    ]


def backup_plan_text(plan: BackupPlan) -> str:
    """The plan in words."""
    nodes = ", ".join(f"{node.label} ({node.version})" for node in plan.layout.nodes)
    return (
        f"Plan of backup {plan.backup_id}: {len(plan.archives)} archives, at most {size(plan.estimated_bytes)}, "
        f"proof level {plan.proof}. Nodes: {nodes}.\n\n{findings_text(plan.findings)}"
    )


def collection_rows(manifest: CollectionManifest, speeds: dict[str, float]) -> list[Row]:
    """One row a shard, as stored and proven; ``speeds`` are MB/s by the archive's key in its collection's folder."""
    names = {node.peer_id: node.url.split("://", 1)[-1] for node in manifest.nodes}
    return [
        {
            "shard": shard.shard_id if shard.shard_key is None else f"{shard.shard_id} of {shard.shard_key}",
            "node": names[archive.source_peer],
            "points": "not counted" if shard.proof.points is None else shard.proof.points,
            "bytes": archive.bytes,
            "MB/s": round(speeds.get(archive.key, 0.0), 1),
            "sha256": archive.sha256[:12],
            "digest": shard.proof.content.digest[:12] if shard.proof.content else "",
        }
        for archive in manifest.archives
        for shard in archive.shards
    ]


def collection_text(manifest: CollectionManifest) -> str:
    """One collection's backup in words."""
    points = "points not counted" if manifest.points is None else f"{manifest.points} points"
    return (
        f"{manifest.collection}: {points} in {len(manifest.layout)} shards, {size(manifest.bytes)}, proven. First to "
        f"last shard: {manifest.skew_seconds:.1f} s; Qdrant has no cluster-wide point in time, so writes in that span "
        f"may be in one shard and not in another.\n\n{findings_text(manifest.findings)}"
    )


def entry_rows(entries: list[CollectionEntry]) -> list[Row]:
    """One row a collection, for runs of many."""
    return [
        {
            "collection": entry.collection,
            "points": "not counted" if entry.points is None else entry.points,
            "bytes": size(entry.bytes),
            "manifest": entry.manifest_sha256[:12],
        }
        for entry in entries
    ]


def backup_verdict(record: BackupRecord) -> str:
    """The record of a run as Markdown."""
    rows = "\n".join(
        f"| {entry.collection} | {'not counted' if entry.points is None else entry.points} | {size(entry.bytes)} |"
        for entry in record.collections
    )
    aliases = ", ".join(f"{alias} → {name}" for alias, name in sorted(record.aliases.items())) or "none"
    return (
        f"## Backup {record.backup_id} of {record.cluster} is proven\n\n"
        f"| collection | points | bytes |\n|---|---|---|\n{rows}\n\nAliases saved: {aliases}.\n\n"
        f"{findings_text(record.findings)}\n\n"
        f"Restore one: `python -m ferry restore --cluster TARGET --repository REPOSITORY "
        f"--source-cluster {record.cluster} --backup {record.backup_id} COLLECTION`"
    )


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def restore_plan_rows(plan: RestorePlan) -> list[Row]:
    """One row a node: what it needs at most."""
    return [
        {
            "node": node.label,
            "version": node.version,
            "disk needed": size(plan.needs[node.peer_id].disk_bytes),
            "memory needed": size(plan.needs[node.peer_id].ram_bytes),
        }
        for node in plan.layout.nodes
    ]


def restore_plan_text(plan: RestorePlan) -> str:
    """The plan of a restore in words: the path, the reason of each choice, how long it takes and what is lost."""
    manifest, request = plan.manifest, plan.request
    counted = planned_points(plan)
    points = "an uncounted number of" if counted is None else counted
    place = "**in place, over the live collection**" if plan.in_place else f"as **{plan.target}**"
    takes = (
        "a time that nobody knows yet" if plan.expected_seconds is None else f"about {duration(plan.expected_seconds)}"
    )
    return (
        f"Restore {manifest.collection} of {request.source_cluster} from backup {manifest.backup_id} to "
        f"{request.cluster} {place} by the path **{plan.path}**: {points} points into {len(plan.shards)} shards × "
        f"{plan.replication_factor} replicas, {size(plan.bytes_to_move)} to move, {takes}; verified by "
        f"{request.verify}.\n\n{_listed('Why', plan.reasons)}\n\n"
        f"{_listed('Lost or otherwise', plan.losses or ('nothing',))}\n\n{findings_text(plan.findings)}"
    )


def _listed(title: str, sentences: Iterable[str]) -> str:
    return "\n".join([f"{title}:\n", *(f"- {sentence}" for sentence in sentences)])


def verdict_rows(verdicts: list[ReplicaVerdict], names: dict[int, str]) -> list[Row]:
    """One row a replica: what was compared, and whether it is equal."""
    return [
        {
            "shard": verdict.shard_id,
            "node": names.get(verdict.peer_id, str(verdict.peer_id)),
            "points": verdict.points,
            "compared": verdict.compared,
            "digest": (verdict.digest or "")[:16],
            "verdict": "; ".join(verdict.problems) or "equal",
        }
        for verdict in verdicts
    ]


def restore_verdict(plan: RestorePlan, verdicts: list[ReplicaVerdict], findings: tuple[Finding, ...]) -> str:
    """How a restore ended, as Markdown."""
    alias = f" Alias **{plan.request.alias}** points at it." if plan.request.alias else ""
    compared = {"count": "exact counts", "sample": "counts and sampled points field by field", "content": "every point"}
    return (
        f"## {plan.target} is restored and equal to its proof\n\n{len(verdicts)} replicas compared by "
        f"{compared[plan.request.verify]} with backup {plan.manifest.backup_id}.{alias}\n\n{findings_text(findings)}"
    )


def prune_rows(pruned: Pruned) -> list[Row]:
    """One row a backup, the newest first: what becomes of it, and every reason."""
    outcomes = {outcome.backup_id: outcome for outcome in pruned.outcomes}
    rows = []
    for verdict in pruned.plan.verdicts:
        facts, outcome = pruned.plan.facts[verdict.backup_id], outcomes.get(verdict.backup_id)
        becomes = "keep" if verdict.keep else outcome.state if outcome else "delete"
        rows.append(
            {
                "backup": verdict.backup_id,
                "state": "complete" if facts.complete else "incomplete",
                "bytes": size(facts.bytes),
                "verdict": becomes,
                "why": "; ".join([*verdict.reasons, *([outcome.reason] if outcome and outcome.reason else [])]),
            }
        )
    return rows


def prune_text(pruned: Pruned) -> str:
    """A prune, or the plan of one, in words."""
    plan: PrunePlan = pruned.plan
    head = f"{len(plan.verdicts)} backups of {plan.cluster}; by the store's clock it is {plan.at:%Y-%m-%d %H:%M} UTC."
    if pruned.outcomes:
        done = sum(outcome.state == "deleted" for outcome in pruned.outcomes)
        did = f"**{done} of {len(plan.deletes)} were deleted**, {size(pruned.freed_bytes)}."
    elif plan.deletes:
        did = f"**{len(plan.deletes)} are to be deleted**, {size(plan.freed_bytes)}; nothing was changed."
    else:
        did = "None is to be deleted."
    return f"{head} {did}\n\n{findings_text(pruned.findings)}"


def garbage_rows(collected: Collected) -> list[Row]:
    """One row a thing that nobody needs."""
    return [
        {"kind": item.kind, "bytes": size(item.bytes), "object": item.key, "why": item.reason}
        for item in collected.garbage
    ]


def garbage_text(collected: Collected) -> str:
    """What a look for garbage has found, in words."""
    total = size(sum(item.bytes for item in collected.garbage))
    did = "were taken away" if collected.taken_away else "are there; nothing was changed"
    return (
        f"{len(collected.garbage)} things of {collected.cluster} that nobody needs {did}: {total}.\n\n"
        f"{findings_text(collected.findings)}"
    )
