"""Beginning a backup, or continuing that of a run that died: from what the bucket says, and from nothing else.

A dead run is continued under its own id when it asked for the same and is young enough. First every commit point of it
is claimed (``ferry.repository.fence``): from then on the store refuses whatever the dead run, should it only have been
frozen, still wants to commit. Then its archives count that were proven and are in the bucket as their entries say.
"""

import hashlib
import logging
from collections import defaultdict
from datetime import timedelta

import orjson
from pydantic import ValidationError

from ferry.backup.plan import BackupPlan, PlannedArchive
from ferry.backup.steps import made_after
from ferry.backup.work import (
    BackupRun,
    Half,
    Place,
    ProvenArchive,
    fingerprint_of_manifest,
    fingerprint_of_plan,
)
from ferry.connections import Connections
from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConfigurationError, FerryError
from ferry.models import BackupId, Finding, now
from ferry.qdrant import snapshots
from ferry.repository import fence
from ferry.repository.journal import Entry, unsettled
from ferry.repository.layout import decode_name, is_backup_id, parse_backup_id
from ferry.repository.lease import Lease
from ferry.repository.manifest import CollectionManifest
from ferry.settings import load_settings

log = logging.getLogger(__name__)

REQUEST = "request"  # the name of the one journal entry that says what a run was asked for


def begin(connections: Connections, planned: BackupPlan, lease: Lease) -> BackupRun:
    """The run that the holder of the lease is to do: a dead one continued, where one fits, else a new one."""
    left = entries_by_run(connections)
    for run_id in _candidates(connections, planned, left):
        run = _continued(connections, planned, lease, run_id, left.get(run_id, []))
        if run is not None:
            log.info("Going on with backup %s: %d archives are proven already", run_id, len(run.proven))
            connections.journal(run_id).note("run", REQUEST, {"wish": wish_of(connections, planned)})
            return run
    connections.journal(planned.backup_id).note("run", REQUEST, {"wish": wish_of(connections, planned)})
    return BackupRun(lease, planned)


def foreseen(connections: Connections, planned: BackupPlan) -> BackupPlan:
    """The plan with a finding when it will probably go on with a run that died; changes nothing."""
    found = _candidates(connections, planned, entries_by_run(connections))
    if not found or found[0] == planned.backup_id:
        return planned
    finding = Finding(
        severity="info",
        subject="resume",
        message=f"Run {found[0]} asked for the same and did not end: this one goes on with it, under its id.",
        remedy="To begin anew right before a risky change, run the backup with fresh.",
    )
    return planned.model_copy(update={"findings": (*planned.findings, finding)})


def entries_by_run(connections: Connections) -> dict[BackupId, list[Entry]]:
    """What backups of this cluster have left in their journals; restores have entries of another kind."""
    found: dict[BackupId, list[Entry]] = defaultdict(list)
    for entry in unsettled(connections.store, connections.keys, connections.cluster.name):
        if entry.kind != "collection":
            found[entry.run_id].append(entry)
    return dict(found)


def may_continue(connections: Connections, run_id: BackupId, entries: list[Entry], policy: str | None) -> bool:
    """Whether a run that died may still be continued: it is young, not complete, and no later backup has all of it."""
    hours = load_settings().policy(policy).resume_hours
    young = now() - parse_backup_id(run_id) < timedelta(hours=hours)
    if not young or not any(entry.kind == "run" for entry in entries):
        return False
    begun = {entry.detail["collection"] for entry in entries if entry.kind in ("archive", "proof")}
    later = (_held_by(connections, found) for found in _later_than(connections, run_id))
    return not _is_complete(connections, run_id) and not any(held is not None and begun <= held for held in later)


def _held_by(connections: Connections, run_id: BackupId) -> set[str] | None:
    """The collections of a complete backup, or None."""
    try:
        record = connections.catalog.read_backup(connections.cluster.name, run_id)
    except (BackupNotFoundError, ArchiveDamagedError):
        return None
    return {entry.collection for entry in record.collections}


def _later_than(connections: Connections, run_id: BackupId) -> list[BackupId]:
    folders = connections.store.list_folders(connections.keys.cluster_prefix(connections.cluster.name))
    return [BackupId(name) for name in folders if name > run_id and is_backup_id(name)]


def _is_complete(connections: Connections, run_id: BackupId) -> bool:
    record = connections.keys.backup(connections.cluster.name, run_id)
    return fence.read_place(connections.store, record).document is not None


def wish_of(connections: Connections, plan: BackupPlan) -> str:
    """What must be the same for one run to continue another: what was asked for, and how archives are encoded."""
    encryption = connections.profile.encryption
    content = {
        "include": sorted(plan.include),
        "exclude": sorted(plan.exclude),
        "kind": plan.kind,
        "proof": plan.proof,
        "recipients": encryption.recipients if encryption else [],
    }
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _candidates(connections: Connections, planned: BackupPlan, left: dict[BackupId, list[Entry]]) -> list[BackupId]:
    """Runs to look at: this one itself, when Prefect runs it once more, then the newest that asked for the same."""
    own = planned.backup_id
    found = [own] if own in left or _is_complete(connections, own) else []
    if planned.fresh:
        return found
    wish = wish_of(connections, planned)
    for run_id in sorted(left.keys() - {own}, reverse=True):
        same = any(entry.kind == "run" and entry.detail.get("wish") == wish for entry in left[run_id])
        if same and may_continue(connections, run_id, left[run_id], planned.policy):
            found.append(run_id)
    return found


def _continued(
    connections: Connections, planned: BackupPlan, lease: Lease, run_id: BackupId, entries: list[Entry]
) -> BackupRun | None:
    """The run as one to go on with; None when it does not fit the cluster as it is now, or was given up."""
    plan = planned.model_copy(update={"backup_id": run_id})
    committed = _committed(connections, plan)
    if committed is None:
        return None
    claims: dict[str, str] = {}
    keys, store = connections.keys, connections.store
    names = [layout.name for layout in plan.layout.collections if layout.name not in committed]
    places = [keys.manifest(plan.cluster, run_id, name) for name in names]
    for key in [keys.backup(plan.cluster, run_id), *places]:
        place = fence.claim(store, key, lease.holder, lease.fencing)
        if place.fence is not None and place.fence.fence == "claimed" and place.etag is not None:
            claims[key] = place.etag
        elif key in places or run_id != planned.backup_id or place.document is None:
            return None  # given up, or committed in just this moment: what is there is looked after by the tidying
    proven = _proven(connections, plan, committed, entries)
    todo = [
        archive
        for archive in plan.archives
        if archive.collection not in committed and (archive.collection, archive.place) not in proven
    ]
    halves = _halves(connections, todo, entries)
    return BackupRun(lease, plan, claims, frozenset(committed), proven, halves)


def _committed(connections: Connections, plan: BackupPlan) -> set[str] | None:
    """The collections of a run that count already; None when one of them is not as the cluster has it now."""
    committed = set()
    wanted = {layout.name for layout in plan.layout.collections}
    for folder in connections.store.list_folders(connections.keys.backup_prefix(plan.cluster, plan.backup_id)):
        try:
            name = decode_name(folder)
            manifest = connections.catalog.read_manifest(plan.cluster, plan.backup_id, name)
        except (ConfigurationError, BackupNotFoundError):
            continue
        except ArchiveDamagedError as error:
            log.warning("Backup %s is not continued: %s", plan.backup_id, error.message)
            return None
        if name not in wanted or not _fits(plan, manifest):
            log.info("Backup %s is not continued: %s is another one by now", plan.backup_id, name)
            return None
        committed.add(name)
    return committed


def _fits(plan: BackupPlan, manifest: CollectionManifest) -> bool:
    return fingerprint_of_manifest(manifest) == fingerprint_of_plan(plan, manifest.collection)


def _proven(
    connections: Connections, plan: BackupPlan, committed: set[str], entries: list[Entry]
) -> dict[Place, ProvenArchive]:
    """Archives of uncommitted collections with a record of their proof, when the bucket still holds just them."""
    wanted = {(archive.collection, archive.place): archive for archive in plan.archives}
    proven: dict[Place, ProvenArchive] = {}
    for entry in entries:
        if entry.kind != "proof" or entry.detail.get("collection") in committed:
            continue
        try:
            found = ProvenArchive.model_validate(entry.detail)
        except ValidationError:
            log.warning("%s is no record of a proof that this Ferry understands; its archive is made anew.", entry.key)
            continue
        planned = wanted.get((found.collection, found.place))
        if planned is not None and _is_there(connections, plan, planned, found):
            proven[found.collection, found.place] = found
    return proven


def _is_there(connections: Connections, plan: BackupPlan, planned: PlannedArchive, found: ProvenArchive) -> bool:
    same_shards = {s.shard_id for s in planned.shards} == {s.shard_id for s in found.record.shards}
    if not same_shards or found.fingerprint != fingerprint_of_plan(plan, found.collection):
        return False
    folder = connections.keys.collection_prefix(plan.cluster, plan.backup_id, found.collection)
    held = connections.store.head(folder + found.record.key)
    return held is not None and (held.bytes, held.etag) == (found.record.held[0], found.etag)


def _halves(connections: Connections, todo: list[PlannedArchive], entries: list[Entry]) -> dict[Place, Half]:
    """Snapshots of the dead run that still lie on their nodes, with the parts of them that the bucket has."""
    archives = {entry.name: entry for entry in entries if entry.kind == "archive"}
    halves: dict[Place, Half] = {}
    for planned in todo:
        begun = [entry for entry in entries if entry.kind == "node_snapshot" and _is_of(entry, planned)]
        if not begun:
            continue
        try:
            node = connections.cluster.node(planned.node.peer_id)
            name = begun[-1].detail.get("name") or made_after(node, begun[-1])
            there = snapshots.list_snapshots(node, planned.collection, planned.shard_id)
            if name in [snapshot.name for snapshot in there]:
                half = Half(snapshot=name, noted=begun[-1].name, started_at=begun[-1].noted_at)
                halves[planned.collection, planned.place] = _with_parts(connections, half, archives.get(half.noted))
        except FerryError as error:
            log.warning("%s: what a dead run began is not used: %s", planned.label, error.message)
    return halves


def _is_of(entry: Entry, planned: PlannedArchive) -> bool:
    detail = entry.detail
    of = (detail.get("collection"), detail.get("shard_id"), detail.get("peer_id"))
    return of == (planned.collection, planned.shard_id, planned.node.peer_id)


def _with_parts(connections: Connections, half: Half, archive: Entry | None) -> Half:
    """With the upload to go on with. An encrypted one begins anew: its key died with the run.

    Not where an object is there already: who wrote it may be about to delete it. And not where the worker proves from
    its own copy, for it has none of the parts that the dead run sent.
    """
    usable = connections.profile.encryption is None and connections.worker.prove_from == "bucket"
    if archive is None or not usable or connections.store.head(archive.detail["key"]) is not None:
        return half
    uploads = [each for each in connections.store.uploads(archive.detail["key"]) if each.key == archive.detail["key"]]
    if not uploads:
        return half
    return half.model_copy(update={"key": uploads[-1].key, "upload_id": uploads[-1].upload_id})
