"""Holds: an operator's word that a backup stays, whatever the retention says, until the operator takes it back."""

import logging
from datetime import datetime

from pydantic import ValidationError

from ferry.errors import BackupNotFoundError, ConfigurationError, ConflictError, StoreRefusedError
from ferry.models import BackupId, now
from ferry.repository import fence
from ferry.repository.catalog import LATEST, Catalog
from ferry.repository.deletions import find_deletion
from ferry.repository.layout import Keys
from ferry.repository.records import Record, by_backup
from ferry.repository.store import ObjectStore

_log = logging.getLogger(__name__)


class Hold(Record):
    """Who keeps a backup, why, and since when."""

    backup_id: BackupId
    by: str
    reason: str
    since: datetime

    @property
    def words(self) -> str:
        """``ann: audit 2026, since 2026-11-22``."""
        return f"{self.by}: {self.reason}, since {self.since:%Y-%m-%d}"


def put_hold(store: ObjectStore, keys: Keys, cluster: str, backup: str, by: str, reason: str) -> Hold:
    """Keep a backup from being pruned. ``backup`` is its id or ``latest``; a hold that is there stays.

    Raises BackupNotFoundError when there is no such backup, ConfigurationError without a reason or a name, and
    ConflictError when a prune has begun to delete it: the hold stays then, and keeps what is left.
    """
    if not by.strip() or not reason.strip():
        msg = "A hold needs who and why: in some years somebody will ask."
        raise ConfigurationError(msg, "Give a reason, such as: --reason 'audit 2026'")
    backup_id = _existing(store, keys, cluster, backup)
    key = keys.hold(cluster, backup_id)
    hold = Hold(backup_id=backup_id, by=by.strip(), reason=reason.strip(), since=now())
    try:
        store.put_document(key, hold.to_bytes(), if_absent=True)
    except ConflictError:
        hold = _read(store, key) or hold
    # A prune notes what it deletes before it looks for holds; so one of the two sees the other.
    begun = find_deletion(store, keys, cluster, backup_id)
    if begun is not None:
        msg = (
            f"Backup {backup_id} of {cluster} is being deleted since {begun.begun_at:%Y-%m-%d %H:%M} UTC by {begun.by}."
        )
        remedy = f"The hold stays and keeps what is left. Look at it: python -m ferry show {cluster} {backup_id}"
        raise ConflictError(msg, remedy)
    _log.info("backup %s of %s is held by %s", backup_id, cluster, hold.words)
    return hold


def release_hold(store: ObjectStore, keys: Keys, cluster: str, backup_id: str) -> Hold:
    """Take a hold back; what it said. From then on the retention decides again.

    Raises BackupNotFoundError when there is none, StoreRefusedError when the keys may not delete.
    """
    if not store.can_delete:
        msg = f"The keys may not delete (can_delete = false), so backup {backup_id} of {cluster} stays held."
        raise StoreRefusedError(msg, "Release it with keys that may delete.")
    key = keys.hold(cluster, BackupId(backup_id))
    hold = _read(store, key)
    if hold is None:
        msg = f"There is no hold on backup {backup_id} of {cluster}."
        raise BackupNotFoundError(msg, f"See what is held: python -m ferry prune --cluster {cluster}")
    store.delete([key])
    _log.info("backup %s of %s is released; it was held by %s", backup_id, cluster, hold.words)
    return hold


def find_hold(store: ObjectStore, keys: Keys, cluster: str, backup_id: BackupId) -> Hold | None:
    """The hold on a backup, or None."""
    return _read(store, keys.hold(cluster, backup_id))


def holds(store: ObjectStore, keys: Keys, cluster: str) -> dict[BackupId, Hold]:
    """Every hold on backups of a cluster, also on ones that are gone."""
    return by_backup(store, keys.holds_prefix(cluster), _read)


def _existing(store: ObjectStore, keys: Keys, cluster: str, backup: str) -> BackupId:
    if backup == LATEST:
        return Catalog(store, keys).read_backup(cluster, LATEST).backup_id
    backup_id = BackupId(backup)
    if fence.read_place(store, keys.backup(cluster, backup_id)).document is not None:
        return backup_id
    known = {summary.backup_id for summary in Catalog(store, keys).backups(cluster)}
    if backup_id not in known:
        msg = f"There is no backup {backup_id} of {cluster}."
        raise BackupNotFoundError(msg)
    return backup_id


def _read(store: ObjectStore, key: str) -> Hold | None:
    """A hold that cannot be read holds all the same."""
    try:
        data, _ = store.get_document(key)
    except BackupNotFoundError:
        return None
    try:
        return Hold.model_validate_json(data)
    except ValidationError:
        backup_id = key.rsplit("/", 1)[-1].removesuffix(".json")
        return Hold(backup_id=BackupId(backup_id), by="somebody", reason=f"{key} cannot be read", since=now())
