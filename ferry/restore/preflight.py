"""Finding the backup, asking the target, and refusing what would not work, before anything is created."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ferry.connections import Connections
from ferry.errors import FerryError, LeaseHeldError
from ferry.models import ClusterLayout, Finding, PeerId
from ferry.qdrant.resources import Need, read_headroom, require_headroom
from ferry.qdrant.rights import MANAGE, require_right
from ferry.repository.journal import Entry, unsettled
from ferry.repository.lease import Lease, acquire
from ferry.repository.manifest import CollectionManifest
from ferry.restore.field_keys import keys_by_field
from ferry.restore.plan import RestorePlan, RestoreRequest, plan_restore, target_name
from ferry.restore.rates import with_expectation
from ferry.restore.shape import chosen_shards
from ferry.restore.source import archives_of, require_archives
from ferry.restore.steps import drop
from ferry.verify.spool import require_spool

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
    # None of the other collections is looked into: one of them may be broken, and be the reason for this restore.
    layout = cluster.read_layout(include=())
    field, chosen = request.shape.key_field, {shard.shard_id for shard in chosen_shards(manifest.layout, request.shape)}
    field_keys = keys_by_field(connections, manifest, field, shards=chosen) if field else ()
    plan = plan_restore(request, manifest, layout, field_keys)
    findings = require_feasible(connections, layout, [plan], plan.needs)
    return with_expectation(connections, plan.model_copy(update={"findings": plan.findings + tuple(findings)}))


def require_feasible(
    connections: Connections, layout: ClusterLayout, plans: Sequence[RestorePlan], needs: Mapping[PeerId, Need]
) -> list[Finding]:
    """What is worth knowing of nodes that could do these restores, with ``needs`` for all of them together.

    Raises a PreflightError where the key, the nodes' health, an archive, the spool or the room does not allow it.
    """
    cluster = connections.cluster
    require_right(cluster, MANAGE)
    findings = cluster.require_quiet(layout)
    for plan in plans:
        require_archives(connections, plan)
        _require_spool(connections, plan)
    headrooms = read_headroom(cluster, layout)
    return findings + require_headroom(headrooms, needs, cluster.profile.headroom.when_unknown)


def _require_spool(connections: Connections, plan: RestorePlan) -> None:
    """Archives that this worker opens, or cuts shards out of, need room on its disk."""
    largest = max((archive.bytes for archive in archives_of(plan)), default=0)
    if plan.path == "points":
        require_spool(connections.worker, largest, min(len(plan.streams), connections.worker.parallel_proofs))
    elif plan.manifest.kind == "node":
        require_spool(connections.worker, 2 * largest, len(plan.layout.nodes))


@contextmanager
def alone_and_tidied(connections: Connections, target: str, holder: str) -> Iterator[Lease]:
    """Hold the lease on the new name, and drop what dead restores into this cluster left behind.

    A dead restore is one whose lease can be had; finding that out takes at most its time to live. What cannot be
    dropped under another name stays in the journal for the next restore.
    """
    with _lease(connections, target, holder) as lease:
        for entry in unsettled(connections.store, connections.keys, connections.cluster.name):
            if entry.kind != "collection":
                continue
            name = entry.detail["collection"]
            if name == target:
                _drop_dead(connections, entry)
                continue
            try:
                with _lease(connections, name, holder):
                    _drop_dead(connections, entry)
            except LeaseHeldError:
                continue
            except FerryError as error:
                log.warning("%s is left for the next restore to drop: %s", name, error.message)
        yield lease


def _lease(connections: Connections, target: str, holder: str) -> Lease:
    key = connections.keys.lease(f"{connections.cluster.name}.restore.{target}")
    return acquire(connections.store, key, holder, connections.profile.lease_seconds)


def _drop_dead(connections: Connections, entry: Entry) -> None:
    """Drop the collection of a dead restore. One that an alias points at is in somebody's service: it stays."""
    name = entry.detail["collection"]
    if entry.journal.find("collection", name) is None:
        return  # it was alive and has kept it meanwhile
    if name not in connections.cluster.nodes[0].aliases().values():
        log.warning("dropping %s: restore %s died before it was finished", name, entry.run_id)
        drop(connections, name, entry.run_id)
    entry.journal.settle(entry)
