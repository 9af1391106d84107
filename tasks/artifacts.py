"""Reports in the Prefect UI. They are for people: none fails a step, and no step waits long for Prefect's server."""

import contextvars
import hashlib
import logging
import queue
import re
import threading
from collections.abc import Callable
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

log = logging.getLogger(__name__)

# Longer than SQLite's "busy, try again" takes; a server that is away is not waited for.
PATIENCE_SECONDS = 5.0


class Post:
    """Sends reports in order, from a thread of its own, where Prefect's client may try again for as long as it likes.

    One that fails is logged and dropped. While one is late nobody waits for those behind it.
    """

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience = patience_seconds
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(maxsize=1000)
        self._late = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, act: Callable[[], Any], *, wait: bool = True) -> None:
        """Send one report, as the run that calls; ``wait`` for it, but not longer than this post's patience."""
        done = threading.Event()
        context = contextvars.copy_context()  # what makes it a report of this run and of this step

        def deliver() -> None:
            try:
                context.run(act)
            except Exception as error:  # noqa: BLE001 - whatever Prefect's client may raise, a report is only a report
                log.warning("Not shown in Prefect's UI: %s: %s", type(error).__name__, error)
            finally:
                done.set()

        try:
            self._waiting.put_nowait(deliver)
        except queue.Full:
            return
        self._begin()
        if wait and not self._late and not done.wait(self._patience) and not self._late:
            self._late = True
            log.warning("Prefect's server does not answer; the run goes on, and its reports follow when it does.")

    def _begin(self) -> None:
        with self._lock:
            # A fork has the object but not its thread.
            if self._thread is None or not self._thread.is_alive():
                # A daemon: it must not keep a process alive whose run has ended.
                self._thread = threading.Thread(target=self._deliver, name="ferry-reports", daemon=True)
                self._thread.start()

    def _deliver(self) -> None:
        while True:
            self._waiting.get()()
            self._late = False


post = Post()


def show_table(name: tuple[str, ...], rows: list[dict[str, Any]], description: str) -> None:
    """A table on the run's page; the same name makes a history."""
    post.send(lambda: create_table_artifact(table=rows, key=artifact_key(*name), description=description))


def show_markdown(name: tuple[str, ...], text: str, description: str) -> None:
    """A text on the run's page; the same name makes a history."""
    post.send(lambda: create_markdown_artifact(markdown=text, key=artifact_key(*name), description=description))


def artifact_key(*names: str) -> str:
    """Prefect allows lower-case letters, digits and dashes only; what was folded away is told apart by a hash."""
    wanted = "-".join(names)
    folded = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if folded == wanted.lower().replace("_", "-"):
        return folded
    return f"{folded}-{hashlib.sha256(wanted.encode()).hexdigest()[:6]}".strip("-")
