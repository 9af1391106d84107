"""The commit points of a backup, and the tidying of what a run may have left on nodes or in the bucket."""

import hashlib
import logging
import platform
from importlib.metadata import version

from ferry import __version__
from ferry.backup.plan import BackupPlan
from ferry.backup.steps import made_after, node_restarted
from ferry.connections import Connections
from ferry.errors import FerryError, RepositoryError, SnapshotError
from ferry.models import BackupId, Finding, PeerId, now
from ferry.qdrant import snapshots
from ferry.qdrant.http import NotFoundError
from ferry.repository.journal import Entry, Journal, unsettled
from ferry.repository.lease import Lease
from ferry.repository.manifest import (
    ArchiveRecord,
    BackupRecord,
    CollectionEntry,
    CollectionManifest,
    NodeRecord,
)

log = logging.getLogger(__name__)
TOOLS = ("prefect", "qdrant-client", "qdrant-edge-py", "boto3", "s3fs")


def build_manifest(plan: BackupPlan, collection: str, archives: list[ArchiveRecord]) -> CollectionManifest:
    """The manifest of one collection. Raises RepositoryError when a shard has no archive: never a smaller backup."""
    layout = plan.layout.collection(collection)
    if layout is None:
        msg = f"{collection} is not in the plan of {plan.backup_id}."
        raise RepositoryError(msg)
    held = {shard.shard_id for archive in archives for shard in archive.shards}
    missing = {shard.shard_id for shard in layout.shards} - held
    if missing:
        msg = f"{collection}: no archive of shards {sorted(missing)}; the backup of this collection does not count."
        raise RepositoryError(msg, "Run the backup again.")
    started = min(archive.started_at for archive in archives)
    finished = max(archive.finished_at for archive in archives)
    return CollectionManifest(
        backup_id=plan.backup_id,
        cluster=plan.cluster,
        collection=collection,
        kind=plan.kind,
        nodes=tuple(NodeRecord(**node.model_dump()) for node in plan.layout.nodes),
        config=layout.config,
        payload_schema=layout.payload_schema,
        layout=layout.shards,
        archives=tuple(sorted(archives, key=lambda archive: archive.key)),
        skew_seconds=(finished - started).total_seconds(),
        findings=tuple(finding for finding in plan.findings if finding.subject.startswith(collection + "/")),
        created_at=now(),
        ferry_version=__version__,
    )


def commit_collection(
    connections: Connections, plan: BackupPlan, manifest: CollectionManifest, lease: Lease
) -> CollectionEntry:
    """Write the manifest: from here on this collection's backup counts. Refused when the lease was lost meanwhile."""
    lease.confirm()
    connections.catalog.write_manifest(manifest)
    journal = connections.journal(plan.backup_id)
    for entry in journal.entries():
        if entry.kind == "archive" and entry.detail["collection"] == manifest.collection:
            journal.settle(entry)
    return CollectionEntry(
        collection=manifest.collection,
        manifest_sha256=hashlib.sha256(manifest.to_bytes()).hexdigest(),
        points=manifest.points,
        bytes=manifest.bytes,
    )


def commit_backup(
    connections: Connections, plan: BackupPlan, entries: list[CollectionEntry], lease: Lease
) -> BackupRecord:
    """Write the record of the run, with the aliases of the whole cluster. Refused when the lease was lost meanwhile."""
    record = BackupRecord(
        backup_id=plan.backup_id,
        cluster=plan.cluster,
        kind=plan.kind,
        collections=tuple(sorted(entries, key=lambda entry: entry.collection)),
        aliases=plan.layout.aliases,
        findings=plan.findings,
        started_at=plan.layout.taken_at,
        finished_at=now(),
        tool_versions={"ferry": __version__, "python": platform.python_version()}
        | {tool: version(tool) for tool in TOOLS},
    )
    lease.confirm()
    connections.catalog.write_backup(record)
    return record


def tidy_run(connections: Connections, run_id: BackupId) -> list[Finding]:
    """Take away what one run left: its snapshots on nodes, and its archives that no manifest counts."""
    return _tidy(connections, Journal(connections.store, connections.keys, connections.cluster.name, run_id).entries())


def tidy_dead_runs(connections: Connections, lease: Lease) -> list[Finding]:
    """The same for every earlier run of this cluster. Only the holder of the lease may: all the others are dead."""
    lease.confirm()
    return _tidy(connections, unsettled(connections.store, connections.keys, connections.cluster.name))


def _tidy(connections: Connections, entries: list[Entry]) -> list[Finding]:
    findings = []
    for entry in entries:
        act = {"node_snapshot": _tidy_snapshot, "archive": _tidy_archive}.get(entry.kind)
        if act is None:
            continue
        try:
            act(connections, entry)
            entry.journal.settle(entry)
        except FerryError as error:
            log.warning("left for the next run: %s %s: %s", entry.kind, entry.name, error.message)
            findings.append(
                Finding(
                    severity="warning",
                    subject=entry.name,
                    message=f"Could not take away what run {entry.run_id} left: {error.message}",
                    remedy="The next run tries again.",
                )
            )
    return findings


def _tidy_snapshot(connections: Connections, entry: Entry) -> None:
    detail = entry.detail
    collection, shard_id = detail["collection"], detail["shard_id"]
    node = connections.cluster.node(PeerId(detail["peer_id"]))
    node.require_identity()
    try:
        name = detail.get("name") or made_after(node, entry)
    except NotFoundError:
        return  # the collection is gone, and its snapshots with it
    if name is None and not node_restarted(node, entry) and not _long_ago(connections, entry):
        msg = f"the snapshot of {collection} that {node.label} was asked for has not appeared yet."
        raise SnapshotError(msg)
    if name:
        snapshots.delete_snapshot(node, collection, shard_id, name)


def _long_ago(connections: Connections, entry: Entry) -> bool:
    limit = connections.cluster.profile.snapshot_timeout_seconds
    return (now() - entry.noted_at).total_seconds() > limit


def _tidy_archive(connections: Connections, entry: Entry) -> None:
    key = entry.detail["key"]
    manifest = connections.keys.manifest(connections.cluster.name, entry.run_id, entry.detail["collection"])
    if connections.store.head(manifest) is None:
        connections.store.abort_uploads(key)
        connections.store.delete([key])
