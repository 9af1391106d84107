"""The end of a migration of a source that lives: writers pause, the last difference is carried over, the alias moves.

The alias is moved, kept, finished and rolled back as that of a restore (`ferry.restore.switch`).
"""

import time
from collections.abc import Callable, Sequence

from ferry.archive.digest import ShardDigest
from ferry.connections import Connections
from ferry.errors import FerryError, PreflightError
from ferry.lanes import Job
from ferry.migration.batch import PointId
from ferry.migration.conclude import report_of
from ferry.migration.follow import switch_of
from ferry.migration.plan import MigrationPlan
from ferry.migration.reconcile import CATCH_UP, PROOF, Pass, Reconciled, Rounds, reconcile
from ferry.migration.records import keep_report
from ferry.migration.sides import SourceSide
from ferry.migration.source import Source
from ferry.migration.target import hand_over, settle_target
from ferry.models import BackupId, Finding, Progress, ShardId, Value, no_progress
from ferry.qdrant.schema import migration_mark
from ferry.restore.switch import Intent, look, make_switch
from ferry.restore.switch_record import Seen, Switch
from ferry.verify import spool

_COMPARE = "See which points: python -m ferry diff, the source and the target both as live:CLUSTER/COLLECTION."


class CutOver(Value):
    """What a cut-over did. ``freeze_seconds``: from the pause of the writers until they may go on at the target.

    ``switch`` is None where no alias was asked for. ``instruction`` says what the operator does now. ``before`` are the
    passes before writers paused. All else is None where an earlier call had moved the alias and died then.
    """

    before: Reconciled | None = None
    final: Reconciled | None = None
    freeze_seconds: float | None = None
    switch: Switch | None
    instruction: str
    findings: tuple[Finding, ...] = ()


def cut_over(
    connections: Connections,
    plan: MigrationPlan,
    source: Source,
    pause: Callable[[Reconciled], None] | None = None,
    announce: Callable[[Pass], None] = lambda _pass: None,
    progress: Progress = no_progress,
) -> CutOver:
    """Catch up, have writers paused by ``pause``, carry over the rest, and move the alias when both sides are equal.

    ``pause`` may ask a person, and raise to give up. Without it writers are paused already, so nothing is caught up
    with before; nor is it for a source that cannot change. To be called by
    the holder of the target's lease, once every range is copied. It may be called again after any failure or kill; the
    alias has moved or it has not. Raises PreflightError where the target is not this migration's any more or the
    alias cannot move, VerificationError where writers did not pause (the alias is where it was), and what `reconcile`
    and `make_switch` raise.
    """
    seen = look(connections.cluster)
    if (done := _moved_already(connections, plan, seen)) is not None:
        return done
    alias_from = _require_way(connections, plan, seen)
    job = Job()  # a node that is restarted meanwhile is waited for

    def passes(rounds: Rounds) -> Reconciled:
        label = f"compare {plan.target}"
        return job.step(label, None, lambda _: reconcile(connections, plan, source, rounds, announce, progress))

    before = None
    lives = plan.source.consistency == "live"
    if lives and pause is not None:
        before = passes(CATCH_UP)
        settle_target(connections, plan, progress)
        pause(before)
    began = time.monotonic()
    final = passes(PROOF)
    final.require_equal(plan.target)
    switch = _switch(connections, plan, alias_from)
    freeze_seconds = time.monotonic() - began
    keep_report(connections, report_of(connections, plan, final))
    hand_over(connections, plan)
    late = _late_writes(connections, plan, source, final, progress) if lives else []
    return CutOver(
        before=before,
        final=final,
        freeze_seconds=freeze_seconds if lives else None,
        switch=switch,
        instruction=_instruction(plan, switch),
        findings=(*final.findings, *late),
    )


def _moved_already(connections: Connections, plan: MigrationPlan, seen: Seen) -> CutOver | None:
    """End what an earlier call has begun, where it has moved the alias to the target: nothing is written then."""
    switch = switch_of(connections, plan)
    if switch is None or seen.aliases.get(switch.alias) != plan.target:
        return None
    if switch.new.collection != plan.target or switch.restore_id != plan.migration_id:
        return None
    if switch.state in ("planned", "rolled_back"):  # it moved, and nobody could note it
        switch = _switch(connections, plan, switch.old.collection if switch.old else None)
    hand_over(connections, plan)
    return CutOver(switch=switch, instruction=_instruction(plan, switch))


def _require_way(connections: Connections, plan: MigrationPlan, seen: Seen) -> str | None:
    """What the alias points at now, before anything is written."""
    alias, target = plan.request.alias, plan.target
    if target not in seen.uuids:
        msg = f"{target} is not on cluster {connections.cluster.name}. Nothing was changed."
        raise PreflightError(msg, "Run the migration first.")
    mark = migration_mark(connections.cluster.nodes[0].collection(target)["config"])
    if mark != plan.migration_id:
        msg = f"{target} does not belong to migration {plan.migration_id} any more: it was put into service."
        raise PreflightError(f"{msg} Nothing was changed.", "Move the alias yourself if it is not there yet.")
    if others := seen.aliases_of(target):
        msg = f"Alias {', '.join(others)} points at {target} already, so somebody may write to it."
        raise PreflightError(f"{msg} Nothing was changed.", "Look who moved it; a migration must be its only writer.")
    if alias is None:
        return None
    if alias in seen.uuids:
        msg = f"{alias} is a collection on cluster {connections.cluster.name}, so it can be no alias."
        raise PreflightError(f"{msg} Nothing was changed.", "Name another alias, or leave it out.")
    return seen.aliases.get(alias)


def _switch(connections: Connections, plan: MigrationPlan, alias_from: str | None) -> Switch | None:
    alias = plan.request.alias
    if alias is None:
        return None
    intent = Intent(
        alias=alias,
        old=alias_from,
        new=plan.target,
        restore_id=BackupId(plan.migration_id),
        backup_id=BackupId(plan.migration_id),
        keep_days=plan.request.keep_days,
    )
    return make_switch(connections, intent, f"migration {plan.migration_id}")


def _instruction(plan: MigrationPlan, switch: Switch | None) -> str:
    cluster, target = plan.request.cluster, plan.target
    if switch is None:
        return f"Point readers and writers at {target} on cluster {cluster}, then let writers go on."
    where = f"Alias {switch.alias} on cluster {cluster} points at {target}: let writers go on there."
    back = f"python -m ferry roll-back --cluster {cluster} --alias {switch.alias}"
    return where if switch.old is None else f"{where} Back to {switch.old.collection}: {back}"


def _late_writes(
    connections: Connections, plan: MigrationPlan, source: Source, final: Reconciled, progress: Progress
) -> list[Finding]:
    """Whether the source is what it was when it was last compared: else somebody did not pause.

    The alias has moved, so what cannot be told is a finding, too.
    """
    name = plan.source.name
    try:
        now = _digest_of(connections, plan, source, progress)
    except FerryError as error:
        message = f"Whether it was written to after it was compared for the last time cannot be told: {error.message}"
        return [Finding(severity="warning", subject=name, message=message, remedy=_COMPARE)]
    if now.hexdigest == final.last.source_digest:
        return []
    message = (
        f"It was written to after it was compared for the last time: it had {final.last.source_points} points then and "
        f"has {now.points} now. Those writes are not in {plan.target}."
    )
    return [Finding(severity="warning", subject=name, message=message, remedy=_COMPARE)]


def _digest_of(connections: Connections, plan: MigrationPlan, source: Source, progress: Progress) -> ShardDigest:
    """What the source holds now, as it shall be in the target."""
    digest = ShardDigest()

    def note(_shard: ShardId, ids: Sequence[PointId], hashes: Sequence[str]) -> None:
        for point_id, value in zip(ids, hashes, strict=True):
            digest.add_hash(point_id, int(value, 16))

    with spool.folder(connections.worker) as folder:
        side = SourceSide(source, plan, folder)
        side.hashes({shard.shard_id: None for shard in side.shards}, note, progress)
    return digest
