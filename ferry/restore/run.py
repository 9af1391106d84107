"""A restore from beginning to end without Prefect: the same steps as flows/restore_collection.py, in threads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from ferry.connections import Connections
from ferry.errors import VerificationError
from ferry.lanes import Job, R, raise_failures
from ferry.models import Progress, Value
from ferry.repository import readers
from ferry.restore import preflight, records, steps, switch
from ferry.restore.plan import RestorePlan, RestoreRequest, archive_bytes
from ferry.restore.records import Filled
from ferry.restore.shape import PlannedStream
from ferry.restore.stream import StreamedShard, stream_shard
from ferry.verify.combined import combined_problems
from ferry.verify.replica import ReplicaVerdict


class Restored(Value):
    """A finished restore: what was planned, how each part got its data, and how each replica compared."""

    plan: RestorePlan
    recovered: tuple[Filled, ...]
    verdicts: tuple[ReplicaVerdict, ...]


@contextmanager
def discarded_on_failure(connections: Connections, plan: RestorePlan) -> Iterator[None]:
    """Drop the new collection again when anything fails before the restore is finished."""
    try:
        yield
    except BaseException as error:
        steps.discard_target(connections, plan)
        records.note_failed(connections, plan, error)
        raise


def reading(connections: Connections, plan: RestorePlan) -> AbstractContextManager[None]:
    """Hold a reader's mark on the backup, so that no prune takes it away meanwhile.

    Raises BackupNotFoundError when a prune was faster: nothing was changed then.
    """
    keys, request, found = connections.keys, plan.request, plan.manifest
    point = keys.manifest(found.cluster, found.backup_id, found.collection)
    who = f"restore {request.restore_id} of {found.collection} to {request.cluster}"
    return readers.reading(connections.store, keys, found.cluster, found.backup_id, [point], who)


def run_restore(
    connections: Connections,
    request: RestoreRequest,
    holder: str,
    job: Job,
    announce: Callable[[RestorePlan], None] = lambda _plan: None,
) -> Restored:
    """Plan, announce the plan, create, recover, settle, verify, and last move the alias.

    Raises LeaseHeldError when another run restores into that name, and what any step raises; then the new collection
    is dropped again, and the live one and its alias are untouched.
    """
    with preflight.alone_and_tidied(connections, preflight.find_target(connections, request), holder):
        plan = preflight.prepare(connections, request)
        announce(plan)
        with reading(connections, plan), discarded_on_failure(connections, plan):
            replicas = job.step(f"create {plan.target}", None, lambda _tell: steps.create_target(connections, plan))
            recovered = _fill(connections, plan, replicas, job)
            require_same_schema(
                plan, job.step(f"settle {plan.target}", None, lambda tell: steps.settle_target(connections, plan, tell))
            )
            verdicts = on_every_replica(
                job, "verify", replicas, lambda work, tell: steps.verify_restored(connections, work, tell)
            )
            require_equal(plan, recovered, verdicts)
            job.step(f"keep {plan.target}", None, lambda _tell: steps.keep_target(connections, plan))
        job.step(f"move alias of {plan.target}", None, lambda _tell: switch.move_alias(connections, plan))
        records.note_finished(connections, plan, recovered, verdicts)
    return Restored(plan=plan, recovered=tuple(recovered), verdicts=tuple(verdicts))


def require_same_schema(plan: RestorePlan, differences: list[str]) -> None:
    """Raise VerificationError when the new collection has another schema than the backup."""
    if differences:
        msg = f"{plan.target} has another schema than the backup: {'; '.join(differences)}."
        raise VerificationError(msg, "The alias was not moved. Tell Ferry's maintainers: this must not happen.")


def require_equal(plan: RestorePlan, filled: Sequence[Filled], verdicts: list[ReplicaVerdict]) -> None:
    """Raise VerificationError when one replica differs from its shard's proof, or all together from what was sent."""
    names = {node.peer_id: node.label for node in plan.layout.nodes}
    problems = [
        f"shard {verdict.shard_id} on {names[verdict.peer_id]}: {problem}"
        for verdict in verdicts
        for problem in verdict.problems
    ]
    if plan.path == "points":
        proofs = [sent.proof for sent in filled if isinstance(sent, StreamedShard)]
        problems += combined_problems(proofs, verdicts, {shard.shard_id: shard.key for shard in plan.shards})
    if problems:
        msg = f"{plan.target} differs from the proof: {'; '.join(problems)}. The alias was not moved."
        raise VerificationError(msg, "Restore again with keep_on_failure to look at it, or choose another backup.")


def lanes_of_streams(connections: Connections, plan: RestorePlan) -> list[list[PlannedStream]]:
    """As many lanes as archives may be open at a time (worker.parallel_proofs), the largest shards first."""
    sizes = archive_bytes(plan.manifest)
    streams = sorted(plan.streams, key=lambda stream: sizes[stream.source], reverse=True)
    lanes = max(1, min(connections.worker.parallel_proofs, len(streams)))
    return [streams[lane::lanes] for lane in range(lanes)]


def _fill(connections: Connections, plan: RestorePlan, replicas: list[steps.ReplicaWork], job: Job) -> Sequence[Filled]:
    """Give the new collection its points by the planned path."""
    if plan.path == "shards":
        return on_every_replica(
            job, "recover", replicas, lambda work, tell: steps.recover_replica(connections, work, tell)
        )

    def send(stream: PlannedStream) -> StreamedShard:
        label = f"stream shard {stream.source}"
        return job.step(label, None, lambda tell: stream_shard(connections, plan, stream, tell))

    futures = job.run(lanes_of_streams(connections, plan), send)
    raise_failures(futures, "sending points")
    return [future.result() for future in futures]


def on_every_replica(
    job: Job, verb: str, replicas: list[steps.ReplicaWork], step: Callable[[steps.ReplicaWork, Progress], R]
) -> list[R]:
    """One lane a node, one replica at a time on each; raises what failed."""

    def work(replica: steps.ReplicaWork) -> R:
        return job.step(f"{verb} {replica.label}", None, lambda tell: step(replica, tell))

    futures = job.run(steps.lanes_of_replicas(replicas), work)
    raise_failures(futures, f"{verb} on every replica")
    return [future.result() for future in futures]
