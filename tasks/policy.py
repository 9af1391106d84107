"""What all tasks share: which failures are tried again, how a cancel reaches them, and progress in the UI."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture, wait

from ferry.errors import FerryError, StoppedError
from ferry.lanes import RETRY_DELAYS_SECONDS, raise_errors
from ferry.models import Progress
from ferry.repository.lease_watch import LeaseWatch
from ferry.repository.store import ObjectStore
from tasks.artifacts import post

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

# Below this a transfer is over before anyone looks at its progress; each update is a row and an event.
PROGRESS_BYTES = 64 * 1024 * 1024
PROGRESS_SECONDS = 2.0
STOP_SECONDS = 20.0

# Ferry's own log lines reach the run's page at INFO; httpx would add one for each request.
logging.getLogger("httpx").setLevel(logging.WARNING)

# Cancelling does not reach threads by itself: long work asks this at every part. One flow run is one process; its tasks
# in other processes look at the lease instead.
_stop = threading.Event()


def retry_if_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Try again only what may pass by itself: a wrong key or a damaged archive fails at once."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, FerryError) and error.transient


def step(name: str, run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task with Ferry's retries. Never cached: the truth lies in the bucket, and every step may run twice."""

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return Task(
            function,
            name=name,
            task_run_name=run_name,
            retries=len(RETRY_DELAYS_SECONDS),
            retry_delay_seconds=list(RETRY_DELAYS_SECONDS),
            retry_condition_fn=retry_if_transient,
            cache_policy=NO_CACHE,
            persist_result=False,
        )

    return decorate


@contextmanager
def stop_with_the_flow(
    futures: list[PrefectFuture[Any]], call_back: Callable[[], object] | None = None
) -> Iterator[None]:
    """While the flow waits for these futures: when it is cancelled or fails, stop them and let them clean up.

    ``call_back`` tells those on other machines; it must not raise.
    """
    _stop.clear()
    try:
        yield
    except BaseException:
        _stop.set()
        if call_back is not None:
            # Beside the waiting: a store that does not answer must not use up the time that the tasks have.
            threading.Thread(target=call_back, name="ferry-call-back", daemon=True).start()
        wait(futures, timeout=STOP_SECONDS)
        raise


def raise_failures(futures: Iterable[PrefectFuture[Any]], what: str) -> None:
    """Raise the error of the one future that failed, or one error that lists them all."""
    raise_errors([error for future in futures if (error := failure(future)) is not None], what)


def failure(future: PrefectFuture[Any]) -> BaseException | None:
    """The error of a future's own work; None when it succeeded or never ran because an earlier step failed."""
    try:
        outcome = future.result(raise_on_failure=False)
    except UnfinishedRun:
        return None
    except Exception as error:  # noqa: BLE001 - Dask and Ray each raise their own when a worker has died
        msg = f"A step was lost with the process it ran in ({type(error).__name__}: {error})."
        return FerryError(msg, "Look at the workers' logs, then run it again: the next run takes away what is left.")
    return outcome if isinstance(outcome, BaseException) else None


@lru_cache(maxsize=8)
def lease_watch(store: ObjectStore, key: str, fencing: int) -> LeaseWatch:
    """One look at a run's lease for all its tasks in this process, which may be another one than its flow's."""
    return LeaseWatch(store, key, fencing)


def require_going(label: str, watch: LeaseWatch | None = None) -> None:
    """Raise StoppedError when the flow was cancelled or has failed, LeaseHeldError when it lost its lease."""
    if _stop.is_set():
        msg = f"{label}: stopped because the run was cancelled or failed elsewhere; it cleans up after itself."
        raise StoppedError(msg)
    if watch is not None:
        watch.require_held()


def progress(label: str, total: int, watch: LeaseWatch | None = None, worth: int = PROGRESS_BYTES) -> Progress:
    """Progress for one long step: stops it when the flow is over, and shows it in the UI from a total of ``worth`` on.

    Raises what ``require_going`` raises, and at once when a step wakes from its pause and the flow is over.
    ``watch`` is needed where the step may run in another process than its flow.
    """
    require_going(label, watch)
    shown = Shown(label)
    done, at = 0, time.monotonic()

    def tell(more: int) -> None:
        nonlocal done, at
        require_going(label, watch)
        done += more
        if total < worth or time.monotonic() - at < PROGRESS_SECONDS:
            return
        at = time.monotonic()
        shown.show(min(100.0, 100.0 * done / total))

    return tell


class Shown:
    """One progress bar in the UI. Sent by the way: a transfer never waits for Prefect's server."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._id: Any = None
        self._percent = 0.0
        self._under_way = threading.Event()

    def show(self, percent: float, label: str | None = None) -> None:
        """Show it, with another label if need be; while an earlier update is under way only the newest is kept."""
        self._percent = percent
        self._label = label or self._label
        if not self._under_way.is_set():
            self._under_way.set()
            post.send(self._send, wait=False)

    def _send(self) -> None:
        self._under_way.clear()
        if self._id is None:
            self._id = create_progress_artifact(progress=self._percent, description=self._label)
        else:
            update_progress_artifact(artifact_id=self._id, progress=self._percent, description=self._label)
