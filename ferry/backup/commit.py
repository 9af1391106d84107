"""The commit points of a backup: the manifest of each collection, and the record of the run."""

import hashlib
import platform
from importlib.metadata import version

from ferry import __version__
from ferry.backup.plan import BackupPlan
from ferry.connections import Connections
from ferry.errors import RepositoryError
from ferry.models import now
from ferry.repository.lease import Lease
from ferry.repository.manifest import (
    ArchiveRecord,
    BackupRecord,
    CollectionEntry,
    CollectionManifest,
    NodeRecord,
)

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
