"""When a backup must wait, slow down or stop to spare a cluster: pure rules over times, hours and limits."""

import math
import threading
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from statistics import median
from zoneinfo import ZoneInfo

from ferry.errors import ConfigurationError
from ferry.models import Finding, Value
from ferry.profiles import AnswerLimits

_DAY_MINUTES = 24 * 60
_SLOWEST_SHARE = 0.1
_KEPT_READINGS = 10_000  # of one snapshot; the worst of all is kept apart
_NOTEWORTHY_MS = 100.0
_NOTEWORTHY_TIMES = 3.0
_NOTEWORTHY_SECONDS = 1.0


def wait_until(now: datetime, quiet_hours: Sequence[str], timezone: str) -> datetime | None:
    """When the quiet hours that hold at ``now`` end, or None when none do; both moments know their offset.

    A moment is quiet when the clocks of ``timezone`` show a time within a range, its end not included; so an hour that
    the clocks show twice is quiet twice, and one that they leave out is not. A range may pass midnight.
    Raises ConfigurationError when every minute of the day is quiet, or for an unknown time zone.
    """
    quiet, zone = _quiet_minutes(tuple(quiet_hours)), _zone(timezone)
    moment = now
    while _minute(moment, zone) in quiet:
        moment = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    return moment.astimezone(now.tzinfo) if moment != now else None


def _minute(moment: datetime, zone: ZoneInfo) -> int:
    local = moment.astimezone(zone)
    return local.hour * 60 + local.minute


@lru_cache(maxsize=64)
def _quiet_minutes(quiet_hours: tuple[str, ...]) -> frozenset[int]:
    quiet: set[int] = set()
    for hours in quiet_hours:
        begin, end = ((int(time[:2]) * 60 + int(time[3:])) for time in hours.split("-"))
        length = (end - begin) % _DAY_MINUTES or _DAY_MINUTES
        quiet |= {minute % _DAY_MINUTES for minute in range(begin, begin + length)}
    if len(quiet) == _DAY_MINUTES:
        msg = f"quiet_hours {', '.join(quiet_hours)} leave no minute of the day in which a snapshot may be begun."
        raise ConfigurationError(msg)
    return frozenset(quiet)


def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError; a folder's name an OSError
        msg = f"The time zone {timezone} of the policy is not known on this machine."
        raise ConfigurationError(msg, "Correct `timezone`, such as Europe/Berlin, or install tzdata.") from error


def pause_limit_ms(limits: AnswerLimits) -> float | None:
    """Above which answer time nothing is begun or read: the smaller limit, since near the larger one it is too late."""
    return min((limit for limit in (limits.pause_above_ms, limits.stop_above_ms) if limit is not None), default=None)


def speed_share(answer_ms: float, pause_ms: float | None) -> float:
    """Which share of the time may be spent reading: all up to half the limit, none above it, falling in between."""
    if pause_ms is None or answer_ms <= pause_ms / 2:
        return 1.0
    if answer_ms > pause_ms:
        return 0.0
    return max(_SLOWEST_SHARE, (pause_ms - answer_ms) / (pause_ms / 2))


class Measured(Value):
    """Answer times before and during one snapshot, in ms; None where nothing was measured.

    ``during`` says what was done of it meanwhile: made, read, or both.
    """

    during: str
    before_ms: float | None
    median_ms: float | None
    worst_ms: float | None
    silent: int = 0
    unmeasured: str | None = None


class AnswerTimes:
    """The answer times of one collection, as they come in; safe between the thread that asks and those that look.

    Times are seconds of any clock that only goes on. A question that is still open counts with its age, so that a
    stall is seen while it lasts.
    """

    def __init__(self, limits: AnswerLimits) -> None:
        self._stop_ms, self._stop_seconds = limits.stop_above_ms, limits.stop_after_seconds
        self._lock = threading.Lock()
        self._open_since: float | None = None
        self._last_ms = 0.0
        self._above_since: float | None = None
        self._above_seconds = 0.0
        self._before: list[float] = []
        self._during: deque[float] = deque(maxlen=_KEPT_READINGS)
        self._worst_ms: float | None = None
        self._silent = 0
        self._silent_since: float | None = None
        self._unmeasured: str | None = None
        self._begun = False

    def begin(self) -> None:
        """From here on answers count as given during the snapshot."""
        self._begun = True

    def asked(self, at: float) -> None:
        """A question was sent."""
        with self._lock:
            self._open_since = at

    def answered(self, at: float) -> None:
        """It was answered."""
        with self._lock:
            began = self._closed(at)
            ms = (at - began) * 1000
            self._silent_since = None
            self._note(ms, began, at)
            if self._begun:
                self._during.append(ms)
                self._worst_ms = max(ms, self._worst_ms or 0.0)
            else:
                self._before.append(ms)

    def unanswered(self, at: float) -> None:
        """No answer came in time, or the node is gone: slower than any limit until the next answer."""
        with self._lock:
            began = self._closed(at)
            self._note(math.inf, began, at)
            self._silent += 1
            self._silent_since = began if self._silent_since is None else self._silent_since

    def unmeasurable(self, at: float, reason: str) -> None:
        """The question was refused, which says nothing about how fast answers are."""
        with self._lock:
            self._closed(at)
            self._last_ms, self._above_since, self._silent_since = 0.0, None, None
            self._unmeasured = reason

    def current_ms(self, at: float) -> float:
        """The last answer time, or the age of the open question where that is more."""
        with self._lock:
            return max(self._last_ms, 0.0 if self._open_since is None else (at - self._open_since) * 1000)

    def above_seconds(self, at: float) -> float:
        """How long answers have been above ``stop_above_ms`` without a break, at most so far."""
        with self._lock:
            if self._open_since is not None and self._is_above((at - self._open_since) * 1000):
                self._above(self._open_since, at)
            return self._above_seconds

    def stopped(self, at: float) -> bool:
        """Whether the stop limit has been passed for long enough; once so it stays so."""
        return self._stop_ms is not None and self.above_seconds(at) >= self._stop_seconds

    def silent_seconds(self, at: float) -> float:
        """How long the node has answered nothing; 0 when its last answer came."""
        with self._lock:
            return 0.0 if self._silent_since is None else at - self._silent_since

    def measured(self, during: str) -> Measured:
        """What has come in so far."""
        with self._lock:
            return Measured(
                during=during,
                before_ms=median(self._before) if self._before else None,
                median_ms=median(self._during) if self._during else None,
                worst_ms=self._worst_ms,
                silent=self._silent,
                unmeasured=self._unmeasured,
            )

    def _closed(self, at: float) -> float:
        began, self._open_since = self._open_since, None
        return at if began is None else began

    def _note(self, ms: float, began: float, at: float) -> None:
        self._last_ms = ms
        if self._is_above(ms):
            self._above(began, at)
        else:
            self._above_since = None

    def _is_above(self, ms: float) -> bool:
        return self._stop_ms is not None and ms > self._stop_ms

    def _above(self, began: float, at: float) -> None:
        self._above_since = began if self._above_since is None else self._above_since
        self._above_seconds = max(self._above_seconds, at - self._above_since)


class Held(Value):
    """How long one snapshot was held back, in seconds."""

    waited_seconds: float = 0.0
    slowed_seconds: float = 0.0
    paused_seconds: float = 0.0

    def noteworthy(self) -> bool:
        """Whether it took longer for that than one disturbed moment does."""
        return self.waited_seconds + self.slowed_seconds + self.paused_seconds >= _NOTEWORTHY_SECONDS


def findings(label: str, collection: str, measured: Measured, held: Held, *, limited: bool) -> tuple[Finding, ...]:
    """What an operator should know of one snapshot; nothing where answers stayed quick and nothing was held back."""
    worst, before = measured.worst_ms or 0.0, measured.before_ms or 0.0
    slow = worst >= max(_NOTEWORTHY_MS, _NOTEWORTHY_TIMES * before)
    blind = limited and measured.unmeasured is not None
    if not (slow or blind or measured.silent or held.noteworthy()):
        return ()
    worrying = blind or measured.silent or held.paused_seconds >= _NOTEWORTHY_SECONDS
    return (
        Finding(
            severity="warning" if worrying else "info",
            subject=collection,
            message=" ".join([answers_text(label, measured), *_held_texts(measured, held, limited=limited)]),
            remedy="docs/never-hurts.md says what a snapshot costs its node, and which settings spare it."
            if slow or worrying
            else None,
        ),
    )


def answers_text(label: str, measured: Measured) -> str:
    """The answer times in a sentence."""
    before = "" if measured.before_ms is None else f" in {measured.before_ms:.0f} ms before,"
    if not measured.during:
        return f"{label} was answered{before} and its snapshot was not begun."
    if measured.median_ms is None or measured.worst_ms is None:
        return f"{label} was answered{before} not once while its snapshot was {measured.during}."
    times = f"in {measured.median_ms:.0f} ms (median) and {measured.worst_ms:.0f} ms (worst)"
    return f"{label} was answered{before} {times} while its snapshot was {measured.during}."


def _held_texts(measured: Measured, held: Held, *, limited: bool) -> list[str]:
    texts = []
    if measured.silent:
        texts.append(f"No answer at all came to {measured.silent} of the questions.")
    if limited and measured.unmeasured is not None:
        texts.append(
            f"Its answer times could not be measured all the while, so limits did not hold: {measured.unmeasured}"
        )
    for seconds, what in (
        (held.waited_seconds, "waited {} before it was begun"),
        (held.slowed_seconds, "was slowed down by {}"),
        (held.paused_seconds, "was paused for {}"),
    ):
        if seconds:
            texts.append(f"The backup {what.format(f'{seconds:.1f} s')}.")
    return texts
