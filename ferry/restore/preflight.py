"""Finding the backup, asking the target, and refusing what would not work, before anything is created."""

import logging

from ferry.connections import Connections
from ferry.qdrant.resources import read_headroom, require_headroom
from ferry.repository.journal import unsettled
from ferry.repository.manifest import CollectionManifest
from ferry.restore.plan import RestorePlan, RestoreRequest, plan_restore, target_name
from ferry.restore.steps import require_archives
from ferry.verify.archive import require_spool

log = logging.getLogger(__name__)


def find_manifest(connections: Connections, request: RestoreRequest) -> CollectionManifest:
    """The manifest asked for; ``latest`` is the newest backup that holds the collection.

    Raises BackupNotFoundError, or ArchiveDamagedError when the manifest is damaged.
    """
    catalog = connections.catalog
    if request.backup == "latest":
        return catalog.latest_with(request.source_cluster, request.collection)
    return catalog.read_manifest(request.source_cluster, request.backup, request.collection)


def find_target(connections: Connections, request: RestoreRequest) -> str:
    """The name of the collection that the restore will make."""
    return target_name(request, find_manifest(connections, request))


def prepare(connections: Connections, request: RestoreRequest) -> RestorePlan:
    """Plan and preflight: version rule, names, archives in the bucket, every node's health, disk and memory.

    Raises a PreflightError that says what was found; nothing was created.
    """
    manifest = find_manifest(connections, request)
    cluster = connections.cluster
    layout = cluster.read_layout()
    plan = plan_restore(request, manifest, layout)
    findings = cluster.require_quiet(layout.model_copy(update={"collections": ()}))
    require_archives(connections, plan)
    if manifest.kind == "node":
        require_spool(connections, 2 * max(archive.bytes for archive in manifest.archives), len(layout.nodes))
    headrooms = read_headroom(cluster, layout)
    findings += require_headroom(headrooms, plan.needs, cluster.profile.headroom.when_unknown)
    return plan.model_copy(update={"findings": plan.findings + tuple(findings)})


def tidy_dead_restores(connections: Connections, target: str) -> None:
    """Drop what a dead restore into that name left. The caller holds the lease on the name, so no other one lives.

    A collection that an alias points at is in somebody's service: it is never dropped.
    """
    first = connections.cluster.nodes[0]
    for entry in unsettled(connections.store, connections.keys, connections.cluster.name):
        if entry.kind != "collection" or entry.detail["collection"] != target:
            continue
        journal = connections.journal(entry.run_id)
        if target not in first.aliases().values():
            log.warning("dropping %s: restore %s died before it was finished", target, entry.run_id)
            first.delete_collection(target)
        journal.settle(entry)
