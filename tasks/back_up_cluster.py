"""Tasks of the backup flow, in order: request, read, plan, create, upload, prove, commit, report."""

import threading
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any

from prefect import allow_failure
from prefect.futures import PrefectFuture, wait

from ferry import report
from ferry.backup import commit, measure, steps, tidy
from ferry.backup.plan import BackupPlan, BackupRequest
from ferry.backup.plan import plan_backup as plan
from ferry.backup.resume import foreseen
from ferry.backup.work import (
    ARCHIVES_SHOWN,
    BackupRun,
    MadeSnapshot,
    ProvenArchive,
    StoredArchive,
    Work,
    bundles,
    lanes_at_a_time,
)
from ferry.connections import Connections, connect
from ferry.errors import FerryError
from ferry.lanes import Job, raise_errors
from ferry.models import ClusterLayout, Progress
from ferry.prune.run import prune_after_backup
from ferry.repository.lease_watch import LeaseWatch, call_back_tasks
from ferry.repository.manifest import BackupRecord, CollectionEntry, CollectionManifest
from ferry.settings import load_settings
from tasks.artifacts import show_markdown, show_table
from tasks.policy import failure, lease_watch, progress, require_going, step, stop_with_the_flow
from tasks.runs import holder, run_id

Outcome = ProvenArchive | FerryError


def request_backup(cluster: str, repository: str, **wishes: Any) -> BackupRequest:
    """The request of this flow run; raises ConfigurationError for an unknown profile before anything is asked."""
    connect(cluster, repository)
    load_settings().policy(wishes.get("policy"))
    return BackupRequest(backup_id=run_id(), cluster=cluster, repository=repository, **wishes)


def _connections(request: BackupRequest | BackupPlan | Work) -> Connections:
    return connect(request.cluster, request.repository)


@step("read layout", "read layout of {request.cluster}")
def read_layout(request: BackupRequest) -> ClusterLayout:
    """Ask every node; all must agree."""
    return _connections(request).cluster.read_layout(request.include, request.exclude)


@step("plan backup", "plan backup {request.backup_id}")
def plan_backup(request: BackupRequest, layout: ClusterLayout) -> BackupPlan:
    """Choose a replica for each shard and refuse what would not work; changes nothing."""
    connections = _connections(request)
    measured = measure.measure(connections, layout)
    planned = plan(request, layout, measured)
    planned = foreseen(connections, measure.require_source(connections, planned))
    show_table(("plan", request.cluster), report.backup_plan_rows(planned), report.backup_plan_text(planned))
    return planned


def begun(planned: BackupPlan) -> AbstractContextManager[BackupRun]:
    """Hold the lease, go on with a run that died where one fits, and tidy before and after; then give the lease up."""
    return tidy.begun(_connections(planned), planned, holder(f"backup {planned.backup_id}"))


@step("create snapshot", "create {work.label}")
def create_snapshot(work: Work) -> MadeSnapshot:
    """Let the node make the snapshot, as soon as the policy allows."""
    return steps.create_snapshot(_connections(work), work, _progress(work, f"create {work.label}", 0))


@step("upload snapshot", "upload {work.label}")
def upload_snapshot(work: Work, made: MadeSnapshot) -> StoredArchive:
    """Move it to the bucket, compare sha256, delete the node's file."""
    return steps.upload_snapshot(_connections(work), work, made, _progress(work, f"upload {work.label}", made.bytes))


@step("prove archive", "prove {work.label}")
def prove_archive(work: Work, stored: StoredArchive) -> list[Outcome]:
    """Read it back from the bucket, open it, and fix its exact count and digest."""
    points = sum(shard.replica_counts[0].points for shard in work.archive.shards)
    tell = _progress(work, f"prove {work.label}", points)
    with _proofs():
        return [steps.prove_upload(_connections(work), work, stored, tell)]


@step("store archives", "store {works[0].label} and the next, {works[0].archive.node.label}")
def store_bundle(works: list[Work]) -> list[Outcome]:
    """Create, upload and prove many small archives of one node, one after the other; each fails for itself."""
    outcomes: list[Outcome] = []
    for work in works:
        require_going(f"store {work.label}", _watch_of(work))
        try:
            outcomes.append(Job().step(work.label, None, partial(_store, work)))
        except FerryError as error:
            outcomes.append(error)
    return outcomes


def _store(work: Work, _tell: Progress) -> ProvenArchive:
    with _proofs():
        return steps.store_archive(_connections(work), work, partial(_progress, work))


def _progress(work: Work, label: str, total: int) -> Progress:
    return progress(label, total, _watch_of(work))


def _watch_of(work: Work) -> LeaseWatch:
    connections = _connections(work)
    return lease_watch(connections.store, connections.keys.lease(work.cluster), work.fencing)


@lru_cache(maxsize=1)
def _proofs() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(load_settings().worker.parallel_proofs)


class Archives:
    """What the lanes have brought: proven archives by collection, and the failures."""

    def __init__(self, run: BackupRun) -> None:
        self.futures: list[tuple[list[Work], PrefectFuture[Any]]] = []
        self.ends: list[tuple[list[Work], PrefectFuture[list[Outcome]]]] = []
        self._to_commit = run.to_commit

    def proven(self) -> dict[str, list[ProvenArchive]]:
        """The collections of which every archive is proven; one that lacks an archive is left out whole."""
        found: dict[str, list[Outcome | None]] = {name: [] for name in self._to_commit}
        for works, future in self.ends:
            outcomes = future.result() if future.state.is_completed() else [None] * len(works)
            for work, outcome in zip(works, outcomes, strict=True):
                found[work.archive.collection].append(outcome)
        whole = {name: [o for o in outcomes if isinstance(o, ProvenArchive)] for name, outcomes in found.items()}
        return {name: archives for name, archives in whole.items() if len(archives) == len(found[name])}

    def failed(self) -> list[tuple[str, BaseException]]:
        """The errors, each with its collection; those of a bundle's own archives are among its outcomes."""
        errors = []
        for works, future in self.futures:
            if (error := failure(future)) is not None:
                errors += [(name, error) for name in sorted({work.archive.collection for work in works})]
        for works, future in self.ends:
            outcomes = future.result() if future.state.is_completed() else []
            pairs = zip(works, outcomes, strict=bool(outcomes))
            errors += [(work.archive.collection, error) for work, error in pairs if isinstance(error, FerryError)]
        return errors


def store_archives(run: BackupRun) -> Archives:
    """One lane a node: create, upload, next; each archive is proven while the lane goes on.

    A run of many small archives does them in bundles, one task each: a task is a row in Prefect, and takes 10 ms.
    """
    lanes = run.lanes(lanes_at_a_time(_connections(run.plan).worker, run.plan))
    archives = Archives(run)
    waited: list[PrefectFuture[Any]] = []
    tails: dict[int, list[Any]] = {}
    with stop_with_the_flow(waited, partial(call_back_tasks, run.lease)):
        for row in zip_longest(*(bundles(lane, len(run.plan.archives)) for lane in lanes)):
            for lane, works in enumerate(row):
                if works is not None:
                    tails[lane] = _submit(archives, works, tails.get(lane))
                    waited[:] = [future for _, future in archives.futures]
        wait(waited)
    return archives


def _submit(archives: Archives, works: list[Work], tail: list[Any] | None) -> list[Any]:
    """Begin a bundle after the one before it in its lane; what the next one is to wait for."""
    if len(works) > 1:
        stored = store_bundle.submit(works, wait_for=tail, return_state=False)
        archives.futures.append((works, stored))
        archives.ends.append((works, stored))
        return [allow_failure(stored)]
    created = create_snapshot.submit(works[0], wait_for=tail, return_state=False)
    uploaded = upload_snapshot.submit(works[0], created, return_state=False)
    proven = prove_archive.submit(works[0], uploaded, return_state=False)
    archives.futures += [(works, created), (works, uploaded), (works, proven)]
    archives.ends.append((works, proven))
    # A shard that fails does not stop its lane: the other collections shall have their backup.
    return [allow_failure(uploaded)]


@step("look again", "look again at {run.plan.cluster}")
def look_again(
    run: BackupRun, proven: dict[str, list[ProvenArchive]], failed: list[tuple[str, BaseException]]
) -> commit.Counting:
    """Ask the cluster what has become of the collections meanwhile, right before the commits."""
    return commit.look_again(_connections(run.plan), run, proven, failed)


def raise_failures(counting: commit.Counting) -> None:
    """Raise what has failed, if anything; what is proven is committed by then."""
    raise_errors(counting.errors, "the backup")


def commit_collections(counting: commit.Counting) -> list[CollectionEntry]:
    """Commit every collection that is whole, each by a task of its own where they are few."""
    if len(counting.proven) <= ARCHIVES_SHOWN:
        return [commit_collection(counting.run, name, archives) for name, archives in counting.proven.items()]
    return commit_many(counting.run, counting.proven)


@step("commit collection", "commit {collection}")
def commit_collection(run: BackupRun, collection: str, proven: list[ProvenArchive]) -> CollectionEntry:
    """Write the manifest: from here on this collection's backup counts."""
    manifest = commit.build_manifest(run, collection, proven)
    entry = _commit(run, manifest, proven)
    speeds = {archive.record.key: archive.mb_per_second for archive in proven if archive.mb_per_second is not None}
    rows = report.collection_rows(manifest, speeds)
    show_table(("backup", run.plan.cluster, collection), rows, report.collection_text(manifest))
    return entry


@step("commit collections", "commit {run.plan.backup_id}, all collections")
def commit_many(run: BackupRun, proven: dict[str, list[ProvenArchive]]) -> list[CollectionEntry]:
    """Write the manifests of many collections: from here on their backup counts."""
    entries = [_commit(run, commit.build_manifest(run, name, made), made) for name, made in proven.items()]
    show_table(("backup", run.plan.cluster), report.entry_rows(entries), f"Backup {run.plan.backup_id}")
    return entries


def _commit(run: BackupRun, manifest: CollectionManifest, proven: list[ProvenArchive]) -> CollectionEntry:
    connections = _connections(run.plan)
    entry = commit.commit_collection(connections, run, manifest)
    commit.settle_collection(connections, run, proven, manifest.collection)
    return entry


@step("commit backup", "commit backup {run.plan.backup_id}")
def commit_backup(run: BackupRun, entries: list[CollectionEntry]) -> BackupRecord:
    """Write the record of the run, with the aliases."""
    record = commit.commit_backup(_connections(run.plan), run, entries)
    show_markdown(("verdict", run.plan.cluster), report.backup_verdict(record), f"Backup {record.backup_id}")
    return record


@step("prune", "prune backups of {run.plan.cluster}")
def prune_after(run: BackupRun) -> None:
    """Apply the policy's retention as the last step of a backup that succeeded; it never makes that a failure."""
    findings = prune_after_backup(_connections(run.plan), load_settings().policy(run.plan.policy), run.lease)
    if findings:
        show_markdown(("prune", run.plan.cluster), report.findings_text(tuple(findings)), "Prune after the backup")
