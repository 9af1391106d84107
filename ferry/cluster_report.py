"""A restore of many collections for people: the same in the Prefect UI and in the terminal."""

from ferry.report import Row, duration, findings_text, size
from ferry.restore.plan import planned_points
from ferry.restore.whole_cluster import ClusterRestorePlan


def cluster_plan_rows(plan: ClusterRestorePlan) -> list[Row]:
    """One row a collection, in the order of their restoring."""
    rows = []
    for each in plan.plans:
        points = planned_points(each)
        there = each.manifest.collection in plan.there
        rows.append(
            {
                "collection": each.manifest.collection,
                "as": each.target,
                "path": "is there, equal" if there else each.path,
                "points": "not counted" if points is None else points,
                "to move": size(0 if there else each.bytes_to_move),
                "takes": "" if there else _takes(each.expected_seconds),
                "why": "; ".join((*each.reasons, *(f"lost or otherwise: {loss}" for loss in each.losses))),
            }
        )
    return rows


def cluster_plan_text(plan: ClusterRestorePlan) -> str:
    """The plan in words: how much, what each node needs for all of it, the aliases, and what is left out."""
    request, missing = plan.request, plan.missing
    times = [each.expected_seconds for each in missing]
    total = None if None in times else sum(seconds or 0 for seconds in times)
    findings = (*plan.findings, *(finding for each in missing for finding in each.findings))
    return (
        f"Restore {len(missing)} of {len(plan.plans)} collections of {request.source_cluster} from backup "
        f"{plan.backup_id} to {request.cluster}, one after the other: {size(sum(p.bytes_to_move for p in missing))} "
        f"to move, {_takes(total)}; verified by {request.verify}. Each node needs, evenly spread: {_needs(plan)}.\n\n"
        f"{_aliases(plan)}\n\n{findings_text(tuple(dict.fromkeys(findings)))}"
    )


def cluster_verdict(plan: ClusterRestorePlan) -> str:
    """How it ended, as Markdown: every collection is there and equal by now, and every alias has moved."""
    lines = "\n".join(f"| {name} | {target} |" for name, target in sorted(plan.targets.items()))
    aliases = ", ".join(f"{move.alias} → {move.collection}" for move in plan.aliases) or "none"
    return (
        f"## Backup {plan.backup_id} of {plan.request.source_cluster} is restored to {plan.request.cluster}\n\n"
        f"{len(plan.missing)} collections were restored and compared by {plan.request.verify}, {len(plan.there)} were "
        f"there and equal.\n\n| collection | is called |\n|---|---|\n{lines}\n\nAliases moved, in one request: "
        f"{aliases}.\n\n{findings_text(plan.findings)}"
    )


def _takes(seconds: float | None) -> str:
    return "a time that nobody knows yet" if seconds is None else f"about {duration(seconds)}"


def _needs(plan: ClusterRestorePlan) -> str:
    need = next(iter(plan.needs.values()))
    return f"{size(need.disk_bytes)} of disk, {size(need.ram_bytes)} of memory"


def _aliases(plan: ClusterRestorePlan) -> str:
    if not plan.aliases:
        return "No alias is moved."
    lines = [f"- {move.alias}: {move.was or 'new'} → {move.collection}" for move in plan.aliases]
    return "\n".join(["Aliases, at the very end and in one request:\n", *lines])
