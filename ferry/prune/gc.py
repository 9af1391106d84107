"""Garbage: what no manifest names and no living run or reader needs. The retention has no say in it.

- archives that the manifest beside them does not name, and archives without a manifest whose run is dead;
- unfinished multipart uploads, journal entries and readers' marks of the dead;
- condemned commit points that nobody can still wake up to commit.

Everything is judged by the store's clock, and what is younger than the policy's grace is left alone.
"""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Literal

from ferry.connections import Repository
from ferry.errors import ArchiveDamagedError
from ferry.models import BackupId, Finding, Progress, Value, no_progress
from ferry.profiles import PolicyProfile
from ferry.prune.plan import MANIFEST, RECORD, beside, is_commit_point, modified_last, wait_hours
from ferry.prune.run import begin, require_deletes
from ferry.prune.steps import CONDEMNED_DAYS, Pruning, delete_all
from ferry.repository import fence
from ferry.repository.deletions import deletions
from ferry.repository.holds import holds
from ferry.repository.layout import is_backup_id
from ferry.repository.lease import acquire
from ferry.repository.manifest import CollectionManifest
from ferry.repository.readers import life, marks
from ferry.repository.store import ObjectInfo, UnfinishedUpload
from ferry.repository.upkeep import abort_upload, store_time

Kind = Literal["archive", "upload", "journal", "mark", "fence"]
# Kinds of journal entries that only say what a run has in the bucket; the others name things on nodes, and the next
# backup or restore takes these away.
_IN_THE_BUCKET = ("run", "proof", "archive")


class Garbage(Value):
    """One thing that nobody needs. ``condemn`` is the commit point that must be condemned before it is deleted."""

    kind: Kind
    key: str
    bytes: int = 0
    reason: str
    condemn: str | None = None
    upload: UnfinishedUpload | None = None


class Collected(Value):
    """What a look for garbage found, and after it was taken away: what was refused."""

    cluster: str
    at: datetime
    garbage: tuple[Garbage, ...]
    taken_away: bool = False
    findings: tuple[Finding, ...] = ()


def look_for_garbage(
    repository: Repository, cluster: str, policy: PolicyProfile, at: datetime | None = None, *, every: bool = False
) -> Collected:
    """List the garbage of one cluster; changes nothing. ``every`` lists condemned commit points of any age.

    ``at`` is the present by the store's clock; left out, the store is asked.
    """
    at = at or store_time(repository.store, repository.keys.repository)
    search = _Search(repository, cluster, policy, at)
    folders = repository.store.list_folders(repository.keys.cluster_prefix(cluster))
    for folder in beside(search.folder, [BackupId(name) for name in folders if is_backup_id(name)]):
        search.found += folder
    search.fences(timedelta(0) if every else timedelta(days=CONDEMNED_DAYS))
    search.journal()
    search.uploads()
    search.marks()
    return Collected(
        cluster=cluster, at=at, garbage=tuple(search.found), findings=tuple([*search.findings, *search.lost_holds()])
    )


def collect(
    repository: Repository,
    cluster: str,
    policy: PolicyProfile,
    holder: str,
    progress: Progress = no_progress,
    *,
    every: bool = False,
) -> Collected:
    """Take the lease of the cluster and take its garbage away.

    Raises ConfigurationError when the keys may not delete, LeaseHeldError when a run is at work.
    """
    require_deletes(repository)
    key = repository.keys.lease(cluster)
    with acquire(repository.store, key, holder, repository.profile.lease_seconds, progress=progress) as lease:
        pruning = begin(repository, cluster, policy, lease, holder)
        found = look_for_garbage(repository, cluster, policy, pruning.at, every=every)
        lease.confirm()
        refused = _take_away(pruning, found.garbage)
    findings = [Finding(severity="warning", subject="garbage", message=problem) for problem in refused]
    return found.model_copy(update={"taken_away": True, "findings": (*found.findings, *findings)})


def _take_away(pruning: Pruning, garbage: tuple[Garbage, ...]) -> list[str]:
    """Delete it; an archive without a manifest only when its commit point is condemned."""
    repository = pruning.repository
    places = sorted({item.condemn for item in garbage if item.condemn is not None})
    answers = beside(
        lambda key: fence.condemn(repository.store, key, pruning.by, pruning.lease.fencing),
        places,
    )
    committed = {key for key, condemned in zip(places, answers, strict=True) if not condemned}
    keys = []
    for item in garbage:
        if item.upload is not None:
            abort_upload(repository.store, item.upload)
        elif item.condemn not in committed:
            keys.append(item.key)
    return delete_all(repository, keys)


class _Search:
    def __init__(self, repository: Repository, cluster: str, policy: PolicyProfile, at: datetime) -> None:
        self._repository = repository
        self._cluster = cluster
        self._policy = policy
        self._at = at
        self._wait = timedelta(hours=wait_hours(policy))
        self._begun = deletions(repository.store, repository.keys, cluster)
        self._fences: list[ObjectInfo] = []
        self._with_archives: set[str] = set()  # ids of backups
        self.found: list[Garbage] = []
        self.findings: list[Finding] = []

    def folder(self, backup_id: BackupId) -> list[Garbage]:
        """Archives of one backup that do not count. Those of a deletion that was begun are the next prune's."""
        prefix = self._repository.keys.backup_prefix(self._cluster, backup_id)
        objects = list(self._repository.store.list(prefix))
        by_collection: dict[str, list[ObjectInfo]] = defaultdict(list)
        for info in objects:
            name = info.key.removeprefix(prefix).partition("/")[0]
            by_collection[name].append(info)
        record = by_collection.pop(RECORD, [])
        if any(not is_commit_point(info.key) for info in objects):
            self._with_archives.add(backup_id)
        else:
            self._fences += [info for info in record if self._condemned(info)]
        if backup_id in self._begun:
            return []
        last = modified_last(objects)
        dead = last is not None and self._at - last > self._wait
        return [item for name, held in by_collection.items() for item in self._collection(prefix + name, held, dead)]

    def _collection(self, folder: str, held: list[ObjectInfo], dead: bool) -> list[Garbage]:
        place_key = f"{folder}/{MANIFEST}"
        archives = [info for info in held if info.key != place_key]
        place = fence.read_place(self._repository.store, place_key) if len(archives) < len(held) else fence.Place()
        if place.document is None:
            if place.fence is not None and place.fence.fence == "condemned" and not archives:
                self._fences += [info for info in held if info.key == place_key]
            why = "no manifest names it, and its run is dead"
            return [self._archive(info, why, place_key) for info in archives if dead]
        try:
            manifest = CollectionManifest.from_bytes(place.document, place_key)
        except ArchiveDamagedError as error:
            message = f"What lies beside it is left alone: {error.message}"
            self.findings.append(Finding(severity="warning", subject=place_key, message=message))
            return []
        named = {f"{folder}/{archive.key}" for archive in manifest.archives}
        old = [info for info in archives if info.key not in named and self._at - info.modified > self._wait]
        return [self._archive(info, "the manifest beside it names another", None) for info in old]

    def _archive(self, info: ObjectInfo, reason: str, condemn: str | None) -> Garbage:
        return Garbage(kind="archive", key=info.key, bytes=info.bytes, reason=reason, condemn=condemn)

    def _condemned(self, info: ObjectInfo) -> bool:
        held = fence.read_place(self._repository.store, info.key).fence
        return held is not None and held.fence == "condemned"

    def fences(self, older_than: timedelta) -> None:
        """Condemned commit points without an archive beside them."""
        for info in self._fences:
            if self._at - info.modified >= older_than:
                self._add(
                    "fence", info, f"condemned on {info.modified:%Y-%m-%d}; nothing can be committed here any more"
                )

    def journal(self) -> None:
        """What dead runs noted about objects that are gone or count."""
        prefix = self._repository.keys.runs_prefix(self._cluster)
        for info in self._repository.store.list(prefix):
            run_id, _, rest = info.key.removeprefix(prefix).partition("/")
            if self._at - info.modified <= self._wait:
                continue
            if info.bytes == 0:
                self._add("journal", info, "settled by keys that may not delete")
            elif rest.split("/")[0] in _IN_THE_BUCKET and self._is_over(run_id):
                self._add("journal", info, "its run is over")

    def _is_over(self, run_id: str) -> bool:
        if run_id not in self._with_archives or not is_backup_id(run_id):
            return True
        key = self._repository.keys.backup(self._cluster, BackupId(run_id))
        return fence.read_place(self._repository.store, key).document is not None

    def uploads(self) -> None:
        """Multipart uploads that nobody continues any more."""
        for prefix in (self._repository.keys.cluster_prefix(self._cluster), self._repository.keys.probe_prefix):
            for upload in self._repository.store.uploads(prefix):
                if self._at - upload.begun > self._wait:
                    reason = f"begun on {upload.begun:%Y-%m-%d %H:%M} UTC and never finished"
                    self.found.append(Garbage(kind="upload", key=upload.key, reason=reason, upload=upload))

    def marks(self) -> None:
        """Marks of readers that are dead."""
        for mark in marks(self._repository.store, self._repository.keys, self._cluster):
            if self._at - mark.renewed_at > life(self._policy.retention.grace_hours):
                reason = f"its reader has not shown itself since {mark.renewed_at:%Y-%m-%d %H:%M} UTC"
                self.found.append(Garbage(kind="mark", key=mark.key, reason=reason))

    def lost_holds(self) -> list[Finding]:
        """Holds on backups that are not there: somebody may rely on them."""
        store, keys = self._repository.store, self._repository.keys
        return [
            Finding(
                severity="warning",
                subject=backup_id,
                message=f"It is held by {hold.words}, and is not there.",
                remedy=f"Release the hold: python -m ferry release {self._cluster} {backup_id}",
            )
            for backup_id, hold in holds(store, keys, self._cluster).items()
            if not any(True for _ in store.list(keys.backup_prefix(self._cluster, backup_id)))
        ]

    def _add(self, kind: Kind, info: ObjectInfo, reason: str) -> None:
        self.found.append(Garbage(kind=kind, key=info.key, bytes=info.bytes, reason=reason))
