"""Small JSON documents of their own: leases, holds, marks, notes. Indented, because people read them in a hurry."""

from collections.abc import Callable
from typing import TypeVar

import orjson

from ferry.models import BackupId, Value
from ferry.repository.layout import is_backup_id
from ferry.repository.store import ObjectStore

R = TypeVar("R")


class Record(Value):
    """What one such document says."""

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2)


def by_backup(store: ObjectStore, folder: str, read: Callable[[ObjectStore, str], R | None]) -> dict[BackupId, R]:
    """The documents of a folder with one for each backup, read by ``read``; what is not named by a backup is left."""
    found = {}
    for info in store.list(folder):
        backup_id = info.key.removeprefix(folder).removesuffix(".json")
        if is_backup_id(backup_id) and (record := read(store, info.key)) is not None:
            found[BackupId(backup_id)] = record
    return found
