"""Being alone at work on a cluster, and taking away what runs may have left on nodes or in the bucket."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ferry.backup.plan import BackupPlan
from ferry.backup.steps import made_after, node_restarted
from ferry.connections import Connections
from ferry.errors import FerryError, SnapshotError
from ferry.models import Finding, PeerId, ShardId, now
from ferry.qdrant import snapshots
from ferry.qdrant.http import NotFoundError
from ferry.repository.journal import Entry, unsettled
from ferry.repository.lease import Lease, acquire
from ferry.repository.probe import require_conforming
from ferry.verify import spool

log = logging.getLogger(__name__)

_Place = tuple[str, ShardId | None, PeerId]  # what a snapshot is of: collection, shard (None: all of it) and node


@contextmanager
def alone_and_tidied(connections: Connections, plan: BackupPlan, holder: str) -> Iterator[Lease]:
    """Hold the lease on the cluster; take away what dead runs left before, and what this run has left afterwards.

    Raises LeaseHeldError, which says who is at work. What cannot be taken away stays in the journal for the next run.
    """
    if connections.store.head(connections.keys.repository) is None:
        require_conforming(connections.store)
    connections.catalog.ensure_repository()
    key = connections.keys.lease(plan.cluster)
    with acquire(connections.store, key, holder, connections.profile.lease_seconds) as lease:
        tidy_dead_runs(connections, lease)
        made: frozenset[_Place] = frozenset()
        try:
            yield lease
            made = frozenset((found.collection, found.shard_id, found.node.peer_id) for found in plan.archives)
        finally:
            spool.drop_kept(connections.worker)
            try:
                tidy_dead_runs(connections, lease, made)
            except FerryError as error:  # must not hide why the run itself failed
                log.warning("left for the next run: %s", error.message)


def tidy_dead_runs(connections: Connections, lease: Lease, made: frozenset[_Place] = frozenset()) -> list[Finding]:
    """Take away what any run of this cluster left. Only the holder of the lease may: every other run is dead.

    ``made`` is of what this run has made snapshots since it holds the lease.
    """
    lease.confirm()
    findings = []
    for entry in unsettled(connections.store, connections.keys, connections.cluster.name):
        if entry.kind not in ("node_snapshot", "archive"):
            continue
        try:
            if entry.kind == "node_snapshot":
                _tidy_snapshot(connections, entry, made)
            else:
                _tidy_archive(connections, entry)
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


def _tidy_snapshot(connections: Connections, entry: Entry, made: frozenset[_Place]) -> None:
    """Delete the snapshot of a dead run, or see that there is none.

    A node makes the snapshots of one shard one after the other: when ours of the same shard is done and the dead run's
    is not there, its request never arrived.
    """
    detail = entry.detail
    collection, shard_id = detail["collection"], detail["shard_id"]
    node = connections.cluster.node(PeerId(detail["peer_id"]))
    node.require_identity()
    try:
        name = made_after(node, entry) if detail.get("name") is None else detail["name"]
        node.collection(collection)
    except NotFoundError:
        # Deleting a collection leaves its snapshots on the disk, out of reach of any request (seen on 1.16.3).
        what = f"{collection}/shards/{shard_id}" if shard_id is not None else collection
        log.warning("%s is gone from %s: look for a snapshot in its folder snapshots/%s", collection, node.label, what)
        return
    never_asked = (collection, shard_id, detail["peer_id"]) in made
    if name is None and not never_asked and not node_restarted(node, entry) and not _long_ago(connections, entry):
        msg = f"the snapshot of {collection} that {node.label} was asked for has not appeared yet."
        raise SnapshotError(msg)
    if name:
        snapshots.delete_snapshot(node, collection, shard_id, name)


def _long_ago(connections: Connections, entry: Entry) -> bool:
    limit = connections.cluster.profile.snapshot_timeout_seconds
    return (now() - entry.noted_at).total_seconds() > limit


def _tidy_archive(connections: Connections, entry: Entry) -> None:
    """Delete an archive that no manifest counts.

    A run that was taken for dead and was only frozen may write its manifest meanwhile. Written before the second look
    it goes with the archive; written after it, that run finds its archive missing and takes it back itself.
    """
    store, key = connections.store, entry.detail["key"]
    manifest = connections.keys.manifest(connections.cluster.name, entry.run_id, entry.detail["collection"])
    if store.head(manifest) is None:
        store.abort_uploads(key)
        store.delete([key])
        if store.head(manifest) is not None:
            store.delete([manifest])
