"""Deletions that were begun: noted before the first delete, so that the next prune finishes what a dead one began."""

import logging
from datetime import datetime

from pydantic import ValidationError

from ferry.errors import BackupNotFoundError
from ferry.models import BackupId
from ferry.repository.layout import Keys, encode_name
from ferry.repository.records import Record, by_backup
from ferry.repository.store import ObjectStore

_log = logging.getLogger(__name__)


class Deletion(Record):
    """A backup that is being deleted: by whom, since when, why, and when the store had written its commit point."""

    cluster: str
    backup_id: BackupId
    by: str
    begun_at: datetime
    stored_at: datetime | None
    reasons: tuple[str, ...]


def note_deletion(store: ObjectStore, keys: Keys, deletion: Deletion) -> None:
    """Note it before anything is deleted. Again is fine."""
    store.put_document(_key(keys, deletion.cluster, deletion.backup_id), deletion.to_bytes())


def find_deletion(store: ObjectStore, keys: Keys, cluster: str, backup_id: BackupId) -> Deletion | None:
    """The deletion of that backup, if one was begun and is not finished."""
    return _read(store, _key(keys, cluster, backup_id))


def deletions(store: ObjectStore, keys: Keys, cluster: str) -> dict[BackupId, Deletion]:
    """Every deletion of the cluster's backups that was begun and is not finished."""
    return by_backup(store, _prefix(keys, cluster), _read)


def forget_deletion(store: ObjectStore, keys: Keys, cluster: str, backup_id: BackupId) -> None:
    """It is finished, or was given up before anything was deleted. Twice is fine."""
    store.delete([_key(keys, cluster, backup_id)])


def _prefix(keys: Keys, cluster: str) -> str:
    return f"{keys.prefix}/prunes/{encode_name(cluster)}/"


def _key(keys: Keys, cluster: str, backup_id: BackupId) -> str:
    return f"{_prefix(keys, cluster)}{backup_id}.json"


def _read(store: ObjectStore, key: str) -> Deletion | None:
    try:
        data, _ = store.get_document(key)
    except BackupNotFoundError:
        return None
    try:
        return Deletion.model_validate_json(data)
    except ValidationError:
        _log.warning("%s is no note that this Ferry understands; it is left alone", key)
        return None
