"""The steps of a restore in place, and all of it without Prefect: the same steps as flows/restore_in_place.py.

Nothing is rolled back when it fails half-way: every replica that was overwritten is lost but for the backup of before.
The error says what each replica holds and the command that goes on.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import escape

from ferry.backup import run as backup
from ferry.backup.plan import BackupRequest
from ferry.connections import Connections
from ferry.errors import FerryError, InPlaceError, LayoutError, NodeError, VerificationError
from ferry.lanes import Job
from ferry.models import BackupId, Finding, Progress, Value, no_progress, now
from ferry.qdrant import points
from ferry.qdrant.node import Node
from ferry.qdrant.view import each
from ferry.repository.layout import new_backup_id
from ferry.repository.lease import acquire
from ferry.restore import preflight, records, steps
from ferry.restore.in_place import InPlaceRequest, again, back_to, require_meant
from ferry.restore.plan import RestorePlan
from ferry.restore.present import Prepared, prepare_in_place
from ferry.restore.run import on_every_replica, reading
from ferry.restore.source import source_of
from ferry.restore.writes import read_writes, write_finding, writes_to
from ferry.verify.replica import ReplicaVerdict, verify_replica

log = logging.getLogger(__name__)


class Overwritten(Value):
    """A finished restore in place. ``before`` is the backup of the state before it, None where that was waived."""

    plan: RestorePlan
    before: BackupId | None
    recovered: tuple[steps.RecoveredReplica, ...]
    verdicts: tuple[ReplicaVerdict, ...]
    findings: tuple[Finding, ...]


def run_in_place(
    connections: Connections,
    request: InPlaceRequest,
    holder: str,
    job: Job,
    announce: Callable[[RestorePlan], None] = lambda _plan: None,
) -> Overwritten:
    """Plan, announce the plan, back the present state up, overwrite every replica, and compare it with its proof.

    Raises LeaseHeldError when another run restores the collection or works on the cluster, a PreflightError when it
    would not work: nothing was changed then. InPlaceError says that it stopped half-way, VerificationError that a
    replica is not what the backup says.
    """
    require_meant(request)
    with preflight.alone_and_tidied(connections, request.target, holder) as lease:
        prepared = prepare_in_place(connections, request)
        plan = prepared.plan
        announce(plan)
        with reading(connections, plan):
            before = None if request.waive_backup else back_up_present(connections, prepared, holder, job)

            def recover(work: steps.ReplicaWork, tell: Progress) -> steps.RecoveredReplica:
                lease.confirm()  # else another restore may overwrite the same replicas by now
                return recover_in_place(connections, work, tell)

            with overwriting(connections, prepared, before, holder) as works:
                recovered = on_every_replica(job, "recover", works, recover)
                job.step(f"settle {plan.target}", None, lambda tell: settle_in_place(connections, plan, tell))
                verdicts = on_every_replica(
                    job, "verify", works, lambda work, tell: steps.verify_restored(connections, work, tell)
                )
                done = require_overwritten(connections, prepared, before, recovered, verdicts)
        finish(connections, done)
    return done


def only(collection: str) -> str:
    """The pattern that chooses one collection and no other; its name may hold what patterns know."""
    return escape(collection)


def back_up_present(connections: Connections, prepared: Prepared, holder: str, job: Job) -> BackupId:
    """Back up the live collection alone, with proof ``content``, and see that the backup is of it as it was planned."""
    request = prepared.request
    wanted = BackupRequest(
        backup_id=new_backup_id(now(), f"before {request.restore_id}"),
        cluster=request.cluster,
        repository=request.repository,
        include=(only(request.target),),
        proof="content",
        fresh=True,
    )
    record = backup.run_backup(connections, backup.prepare(connections, wanted), holder, job)
    require_present(connections, prepared, record.backup_id)
    return record.backup_id


def require_present(connections: Connections, prepared: Prepared, before: BackupId) -> None:
    """Raise LayoutError unless that backup is of the very collection that was planned to be overwritten.

    Raises BackupNotFoundError when the backup is not complete.
    """
    cluster, target, live = prepared.request.cluster, prepared.plan.target, prepared.plan.in_place
    connections.catalog.read_backup(cluster, before)
    manifest = connections.catalog.read_manifest(cluster, before, target)
    shards = {shard.shard_id for shard in manifest.layout}
    if live is None or manifest.uuid != live.uuid or shards != {shard.shard_id for shard in live.shards}:
        msg = f"{target} was made anew while its state of before was backed up ({before}). Nothing was overwritten."
        raise LayoutError(msg, "See who works on it, then run this again.")


@contextmanager
def overwriting(
    connections: Connections, prepared: Prepared, before: BackupId | None, holder: str
) -> Iterator[list[steps.ReplicaWork]]:
    """What there is to overwrite, while no backup or prune of the cluster can begin, since it would hold a mixture.

    Raises LeaseHeldError when one is at work. Whatever fails in the body is raised as an InPlaceError that says what
    every replica holds.
    """
    key = connections.keys.lease(connections.cluster.name)
    with acquire(connections.store, key, holder, connections.profile.lease_seconds):
        try:
            yield prepared.works
        except VerificationError as error:
            records.note_failed(connections, prepared.plan, error)
            raise
        except (Exception, KeyboardInterrupt) as error:
            stopped = half_way(connections, prepared, before, error)
            records.note_failed(connections, prepared.plan, stopped)
            raise stopped from error
        except BaseException as error:  # Prefect's cancel, which must get through
            said = half_way(connections, prepared, before, error)
            log.error("%s", said)  # noqa: TRY400 - the cancel says nothing more
            raise


def recover_in_place(
    connections: Connections, work: steps.ReplicaWork, progress: Progress = no_progress
) -> steps.RecoveredReplica:
    """Overwrite one replica with its shard's archive; a finding says when it was written to since the plan.

    Raises what ``steps.recover_replica`` raises; the same call again is safe.
    """
    node = connections.cluster.node(work.node.peer_id)
    held = _counted(node, work)
    recovered = steps.recover_replica(connections, work, progress)
    shard, _ = source_of(work.plan, work.shard_id)
    if held is None or work.points_planned is None or held in (work.points_planned, shard.proof.points):
        return recovered
    finding = Finding(
        severity="warning",
        subject=writes_to(work.plan.target),
        message=f"{work.label} held {held} points right before it was overwritten, and {work.points_planned} when that "
        "was planned: somebody wrote to it.",
        remedy="What of it is not in the backup of the state before is lost.",
    )
    return recovered.model_copy(update={"findings": (*recovered.findings, finding)})


def _counted(node: Node, work: steps.ReplicaWork) -> int | None:
    try:
        return points.count(node, work.plan.target, work.shard_id)
    except NodeError:  # it is overwritten because it cannot be read, or an earlier attempt is under way
        return None


def settle_in_place(connections: Connections, plan: RestorePlan, progress: Progress = no_progress) -> None:
    """Wait until every node sees every replica Active, and none is Dead or being transferred."""
    shards = plan.in_place.shards if plan.in_place else ()
    expect = {shard.shard_id: {replica.peer_id for replica in shard.replicas} for shard in shards}
    connections.cluster.wait_until_active(plan.target, expect, steps.ACTIVE_SECONDS, progress)


def require_overwritten(
    connections: Connections,
    prepared: Prepared,
    before: BackupId | None,
    recovered: Sequence[steps.RecoveredReplica],
    verdicts: Sequence[ReplicaVerdict],
) -> Overwritten:
    """What a restore that is equal to its proof has done. Raises VerificationError for one that is not.

    Counts and counters say whether it was written to meanwhile, also where that did not change what was compared.
    """
    plan, live = prepared.plan, prepared.plan.in_place
    found = [finding for replica in recovered for finding in replica.findings]
    if live is not None:
        counters = write_finding(live, prepared.writes, read_writes(connections.cluster, plan.target))
        found += [counters] if counters else []
    names = {node.peer_id: node.label for node in plan.layout.nodes}
    problems = [
        f"shard {verdict.shard_id} on {names[verdict.peer_id]}: {problem}"
        for verdict in verdicts
        for problem in verdict.problems
    ]
    if not problems:
        return Overwritten(
            plan=plan, before=before, recovered=tuple(recovered), verdicts=tuple(verdicts), findings=tuple(found)
        )
    msg = (
        f"{plan.target} is overwritten and differs from the proof of {plan.manifest.backup_id}: {'; '.join(problems)}."
    )
    written = [finding.message for finding in found if finding.subject == writes_to(plan.target)]
    raise VerificationError(" ".join([msg, *written]), _ways_on(prepared.request, before))


def finish(connections: Connections, done: Overwritten) -> None:
    """Wake the optimizers and write the record of a restore that is equal to its proof; neither makes it a failure.

    Recovering wakes no optimizers, an empty patch does (qdrant.md §3.3). It must be the very last request: one that
    reaches a node with an unreadable shard ends the consensus of that node, which then does not start any more before
    the shard is recovered (seen on 1.16.3: "Dirty shard", stopped_with_err).
    """
    first = connections.cluster.node(done.plan.layout.nodes[0].peer_id)
    try:
        first.patch_collection(done.plan.target, {"optimizers_config": {}})
    except FerryError as error:
        log.warning("%s: its optimizers begin with the next write: %s", done.plan.target, error.message)
    records.note_finished(connections, done.plan, done.recovered, done.verdicts, before=done.before)


def half_way(
    connections: Connections, prepared: Prepared, before: BackupId | None, error: BaseException
) -> InPlaceError:
    """What stopped it, what every replica holds by now, and the commands that go on or back."""
    plan, works = prepared.plan, prepared.works
    nodes = [connections.cluster.node(node.peer_id) for node in plan.layout.nodes]

    def look(node: Node) -> list[str]:
        return [_held(node, work) for work in works if work.node.peer_id == node.peer_id]

    held = [said for sentences in each(nodes, look) for said in sentences]
    why = error.message if isinstance(error, FerryError) else f"{type(error).__name__}."
    msg = (
        f"The restore of {plan.target} in place stopped half-way: {why} Its replicas hold: {'; '.join(held)}. It may "
        "answer from a mixture of both states, or not at all. Change none of its settings until every replica can be "
        "read: Qdrant 1.16 ends the consensus of a node that cannot read its shard."
    )
    return InPlaceError(msg, _ways_on(prepared.request, before))


def _ways_on(request: InPlaceRequest, before: BackupId | None) -> str:
    back = f"The state of before was not backed up by this run: python -m ferry list --cluster {request.cluster}"
    if before is not None:
        back = f"Or bring the state of before back: {back_to(request, before)}"
    return f"Stop what writes to it, see that every node runs, then go on: {again(request)}\n{back}"


def _held(node: Node, work: steps.ReplicaWork) -> str:
    """What one replica holds, by its count and the points that its proof has sampled."""
    where = f"shard {work.shard_id} on {work.node.label}"
    shard, _ = source_of(work.plan, work.shard_id)
    try:
        verdict = verify_replica(node, work.plan.target, work.shard_id, shard.proof, "sample")
    except FerryError as error:
        return f"{where} cannot be read ({error.message})"
    if not verdict.problems:
        return f"{where} has {verdict.points} points as the backup"
    same = verdict.points == work.points_planned
    return f"{where} has {verdict.points} points{' as before' if same else ', neither as before nor as the backup'}"
