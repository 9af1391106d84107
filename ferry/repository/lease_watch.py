"""How a task on another machine learns that its run is over: it looks at the run's lease now and then.

Only the process of a run renews its lease and can be told of a cancel. Its tasks may be anywhere, so each knows the
fencing number that its run had when it gave out the work, and reads the lease document every few seconds.
"""

import logging
import threading
import time

from pydantic import ValidationError

from ferry.errors import BackupNotFoundError, FerryError, LeaseHeldError, StoppedError
from ferry.repository.lease import RENEWALS_PER_LIFE, Lease, LeaseRecord
from ferry.repository.store import ObjectStore

_log = logging.getLogger(__name__)

# A cancelled run waits 20 s for its tasks (tasks/policy.py), so they must hear of it well before that.
LONGEST_LOOK_SECONDS = 5.0
LIVES = 2.0


class LeaseWatch:
    """Whether the run that gave out the work still holds its lease. Cheap: at most one small read every few seconds.

    Safe to use from several threads. A store that does not answer stops nothing: what moves bytes notices by itself.
    """

    def __init__(self, store: ObjectStore, key: str, fencing: int, every_seconds: float = LONGEST_LOOK_SECONDS) -> None:
        self._store = store
        self._key = key
        self._fencing = fencing
        self._every = every_seconds
        self._next = time.monotonic()  # the first call looks at once: the task may have waited for its turn for long
        self._over: FerryError | None = None
        self._token: str | None = None
        self._seen: tuple[int, float] | None = None  # the renewals, and since when on our clock there were no more
        self._lock = threading.Lock()

    def require_held(self) -> None:
        """Raise StoppedError when the run gave its lease up, called its tasks back or died, LeaseHeldError when another
        run has taken it. Nothing of this task's counts then; the run, or the next one, takes it away."""
        if not self._lock.acquire(blocking=False):
            return  # another thread is looking
        try:
            if self._over is None and time.monotonic() >= self._next:
                self._look()
                self._next = time.monotonic() + self._every
            if self._over is not None:
                raise type(self._over)(self._over.message, self._over.remedy)
        finally:
            self._lock.release()

    def _look(self) -> None:
        try:
            data, _ = self._store.get_document(self._key)
            record = LeaseRecord.model_validate_json(data)
        except BackupNotFoundError:
            self._over = StoppedError(f"The lease {self._key} of this run is gone; this step stops.", "Run it again.")
        except (FerryError, ValidationError) as error:
            _log.debug("The lease %s could not be looked at: %s", self._key, error)
            self._seen = None  # its holder may have been unable to renew it for the same reason
        else:
            self._every = min(self._every, record.ttl_seconds / RENEWALS_PER_LIFE)
            self._over = self._judge(record)

    def _judge(self, record: LeaseRecord) -> FerryError | None:
        if record.fencing == self._fencing and not record.released:
            self._token = record.token
            return self._dead(record)
        if record.released or record.token == self._token:
            return StoppedError(f"The run that this step belongs to is over ({self._key}); it cleans up after itself.")
        msg = (
            f"The run that this step belongs to (fencing number {self._fencing}) is over: {self._key} has number "
            f"{record.fencing} and is held by {record.holder}. This step stops; nothing of it is committed."
        )
        return LeaseHeldError(msg, "Run it again when that one has ended.")

    def _dead(self, record: LeaseRecord) -> FerryError | None:
        """A holder that has missed two lives of its lease is taken for dead, even when nobody wants the lease."""
        at = time.monotonic()
        if self._seen is None or self._seen[0] != record.renewals:
            self._seen = (record.renewals, at)
        silent = at - self._seen[1]
        if silent <= LIVES * record.ttl_seconds:
            return None
        msg = f"{record.holder} has not renewed its lease {self._key} for {silent:.0f} s and is taken for dead."
        return StoppedError(msg, "Run it again: the next run goes on with it, or takes away what is left.")


def call_back_tasks(lease: Lease) -> None:
    """Let every task of this run stop at its next part, wherever it runs, while the run keeps its lease to clean up.

    The lease gets the next fencing number, which none of them was given. Where the store does not answer they stop
    when the lease is given up, or when they reach the store again.
    """
    try:
        lease.advance()
    except FerryError as error:
        _log.warning("Tasks on other machines stop only when the lease ends: %s", error.message)
