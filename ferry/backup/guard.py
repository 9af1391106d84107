"""The guard of one snapshot: waits before it is begun, paces its download, and stops the run when a limit is passed.

Making a snapshot cannot be paused on the node: the request runs to its end even when its sender is gone. So the guard
acts before the snapshot is begun and while its bytes are read; what it measures meanwhile decides how that goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from ferry.backup import calm
from ferry.errors import LimitError, NodeError, NodeUnreachableError
from ferry.models import Finding, Progress, ShardId, now
from ferry.profiles import AnswerLimits, PolicyProfile
from ferry.qdrant.http import NotFoundError, path_of
from ferry.qdrant.node import Node

log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 0.5  # a snapshot that is done sooner is not measured: it has stalled nobody for long
_STEP_SECONDS = 1.0  # between two looks at whether the run was cancelled
_SILENT_AFTER_SECONDS = 5.0
_REFUSED_PAUSE_SECONDS = 30.0
_STRICT_SHARE = 0.05  # of the reads that a collection's strict mode allows a minute; the others are its users'
# By node, when its last snapshot was done with; of this process only, since a rest is a courtesy and no promise.
_ended: dict[str, float] = {}


@dataclass(frozen=True)
class Clock:
    """The clocks that a guard goes by."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = now


class Answer(NamedTuple):
    """How a question ended. ``refused``: the node answered at once and not from the data, which measures nothing."""

    kind: Literal["answered", "silent", "refused"]
    reason: str = ""


class Question(Protocol):
    """A cheap read whose answer time is measured."""

    label: str
    node_url: str

    def ask(self) -> Answer:
        """Ask once and wait for the answer."""
        ...

    def least_interval_seconds(self) -> float:
        """How seldom it must be asked so as not to use up what is allowed to others."""
        ...


class ShardQuestion:
    """The first point of one replica, without payload and vector, from the node that makes the snapshot.

    Every read that passes through the segments of the replica waits for the same locks as searches do (measured on
    1.16.3, docs/never-hurts.md), and this one costs least, asks no other node, is allowed by every right that suffices
    for snapshots, and works on an empty collection. Without a shard, or where the node has no such route, the same is
    asked of the whole collection. httpx gives it a connection of its own while the download holds another.
    """

    def __init__(self, node: Node, collection: str, shard_id: ShardId | None, limits: AnswerLimits) -> None:
        self.node_url = node.url
        self.label = f"{collection}{'' if shard_id is None else f' shard {shard_id}'} on {node.label}"
        self._node, self._collection = node, collection
        folder = path_of("collections", collection)
        self._paths = [folder + "/points/scroll"]
        if shard_id is not None:
            self._paths.insert(0, folder + path_of("shards", shard_id) + "/points/scroll")
        slowest_ms = max(limits.pause_above_ms or 0.0, limits.stop_above_ms or 0.0)
        self._timeout_seconds = max(_SILENT_AFTER_SECONDS, 2 * slowest_ms / 1000)

    def ask(self) -> Answer:
        """Ask once; nothing is raised, for a watchdog that fails must not fail the backup."""
        body = {"limit": 1, "with_payload": False, "with_vector": False}
        try:
            self._node.request("POST", self._paths[0], json=body, timeout=self._timeout_seconds)
        except NotFoundError as error:
            if len(self._paths) > 1:
                del self._paths[0]
                return self.ask()
            return Answer("refused", error.message)
        except NodeUnreachableError as error:
            # Only a 429 has it: strict mode counts reads, and that it says so at once is no slow answer.
            limited = hasattr(error, "retry_after_seconds")
            return Answer("refused" if limited else "silent", error.message)
        except NodeError as error:
            return Answer("refused", error.message)
        return Answer("answered")

    def least_interval_seconds(self) -> float:
        """So seldom that strict mode's reads a minute stay for its users; 0 where it does not count them."""
        try:
            strict = self._node.collection(self._collection)["config"].get("strict_mode_config") or {}
        except NodeError:
            return 0.0
        limit = strict.get("read_rate_limit") if strict.get("enabled") else None
        return 60 / (limit * _STRICT_SHARE) if limit else 0.0


@contextmanager
def guarded(
    node: Node, collection: str, policy: PolicyProfile, progress: Progress, shard_id: ShardId | None = None
) -> Iterator["Guard"]:
    """A guard around the making and downloading of one snapshot; what it measures with has ended when this is left."""
    guard = Guard(ShardQuestion(node, collection, shard_id, policy.answers), collection, policy, progress)
    try:
        yield guard
    finally:
        guard.close()


class Guard:
    """Holds one snapshot back as the policy says; ``progress`` is called with 0 each second of it, and may stop it."""

    def __init__(
        self,
        question: Question,
        collection: str,
        policy: PolicyProfile,
        progress: Progress,
        clock: Clock | None = None,
    ) -> None:
        self._question, self._collection, self._policy, self._progress = question, collection, policy, progress
        self._clock = clock or Clock()
        self._times = calm.AnswerTimes(policy.answers)
        self._pause_ms = calm.pause_limit_ms(policy.answers)
        self._longest_seconds = policy.longest_wait_minutes * 60
        self._held = {"waited_seconds": 0.0, "slowed_seconds": 0.0, "paused_seconds": 0.0}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def admit(self) -> None:
        """Wait until a snapshot may be begun: the node's rest, quiet hours, slow answers.

        Raises LimitError when that takes longer than ``longest_wait_minutes`` (at once where quiet hours end later),
        or when ``stop_above_ms`` is passed for ``stop_after_seconds``; ConfigurationError for quiet hours without end.
        """
        self._rest()
        deadline = self._clock.monotonic() + self._longest_seconds
        while self._wait_for_hours(deadline) or self._wait_for_answers(deadline):
            pass
        self._watch()

    def paced(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The same blocks, no faster than the policy and the answer times allow; none is asked for during a pause.

        Raises LimitError when ``stop_above_ms`` was passed for ``stop_after_seconds``, also while the snapshot was
        made, or when pauses together take longer than ``longest_wait_minutes``.
        """
        self._watch()
        source, rate = iter(blocks), (self._policy.node_mb_per_second or 0.0) * 1e6
        while True:
            self._pause()
            began = self._clock.monotonic()
            block = next(source, None)
            if block is None:
                return
            yield block
            if rate:
                self._sleep(began + len(block) / rate - self._clock.monotonic())
            self._slow_down(self._clock.monotonic() - began)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was measured and how long the snapshot was held back, where that is worth telling."""
        held = calm.Held(**self._held)
        limited = self._pause_ms is not None
        return calm.findings(self._question.label, self._collection, self._times.measured(), held, limited=limited)

    def close(self) -> None:
        """End the measuring; waits for the answer that is still open, a few seconds at most."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            _ended[self._question.node_url] = self._clock.monotonic()

    def _rest(self) -> None:
        ended = _ended.get(self._question.node_url)
        if ended is not None:
            self._sleep(ended + self._policy.pause_seconds - self._clock.monotonic())

    def _wait_for_hours(self, deadline: float) -> bool:
        """Wait out quiet hours; whether there were any."""
        present = self._clock.now()
        until = calm.wait_until(present, self._policy.quiet_hours, self._policy.timezone)
        if until is None:
            return False
        seconds = (until - present).total_seconds()
        hours = f"quiet hours ({', '.join(self._policy.quiet_hours)} {self._policy.timezone}) until {until:%H:%M} UTC"
        if self._clock.monotonic() + seconds > deadline:
            msg = f"{self._question.label}: no snapshot was begun, because of {hours}, {seconds / 60:.0f} minutes away."
            raise self._too_long(msg)
        log.info("%s: waiting for %s", self._question.label, hours)
        self._spend("waited_seconds", lambda: self._sleep(seconds))
        return True

    def _wait_for_answers(self, deadline: float) -> bool:
        """Ask once; where the answer is too slow, wait until the next time and say True."""
        self._ask()
        self._require_below_stop()
        if self._pause_ms is None or not self._is_slow():
            return False
        if self._clock.monotonic() >= deadline:
            msg = f"{self._question.label}: no snapshot was begun, because answers take {self._current()}."
            raise self._too_long(msg)
        self._spend("waited_seconds", lambda: self._sleep(self._policy.answers.interval_seconds))
        return True

    def _pause(self) -> None:
        """Wait while answers are too slow."""
        self._require_below_stop()
        if self._is_slow():
            log.warning("%s: paused, because answers take %s", self._question.label, self._current())
            self._spend("paused_seconds", self._wait_for_recovery)

    def _wait_for_recovery(self) -> None:
        deadline = self._clock.monotonic() + self._longest_seconds - self._held["paused_seconds"]
        while self._is_slow():
            if self._clock.monotonic() >= deadline:
                msg = f"{self._question.label}: its snapshot was not read to the end; answers take {self._current()}."
                raise self._too_long(msg)
            self._sleep(min(_STEP_SECONDS, self._policy.answers.interval_seconds))
            self._require_below_stop()

    def _slow_down(self, busy_seconds: float) -> None:
        """Rest after a block that took so long, in the proportion that the answer times ask for."""
        share = calm.speed_share(self._times.current_ms(self._clock.monotonic()), self._pause_ms)
        if 0 < share < 1:
            self._spend("slowed_seconds", lambda: self._sleep(busy_seconds * (1 / share - 1)))

    def _is_slow(self) -> bool:
        return self._pause_ms is not None and self._times.current_ms(self._clock.monotonic()) > self._pause_ms

    def _current(self) -> str:
        ms = self._times.current_ms(self._clock.monotonic())
        shown = f"{ms:.0f} ms" if ms != float("inf") else "too long (none came)"
        return f"{shown}; the policy allows {self._pause_ms:.0f} ms"

    def _require_below_stop(self) -> None:
        at, limits = self._clock.monotonic(), self._policy.answers
        if self._times.stopped(at):
            msg = (
                f"{self._question.label}: answers took more than {limits.stop_above_ms:.0f} ms for "
                f"{self._times.above_seconds(at):.0f} s; the policy allows {limits.stop_after_seconds:.0f} s. "
                "The backup stopped itself; the cluster's data is unchanged, and what is proven stays."
            )
            raise LimitError(msg)

    def _too_long(self, message: str) -> LimitError:
        minutes = self._policy.longest_wait_minutes
        return LimitError(
            f"{message} The policy waits {minutes:g} minutes at most. The cluster's data is unchanged.",
        )

    def _spend(self, account: str, wait: Callable[[], None]) -> None:
        began = self._clock.monotonic()
        try:
            wait()
        finally:
            self._held[account] += self._clock.monotonic() - began

    def _sleep(self, seconds: float) -> None:
        """Sleep, looking at every second whether the run was cancelled."""
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0:
            self._progress(0)
            self._clock.sleep(min(_STEP_SECONDS, left))

    def _watch(self) -> None:
        if self._thread is None:
            self._times.begin()
            self._thread = threading.Thread(target=self._keep_asking, name="ferry-answers", daemon=True)
            self._thread.start()

    def _keep_asking(self) -> None:
        if self._closing.wait(min(_FIRST_LOOK_SECONDS, self._policy.answers.interval_seconds)):
            return
        interval = max(self._policy.answers.interval_seconds, self._question.least_interval_seconds())
        while not self._closing.wait(interval if self._ask() else max(interval, _REFUSED_PAUSE_SECONDS)):
            pass

    def _ask(self) -> bool:
        """Ask once and note the time; whether that measured anything."""
        self._times.asked(self._clock.monotonic())
        answer = self._question.ask()
        at = self._clock.monotonic()
        if answer.kind == "answered":
            self._times.answered(at)
        elif answer.kind == "silent":
            self._times.unanswered(at)
        else:
            log.info("%s: its answer time could not be measured: %s", self._question.label, answer.reason)
            self._times.unmeasurable(at, answer.reason)
        return answer.kind != "refused"
