"""The commit points of a backup: the manifest of each collection, and the record of the run."""

import hashlib
import platform
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version

from ferry import __version__
from ferry.backup.recheck import recheck
from ferry.backup.resume import REQUEST
from ferry.backup.work import BackupRun, ProvenArchive
from ferry.connections import Connections
from ferry.errors import BackupNotFoundError, ConflictError, LayoutError, RepositoryError
from ferry.models import Finding, now
from ferry.repository.manifest import (
    BackupRecord,
    CollectionEntry,
    CollectionManifest,
    NodeRecord,
)

TOOLS = ("prefect", "qdrant-client", "qdrant-edge-py", "boto3", "s3fs")


@dataclass(frozen=True)
class Counting:
    """What of a run is to be committed when all lanes have ended: without what was dropped or changed meanwhile."""

    run: BackupRun
    proven: dict[str, list[ProvenArchive]]
    errors: list[BaseException]


def look_again(
    connections: Connections,
    run: BackupRun,
    proven: dict[str, list[ProvenArchive]],
    failed: list[tuple[str, BaseException]],
) -> Counting:
    """Ask the cluster once more, right before the commits. ``failed`` are errors by their collection.

    A collection that was dropped meanwhile is no failure: a finding says so. One that changed is one, and the others
    count all the same.
    """
    seen = recheck(connections, run.plan)
    gone = set(seen.dropped) - run.committed
    findings = run.plan.findings + seen.findings + _left_on_nodes(connections, run, gone)
    plan = run.plan.model_copy(update={"findings": findings})
    changed = {name: why for name, why in seen.changed.items() if name not in run.committed}
    errors: list[BaseException] = []
    errors += {id(error): error for collection, error in failed if collection not in gone}.values()
    errors += [LayoutError(f"{why} It does not count.", "Run the backup again.") for why in changed.values()]
    counted = {name: made for name, made in proven.items() if name not in gone and name not in changed}
    return Counting(replace(run, plan=plan).without(gone), counted, errors)


def _left_on_nodes(connections: Connections, run: BackupRun, gone: set[str]) -> tuple[Finding, ...]:
    """Snapshots of dropped collections that are not deleted: Qdrant leaves them on the disk (seen on 1.16.3).

    Such as that of a node which was behind, and made it when the others had dropped the collection already.
    """
    journal = connections.journal(run.plan.backup_id)
    dropped = [work for lane in run.lanes(1) for work in lane if work.archive.collection in gone]
    return tuple(
        Finding(
            severity="warning",
            subject=work.archive.collection,
            message=f"{work.archive.collection} was dropped while its snapshot was on {work.archive.node.label}: the "
            "file may be left on the node's disk, out of reach of any request.",
            remedy=f"Look for the folder {work.archive.collection} among the node's snapshots, and delete it.",
        )
        for work in dropped
        if journal.find("node_snapshot", work.noted) is not None
    )


def build_manifest(run: BackupRun, collection: str, made: list[ProvenArchive]) -> CollectionManifest:
    """The manifest of one collection, of the archives ``made`` now and those that the run goes on with.

    Raises RepositoryError when a shard has no archive: never a smaller backup.
    """
    plan, layout = run.plan, run.plan.layout.collection(collection)
    if layout is None:
        msg = f"{collection} is not in the plan of {plan.backup_id}."
        raise RepositoryError(msg)
    adopted = run.adopted(collection)
    proven = made + adopted
    archives = [archive.record for archive in proven]
    missing = {s.shard_id for s in layout.shards} - {s.shard_id for archive in archives for s in archive.shards}
    if missing:
        msg = f"{collection}: no archive of shards {sorted(missing)}; the backup of this collection does not count."
        raise RepositoryError(msg, "Run the backup again.")
    started = min((archive.started_at for archive in archives), default=plan.layout.taken_at)
    finished = max((archive.finished_at for archive in archives), default=plan.layout.taken_at)
    findings = [finding for finding in plan.findings if finding.subject.startswith(collection + "/")]
    findings += [finding for archive in proven for finding in archive.findings]
    if adopted:
        findings.append(_continued(collection, len(adopted), len(proven), started))
    return CollectionManifest(
        backup_id=plan.backup_id,
        cluster=plan.cluster,
        collection=collection,
        uuid=layout.uuid,
        kind=plan.kind,
        nodes=tuple(NodeRecord(**node.model_dump()) for node in plan.layout.nodes),
        config=layout.config,
        payload_schema=layout.payload_schema,
        layout=layout.shards,
        archives=tuple(sorted(archives, key=lambda archive: archive.key)),
        skew_seconds=(finished - started).total_seconds(),
        findings=tuple(findings),
        created_at=now(),
        ferry_version=__version__,
    )


def _continued(collection: str, adopted: int, archives: int, started: datetime) -> Finding:
    return Finding(
        severity="info",
        subject=f"{collection}/continued",
        message=f"{adopted} of {archives} archives are of a run that died; the first snapshot is of {started:%H:%M:%S} "
        f"UTC on {started:%Y-%m-%d}.",
        remedy="To begin anew right before a risky change, run the backup with fresh.",
    )


def commit_collection(connections: Connections, run: BackupRun, manifest: CollectionManifest) -> CollectionEntry:
    """Write the manifest: from here on this collection's backup counts.

    Raises LeaseHeldError when the lease was lost meanwhile. A run that was frozen after that look and comes back later
    is refused by the store: whoever took over has put a fence where it wants to write (ConflictError).
    """
    run.lease.confirm()
    key = connections.keys.manifest(manifest.cluster, manifest.backup_id, manifest.collection)
    try:
        connections.catalog.write_manifest(manifest, run.claims.get(key))
    except ConflictError:  # an earlier attempt of this step was obeyed, at another moment; or another run was
        run.lease.confirm()
        held = connections.catalog.find_manifest(manifest.cluster, manifest.backup_id, manifest.collection)
        if held is None or held.archives != manifest.archives:
            raise
        manifest = held
    return _entry(manifest)


def settle_collection(connections: Connections, run: BackupRun, made: list[ProvenArchive], collection: str) -> None:
    """Forget the journal entries of a collection's archives; its manifest counts them now."""
    journal = connections.journal(run.plan.backup_id)
    for archive in [*made, *run.adopted(collection)]:
        journal.drop("archive", archive.noted)
        journal.drop("proof", archive.noted)


def _entry(manifest: CollectionManifest) -> CollectionEntry:
    return CollectionEntry(
        collection=manifest.collection,
        manifest_sha256=hashlib.sha256(manifest.to_bytes()).hexdigest(),
        points=manifest.points,
        bytes=manifest.bytes,
    )


def commit_backup(connections: Connections, run: BackupRun, entries: list[CollectionEntry]) -> BackupRecord:
    """Write the record of the run, with the aliases of the whole cluster. Refused like ``commit_collection``.

    Raises RepositoryError when a collection of the plan has no manifest: never a smaller backup.
    """
    plan = run.plan
    if missing := set(run.to_commit) - {entry.collection for entry in entries}:
        msg = f"{', '.join(sorted(missing))} of {plan.backup_id} have no manifest; the run has no record."
        raise RepositoryError(msg, "Run the backup again.")
    for name in sorted(
        run.committed - {entry.collection for entry in entries}
    ):  # by the run that this one goes on with
        entries = [*entries, _entry(connections.catalog.read_manifest(plan.cluster, plan.backup_id, name))]
    record = BackupRecord(
        backup_id=plan.backup_id,
        cluster=plan.cluster,
        kind=plan.kind,
        policy=plan.policy,
        collections=tuple(sorted(entries, key=lambda entry: entry.collection)),
        aliases=plan.layout.aliases,
        findings=plan.findings,
        started_at=plan.layout.taken_at,
        finished_at=now(),
        tool_versions={"ferry": __version__, "python": platform.python_version()}
        | {tool: version(tool) for tool in TOOLS},
    )
    run.lease.confirm()
    try:
        connections.catalog.write_backup(record, run.claims.get(connections.keys.backup(plan.cluster, plan.backup_id)))
    except ConflictError as refused:  # as above
        run.lease.confirm()
        try:
            held = connections.catalog.read_backup(plan.cluster, plan.backup_id)
        except BackupNotFoundError:  # a fence
            raise refused from None
        if held.collections != record.collections:
            raise
        record = held
    connections.journal(plan.backup_id).drop("run", REQUEST)
    return record
