"""A backup from beginning to end without Prefect: the same steps as flows/back_up_cluster.py, in threads."""

from collections import defaultdict
from concurrent.futures import Future

from ferry.backup import commit, measure, steps
from ferry.backup.plan import BackupPlan, BackupRequest, plan_backup
from ferry.backup.resume import foreseen
from ferry.backup.tidy import begun
from ferry.backup.work import BackupRun, ProvenArchive, StoredArchive, Work, lanes_at_a_time
from ferry.connections import Connections
from ferry.errors import LeaseHeldError
from ferry.lanes import Job, raise_errors
from ferry.models import Progress
from ferry.prune.run import prune_after_backup
from ferry.repository.manifest import BackupRecord, CollectionEntry
from ferry.settings import load_settings


class Archives:
    """What the lanes have brought: proven archives by collection, and the failures."""

    def __init__(self, run: BackupRun, works: list[Work], uploads: list[Future[Future[ProvenArchive]]]) -> None:
        self._works, self._uploads = works, uploads
        self._proofs: dict[str, list[Future[ProvenArchive] | None]] = defaultdict(list)
        self._proofs |= {name: [] for name in run.to_commit}
        for work, upload in zip(works, uploads, strict=True):
            self._proofs[work.archive.collection].append(None if upload.exception() else upload.result())

    def proven(self) -> dict[str, list[ProvenArchive]]:
        """The collections of which every archive is proven; one that lacks an archive is left out whole."""
        return {
            name: [proof.result() for proof in proofs if proof]
            for name, proofs in self._proofs.items()
            if all(proof and not proof.exception() for proof in proofs)
        }

    def failed(self) -> list[tuple[str, BaseException]]:
        """The errors, each with its collection."""
        errors = [
            (work.archive.collection, upload.exception())
            for work, upload in zip(self._works, self._uploads, strict=True)
        ]
        errors += [(name, proof.exception()) for name, proofs in self._proofs.items() for proof in proofs if proof]
        return [(name, error) for name, error in errors if error is not None]


def prepare(connections: Connections, request: BackupRequest) -> BackupPlan:
    """Ask every node, choose a replica for each shard, and refuse what would not work; changes nothing."""
    layout = connections.cluster.read_layout(request.include, request.exclude)
    planned = plan_backup(request, layout, measure.measure(connections, layout))
    return foreseen(connections, measure.require_source(connections, planned))


def run_backup(connections: Connections, planned: BackupPlan, holder: str, job: Job) -> BackupRecord:
    """Make, store, prove and commit everything that is planned, going on with a run that died where one fits.

    Collections that are proven count even when another one fails; then the failure is raised and no record of the run
    is written. Raises LeaseHeldError when another run is at work on the cluster, and what any step raises.
    """
    with begun(connections, planned, holder) as run:
        stored = store_archives(connections, run, job)
        counting = commit.look_again(connections, run, stored.proven(), stored.failed())
        entries = [_commit(connections, counting.run, name, made) for name, made in counting.proven.items()]
        raise_errors(counting.errors, "the backup")
        record = commit.commit_backup(connections, counting.run, entries)
        prune_after_backup(connections, load_settings().policy(planned.policy), run.lease)
        return record


def _commit(connections: Connections, run: BackupRun, name: str, proven: list[ProvenArchive]) -> CollectionEntry:
    entry = commit.commit_collection(connections, run, commit.build_manifest(run, name, proven))
    commit.settle_collection(connections, run, proven, name)
    return entry


def store_archives(connections: Connections, run: BackupRun, job: Job) -> Archives:
    """One lane a node: create, upload, next; each archive is proven while the lane goes on."""
    lanes = run.lanes(lanes_at_a_time(connections.worker, run.plan))
    with job.threads(connections.worker.parallel_proofs, "ferry-proof") as pool:

        def store(work: Work) -> Future[ProvenArchive]:
            made = job.step(
                f"create {work.label}", None, lambda tell: steps.create_snapshot(connections, work, _held(run, tell))
            )
            stored = job.step(
                f"upload {work.label}",
                made.bytes,
                lambda tell: steps.upload_snapshot(connections, work, made, _held(run, tell)),
            )
            return pool.submit(_prove, connections, job, work, stored)

        uploads = job.run(lanes, store)
    return Archives(run, [work for lane in lanes for work in lane], uploads)


def _held(run: BackupRun, tell: Progress) -> Progress:
    """The same, and a stop as soon as the lease is lost: what is on the nodes is another run's by then."""

    def told(done: int) -> None:
        if run.lease.lost:
            msg = f"This run has lost its lease (fencing number {run.lease.fencing}); nothing more of it counts."
            raise LeaseHeldError(msg, "Run it again when the other one has ended.")
        tell(done)

    return told


def _prove(connections: Connections, job: Job, work: Work, stored: StoredArchive) -> ProvenArchive:
    points = sum(shard.replica_counts[0].points for shard in work.archive.shards)

    def prove(tell: Progress) -> ProvenArchive:
        return steps.prove_upload(connections, work, stored, tell)

    return job.step(f"prove {work.label}", points, prove)
