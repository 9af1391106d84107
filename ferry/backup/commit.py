"""The commit points of a backup: the manifest of each collection, and the record of the run."""

import hashlib
import platform
from importlib.metadata import version

from ferry import __version__
from ferry.backup.plan import BackupPlan
from ferry.connections import Connections
from ferry.errors import ConflictError, LeaseHeldError, RepositoryError
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
    started = min((archive.started_at for archive in archives), default=plan.layout.taken_at)
    finished = max((archive.finished_at for archive in archives), default=plan.layout.taken_at)
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
    """Write the manifest: from here on this collection's backup counts. Refused when the lease was lost meanwhile.

    A run may be frozen between asking for its lease and writing, so it asks once more afterwards: whoever has taken the
    lease may have taken this run's archives away, and then the manifest goes too.
    """
    lease.confirm()
    try:
        connections.catalog.write_manifest(manifest)
    except ConflictError:  # an earlier attempt of this step was obeyed, at another moment
        held = connections.catalog.read_manifest(plan.cluster, plan.backup_id, manifest.collection)
        if held.archives != manifest.archives:
            raise
        manifest = held
    try:
        lease.confirm()
    except (LeaseHeldError, ConflictError):
        _withdraw_if_hollow(connections, manifest)
        raise
    journal = connections.journal(plan.backup_id)
    for entry in journal.entries():
        if entry.kind == "archive" and entry.detail["collection"] == manifest.collection:
            journal.settle(entry)
    return _entry(manifest)


def _withdraw_if_hollow(connections: Connections, manifest: CollectionManifest) -> None:
    """Delete a manifest of which an archive is gone, and the archives that are not."""
    keys, store = connections.keys, connections.store
    folder = keys.collection_prefix(manifest.cluster, manifest.backup_id, manifest.collection)
    archives = [folder + archive.key for archive in manifest.archives]
    if any(store.head(key) is None for key in archives):
        store.delete([keys.manifest(manifest.cluster, manifest.backup_id, manifest.collection), *archives])


def outstanding(connections: Connections, plan: BackupPlan) -> BackupPlan:
    """The plan without the collections that an earlier attempt of the same run has committed."""
    keys, store = connections.keys, connections.store
    names = {archive.collection for archive in plan.archives}
    done = {name for name in names if store.head(keys.manifest(plan.cluster, plan.backup_id, name)) is not None}
    return plan.model_copy(update={"archives": tuple(a for a in plan.archives if a.collection not in done)})


def _entry(manifest: CollectionManifest) -> CollectionEntry:
    return CollectionEntry(
        collection=manifest.collection,
        manifest_sha256=hashlib.sha256(manifest.to_bytes()).hexdigest(),
        points=manifest.points,
        bytes=manifest.bytes,
    )


def commit_backup(
    connections: Connections, plan: BackupPlan, entries: list[CollectionEntry], lease: Lease
) -> BackupRecord:
    """Write the record of the run, with the aliases of the whole cluster. Refused when the lease was lost meanwhile.

    Raises BackupNotFoundError when a collection of the plan has no manifest: never a smaller backup.
    """
    known = {entry.collection for entry in entries}
    for name in sorted({archive.collection for archive in plan.archives} - known):  # committed by an earlier attempt
        entries = [*entries, _entry(connections.catalog.read_manifest(plan.cluster, plan.backup_id, name))]
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
    try:
        connections.catalog.write_backup(record)
    except ConflictError:  # as above
        held = connections.catalog.read_backup(plan.cluster, plan.backup_id)
        if held.collections != record.collections:
            raise
        return held
    return record
