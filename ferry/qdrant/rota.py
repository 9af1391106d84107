"""Which node is asked next: one after the other, save those that have failed and rest."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ferry.errors import NodeError, NodeUnreachableError
from ferry.qdrant.http import BusyError

AWAY_SECONDS = 120.0  # a node that is restarted or stopped for a minute is waited for
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 0.25, 8.0
LONGEST_PAUSE_SECONDS = 60.0

N = TypeVar("N")
R = TypeVar("R")
Pause = Callable[[float], None]


class Rota(Generic[N]):
    """The nodes of a cluster, or the channels to them; safe to use from several threads.

    A node that has failed is tried by one request at a time, after a rest that grows with every failure in a row.
    ``task`` says what no node has done when all have failed: "has taken points of docs".
    """

    def __init__(self, nodes: Sequence[N], task: str) -> None:
        self._nodes = list(nodes)
        self._task = task
        self._lock = threading.Lock()
        self._failures = [0] * len(nodes)
        self._rests_until = [0.0] * len(nodes)
        self._following = 0

    def ask(self, work: Callable[[N], R], pause: Pause) -> R:
        """What ``work`` returns for the first node that does it; for requests that may be sent again without harm.

        It is tried at another node at once when one does not answer, and at the same one after a pause; a limit is
        waited for as long as the node asks. ``pause`` waits, and raises when all is to stop. Raises NodeError when no
        node has done it for ``AWAY_SECONDS``, and whatever else ``work`` raises.
        """
        since: float | None = None
        while True:
            index = self._next(pause)
            try:
                answer = work(self._nodes[index])
            except BusyError as error:
                if error.retry_after_seconds is None:
                    since = self._failed(index, error, since)
                else:  # a limit is no fault
                    pause(min(error.retry_after_seconds, LONGEST_PAUSE_SECONDS))
            except NodeUnreachableError as error:
                since = self._failed(index, error, since)
            else:
                self._worked(index)
                return answer

    def _next(self, pause: Pause) -> int:
        """The next node; waits for one that has rested."""
        pause(0.0)
        while True:
            with self._lock:
                now, count = time.monotonic(), len(self._nodes)
                turn = [(self._following + step) % count for step in range(count)]
                awake = next((index for index in turn if self._rests_until[index] <= now), None)
                if awake is not None:
                    self._following = awake + 1
                    if self._failures[awake]:
                        self._rests_until[awake] = now + LONGEST_REST_SECONDS
                    return awake
                rest = min(self._rests_until) - now
            pause(min(rest, FIRST_REST_SECONDS))  # it may be found well before

    def _worked(self, index: int) -> None:
        with self._lock:
            self._failures[index], self._rests_until[index] = 0, 0.0

    def _failed(self, index: int, error: NodeUnreachableError, since: float | None) -> float:
        """Let the node rest; since when the request fails. Raises NodeError when that is too long ago."""
        now = time.monotonic()
        with self._lock:
            rest = min(FIRST_REST_SECONDS * 2 ** self._failures[index], LONGEST_REST_SECONDS)
            self._failures[index] += 1
            self._rests_until[index] = now + rest
        since = now if since is None else since
        if now - since < AWAY_SECONDS:
            return since
        msg = f"For {now - since:.0f} s no node {self._task}; the last said: {error.message}"
        raise NodeError(
            msg, "See which node is away (python -m ferry doctor), start it, then run this again."
        ) from error
