"""What a prune would delete: the facts of every backup from the bucket, the rules over them, and a second look."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from pydantic import Field

from ferry.connections import Repository
from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConfigurationError
from ferry.models import BackupId, Finding, Value
from ferry.profiles import PolicyProfile
from ferry.repository import fence
from ferry.repository.deletions import Deletion, deletions
from ferry.repository.holds import holds
from ferry.repository.layout import decode_name, is_backup_id, parse_backup_id
from ferry.repository.manifest import BackupRecord, CollectionManifest
from ferry.repository.readers import living, marks
from ferry.repository.retention import BackupFacts, RetentionPlan, Verdict, plan_retention
from ferry.repository.store import ObjectInfo
from ferry.repository.upkeep import lock_of

RECORD, MANIFEST = "backup.json", "manifest.json"
_THREADS = 8  # small requests, sent beside each other
T = TypeVar("T")
R = TypeVar("R")


class PrunePlan(Value):
    """One verdict a backup, the newest first, with the facts behind it. ``at`` is the store's clock."""

    cluster: str
    at: datetime
    verdicts: tuple[Verdict, ...]
    facts: dict[BackupId, BackupFacts]
    begun: dict[BackupId, Deletion] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def deletes(self) -> tuple[Verdict, ...]:
        """What is to be deleted, the oldest first."""
        return tuple(verdict for verdict in reversed(self.verdicts) if not verdict.keep)

    @property
    def freed_bytes(self) -> int:
        """Bytes of all that is to be deleted."""
        return sum(self.facts[verdict.backup_id].bytes for verdict in self.deletes)


def plan_prune(repository: Repository, cluster: str, policy: PolicyProfile, at: datetime) -> PrunePlan:
    """Judge every backup of a cluster; changes nothing. ``at`` is the present by the store's clock.

    What the newest and the minimum_proven backups rest on is read back first: manifests with their hashes, and the
    size of every archive that they name. A collection that fails this counts as proven elsewhere only.
    """
    begun = deletions(repository.store, repository.keys, cluster)
    facts = read_facts(repository, cluster, policy, at, begun)
    doubts = _Doubts(repository, cluster)
    plan = plan_retention(facts.values(), policy, at)
    while plan.deletes and doubts.settle(facts, plan):
        plan = plan_retention(facts.values(), policy, at)
    return PrunePlan(
        cluster=cluster,
        at=at,
        verdicts=plan.verdicts,
        facts=facts,
        begun=begun,
        findings=(*plan.findings, *doubts.findings),
    )


def read_facts(
    repository: Repository, cluster: str, policy: PolicyProfile, at: datetime, begun: dict[BackupId, Deletion]
) -> dict[BackupId, BackupFacts]:
    """What is known of every backup of the cluster. What was deleted but for its fences is none."""
    store, keys = repository.store, repository.keys
    held = holds(store, keys, cluster)
    alive = living(store, marks(store, keys, cluster), at, policy.retention.grace_hours)

    def read(backup_id: BackupId) -> BackupFacts | None:
        facts = _Folder(repository, cluster, backup_id).facts(backup_id in begun)
        if facts is None:
            return None
        update = {
            "holds": (held[backup_id].words,) if backup_id in held else (),
            "readers": tuple(mark.who or mark.key for mark in alive if mark.backup_id == backup_id),
        }
        return facts.model_copy(update=update)

    ids = [BackupId(name) for name in store.list_folders(keys.cluster_prefix(cluster)) if is_backup_id(name)]
    return {facts.backup_id: facts for facts in beside(read, ids) if facts is not None}


class _Folder:
    """One backup's folder, listed once."""

    def __init__(self, repository: Repository, cluster: str, backup_id: BackupId) -> None:
        self._repository = repository
        self._cluster = cluster
        self._id = backup_id
        self._prefix = repository.keys.backup_prefix(cluster, backup_id)
        self._objects = {info.key: info for info in repository.store.list(self._prefix)}
        self._problems: list[str] = []

    def facts(self, begun: bool) -> BackupFacts | None:
        """All that its objects tell; ``begun`` says that there is a note of its deletion."""
        points = [key for key in self._objects if is_commit_point(key)]
        record_key = self._prefix + RECORD
        record = self._record(record_key) if record_key in self._objects else None
        if record is not None:
            named = {entry.collection: entry.points is not None for entry in record.collections}
            proven = {name: opened for name, opened in named.items() if self._manifest(name) in self._objects}
            lost = named.keys() - proven.keys()
        else:
            proven, lost = self._committed(points), set()
            if len(points) == len(self._objects) and not proven and not self._problems and self._all_condemned(points):
                return None
        counted = [self._objects[self._manifest(name)] for name in proven]
        if record is not None:  # a fence in its place tells nothing of when the backup was made
            counted.append(self._objects[record_key])
        return BackupFacts(
            backup_id=self._id,
            taken_at=parse_backup_id(self._id),
            stored_at=max((info.modified for info in counted), default=None),
            last_write=max(info.modified for info in self._objects.values()),
            complete=record is not None and not lost,
            opened=frozenset(name for name, opened in proven.items() if opened),
            bytes_only=frozenset(name for name, opened in proven.items() if not opened),
            bytes=sum(info.bytes for info in self._objects.values()),
            being_deleted=begun and record is None,  # with its record nothing of it is deleted yet
            unreadable="; ".join(self._problems) or None,
        )

    def _record(self, key: str) -> BackupRecord | None:
        place = fence.read_place(self._repository.store, key)
        if place.document is None:
            return None
        try:
            return BackupRecord.from_bytes(place.document, key)
        except ArchiveDamagedError as error:
            self._problems.append(error.message)
            return None

    def _committed(self, points: list[str]) -> dict[str, bool]:
        """Collections with a manifest, and whether their archives were opened."""
        found = {}
        for key in points:
            if key.endswith("/" + RECORD):
                continue
            document = fence.read_place(self._repository.store, key).document
            if document is None:
                continue
            try:
                manifest = CollectionManifest.from_bytes(document, key)
                found[decode_name(key.removeprefix(self._prefix).split("/")[0])] = manifest.points is not None
            except (ArchiveDamagedError, ConfigurationError) as error:
                self._problems.append(error.message)
        return found

    def _all_condemned(self, points: list[str]) -> bool:
        places = [fence.read_place(self._repository.store, key).fence for key in points]
        return all(found is not None and found.fence == "condemned" for found in places)

    def _manifest(self, name: str) -> str:
        return self._repository.keys.manifest(self._cluster, self._id, name)


class _Doubts:
    """What is asked only of backups that the plan would delete or rests on, each once."""

    def __init__(self, repository: Repository, cluster: str) -> None:
        self._repository = repository
        self._cluster = cluster
        self._settled: set[tuple[BackupId, str | None]] = set()
        self.findings: list[Finding] = []

    def settle(self, facts: dict[BackupId, BackupFacts], plan: RetentionPlan) -> bool:
        """Ask what the plan has raised; whether there was anything to ask, so that the plan must be made anew."""
        locks = [facts[backup_id] for backup_id in plan.deletes if (backup_id, None) not in self._settled]
        guards = sorted(plan.guards - self._settled)
        for known, found in zip(locks, beside(self._locked, locks), strict=True):
            facts[known.backup_id] = found
        for (backup_id, name), problem in zip(guards, beside(self._damage, guards), strict=True):
            if problem is not None:
                self.findings.append(_damaged(backup_id, name, problem))
                known = facts[backup_id]
                less = {"opened": known.opened - {name}, "bytes_only": known.bytes_only - {name}, "complete": False}
                facts[backup_id] = known.model_copy(update=less)
        self._settled |= {(known.backup_id, None) for known in locks} | set(guards)
        return bool(locks or guards)

    def _locked(self, known: BackupFacts) -> BackupFacts:
        store, keys = self._repository.store, self._repository.keys
        documents = [keys.manifest(self._cluster, known.backup_id, name) for name in sorted(known.proven)]
        found = [lock_of(store, key) for key in (keys.backup(self._cluster, known.backup_id), *documents)]
        until = max((lock.until for lock in found if lock.until is not None), default=None)
        update = {"locked_until": until, "legal_hold": any(lock.legal_hold for lock in found)}
        return known.model_copy(update=update)

    def _damage(self, guard: tuple[BackupId, str]) -> str | None:
        """Why a collection's backup is none, or None when its manifest is right and every archive has its size."""
        backup_id, name = guard
        keys = self._repository.keys
        try:
            manifest = self._repository.catalog.read_manifest(self._cluster, backup_id, name)
        except (ArchiveDamagedError, BackupNotFoundError) as error:
            return error.message
        folder = keys.collection_prefix(self._cluster, backup_id, name)
        sizes = {info.key: info.bytes for info in self._repository.store.list(folder)}
        for archive in manifest.archives:
            held, expected = sizes.get(folder + archive.key), archive.held[0]
            if held != expected:
                what = "is missing" if held is None else f"has {held} bytes, the manifest says {expected}"
                return f"{folder}{archive.key} {what}."
        return None


def is_commit_point(key: str) -> bool:
    """Whether a document that makes archives count may lie there, or a fence in its place."""
    return key.rsplit("/", 1)[-1] in (RECORD, MANIFEST)


def beside(work: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """Several small requests at a time; the results in the order of the things. Raises the first error."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ferry-prune") as pool:
        return list(pool.map(work, things))


def wait_hours(policy: PolicyProfile) -> float:
    """How long what is unfinished is left alone: a reader's or a run's grace, and a dead run's time to be resumed."""
    return max(policy.retention.grace_hours, policy.resume_hours)


def modified_last(objects: Iterable[ObjectInfo]) -> datetime | None:
    """When the newest of these objects was written, by the store's clock."""
    return max((info.modified for info in objects), default=None)


def _damaged(backup_id: BackupId, name: str, problem: str) -> Finding:
    return Finding(
        severity="warning",
        subject=f"{backup_id}/{name}",
        message=f"It does not count, so an older backup of {name} is kept in its place: {problem}",
        remedy="Back up again now; then look at what happened to the bucket.",
    )
