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
from typing import NamedTuple

from ferry.backup import calm
from ferry.backup.answers import Question, ShardQuestion
from ferry.errors import LimitError
from ferry.models import Finding, Progress, ShardId, now
from ferry.profiles import PolicyProfile
from ferry.qdrant.node import Node
from ferry.qdrant.snapshots import AWAY_SECONDS
from ferry.repository.bandwidth import from_node, limited

log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 0.5  # a snapshot that is done sooner is not measured: it has stalled nobody for long
_STEP_SECONDS = 1.0  # between two looks at whether the run was cancelled
_REFUSED_PAUSE_SECONDS = 30.0
# By node, when its last snapshot was done with; of this process only, since a rest is a courtesy and no promise.
_ended: dict[str, float] = {}
# By run, the first limit that it met: what else it has under way in this process heeds it, too.
_stopped: dict[str, "Stop"] = {}


@dataclass(frozen=True)
class Clock:
    """The clocks that a guard goes by."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = now


class Stop(NamedTuple):
    """A limit that a run met; ``at_once`` also ends downloads, else nothing new is begun."""

    message: str
    at_once: bool


@contextmanager
def guarded(
    node: Node,
    collection: str,
    policy: PolicyProfile,
    progress: Progress,
    shard_id: ShardId | None = None,
    run: str | None = None,
) -> Iterator["Guard"]:
    """A guard around the making of one snapshot, its download, or both; it measures until this is left.

    Guards of the same ``run`` stop together: what one of them may not do, the others do not begin.
    Raises LimitError at its end when the stop limit was passed while the snapshot was made and nothing was read since.
    """
    guard = Guard(ShardQuestion(node, collection, shard_id, policy.answers), policy, progress, run)
    try:
        yield guard
        guard.require_calm()
    finally:
        guard.close()


class Guard:
    """Holds one snapshot back as the policy says; ``progress`` is called with 0 each second of it, and may stop it."""

    def __init__(
        self,
        question: Question,
        policy: PolicyProfile,
        progress: Progress,
        run: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._question, self._policy, self._progress, self._run = question, policy, progress, run
        self._clock = clock or Clock()
        self._times = calm.AnswerTimes(policy.answers)
        self._pause_ms = calm.pause_limit_ms(policy.answers)
        self._longest_seconds = policy.longest_wait_minutes * 60
        self._held = {"waited_seconds": 0.0, "slowed_seconds": 0.0, "paused_seconds": 0.0}
        self._done: list[str] = []
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def admit(self) -> None:
        """Wait until a snapshot may be begun: the node's rest, quiet hours, slow answers.

        Raises LimitError when that takes longer than ``longest_wait_minutes`` (at once where quiet hours end later),
        when ``stop_above_ms`` is passed for ``stop_after_seconds``, or when the run met a limit elsewhere;
        ConfigurationError for quiet hours without end.
        """
        self._require_going(at_once=False)
        self._rest()
        deadline = self._clock.monotonic() + self._longest_seconds
        while self._wait_for_hours(deadline) or self._wait_for_answers(deadline):
            pass
        self._watch("made")

    def paced(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The same blocks, no faster than the policy and the answer times allow; none is asked for during a pause.

        Raises LimitError when ``stop_above_ms`` was passed for ``stop_after_seconds``, also while the snapshot was
        made, or when pauses together take longer than ``longest_wait_minutes``.
        """
        self._watch("read")
        cap = from_node(self._question.node_url, self._policy.node_mb_per_second)
        source = limited(iter(blocks), cap, self._progress)
        while True:
            self._pause()
            began = self._clock.monotonic()
            block = next(source, None)
            if block is None:
                return
            yield block
            self._slow_down(self._clock.monotonic() - began)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was measured and how long the snapshot was held back, where that is worth telling."""
        held = calm.Held(**self._held)
        limited = self._pause_ms is not None
        return calm.findings(self._question.label, self._question.collection, self._measured(), held, limited=limited)

    @property
    def worst_ms(self) -> float | None:
        """The slowest answer so far since the snapshot was begun; None before the first."""
        return self._measured().worst_ms

    def require_calm(self) -> None:
        """Raise LimitError when the stop limit was passed while the snapshot was made, and nothing was read since."""
        if "read" not in self._done:
            self._require_below_stop()

    def close(self) -> None:
        """End the measuring; waits for the answer that is still open, a few seconds at most."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            _ended[self._question.node_url] = self._clock.monotonic()

    def _rest(self) -> None:
        ended = _ended.get(self._question.node_url)
        if ended is not None and self._policy.pause_seconds:
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
        self._require_time(deadline, "no snapshot was begun")
        self._spend("waited_seconds", lambda: self._sleep(self._policy.answers.interval_seconds))
        return True

    def _pause(self) -> None:
        """Wait while answers are too slow."""
        self._require_below_stop()
        if self._is_slow():
            log.warning("%s: paused, because %s", self._question.label, self._current())
            self._spend("paused_seconds", self._wait_for_recovery)

    def _wait_for_recovery(self) -> None:
        deadline = self._clock.monotonic() + self._longest_seconds - self._held["paused_seconds"]
        while self._is_slow():
            self._require_time(deadline, "its snapshot was not read to the end")
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
        at = self._clock.monotonic()
        if silent := self._times.silent_seconds(at):
            return f"no answer has come for {silent:.0f} s"
        return f"answers take {self._times.current_ms(at):.0f} ms, and the policy allows {self._pause_ms:g} ms"

    def _require_time(self, deadline: float, what: str) -> None:
        """Raise LimitError when waiting has taken too long, or the node is not slow but gone."""
        at = self._clock.monotonic()
        if at >= deadline:
            raise self._too_long(f"{self._question.label}: {what}: {self._current()}.")
        if self._times.silent_seconds(at) >= AWAY_SECONDS:
            msg = f"{self._question.label}: {what}: {self._current()}. The cluster's data is unchanged."
            self._stop_run(msg, at_once=False)
            raise LimitError(msg, "See the node's log, start it, then run the same backup again: it goes on from here.")

    def _measured(self) -> calm.Measured:
        return self._times.measured(" and ".join(dict.fromkeys(self._done)))

    def _require_below_stop(self) -> None:
        at, limits = self._clock.monotonic(), self._policy.answers
        if self._times.stopped(at):
            msg = (
                f"{self._question.label}: answers took more than {limits.stop_above_ms:g} ms for "
                f"{self._times.above_seconds(at):.1f} s; the policy allows {limits.stop_after_seconds:g} s. "
                + (f"{calm.answers_text(self._question.label, self._measured())} " if self._done else "")
                + "The backup stopped itself; the cluster's data is unchanged, and what is proven stays."
            )
            self._stop_run(msg, at_once=True)
            raise LimitError(msg)
        self._require_going(at_once=True)

    def _require_going(self, *, at_once: bool) -> None:
        """Raise LimitError when another guard of the run met a limit; of those that end downloads, if ``at_once``."""
        stop = _stopped.get(self._run or "")
        if stop is not None and (stop.at_once or not at_once):
            msg = f"{self._question.label}: left out, because the run met a limit of its policy elsewhere."
            raise LimitError(f"{msg} Qdrant's data is unchanged.", f"See: {stop.message}")

    def _stop_run(self, message: str, *, at_once: bool) -> None:
        if self._run is not None:
            log.warning("%s", message)
            earlier = _stopped.get(self._run)
            _stopped[self._run] = Stop(message, at_once or (earlier is not None and earlier.at_once))

    def _too_long(self, message: str) -> LimitError:
        minutes = self._policy.longest_wait_minutes
        message += f" The policy waits {minutes:g} minutes at most. The cluster's data is unchanged."
        self._stop_run(message, at_once=False)
        return LimitError(message)

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

    def _watch(self, done: str) -> None:
        self._done.append(done)
        if self._thread is None:
            self._times.begin()
            self._thread = threading.Thread(target=self._keep_asking, name="ferry-answers", daemon=True)
            self._thread.start()

    def _keep_asking(self) -> None:
        if self._closing.wait(min(_FIRST_LOOK_SECONDS, self._policy.answers.interval_seconds)):
            return
        interval = max(self._policy.answers.interval_seconds, self._least_interval_seconds())
        while not self._closing.wait(interval if self._ask() else max(interval, _REFUSED_PAUSE_SECONDS)):
            pass

    def _least_interval_seconds(self) -> float:
        """What strict mode leaves; asking that may wait for the same locks as a read, so it counts as one."""
        self._times.asked(self._clock.monotonic())
        seconds = self._question.least_interval_seconds()
        at = self._clock.monotonic()
        if seconds is None:
            self._times.unanswered(at)
        else:
            self._times.answered(at)
        return seconds or 0.0

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
