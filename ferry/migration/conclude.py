"""The end of a migration: whether it has come already, and the report that says what came of it."""

from collections.abc import Sequence

from ferry.connections import Connections
from ferry.errors import NodeRefusedError
from ferry.migration import records, target
from ferry.migration.changed_config import dense_vectors, sparse_vectors
from ferry.migration.plan import MigrationPlan
from ferry.migration.reconcile import Reconciled
from ferry.migration.report import CompletenessReport, RangeState, RejectedPoint, VectorCount
from ferry.models import now
from ferry.qdrant.http import path_of
from ferry.qdrant.schema import migration_mark


def over(connections: Connections, plan: MigrationPlan) -> CompletenessReport | None:
    """The report of a migration whose collection is the operator's now, or in service; None while it is ours.

    From then on nothing may be written to it by this migration.
    """
    report = records.saved_report(connections, plan.migration_id)
    if report is None or plan.request.restart:
        return None
    found = target.config_there(connections.cluster.nodes[0], plan.target)
    if found is None:
        return None  # dropped since: the same migration may make it again
    ours = migration_mark(found["config"]) == plan.migration_id
    return None if ours and not target.in_service(connections, plan) else report


def report_of(connections: Connections, plan: MigrationPlan, reconciled: Reconciled) -> CompletenessReport:
    """What came of all runs of a migration, by its checkpoints and by the last comparison."""
    states, last, moment = records.range_states(connections, plan), reconciled.last, now()
    read = sum(state.read for state in states) or last.source_points + last.doubles + len(last.refused)
    rejected = _rejected(states, reconciled)
    return CompletenessReport(
        migration_id=plan.migration_id,
        source=plan.source.name,
        cluster=plan.request.cluster,
        target=plan.target,
        writer=plan.writer,
        verdict="equal" if reconciled.equal else "different",
        read=read,
        written=sum(state.written for state in states) or read - len(rejected),
        deduplicated=last.doubles,
        rejected=rejected,
        repaired=sum(each.written for each in reconciled.passes),
        surplus_removed=sum(each.deleted for each in reconciled.passes),
        passes=len(reconciled.passes),
        source_points=last.source_points,
        target_points=last.target_points,
        source_digest=last.source_digest,
        target_digest=last.target_digest,
        vectors=_vectors(connections, plan, reconciled.equal),
        differences=tuple(f"{each.what}: {each.id}" for each in last.first),
        findings=(*plan.findings, *reconciled.findings),
        alias=plan.request.alias,
        started_at=plan.created_at,
        finished_at=moment,
        copy_seconds=round(sum(state.seconds for state in states), 3),
        seconds=round((moment - plan.created_at).total_seconds(), 3),
    )


def _rejected(states: Sequence[RangeState], reconciled: Reconciled) -> tuple[RejectedPoint, ...]:
    """Every point that the target does not have, by the first reason that was seen; the comparison sees all again."""
    seen = [*(point for state in states for point in state.rejected), *reconciled.last.refused]
    first = {(type(point.id).__name__, point.id): point for point in reversed(seen)}
    return tuple(first[name] for name in sorted(first, key=str))


def _vectors(connections: Connections, plan: MigrationPlan, equal: bool) -> dict[str, VectorCount]:
    """How many points have each vector. Equal digests are of equal vectors, so the source has as many then."""
    found = {}
    for name in (*dense_vectors(plan.config), *sparse_vectors(plan.config)):
        body = {"filter": {"must": [{"has_vector": name}]}, "exact": True}
        path = path_of("collections", plan.target) + "/points/count"
        try:
            count = int(connections.cluster.nodes[0].patient_request("POST", path, json=body)["count"])
        except NodeRefusedError:  # strict mode may forbid to count
            found[name] = VectorCount()
        else:
            found[name] = VectorCount(source=count if equal else None, target=count)
    return found
