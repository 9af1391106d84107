"""Work in lanes without Prefect: one thread a lane, retries of what may pass, and one stop for all of it."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from ferry.errors import FerryError, StoppedError
from ferry.models import Progress, no_progress

log = logging.getLogger(__name__)
W = TypeVar("W")
R = TypeVar("R")

# A node that is restarted or stopped for a minute is waited for; one that stays away fails the run within three.
RETRY_DELAYS_SECONDS = (2.0, 10.0, 30.0, 60.0)
# Begins to show one step by its label and its total (bytes or points, where known); ends when it is left.
Tell = Callable[[str, int | None], AbstractContextManager[Progress]]


@contextmanager
def tell_nobody(_label: str, _total: int | None) -> Iterator[Progress]:
    """Show nothing."""
    yield no_progress


class Job:
    """The threads of one job. A step that fails does not stop its lane; a stop ends all of them at the next part."""

    def __init__(self, tell: Tell = tell_nobody, retry_delays_seconds: Sequence[float] = RETRY_DELAYS_SECONDS) -> None:
        self._tell = tell
        self._delays = tuple(retry_delays_seconds)
        self._stop = threading.Event()

    def step(self, label: str, total: int | None, work: Callable[[Progress], R]) -> R:
        """Do one step with progress that stops it; again after a pause while its error is one that may pass."""
        for delay in (*self._delays, None):
            self._require_going(label)
            try:
                with self._tell(label, total) as show:
                    return work(self._stoppable(label, show))
            except FerryError as error:
                if delay is None or not error.transient:
                    raise
                log.warning("%s: trying again in %.0f s: %s", label, delay, error.message)
            self._stop.wait(delay)
        raise AssertionError  # the last turn returns or raises

    def run(self, lanes: Sequence[Sequence[W]], work: Callable[[W], R]) -> list[Future[R]]:
        """Do the work of every lane, lanes beside each other; the finished futures in the order of the lanes.

        Ctrl-C stops the steps at their next part, waits until they have cleaned up, and is raised again.
        """
        futures: list[list[Future[R]]] = [[Future() for _ in lane] for lane in lanes]
        with self.threads(len(lanes), "ferry-lane") as pool:
            pairs = [list(zip(lane, row, strict=True)) for lane, row in zip(lanes, futures, strict=True)]
            for ended in [pool.submit(_drive, pair, work) for pair in pairs]:
                ended.result()
        return [future for row in futures for future in row]

    @contextmanager
    def threads(self, number: int, name: str) -> Iterator[ThreadPoolExecutor]:
        """A pool whose threads are stopped when the body fails, and have ended when it is left."""
        pool = ThreadPoolExecutor(max(1, number), thread_name_prefix=name)
        try:
            yield pool
        except BaseException:  # KeyboardInterrupt above all: what was begun must clean up before we leave
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            pool.shutdown()

    def _stoppable(self, label: str, show: Progress) -> Progress:
        def tell(done: int) -> None:
            self._require_going(label)
            show(done)

        return tell

    def _require_going(self, label: str) -> None:
        if self._stop.is_set():
            msg = f"{label}: stopped because the job was interrupted or failed elsewhere; it cleans up after itself."
            raise StoppedError(msg)


def _drive(lane: list[tuple[W, Future[R]]], work: Callable[[W], R]) -> None:
    for item, future in lane:
        try:
            future.set_result(work(item))
        except Exception as error:  # noqa: BLE001 - it is the future's, and raised by raise_failures
            future.set_exception(error)


def raise_failures(futures: Sequence[Future[Any]], what: str) -> None:
    """Raise the error of the one step that failed, or one error that lists them all."""
    raise_errors([error for future in futures if (error := future.exception()) is not None], what)


def raise_errors(errors: Sequence[BaseException], what: str) -> None:
    """Raise the one error there is, or one that lists them all; nothing where there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "\n".join(f"- {error}" for error in errors)
        msg = f"{len(errors)} steps of {what} failed:\n{lines}"
        raise FerryError(msg, getattr(errors[0], "remedy", None))
