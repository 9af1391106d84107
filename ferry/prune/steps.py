"""Deleting one backup so that a kill at any moment leaves no manifest that does not read back.

The order: note the deletion; look for holds and readers; delete ``backup.json``, then each manifest, and condemn the
place of each so that nobody ever commits there; look for readers again; delete the archives; forget the note. The next
prune goes on with what is noted.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from ferry.connections import Repository
from ferry.errors import StoreRefusedError
from ferry.models import BackupId, Value, now
from ferry.prune.plan import MANIFEST, RECORD, PrunePlan, beside, is_commit_point
from ferry.repository import fence
from ferry.repository.deletions import Deletion, forget_deletion, note_deletion
from ferry.repository.holds import find_hold
from ferry.repository.lease import Lease
from ferry.repository.readers import living, marks
from ferry.repository.retention import BackupFacts, Verdict

log = logging.getLogger(__name__)

# No process wakes up after so long and still believes that it may commit: then a condemned place may be forgotten.
CONDEMNED_DAYS = 7


class Outcome(Value):
    """What became of one backup that was to be deleted. ``waiting``: its archives stay until a reader has ended."""

    backup_id: BackupId
    state: Literal["deleted", "kept", "waiting"]
    bytes: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Pruning:
    """A prune that holds the lease of the cluster. ``at`` is the store's clock when it began."""

    repository: Repository
    cluster: str
    lease: Lease
    at: datetime
    grace_hours: float
    by: str

    def obstacle(self, backup_id: BackupId) -> str | None:
        """Who needs the backup at this moment."""
        hold = find_hold(self.repository.store, self.repository.keys, self.cluster, backup_id)
        return f"held by {hold.words}" if hold is not None else self.reader(backup_id)

    def reader(self, backup_id: BackupId) -> str | None:
        """Who reads the backup at this moment. The clock of the beginning makes a mark younger, never older."""
        store, keys = self.repository.store, self.repository.keys
        alive = living(store, marks(store, keys, self.cluster, backup_id), self.at, self.grace_hours)
        return f"a reader is at work: {alive[0].who}" if alive else None


def delete_backup(pruning: Pruning, plan: PrunePlan, verdict: Verdict) -> Outcome:
    """Delete a backup, or finish a deletion that was begun. What the store refuses to delete is kept, with the reason.

    Raises LeaseHeldError or ConflictError when the lease was lost; then nothing more is deleted.
    """
    backup_id = verdict.backup_id
    facts = plan.facts[backup_id]
    store, keys, cluster = pruning.repository.store, pruning.repository.keys, pruning.cluster
    pruning.lease.confirm()
    stored_at = _stored_at(facts, plan.begun.get(backup_id))
    note = Deletion(
        cluster=cluster,
        backup_id=backup_id,
        by=pruning.by,
        begun_at=now(),
        stored_at=stored_at,
        reasons=verdict.reasons,
    )
    note_deletion(store, keys, note)
    if needed := pruning.obstacle(backup_id):
        if not facts.being_deleted:
            forget_deletion(store, keys, cluster, backup_id)
        return Outcome(backup_id=backup_id, state="kept", reason=needed)
    condemned, refused = _uncommit(pruning, backup_id)
    if not condemned:
        with suppress(StoreRefusedError):
            forget_deletion(store, keys, cluster, backup_id)
        return Outcome(backup_id=backup_id, state="kept", reason="; ".join(refused))
    if reader := pruning.reader(backup_id):
        return Outcome(backup_id=backup_id, state="waiting", reason=reader)
    pruning.lease.confirm()
    refused += _delete_archives(pruning, backup_id, condemned)
    if refused:
        return Outcome(backup_id=backup_id, state="kept", reason=f"partly: {'; '.join(refused)}")
    if stored_at is not None and pruning.at - stored_at > timedelta(days=CONDEMNED_DAYS):
        store.delete(condemned)
    forget_deletion(store, keys, cluster, backup_id)
    return Outcome(backup_id=backup_id, state="deleted", bytes=facts.bytes)


def _stored_at(facts: BackupFacts, begun: Deletion | None) -> datetime | None:
    return begun.stored_at if begun is not None and begun.stored_at is not None else facts.stored_at


def _uncommit(pruning: Pruning, backup_id: BackupId) -> tuple[list[str], list[str]]:
    """Take every commit point away, the run's first; the places that are condemned now, and what was refused."""
    store = pruning.repository.store
    folder = pruning.repository.keys.backup_prefix(pruning.cluster, backup_id)
    names = {info.key.removeprefix(folder).partition("/")[0] for info in store.list(folder)} - {RECORD}
    record = folder + RECORD
    if problem := _condemn(pruning, record):
        return [], [problem]
    manifests = [f"{folder}{name}/{MANIFEST}" for name in sorted(names)]
    problems = beside(lambda key: _condemn(pruning, key), manifests)
    condemned = [key for key, problem in zip(manifests, problems, strict=True) if problem is None]
    return [record, *condemned], [problem for problem in problems if problem is not None]


def _condemn(pruning: Pruning, key: str) -> str | None:
    """Delete the document at a commit point and see to it that none comes back; why not, when that is refused."""
    store = pruning.repository.store
    try:
        if fence.read_place(store, key).document is not None:
            store.delete([key])
    except StoreRefusedError as error:
        return error.message
    if not fence.condemn(store, key, pruning.by, pruning.lease.fencing):
        return f"{key} was committed again meanwhile"
    return None


def _delete_archives(pruning: Pruning, backup_id: BackupId, condemned: list[str]) -> list[str]:
    """Delete whatever lies in condemned folders but the fences; what was refused."""
    store = pruning.repository.store
    folder = pruning.repository.keys.backup_prefix(pruning.cluster, backup_id)
    dead = {key.removeprefix(folder).partition("/")[0] for key in condemned}
    keys = [info.key for info in store.list(folder) if not is_commit_point(info.key)]
    return delete_all(pruning.repository, [key for key in keys if key.removeprefix(folder).partition("/")[0] in dead])


def delete_all(repository: Repository, keys: Iterable[str]) -> list[str]:
    """Delete objects, several at a time; what the store refused, in words."""

    def delete(key: str) -> str | None:
        try:
            repository.store.delete([key])
        except StoreRefusedError as error:
            return error.message
        return None

    return [problem for problem in beside(delete, keys) if problem is not None]
