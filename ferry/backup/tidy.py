"""Being alone at work on a cluster, and taking away what runs have left on nodes or in the bucket.

Who may delete what, so that not even a process that was frozen for a day can do harm when it wakes:

- snapshots on nodes and unfinished uploads: whoever holds the lease;
- an archive that its own run has not proven: that run, while nobody else can have taken it over;
- any other archive: whoever has condemned the commit point of its collection, or, where a manifest counts, whoever sees
  that the manifest does not name it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ferry.backup.plan import BackupPlan
from ferry.backup.resume import begin, entries_by_run, may_continue
from ferry.backup.steps import made_after, node_restarted
from ferry.backup.work import BackupRun, ProvenArchive
from ferry.connections import Connections
from ferry.errors import ArchiveDamagedError, ConflictError, FerryError, SnapshotError
from ferry.models import BackupId, PeerId, ShardId, now
from ferry.qdrant import snapshots
from ferry.qdrant.http import NotFoundError
from ferry.repository import fence
from ferry.repository.conformance import ensure_conforming
from ferry.repository.journal import Entry
from ferry.repository.lease import Lease, acquire
from ferry.verify import spool

log = logging.getLogger(__name__)

_SnapshotOf = tuple[str, ShardId | None, PeerId]  # collection, shard (None: all of it) and node


@contextmanager
def begun(connections: Connections, plan: BackupPlan, holder: str) -> Iterator[BackupRun]:
    """Hold the lease on the cluster, go on with a dead run that fits or begin a new one, and tidy before and after.

    Raises LeaseHeldError, which says who is at work. What cannot be taken away stays in the journal for the next run.
    """
    ensure_conforming(connections.store, connections.keys)
    connections.catalog.ensure_repository()
    key = connections.keys.lease(plan.cluster)
    with acquire(connections.store, key, holder, connections.profile.lease_seconds) as lease:
        made: frozenset[_SnapshotOf] = frozenset()
        try:
            run = begin(connections, plan, lease)
            plan = run.plan
            _Tidying(connections, lease, plan).before(run)
            yield run
            made = frozenset((work.collection, work.shard_id, work.node.peer_id) for work in run.plan.archives)
        finally:
            spool.drop_kept(connections.worker)
            try:
                _Tidying(connections, lease, plan, made).after()
            except FerryError as error:  # must not hide why the run itself failed
                log.warning("left for the next run: %s", error.message)


class _Tidying:
    """One look at all journals of a cluster. Only the holder of the lease may: every other run is dead.

    ``made`` is of what this run has made snapshots since it holds the lease.
    """

    def __init__(
        self, connections: Connections, lease: Lease, plan: BackupPlan, made: frozenset[_SnapshotOf] = frozenset()
    ) -> None:
        self.connections = connections
        self.lease = lease
        self.plan = plan
        self.made = made

    def before(self, run: BackupRun) -> None:
        """Of other runs all that none may go on with; of the run that is continued all that is not used."""
        halves = {half.noted for half in run.halves.values()}
        proven = {archive.noted for archive in run.proven.values()}
        keys = {half.key for half in run.halves.values() if half.key}
        keys |= {self._key_of(run.plan, archive) for archive in run.proven.values()}
        for run_id, entries in self._left().items():
            if run_id != run.plan.backup_id:
                self._other_run(run_id, entries)
                continue
            # A snapshot may be used and the object that its run made of it not: then that one goes.
            unused = [entry for entry in entries if entry.kind == "archive" and entry.detail["key"] not in keys]
            unused += [entry for entry in entries if entry.kind == "proof" and entry.name not in proven]
            self._snapshots([entry for entry in entries if entry.name not in halves])
            counted = [entry for entry in unused if entry.detail.get("collection") in run.committed]
            self._drop_archives(run_id, counted)  # their manifests count: only what these do not name
            self._unproven([entry for entry in unused if entry not in counted], delete=True)

    def after(self) -> None:
        """What this run has left, too: all of it when it is complete, all but what a next one can use when not."""
        for run_id, entries in self._left().items():
            if run_id != self.plan.backup_id:
                self._other_run(run_id, entries)
                continue
            self._snapshots(entries)
            proven = {entry.name for entry in entries if entry.kind == "proof"}
            self._unproven([entry for entry in entries if entry.name not in proven], delete=True)
            if not self._is_of_use(run_id, entries):
                self._give_up(run_id, [entry for entry in entries if entry.kind == "run" or entry.name in proven])

    def _key_of(self, plan: BackupPlan, archive: ProvenArchive) -> str:
        folder = self.connections.keys.collection_prefix(plan.cluster, plan.backup_id, archive.collection)
        return folder + archive.record.key

    def _left(self) -> dict[BackupId, list[Entry]]:
        self.lease.confirm()
        return entries_by_run(self.connections)

    def _other_run(self, run_id: BackupId, entries: list[Entry]) -> None:
        self._snapshots(entries)
        if self._is_of_use(run_id, entries):
            proven = {entry.name for entry in entries if entry.kind == "proof"}
            self._fence_off(run_id, entries)
            self._unproven([entry for entry in entries if entry.name not in proven], delete=False)
        else:
            self._give_up(run_id, entries)

    def _fence_off(self, run_id: BackupId, entries: list[Entry]) -> None:
        """Of a run that another may go on with: should it only be frozen, it commits nothing any more."""
        keys, cluster = self.connections.keys, self.plan.cluster
        begun = sorted({entry.detail["collection"] for entry in entries if entry.kind in ("archive", "proof")})
        for key in [keys.backup(cluster, run_id), *(keys.manifest(cluster, run_id, name) for name in begun)]:
            fence.claim(self.connections.store, key, self.lease.holder, self.lease.fencing)

    def _is_of_use(self, run_id: BackupId, entries: list[Entry]) -> bool:
        """Whether another run may go on with this one and would find something: a proof, a collection that counts."""
        folder = self.connections.keys.backup_prefix(self.plan.cluster, run_id)
        something = any(entry.kind == "proof" for entry in entries) or any(
            info.key.endswith("/manifest.json") for info in self.connections.store.list(folder)
        )
        return something and may_continue(self.connections, run_id, entries, self.plan.policy)

    def _snapshots(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.kind == "node_snapshot":
                with self._left_otherwise(entry):
                    self._drop_snapshot(entry)
                    entry.journal.settle(entry)

    def _unproven(self, entries: list[Entry], *, delete: bool) -> None:
        """End uploads, and where that is allowed delete what was uploaded and not proven.

        Only what is there before the uploads are ended is deleted: an upload that is gone on with by another, while
        this process was frozen, becomes an object later.
        """
        store = self.connections.store
        for entry in entries:
            if entry.kind == "proof":
                entry.journal.settle(entry)
            if entry.kind == "archive":
                with self._left_otherwise(entry):
                    there = store.head(entry.detail["key"]) is not None
                    store.abort_uploads(entry.detail["key"])
                    if there and delete:
                        self._require_uncounted(entry)
                        store.delete([entry.detail["key"]])
                    if delete or not there:
                        entry.journal.settle(entry)

    def _require_uncounted(self, entry: Entry) -> None:
        """Whatever the journal says: no archive of a collection that counts is deleted as unproven."""
        manifest = self.connections.keys.manifest(self.plan.cluster, entry.run_id, entry.detail["collection"])
        if fence.read_place(self.connections.store, manifest).document is not None:
            msg = f"{entry.detail['key']} is not noted as proven, and its collection counts."
            raise ConflictError(msg)

    def _give_up(self, run_id: BackupId, entries: list[Entry]) -> None:
        """Delete the archives of a run that no manifest counts, after nobody can commit them any more."""
        keys, store = self.connections.keys, self.connections.store
        folder = keys.backup_prefix(self.plan.cluster, run_id)
        places = [info.key for info in store.list(folder) if info.key.endswith("/manifest.json")]
        if places or any(entry.kind in ("archive", "proof") for entry in entries):
            # Its record first: it would count collections whose manifests may be pruned one day.
            for place in (keys.backup(self.plan.cluster, run_id), *places):
                fence.condemn(store, place, self.lease.holder, self.lease.fencing)
        if self._drop_archives(run_id, entries):
            for entry in entries:
                if entry.kind == "run":
                    entry.journal.settle(entry)

    def _drop_archives(self, run_id: BackupId, entries: list[Entry]) -> bool:
        """Those that these entries are of, and their entries; False when some stay for the next run."""
        of_archives = [entry for entry in entries if entry.kind in ("archive", "proof")]
        failed = False
        for collection in sorted({entry.detail["collection"] for entry in of_archives}):
            try:
                self._give_up_collection(run_id, collection)
            except FerryError as error:
                failed = True
                log.warning("left for the next run: archives of %s in %s: %s", collection, run_id, error.message)
        if not failed:
            for entry in of_archives:
                entry.journal.settle(entry)
        return not failed

    def _give_up_collection(self, run_id: BackupId, collection: str) -> None:
        store, keys, cluster = self.connections.store, self.connections.keys, self.plan.cluster
        manifest, folder = (
            keys.manifest(cluster, run_id, collection),
            keys.collection_prefix(cluster, run_id, collection),
        )
        counted: set[str] = set()
        if not fence.condemn(store, manifest, self.lease.holder, self.lease.fencing):
            try:
                held = self.connections.catalog.read_manifest(cluster, run_id, collection)
            except ArchiveDamagedError as error:
                log.warning("%s Its archives are left alone.", error.message)
                return
            counted = {folder + archive.key for archive in held.archives}
        store.abort_uploads(folder)
        store.delete([info.key for info in store.list(folder) if info.key not in counted | {manifest}])

    @contextmanager
    def _left_otherwise(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except FerryError as error:
            log.warning("left for the next run: %s %s: %s", entry.kind, entry.name, error.message)

    def _drop_snapshot(self, entry: Entry) -> None:
        """Delete the snapshot of a dead run, or see that there is none.

        A node makes the snapshots of one shard one after the other: when ours of the same shard is done and the dead
        run's is not there, its request never arrived.
        """
        detail = entry.detail
        collection, shard_id = detail["collection"], detail["shard_id"]
        node = self.connections.cluster.node(PeerId(detail["peer_id"]))
        node.require_identity()
        try:
            name = made_after(node, entry) if detail.get("name") is None else detail["name"]
            node.collection(collection)
        except NotFoundError:
            # Deleting a collection leaves its snapshots on the disk, out of reach of any request (seen on 1.16.3).
            what = f"{collection}/shards/{shard_id}" if shard_id is not None else collection
            where = f"snapshots/{what}"
            log.warning("%s is gone from %s: look for a snapshot in its folder %s", collection, node.label, where)
            return
        never_asked = (collection, shard_id, detail["peer_id"]) in self.made
        if name is None and not never_asked and not node_restarted(node, entry) and not self._long_ago(entry):
            msg = f"the snapshot of {collection} that {node.label} was asked for has not appeared yet."
            raise SnapshotError(msg)
        if name:
            snapshots.delete_snapshot(node, collection, shard_id, name)

    def _long_ago(self, entry: Entry) -> bool:
        limit = self.connections.cluster.profile.snapshot_timeout_seconds
        return (now() - entry.noted_at).total_seconds() > limit
