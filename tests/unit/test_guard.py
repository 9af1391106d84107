"""When a backup waits, slows down, pauses and stops: by fake clocks and fake answers."""

import math
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from ferry.backup import calm, guard
from ferry.backup.answers import Answer
from ferry.backup.guard import Clock, Guard
from ferry.errors import ConfigurationError, LimitError, StoppedError
from ferry.models import no_progress
from ferry.profiles import AnswerLimits, ClusterProfile, PolicyProfile
from ferry.qdrant.node import Node
from ferry.repository.bandwidth import Bandwidth

SATURDAY = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")
PROFILE = ClusterProfile(nodes=["http://10.0.0.1:6333"])
MINUTE = timedelta(minutes=1)
LIMITS = AnswerLimits(interval_seconds=1, pause_above_ms=100, stop_above_ms=1000, stop_after_seconds=10)


class FakeClock:
    """Time that passes only by sleeping, and what happens meanwhile."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.meanwhile: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.meanwhile()

    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep, lambda: SATURDAY + timedelta(seconds=self.seconds - 1000))


class FakeQuestion:
    """Answers as told, after ``ms`` of the fake clock."""

    label = "docs shard 3 on 10.0.0.1:6333"
    collection = "docs"
    node_url = "http://10.0.0.1:6333"

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.ms = 5.0
        self.answer = Answer("answered")
        self.asked = 0

    def ask(self) -> Answer:
        self.asked += 1
        self.clock.seconds += self.ms / 1000
        return self.answer

    def least_interval_seconds(self) -> float | None:
        return 0.0


class Scene:
    """A guard whose thread asks nothing, because the scene asks in its place at each sleep."""

    def __init__(self, policy: PolicyProfile, run: str | None = None) -> None:
        self.clock = FakeClock()
        self.question = FakeQuestion(self.clock)
        self.cancelled = False
        self.ticks = 0
        self.guard = Guard(self.question, policy, self.progress, run, self.clock.clock())

    def progress(self, done: int) -> None:
        assert done == 0
        self.ticks += 1
        if self.cancelled:
            raise StoppedError("cancelled")

    def ask(self) -> None:
        self.guard._ask()

    def elapsed(self) -> float:
        return self.clock.seconds - 1000


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest of another test's node, no thread that asks by the real clock, and a cap by the fake one."""
    monkeypatch.setattr(guard, "_ended", {})
    monkeypatch.setattr(guard, "_stopped", {})
    monkeypatch.setattr(Guard, "_keep_asking", lambda _guard: None)


def scene(limits: AnswerLimits = LIMITS, **settings: object) -> Scene:
    return Scene(PolicyProfile.model_validate({"answers": limits, **settings}))


times = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda time: f"{time[0]:02}:{time[1]:02}")
ranges = st.tuples(times, times).filter(lambda pair: pair[0] != pair[1]).map("-".join)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - by timezones


def shown(moment: datetime, zone: str) -> str:
    return moment.astimezone(ZoneInfo(zone)).strftime("%H:%M")


def is_quiet(moment: datetime, hours: str, zone: str) -> bool:
    """The rule in other words: what the clock shows lies in a range, which may pass midnight."""
    begin, end = hours.split("-")
    clock = shown(moment, zone)
    return begin <= clock < end if begin < end else clock >= begin or clock < end


@given(moments, st.lists(ranges, min_size=1, max_size=2), st.sampled_from(ZONES))
@example(datetime(2026, 3, 29, 0, 30, 59, tzinfo=UTC), ["01:00-03:30"], "Europe/Berlin")  # 02:00 to 03:00 is left out
@example(datetime(2026, 10, 25, 0, 15, tzinfo=UTC), ["02:00-03:00"], "Europe/Berlin")  # shown twice
@example(datetime(2026, 4, 4, 14, 45, tzinfo=UTC), ["01:00-02:00"], "Australia/Lord_Howe")  # by half an hour
def test_quiet_hours_end_at_the_first_moment_that_is_not_quiet(now: datetime, hours: list[str], zone: str) -> None:
    """None when it is not quiet; else every minute until then is, and then it is not, whatever clocks are changed."""
    try:
        until = calm.wait_until(now, hours, zone)
    except ConfigurationError:
        assert all(any(is_quiet(SATURDAY + n * MINUTE, r, "UTC") for r in hours) for n in range(1440))
        return
    if until is None:
        assert not any(is_quiet(now, each, zone) for each in hours)
        return
    assert until > now
    assert not any(is_quiet(until, each, zone) for each in hours)
    minutes = int((until - now) / MINUTE) + 1
    for number in range(0, minutes, max(1, minutes // 50)):
        moment = min(now + number * MINUTE, until - timedelta(microseconds=1))
        assert any(is_quiet(moment, each, zone) for each in hours)
    assert (until.second, until.microsecond) == (0, 0)


@pytest.mark.parametrize(
    ("now", "hours", "zone", "until"),
    [
        ("2026-11-21T07:59:59", ["08:00-18:00"], "UTC", None),
        ("2026-11-21T08:00:00", ["08:00-18:00"], "UTC", "2026-11-21T18:00:00"),
        ("2026-11-21T18:00:00", ["08:00-18:00"], "UTC", None),
        ("2026-11-21T23:30:01", ["22:00-06:00"], "UTC", "2026-11-22T06:00:00"),
        ("2026-11-21T09:00:00", ["08:00-12:00", "12:00-13:00"], "UTC", "2026-11-21T13:00:00"),
        ("2026-11-21T07:30:00", ["08:00-18:00"], "Europe/Berlin", "2026-11-21T17:00:00"),
        ("2026-03-29T01:30:00", ["02:00-03:00"], "Europe/Berlin", None),  # there is no such hour that day
        ("2026-10-25T00:30:00", ["02:00-03:00"], "Europe/Berlin", "2026-10-25T02:00:00"),  # and here it comes twice
        ("2026-11-21T09:00:00", [], "UTC", None),
    ],
)
def test_quiet_hours_by_hand(now: str, hours: list[str], zone: str, until: str | None) -> None:
    """Both ends, midnight, neighbours, another clock, and the nights when clocks change."""
    expected = None if until is None else datetime.fromisoformat(until).replace(tzinfo=UTC)
    assert calm.wait_until(datetime.fromisoformat(now).replace(tzinfo=UTC), hours, zone) == expected


@pytest.mark.parametrize("hours", [["00:00-00:00"], ["08:00-20:00", "20:00-08:00"], ["23:59-23:58", "23:58-23:59"]])
def test_a_day_without_an_end_of_quiet_is_refused_at_once(hours: list[str]) -> None:
    """Else a backup would wait for ever."""
    with pytest.raises(ConfigurationError, match="no minute of the day"):
        calm.wait_until(SATURDAY, hours, "UTC")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", "Europe", ""])
def test_an_unknown_time_zone_is_named(zone: str) -> None:
    """It comes from the settings, so the setting is to be corrected."""
    with pytest.raises(ConfigurationError, match="time zone"):
        calm.wait_until(SATURDAY, ["08:00-18:00"], zone)
    with pytest.raises(ValidationError, match="is no time zone"):
        PolicyProfile(timezone=zone)


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(1, 1000))
def test_the_slower_the_answers_the_slower_the_backup(one: float, other: float, pause_ms: float) -> None:
    """Full speed up to half the limit, never faster with slower answers, nothing above the limit."""
    quick, slow = (calm.speed_share(ms, pause_ms) for ms in sorted((one, other)))
    assert 1 >= quick >= slow >= 0
    assert (calm.speed_share(one, pause_ms) == 0) == (one > pause_ms)
    assert calm.speed_share(pause_ms / 2, pause_ms) == 1
    assert calm.speed_share(one, None) == 1


def test_an_open_question_counts_with_its_age() -> None:
    """A stall is seen while it lasts, not when it is over; a quick answer ends it."""
    times = calm.AnswerTimes(LIMITS)
    times.asked(0)
    assert times.current_ms(3) == 3000
    assert not times.stopped(9.9)
    assert times.stopped(10)
    times = calm.AnswerTimes(LIMITS)
    for began, ended in ((0, 6), (7, 7.01), (8, 14)):  # six seconds each, but quick in between
        times.asked(began)
        times.answered(ended)
    assert not times.stopped(14)
    assert times.above_seconds(14) == 6


def test_a_limit_that_was_passed_stays_passed() -> None:
    """It may have been while the snapshot was made, when nobody could act on it."""
    times = calm.AnswerTimes(LIMITS)
    times.begin()
    for second in (0, 4, 8):
        times.asked(second)
        times.answered(second + 3)
    times.asked(20)
    times.answered(20.001)
    assert times.current_ms(21) == pytest.approx(1)
    assert times.stopped(21)
    times.asked(30)
    times.answered(32)  # above it again, but shortly
    assert times.stopped(32)


def test_silence_is_counted_from_its_own_beginning() -> None:
    """An answer between two silences ends the first; a refused question says that the node is there, and not slow."""
    times = calm.AnswerTimes(LIMITS)
    for second, note in ((0, times.unanswered), (60, times.answered), (61, times.unanswered)):
        times.asked(second)
        note(second + 1)
    assert times.silent_seconds(100) == 39
    assert times.current_ms(100) == math.inf
    times.asked(100)
    times.unmeasurable(101, "429")
    assert (times.silent_seconds(101), times.current_ms(101)) == (0, 0)


def test_it_begins_at_once_when_nothing_is_in_the_way() -> None:
    """One question, no waiting, nothing to tell."""
    on = scene(quiet_hours=["08:00-18:00"])
    on.guard.admit()
    on.guard.close()
    assert on.question.asked == 1
    assert on.elapsed() == pytest.approx(0.005)
    assert on.guard.findings == ()


def test_it_waits_out_quiet_hours_and_can_be_cancelled_meanwhile() -> None:
    """Progress is told each second, so that a cancel is obeyed."""
    on = scene(quiet_hours=["06:00-07:30"])
    on.guard.admit()
    on.guard.close()
    assert on.elapsed() == pytest.approx(1800, abs=1)
    assert on.ticks == 1800
    [finding] = on.guard.findings
    assert (finding.severity, finding.subject) == ("info", "docs")
    assert "waited 1800.0 s" in finding.message
    on = scene(quiet_hours=["06:00-07:30"])
    on.clock.meanwhile = lambda: setattr(on, "cancelled", on.elapsed() >= 60)
    with pytest.raises(StoppedError):
        on.guard.admit()
    assert on.elapsed() == 60


def test_quiet_hours_beyond_the_longest_wait_are_told_at_once() -> None:
    """Waiting two hours only to give up would keep the lease for nothing."""
    on = scene(quiet_hours=["06:00-18:00"], longest_wait_minutes=120)
    with pytest.raises(LimitError, match=r"until 18:00 UTC, 660 minutes away.*120 minutes at most") as raised:
        on.guard.admit()
    assert on.elapsed() == 0
    assert not raised.value.transient
    assert "unchanged" in raised.value.message


def test_slow_answers_are_waited_for_before_a_snapshot_is_begun() -> None:
    """Until one is quick again; where none comes it ends with the numbers."""
    on = scene()
    on.question.ms = 150
    on.clock.meanwhile = lambda: setattr(on.question, "ms", 5 if on.elapsed() > 20 else 150)
    on.guard.admit()
    on.guard.close()
    assert 20 < on.elapsed() < 22
    on = scene(longest_wait_minutes=1)
    on.question.ms = 150
    with pytest.raises(LimitError, match="no snapshot was begun: answers take 150 ms, and the policy allows 100 ms"):
        on.guard.admit()
    assert 60 <= on.elapsed() < 62


def test_a_stop_limit_alone_also_holds_snapshots_back() -> None:
    """What may stop the run must not be begun above it."""
    on = scene(AnswerLimits(stop_above_ms=100, stop_after_seconds=30))
    on.question.ms = 150
    with pytest.raises(LimitError, match=r"more than 100 ms for 3\d\.\d s; the policy allows 30 s"):
        on.guard.admit()
    assert 30 <= on.elapsed() < 32


def test_without_limits_slow_answers_hold_nothing_back() -> None:
    """They are measured and told all the same, when they are worth it."""
    on = scene(AnswerLimits())
    on.question.ms = 400
    on.guard.admit()
    on.ask()
    blocks = on.guard.paced([b"x", b"y"])
    assert list(blocks) == [b"x", b"y"]
    on.guard.close()
    assert on.elapsed() == pytest.approx(0.8)
    assert on.guard.findings == ()  # as slow as it was before
    on.question.ms = 1300
    on.ask()
    [finding] = on.guard.findings
    assert finding.severity == "info"
    assert "400 ms before, in 850 ms (median) and 1300 ms (worst)" in finding.message


def test_a_node_rests_between_two_of_its_snapshots() -> None:
    """As long as pause_seconds says, from the end of the one to the beginning of the next, on that node only."""
    on = scene(pause_seconds=30.0)
    on.guard.admit()
    on.guard.close()
    ended = on.clock.seconds
    again = Guard(on.question, on.guard._policy, on.progress, None, on.clock.clock())
    on.clock.seconds += 10
    again.admit()
    again.close()
    assert on.clock.seconds == pytest.approx(ended + 30, abs=0.1)
    other = scene(pause_seconds=30.0)
    other.question.node_url = "http://10.0.0.2:6333"
    other.guard.admit()
    other.guard.close()
    assert other.elapsed() < 1


def taking(on: Scene, count: int, seconds: float = 0.1) -> Iterator[bytes]:
    """Blocks that take their time."""
    for number in range(count):
        on.clock.seconds += seconds
        yield bytes([number])


def test_a_download_is_slowed_down_by_slow_answers() -> None:
    """Answers at three quarters of the limit leave half of the time for reading."""
    on = scene()
    on.guard.admit()
    on.question.ms = 75
    on.ask()
    before = on.clock.seconds
    assert b"".join(on.guard.paced(taking(on, 100))) == bytes(range(100))
    on.guard.close()
    assert on.clock.seconds - before == pytest.approx(20, abs=0.1)
    [finding] = on.guard.findings
    assert finding.severity == "info"
    assert "slowed down by 10.0 s" in finding.message


def test_a_download_is_paused_above_the_limit_and_goes_on_below() -> None:
    """No block is asked for meanwhile; the finding says how long it took."""
    on = scene()
    on.guard.admit()
    taken: list[int] = []

    def meanwhile() -> None:
        assert taken == [0, 1]
        on.question.ms = 300 if on.elapsed() < 12 else 5
        on.ask()

    def blocks() -> Iterator[bytes]:
        for number in range(4):
            taken.append(number)
            if number == 1:
                on.question.ms = 300
                on.ask()
                on.clock.meanwhile = meanwhile
            yield bytes([number])

    assert b"".join(on.guard.paced(blocks())) == bytes(range(4))
    on.guard.close()
    [finding] = on.guard.findings
    assert finding.severity == "warning"
    assert "paused for 12." in finding.message
    assert "300 ms (worst)" in finding.message


def test_a_download_stops_when_the_stop_limit_lasts() -> None:
    """By itself, with the numbers, before the next block."""
    on = scene()
    on.guard.admit()
    on.question.ms = 1500
    on.clock.meanwhile = on.ask
    on.ask()
    taken = []
    with pytest.raises(LimitError, match=r"more than 1000 ms for 1\d\.\d s.*5 ms before, .*1500 ms \(worst\)"):
        taken += on.guard.paced(taking(on, 5))
    on.guard.close()
    assert taken == []
    assert 10 <= on.elapsed() < 14


def test_what_was_passed_while_the_snapshot_was_made_stops_before_its_download() -> None:
    """Making it cannot be stopped, so it acts afterwards even when answers are quick again."""
    on = scene()
    on.guard.admit()
    on.question.ms = 11_000
    on.ask()
    on.question.ms = 5
    on.ask()
    with pytest.raises(LimitError, match=r"for 11\.0 s"):
        next(on.guard.paced([b"x"]))
    on.guard.close()


def test_a_guard_of_the_making_alone_tells_it_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another guard takes the download, perhaps in another process; but never after something was read."""
    for read in (False, True):
        on = scene()
        monkeypatch.setattr(guard, "Guard", lambda *_, on=on: on.guard)

        def body(on: Scene = on, read: bool = read) -> None:
            with guard.guarded(Node("http://10.0.0.1:6333", PROFILE), "docs", PolicyProfile(), no_progress) as made:
                made.admit()
                if read:
                    assert list(made.paced([b"x"])) == [b"x"]
                on.question.ms = 11_000
                on.ask()

        if read:
            body()
        else:
            with pytest.raises(LimitError, match=r"for 11\.0 s.*while its snapshot was made\."):
                body()


def test_a_pause_does_not_last_for_ever() -> None:
    """All pauses of one snapshot together take longest_wait_minutes at most."""
    on = scene(longest_wait_minutes=2)
    on.guard.admit()
    on.question.ms = 300
    on.ask()
    on.clock.meanwhile = on.ask
    with pytest.raises(LimitError, match=r"not read to the end: answers take 300 ms.*waits 2 minutes at most"):
        list(on.guard.paced([b"x"]))
    on.guard.close()
    assert 120 <= on.elapsed() < 122


def test_a_node_that_is_gone_is_not_waited_for_like_a_slow_one() -> None:
    """Silence counts as slower than any limit; after two minutes of it the pause ends, and says what is wrong."""
    on = scene(AnswerLimits(pause_above_ms=100))
    on.guard.admit()
    on.question.answer = Answer("silent", "refused")
    on.ask()
    on.clock.meanwhile = on.ask
    with pytest.raises(LimitError, match=r"no answer has come for 12\d s") as raised:
        list(on.guard.paced([b"x"]))
    on.guard.close()
    assert "start it" in (raised.value.remedy or "")
    assert 120 <= on.elapsed() < 122
    [finding] = on.guard.findings
    assert finding.severity == "warning"
    assert "No answer at all came to" in finding.message


def test_what_one_guard_meets_stops_the_others_of_its_run() -> None:
    """A stop limit ends downloads, too; a wait that is too long only lets nothing be begun. Other runs go on."""
    policy = PolicyProfile(answers=LIMITS, longest_wait_minutes=1)
    for ms, at_once in ((1500.0, True), (150.0, False)):
        first, waiting, reading, other = (Scene(policy, run) for run in (f"{ms}", f"{ms}", f"{ms}", "another run"))
        blocks = reading.guard.paced(bytes([number]) for number in range(3))
        assert next(blocks) == b"\0"
        first.question.ms = ms
        with pytest.raises(LimitError) as met:
            first.guard.admit()
        with pytest.raises(LimitError, match="left out") as raised:
            waiting.guard.admit()
        assert waiting.question.asked == 0
        assert met.value.message in (raised.value.remedy or "")
        if at_once:
            with pytest.raises(LimitError, match="left out"):
                next(blocks)
        else:
            assert list(blocks) == [b"\1", b"\2"]
        other.guard.admit()
        for each in (reading, other):
            each.guard.close()


def test_what_cannot_be_measured_holds_nothing_back_and_is_told() -> None:
    """A refused question says nothing about slowness; with limits set the operator must know that they did not hold."""
    for limits, told in ((LIMITS, 1), (AnswerLimits(), 0)):
        on = scene(limits)
        on.question.answer = Answer("refused", "Forbidden: 403")
        on.guard.admit()
        assert list(on.guard.paced([b"x"])) == [b"x"]
        on.guard.close()
        assert [(each.severity, "Forbidden: 403" in each.message) for each in on.guard.findings] == [
            ("warning", True)
        ] * told


def test_the_cap_of_a_node_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """node_mb_per_second are megabytes of 10^6; a source that is slower is not held back further."""
    on = scene(node_mb_per_second=2.0)
    asked = []

    def capped(url: str, rate: float | None) -> Bandwidth | None:
        asked.append((url, rate))
        return Bandwidth((rate or 0) * 1e6, lambda: on.clock.seconds, on.clock.sleep)

    monkeypatch.setattr(guard, "from_node", capped)
    on.guard.admit()
    before = on.clock.seconds
    for _ in on.guard.paced(bytes(1_000_000) for _ in range(20)):
        on.clock.seconds += 0.05
    on.guard.close()
    assert on.clock.seconds - before == pytest.approx(10, abs=0.3)
    assert asked == [(on.question.node_url, 2.0)]
    assert on.guard.findings == ()


def test_the_thread_asks_while_the_body_works_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real clock, in milliseconds; nothing is left running."""
    monkeypatch.undo()
    clock = FakeClock()
    question = FakeQuestion(clock)
    enough = threading.Event()
    answer = question.ask

    def ask() -> Answer:
        if question.asked >= 5:
            enough.set()
        return answer()

    monkeypatch.setattr(question, "ask", ask)
    policy = PolicyProfile(answers=AnswerLimits(interval_seconds=0.001))
    watched = Guard(question, policy, no_progress)
    watched.admit()
    assert enough.wait(10)
    watched.close()
    asked = question.asked
    assert not [thread for thread in threading.enumerate() if thread.name == "ferry-answers"]
    assert asked == question.asked >= 5
