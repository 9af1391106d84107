"""Tasks of the backup flow, in order: request, read, plan, create, upload, prove, commit, report."""

import threading
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from prefect import allow_failure
from prefect.futures import PrefectFuture, wait

from ferry import report
from ferry.backup import commit, measure, steps, tidy
from ferry.backup.plan import BackupPlan, BackupRequest
from ferry.backup.plan import plan_backup as plan
from ferry.connections import Connections, connect
from ferry.models import ClusterLayout
from ferry.repository.lease import Lease
from ferry.repository.manifest import ArchiveRecord, BackupRecord, CollectionEntry
from ferry.settings import load_settings
from tasks.artifacts import show_markdown, show_table
from tasks.policy import progress, raise_failures, require_going, step, stop_with_the_flow
from tasks.runs import holder, run_id


def request_backup(cluster: str, repository: str, **wishes: Any) -> BackupRequest:
    """The request of this flow run; raises ConfigurationError for an unknown profile before anything is asked."""
    connect(cluster, repository)
    return BackupRequest(backup_id=run_id(), cluster=cluster, repository=repository, **wishes)


def _connections(request: BackupRequest | BackupPlan | steps.Work) -> Connections:
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
    planned = measure.require_source(connections, planned)
    show_table(("plan", request.cluster), report.backup_plan_rows(planned), report.backup_plan_text(planned))
    return planned


def alone_and_tidied(planned: BackupPlan) -> AbstractContextManager[Lease]:
    """Hold the lease, take away what dead runs left, and afterwards what this run has left; then give the lease up."""
    return tidy.alone_and_tidied(_connections(planned), planned, holder(f"backup {planned.backup_id}"))


@step("create snapshot", "create {work.label}")
def create_snapshot(work: steps.Work) -> steps.MadeSnapshot:
    """Let the node make the snapshot."""
    require_going(f"create {work.label}")
    return steps.create_snapshot(_connections(work), work)


@step("upload snapshot", "upload {work.label}")
def upload_snapshot(work: steps.Work, made: steps.MadeSnapshot) -> steps.StoredArchive:
    """Move it to the bucket, compare sha256, delete the node's file."""
    return steps.upload_snapshot(_connections(work), work, made, progress(f"upload {work.label}", made.bytes))


@step("prove archive", "prove {work.label}")
def prove_archive(work: steps.Work, stored: steps.StoredArchive) -> tuple[steps.StoredArchive, ArchiveRecord]:
    """Read it back from the bucket, open it, and fix its exact count and digest."""
    tell = progress(f"prove {work.label}", sum(shard.replica_counts[0].points for shard in work.archive.shards))
    with _proofs():
        return stored, steps.prove_upload(_connections(work), work, stored, tell)


@lru_cache(maxsize=1)
def _proofs() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(load_settings().worker.parallel_proofs)


class StoredArchives:
    """What the lanes have brought: proven archives by collection, and the failures."""

    def __init__(self, without_shards: list[str]) -> None:
        self.futures: list[PrefectFuture[Any]] = []
        self.proofs: dict[str, list[PrefectFuture[tuple[steps.StoredArchive, ArchiveRecord]]]] = {}
        self.proofs |= {name: [] for name in without_shards}

    def proven(self) -> dict[str, list[tuple[steps.StoredArchive, ArchiveRecord]]]:
        """The collections of which every archive is proven; one that lacks an archive is left out whole."""
        return {
            name: [future.result() for future in futures]
            for name, futures in self.proofs.items()
            if all(future.state.is_completed() for future in futures)
        }

    def raise_failures(self) -> None:
        """Raise what has failed, if anything."""
        raise_failures(self.futures, "the backup")


def store_archives(planned: BackupPlan) -> StoredArchives:
    """One lane a node: create, upload, next; each archive is proven while the lane goes on."""
    outstanding = commit.outstanding(_connections(planned), planned)
    lanes = steps.lanes_of_work(outstanding, load_settings().worker.parallel_nodes)
    stored = StoredArchives(planned.without_shards)
    tails: dict[int, list[Any]] = {}
    with stop_with_the_flow(stored.futures):
        for row in zip_longest(*lanes):
            for lane, work in enumerate(row):
                if work is None:
                    continue
                created = create_snapshot.submit(work, wait_for=tails.get(lane), return_state=False)
                uploaded = upload_snapshot.submit(work, created, return_state=False)
                proven = prove_archive.submit(work, uploaded, return_state=False)
                # A shard that fails does not stop its lane: the other collections shall have their backup.
                tails[lane] = [allow_failure(uploaded)]
                stored.futures += [created, uploaded, proven]
                stored.proofs.setdefault(work.archive.collection, []).append(proven)
        wait(stored.futures)
    return stored


@step("commit collection", "commit {collection}")
def commit_collection(
    planned: BackupPlan, collection: str, proven: list[tuple[steps.StoredArchive, ArchiveRecord]], lease: Lease
) -> CollectionEntry:
    """Write the manifest: from here on this collection's backup counts."""
    connections = _connections(planned)
    manifest = commit.build_manifest(planned, collection, [record for _, record in proven])
    entry = commit.commit_collection(connections, planned, manifest, lease)
    rows = report.collection_rows(manifest, {record.key: stored.mb_per_second for stored, record in proven})
    show_table(("backup", planned.cluster, collection), rows, report.collection_text(manifest))
    return entry


@step("commit backup", "commit backup {planned.backup_id}")
def commit_backup(planned: BackupPlan, entries: list[CollectionEntry], lease: Lease) -> BackupRecord:
    """Write the record of the run, with the aliases."""
    record = commit.commit_backup(_connections(planned), planned, entries, lease)
    show_markdown(("verdict", planned.cluster), report.backup_verdict(record), f"Backup {record.backup_id}")
    return record
