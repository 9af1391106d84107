"""Readers' marks: who reads a backup says so in the bucket, and no prune takes the archives from under it.

A reader puts its mark first and looks then whether the commit points are still there. A prune looks for marks, deletes
the commit points, and looks again before it deletes an archive. So whoever comes second sees the other: the reader is
told that the backup is gone, or the archives stay until the reader's mark is. A mark is renewed while its reader lives,
and counts as dead when it is older than the grace, by the store's clock alone.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import uuid4

from pydantic import ValidationError

from ferry.errors import BackupNotFoundError, FerryError, StoreRefusedError
from ferry.models import BackupId, Value, now
from ferry.repository import fence
from ferry.repository.layout import Keys, is_backup_id
from ferry.repository.records import Record
from ferry.repository.store import ObjectStore

_log = logging.getLogger(__name__)

RENEWAL_SECONDS = 60.0
# However short a policy's grace is: a living reader must have missed so many renewals to count as dead.
SHORTEST_LIFE = timedelta(seconds=5 * RENEWAL_SECONDS)


class ReaderMark(Record):
    """What a mark says. ``renewals`` makes each renewal another object; ``ended`` where it could not be deleted."""

    reader: str
    host: str
    pid: int
    since: datetime
    renewals: int = 0
    ended: bool = False

    @property
    def who(self) -> str:
        """The reader as an operator knows it."""
        return f"{self.reader} (process {self.pid} on {self.host}) since {self.since:%Y-%m-%d %H:%M} UTC"


class FoundMark(Value):
    """A mark in the bucket: its object, the backup that is read, and when it was renewed last, by the store's clock."""

    key: str
    backup_id: BackupId
    renewed_at: datetime
    who: str | None = None


@contextmanager
def reading(
    store: ObjectStore, keys: Keys, cluster: str, backup_id: BackupId, commit_points: Iterable[str], reader: str
) -> Iterator[None]:
    """Hold a mark on a backup while it is read. ``commit_points`` are the keys of the documents that are relied on.

    Raises BackupNotFoundError when one of them is gone: a prune was faster. Keys that may only read cannot put a mark;
    then a warning is logged, and the reading goes on without.
    """
    key = f"{keys.readers_prefix(cluster, backup_id)}{uuid4().hex}.json"
    mark = ReaderMark(reader=reader, host=socket.gethostname(), pid=os.getpid(), since=now())
    try:
        store.put_document(key, mark.to_bytes())
    except StoreRefusedError as error:
        _log.warning("no mark on %s, so a prune may delete it meanwhile: %s", backup_id, error.message)
        yield
        return
    renewer = _Renewer(store, key, mark)
    try:
        for document in commit_points:
            if fence.read_place(store, document).document is None:
                msg = f"{document} was deleted while the backup was looked up; nothing was read."
                raise BackupNotFoundError(msg)
        renewer.start()
        yield
    finally:
        renewer.end()


class _Renewer:
    def __init__(self, store: ObjectStore, key: str, mark: ReaderMark) -> None:
        self._store = store
        self._key = key
        self._mark = mark
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="ferry-reader", daemon=True)

    def start(self) -> None:
        self._heart.start()

    def end(self) -> None:
        self._ended.set()
        if self._heart.ident is not None:
            self._heart.join()
        if not self._store.can_delete:
            self._put(ended=True)
            return
        try:
            self._store.delete([self._key])
        except StoreRefusedError:  # the keys may write and not delete, and the profile does not say so
            self._put(ended=True)
        except FerryError as error:
            _log.warning("the mark %s stays until its grace is over: %s", self._key, error.message)

    def _beat(self) -> None:
        while not self._ended.wait(RENEWAL_SECONDS):
            self._put()

    def _put(self, ended: bool = False) -> None:
        self._mark = self._mark.model_copy(update={"renewals": self._mark.renewals + 1, "ended": ended})
        try:
            self._store.put_document(self._key, self._mark.to_bytes())
        except FerryError as error:
            _log.warning("the mark %s was not renewed: %s", self._key, error.message)


def marks(store: ObjectStore, keys: Keys, cluster: str, backup_id: BackupId | None = None) -> list[FoundMark]:
    """Every mark on a backup, or on any backup of the cluster, the dead ones too; who it is, is read of none."""
    folder, found = keys.readers_prefix(cluster), []
    for info in store.list(keys.readers_prefix(cluster, backup_id)):
        name = info.key.removeprefix(folder).split("/")[0]
        if is_backup_id(name):
            found.append(FoundMark(key=info.key, backup_id=BackupId(name), renewed_at=info.modified))
    return found


def living(store: ObjectStore, found: Iterable[FoundMark], at: datetime, grace_hours: float) -> list[FoundMark]:
    """Those whose readers are at work, with who they are. ``at`` is the present by the store's clock."""
    alive = []
    for mark in found:
        if at - mark.renewed_at > life(grace_hours):
            continue
        try:
            said = ReaderMark.model_validate_json(store.get_document(mark.key)[0])
        except BackupNotFoundError:
            continue  # it has just ended
        except ValidationError:
            alive.append(mark.model_copy(update={"who": f"somebody whose mark {mark.key} cannot be read"}))
            continue
        if not said.ended:
            alive.append(mark.model_copy(update={"who": said.who}))
    return alive


def life(grace_hours: float) -> timedelta:
    """How long after its last renewal a mark counts."""
    return max(timedelta(hours=grace_hours), SHORTEST_LIFE)
