"""A migration for people: its plan, how far it is, and what came of it (see `ferry.report`)."""

from collections.abc import Iterable

from ferry.migration.costs import needs_of
from ferry.migration.cut_over import CutOver
from ferry.migration.plan import BackupSource, Changes, Cost, MigrationPlan, ParquetSource, QdrantSource, SourceName
from ferry.migration.reconcile import Pass, Reconciled
from ferry.migration.report import CompletenessReport, RangeState
from ferry.models import ClusterLayout
from ferry.report import Row, duration, findings_text, size
from ferry.restore.shape import Shape

NAMED = 20  # points that are named one by one; the report in the bucket names all


def source_text(source: SourceName) -> str:
    """A source as the command line takes it."""
    match source:
        case QdrantSource():
            return f"live:{source.cluster}/{source.collection}"
        case BackupSource():
            return f"{source.cluster}/{source.backup}/{source.collection}"
        case ParquetSource():
            return f"parquet:{source.location}"


def plan_rows(plan: MigrationPlan) -> list[Row]:
    """One row a range: a fixed part of the source, which no later run plans otherwise."""
    return [
        {
            "range": each.number,
            "what": each.label,
            "shard key": "" if each.key is None else each.key,
            "points": "not counted" if each.points is None else each.points,
        }
        for each in plan.ranges
    ]


def cost_rows(plan: MigrationPlan) -> list[Row]:
    """One row a writer: what it would cost, and why it is not the one, where it cannot be."""
    return [
        {
            "writer": cost.writer,
            "takes": _takes(cost.seconds),
            "CPU of the target": "not known" if cost.target_cpu_seconds is None else duration(cost.target_cpu_seconds),
            "disk of this worker": size(cost.spool_bytes),
            "chosen": "yes" if cost.writer == plan.writer else cost.reason or "no",
        }
        for cost in plan.costs
    ]


def need_rows(plan: MigrationPlan, layout: ClusterLayout) -> list[Row]:
    """One row a node of the target: what it needs at most."""
    needs = needs_of(plan.source, plan.config, _copies(plan), layout)
    return [
        {
            "node": node.label,
            "version": node.version,
            "disk needed": size(needs[node.peer_id].disk_bytes),
            "memory needed": size(needs[node.peer_id].ram_bytes),
        }
        for node in layout.nodes
    ]


def _copies(plan: MigrationPlan) -> int:
    return max((shard.copies for shard in plan.shards), default=1)


def plan_text(plan: MigrationPlan) -> str:
    """The plan in words: from where to where, by which writer and why, and what will be otherwise."""
    request, source = plan.request, plan.source
    points = "an uncounted number of" if source.points is None else f"about {source.points}"
    held = "" if source.bytes is None else f", about {size(source.bytes)}"
    chosen: Cost | None = next((cost for cost in plan.costs if cost.writer == plan.writer), None)
    return (
        f"Migration {plan.migration_id} of {source_text(request.source)} to {request.cluster} as **{plan.target}** by "
        f"the writer **{plan.writer}**: {points} points{held} in {len(plan.ranges)} ranges, into {len(plan.shards)} "
        f"shards × {_copies(plan)} replicas, {_takes(chosen.seconds if chosen else None)}.\n\n"
        f"{_listed('Why', plan.reasons or ('nothing was chosen that needs a reason',))}\n\n"
        f"{_listed('Otherwise than in the source', _wishes(plan) or ['nothing'])}\n\n{findings_text(plan.findings)}"
    )


def _wishes(plan: MigrationPlan) -> list[str]:
    """What was asked for that makes the target another collection than the source."""
    request = plan.request
    asked: dict[str, object] = {
        **_given(request.shape, Shape()),
        **_given(request.changes, Changes()),
        "replication_factor": request.replication_factor,
        "filter": request.filter,
    }
    return [f"{name}: {value}" for name, value in asked.items() if value is not None]


def _given(model: Shape | Changes, empty: Shape | Changes) -> dict[str, object]:
    return {name: value for name, value in model if value != getattr(empty, name)}


def progress_text(done: int, total: int | None, points_per_second: float) -> str:
    """How far a copy is, how fast it goes, and how long it still takes at that speed."""
    speed = f"{points_per_second:,.0f} points/s"
    if total is None:
        return f"{done:,} points, {speed}"
    left = max(0, total - done)
    rest = f"about {duration(left / points_per_second)} left" if points_per_second else "nobody knows how long"
    return f"{done:,} of about {total:,} points, {speed}, {rest}"


def migration_row(plan: MigrationPlan, states: Iterable[RangeState], report: CompletenessReport | None) -> Row:
    """One migration in a list of many: from where to where, and how far it is."""
    states = list(states)
    done = sum(state.done for state in states)
    ended = report.verdict if report else "not finished"
    return {
        "migration": plan.migration_id,
        "from": source_text(plan.request.source),
        "to": f"{plan.request.cluster}/{plan.target}",
        "writer": plan.writer,
        "planned": f"{plan.created_at:%Y-%m-%d %H:%M}",
        "ranges done": f"{done} of {len(states)}",
        "read": sum(state.read for state in states),
        "refused": sum(len(state.rejected) for state in states),
        "state": ended,
    }


def report_rows(report: CompletenessReport) -> list[Row]:
    """One row a kind of vector: how many points have it on both sides."""
    return [
        {"vector": name or "(unnamed)", "source": count.source, "target": count.target}
        for name, count in sorted(report.vectors.items())
    ]


def report_text(report: CompletenessReport) -> str:
    """What came of a migration, as Markdown: the verdict is of what was read back, never of what was sent."""
    equal = report.verdict == "equal"
    verdict = "is equal to its source" if equal else "**differs from its source**"
    lines = [
        f"## {report.target} {verdict}",
        f"From {report.source} to {report.cluster} by the writer {report.writer}, migration {report.migration_id}.",
        "| | points |\n|---|---|\n"
        + "\n".join(f"| {name} | {'not counted' if count is None else count} |" for name, count in _counts(report)),
        f"Digests: source `{_short(report.source_digest)}`, target `{_short(report.target_digest)}`. "
        f"{duration(report.seconds)}, {report.points_per_second:,.0f} points/s; the copy alone "
        f"{duration(report.copy_seconds)} of all ranges together.",
    ]
    if report.vectors:
        lines.append("Points with a vector: " + "; ".join(_vector(row) for row in report_rows(report)) + ".")
    if report.rejected:
        lines.append(_listed("Refused", (f"{point.id}: {point.reason}" for point in report.rejected[:NAMED])))
    if report.differences:
        lines.append(_listed("Different", report.differences[:NAMED]))
    return "\n\n".join([*lines, findings_text(report.findings)])


def _counts(report: CompletenessReport) -> list[tuple[str, int | None]]:
    return [
        ("read", report.read),
        ("written", report.written),
        ("the same id again", report.deduplicated),
        ("refused", len(report.rejected)),
        ("written again after the comparison", report.repaired),
        ("deleted because the source has lost them", report.surplus_removed),
        ("in the source at the end", report.source_points),
        ("in the new collection at the end", report.target_points),
    ]


def _vector(row: Row) -> str:
    return f"{row['vector']} {row['source']} / {row['target']}"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:16]


def approval_text(plan: MigrationPlan, report: CompletenessReport) -> str:
    """What is asked before the new collection is put into service, with what there is to know."""
    pause = f"Pause what writes to {source_text(plan.request.source)} first: what comes later is only there. "
    alias = plan.request.alias
    asked = f"Shall alias {alias} move to {plan.target}?" if alias else f"Shall {plan.target} be put into service?"
    return (
        f"{report_text(report)}\n\n**{asked}** {pause if plan.source.consistency == 'live' else ''}"
        "What was written since is then carried over, both are compared once more, and only when they are equal it is "
        "done."
    )


def pause_text(plan: MigrationPlan, before: Reconciled) -> str:
    """What a person does before the last comparison, and about how long writers must wait then."""
    last = before.last
    return (
        f"Pause what writes to {source_text(plan.request.source)}; readers need not. {last.differing} of "
        f"{last.source_points} points differed when both sides were read just now, which took {last.seconds:.0f} s; "
        f"the last comparison reads them once or twice more."
    )


def pass_text(done: Pass) -> str:
    """One comparison of both sides, in a line."""
    return (
        f"Pass {done.number}: {done.missing} missing, {done.changed} changed, {done.surplus} surplus of "
        f"{done.source_points} points; {done.written} written, {done.deleted} deleted, in {done.seconds:.1f} s."
    )


def cut_over_text(plan: MigrationPlan, done: CutOver) -> str:
    """How a cut-over ended: what was carried over, how long writers had to wait, and what to do now."""
    lines = [f"## {plan.target} is in service", done.instruction]
    if done.final:
        passes, last = (*(done.before.passes if done.before else ()), *done.final.passes), done.final.last
        lines.append(
            f"Both sides were equal: {last.target_points} points, digest `{_short(last.target_digest)}`. Before that "
            f"{sum(each.written for each in passes)} points were written again and "
            f"{sum(each.deleted for each in passes)} deleted."
        )
    if done.freeze_seconds is not None:
        lines.append(f"From the pause of the writers until they may go on: {done.freeze_seconds:.1f} s.")
    return "\n\n".join([*lines, findings_text(done.findings)])


def _takes(seconds: float | None) -> str:
    return "a time that nobody knows yet" if seconds is None else f"about {duration(seconds)}"


def _listed(title: str, sentences: Iterable[str]) -> str:
    return "\n".join([f"{title}:\n", *(f"- {sentence}" for sentence in sentences)])
