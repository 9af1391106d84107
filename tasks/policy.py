"""What all tasks share: which failures are tried again, how a cancel reaches threads, and progress in the UI."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from ferry.errors import FerryError, StoppedError
from ferry.lanes import RETRY_DELAYS_SECONDS, raise_errors
from ferry.models import Progress

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

# Threads that wait for an earlier step of their lane hold a place, so there are more places than lanes.
THREADS = 64
# Below this a transfer is over before anyone looks at its progress; each update is a row and an event.
PROGRESS_BYTES = 64 * 1024 * 1024
PROGRESS_SECONDS = 2.0
STOP_SECONDS = 20.0

# Ferry's own log lines reach the run's page at INFO; httpx would add one for each request.
logging.getLogger("httpx").setLevel(logging.WARNING)

# Cancelling does not reach threads by itself: long work asks this at every part. One flow run is one process.
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


def threads() -> TaskRunner[PrefectFuture[Any]]:
    """The task runner of Ferry's flows."""
    return cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=THREADS))


@contextmanager
def stop_with_the_flow(futures: list[PrefectFuture[Any]]) -> Iterator[None]:
    """While the flow waits for these futures: when it is cancelled or fails, stop them and let them clean up."""
    _stop.clear()
    try:
        yield
    except BaseException:
        _stop.set()
        wait(futures, timeout=STOP_SECONDS)
        raise


def raise_failures(futures: Iterable[PrefectFuture[Any]], what: str) -> None:
    """Raise the error of the one future that failed, or one error that lists them all."""
    raise_errors([error for future in futures if (error := failure(future)) is not None], what)


def failure(future: PrefectFuture[Any]) -> BaseException | None:
    """The error of a future's own work; None when it succeeded or never ran because an earlier step failed."""
    state = future.state
    if state.is_failed() or state.is_crashed():
        error = state.result(raise_on_failure=False)
        return error if isinstance(error, BaseException) else FerryError(state.message or "a task crashed")
    return None


def require_going(label: str) -> None:
    """Raise StoppedError when the flow was cancelled or has failed."""
    if _stop.is_set():
        msg = f"{label}: stopped because the run was cancelled or failed elsewhere; it cleans up after itself."
        raise StoppedError(msg)


def progress(label: str, total: int) -> Progress:
    """Progress for one long step: stops it when the flow was cancelled, and shows it in the UI when it is worth it.

    Raises StoppedError at once when the step wakes from the pause before a retry and the flow is over.
    """
    require_going(label)
    shown: dict[str, Any] = {"id": None, "done": 0, "at": time.monotonic()}

    def tell(done: int) -> None:
        require_going(label)
        shown["done"] += done
        if total < PROGRESS_BYTES or time.monotonic() - shown["at"] < PROGRESS_SECONDS:
            return
        percent = min(100.0, 100.0 * shown["done"] / total)
        shown["at"] = time.monotonic()
        if shown["id"] is None:
            shown["id"] = create_progress_artifact(progress=percent, description=label)
        else:
            update_progress_artifact(artifact_id=shown["id"], progress=percent)

    return tell
