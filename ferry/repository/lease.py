"""One writer at a time: a lease in the bucket with a fencing number, by conditional puts and without trusting clocks.

The holder renews the object every quarter of its time to live. Whoever else wants it watches the object: when it
changes, its holder lives; when its ETag stays the same for the whole time to live, measured by the watcher's own
monotonic clock, its holder is dead and the watcher replaces just that ETag. The fencing number never goes back, because
a lease that is given up is overwritten and not deleted.
"""

import logging
import os
import socket
import threading
import time
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import uuid4

from pydantic import ValidationError

from ferry.errors import BackupNotFoundError, ConflictError, FerryError, LeaseHeldError, RepositoryError
from ferry.models import Progress, no_progress, now
from ferry.repository.records import Record
from ferry.repository.store import ObjectStore

_log = logging.getLogger(__name__)

RENEWALS_PER_LIFE = 4
_LONGEST_LOOK_SECONDS = 2.0


class LeaseRecord(Record):
    """What the object says. ``renewals`` makes each renewal another object even within one millisecond."""

    holder: str
    host: str
    pid: int
    token: str
    fencing: int
    ttl_seconds: float
    acquired_at: datetime
    renewed_at: datetime
    renewals: int = 0
    released: bool = False


class Lease:
    """A lease that we hold; inside its ``with`` a thread renews it. Safe to use from several threads."""

    def __init__(self, store: ObjectStore, key: str, record: LeaseRecord, etag: str, renewed: float) -> None:
        self._store = store
        self._key = key
        self._record = record
        self._etag = etag
        self._renewed = renewed  # on the monotonic clock, when the last request that succeeded was begun
        self._taken_by: FerryError | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="ferry-lease", daemon=True)

    @property
    def fencing(self) -> int:
        """Grows with each holder: what a later holder wrote has a larger one."""
        return self._record.fencing

    @property
    def key(self) -> str:
        """The object that it is."""
        return self._key

    @property
    def holder(self) -> str:
        """The run as an operator knows it."""
        return self._record.holder

    @property
    def lost(self) -> bool:
        """Whether another has taken it, or may by now because it was not renewed for its whole time to live."""
        return self._taken_by is not None or time.monotonic() - self._renewed > self._record.ttl_seconds

    def confirm(self) -> None:
        """Renew right now: the store's word that it is still ours. Call it before each commit.

        Raises LeaseHeldError when another run has taken it, ConflictError when the object was removed or given up,
        StoreUnavailableError when the store cannot be asked. In all cases nothing may be committed.
        """
        with self._lock:
            if self._taken_by is not None:
                raise type(self._taken_by)(self._taken_by.message, self._taken_by.remedy)
            if self._record.released:
                msg = f"This run has given up the lease {self._key} already."
                raise ConflictError(msg)
            self._renew()

    def advance(self) -> None:
        """Take the next fencing number: work that was given out under the old one is refused or stops.

        Raises what ``confirm`` raises.
        """
        with self._lock:
            self._renew(fencing=self._record.fencing + 1)

    def release(self) -> None:
        """Give it up at once, keeping its fencing number. Twice is fine; when it fails, the lease ends by itself."""
        self._ended.set()
        with self._lock:
            if self._taken_by is not None or self._record.released:
                return
            try:
                self._renew(released=True)
            except FerryError as error:
                _log.warning("The lease %s was not given up and ends by itself: %s", self._key, error.message)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        self._heart.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._record.ttl_seconds / RENEWALS_PER_LIFE):
            with self._lock:
                if self._ended.is_set():
                    return
                try:
                    self._renew()
                except FerryError as error:
                    if self._taken_by is not None:
                        _log.error("%s", error.message)
                        return
                    _log.warning("The lease %s was not renewed: %s", self._key, error.message)

    def _renew(self, released: bool = False, fencing: int | None = None) -> None:
        """Replace our own object; the lock is held. An answer that was lost leaves us with an older ETag than our
        own object has, so a refusal is believed only when another's object is there."""
        begun = time.monotonic()
        update = {"renewed_at": now(), "renewals": self._record.renewals + 1, "released": released}
        update |= {} if fencing is None else {"fencing": fencing}
        record = self._record.model_copy(update=update)
        try:
            etag = self._store.put_document(self._key, record.to_bytes(), if_match=self._etag)
        except ConflictError:
            held_etag = self._require_ours()
            begun = time.monotonic()
            etag = self._store.put_document(self._key, record.to_bytes(), if_match=held_etag)
        self._record, self._etag, self._renewed = record, etag, begun

    def _require_ours(self) -> str:
        found = _read(self._store, self._key)
        if found is not None and found[0].token == self._record.token:
            return found[1]
        lost = f"This run lost the lease {self._key} (fencing number {self.fencing})"
        if found is None or found[0].released:
            self._taken_by = ConflictError(f"{lost}: it was removed or given up by another.", "Run it again.")
        else:
            self._taken_by = LeaseHeldError(f"{lost}. {_who(found[0])} Nothing more is committed.", "Run it again.")
        raise self._taken_by


def acquire(
    store: ObjectStore, key: str, holder: str, ttl_seconds: float, *, progress: Progress = no_progress
) -> Lease:
    """Take the lease, waiting only to find out whether its holder is dead (at most that holder's time to live).

    ``holder`` is the run as an operator knows it. ``progress`` gets 0 while waiting and may raise to stop. Raises
    LeaseHeldError, which says who holds it since when, as soon as the holder shows a sign of life.
    """
    found = _read(store, key)
    if found is not None and not found[0].released:
        found = _outlive(store, key, found, progress)
    begun, moment = time.monotonic(), now()
    record = LeaseRecord(
        holder=holder,
        host=socket.gethostname(),
        pid=os.getpid(),
        token=uuid4().hex,
        fencing=found[0].fencing + 1 if found else 1,
        ttl_seconds=ttl_seconds,
        acquired_at=moment,
        renewed_at=moment,
    )
    try:
        if found is None:
            etag = store.put_document(key, record.to_bytes(), if_absent=True)
        else:
            etag = store.put_document(key, record.to_bytes(), if_match=found[1])
    except ConflictError:
        winner = _read(store, key)
        who = _who(winner[0]) if winner else "Another run was faster."
        raise LeaseHeldError(f"The lease {key} was just taken. {who}", _WAIT) from None
    except KeyboardInterrupt:  # what was sent may have arrived
        Lease(store, key, record, '"unknown"', begun).release()
        raise
    if found is not None and not found[0].released:
        _log.warning("Took over the lease %s of a dead holder: %s", key, found[0].holder)
    return Lease(store, key, record, etag, begun)


_WAIT = "Wait until it is finished, or stop it; a dead holder is replaced by itself after its time to live."


def _outlive(
    store: ObjectStore, key: str, found: tuple[LeaseRecord, str], progress: Progress
) -> tuple[LeaseRecord, str] | None:
    """Watch for the holder's time to live, by our own clock; the dead holder's object, or what it became if free."""
    record, etag = found
    pause = min(_LONGEST_LOOK_SECONDS, record.ttl_seconds / (2 * RENEWALS_PER_LIFE))
    since = time.monotonic()
    while time.monotonic() - since < record.ttl_seconds:
        progress(0)
        time.sleep(pause)
        info = store.head(key)
        if info is not None and info.etag == etag:
            continue
        changed = _read(store, key)
        if changed is None or changed[0].released:
            return changed
        raise LeaseHeldError(f"The lease {key} is held. {_who(changed[0])}", _WAIT)
    return record, etag


def _read(store: ObjectStore, key: str) -> tuple[LeaseRecord, str] | None:
    try:
        data, etag = store.get_document(key)
    except BackupNotFoundError:
        return None
    try:
        return LeaseRecord.model_validate_json(data), etag
    except ValidationError:
        msg = f"{key} is no lease that this Ferry understands; nothing was changed."
        raise RepositoryError(msg, "When no run of Ferry's is at work, delete that object.") from None


def _who(record: LeaseRecord) -> str:
    return (
        f"Its holder is {record.holder} (process {record.pid} on {record.host}) since "
        f"{record.acquired_at:%Y-%m-%d %H:%M:%S} UTC, fencing number {record.fencing}."
    )
