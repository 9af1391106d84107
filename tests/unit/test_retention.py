"""What the retention keeps: by example, and by rules that hold for any history of failures, skew, holds and locks."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.errors import ConfigurationError
from ferry.profiles import PolicyProfile, Retention
from ferry.repository.layout import new_backup_id
from ferry.repository.retention import SKEW, BackupFacts, RetentionPlan, plan_retention

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR, DAY, YEAR = timedelta(hours=1), timedelta(days=1), timedelta(days=365)
NAMES = ("docs", "words", "old")


def backup(age: timedelta, *names: str, seed: str = "", **known: Any) -> BackupFacts:
    """A complete backup of these collections (docs alone), that long ago by every clock."""
    moment = NOW - age
    proven = frozenset(names or ("docs",))
    usual = {
        "backup_id": new_backup_id(moment, f"{seed}{sorted(proven)}"),
        "taken_at": moment,
        "stored_at": moment,
        "last_write": moment,
        "complete": True,
        "opened": proven,
    }
    return BackupFacts(**(usual | known))


def policy(**retention: Any) -> PolicyProfile:
    """A policy whose minimum is one, so that the rules show."""
    return PolicyProfile(retention=Retention(**({"minimum_proven": 1} | retention)))


def kept(plan: RetentionPlan) -> set[str]:
    return {verdict.backup_id for verdict in plan.verdicts if verdict.keep}


def ages(backups: list[BackupFacts], plan: RetentionPlan) -> list[float]:
    """Ages in days of what is kept, the youngest first."""
    return sorted((NOW - facts.taken_at) / DAY for facts in backups if facts.backup_id in kept(plan))


def reasons(plan: RetentionPlan, facts: BackupFacts) -> tuple[str, ...]:
    return next(verdict.reasons for verdict in plan.verdicts if verdict.backup_id == facts.backup_id)


def test_without_a_rule_all_stay() -> None:
    """Nobody loses a backup to a setting that was never made."""
    backups = [backup(day * DAY) for day in range(1000)]
    plan = plan_retention(backups, PolicyProfile(), NOW)
    assert plan.deletes == ()
    assert "no rule is set: all stay" in plan.verdicts[-1].reasons


def test_the_usual_rules_keep_their_backups_and_say_so() -> None:
    """The newest of each of the last so many days, weeks, months and years that have one."""
    backups = [backup(day * DAY) for day in range(800)]
    plan = plan_retention(backups, policy(keep_last=2, keep_daily=3, keep_weekly=2, keep_monthly=3, keep_yearly=2), NOW)
    assert ages(backups, plan) == [0, 1, 2, 7, 22, 53, 326]
    newest = reasons(plan, backups[0])
    assert newest[:2] == ("newest complete", "one of the last 2")
    assert {"daily 2026-11-22", "weekly 2026-W47", "monthly 2026-11", "yearly 2026"} < set(newest)
    assert newest[-1] == "newest proven of docs"
    assert reasons(plan, backups[7]) == ("weekly 2026-W46",)
    assert reasons(plan, backups[100]) == ("no rule keeps it",)


def test_days_without_a_backup_do_not_count() -> None:
    """Three days that have one, however long ago."""
    backups = [backup(age * DAY) for age in (0, 10, 20, 30)]
    assert ages(backups, plan_retention(backups, policy(keep_daily=3), NOW)) == [0, 10, 20]


def test_days_are_those_of_the_time_zone() -> None:
    """23:30 and 00:30 UTC are one day in Berlin, and two in UTC."""
    backups = [
        backup(NOW - moment) for moment in (datetime(2026, 11, 20, 23, 30, tzinfo=UTC), NOW - timedelta(hours=35.5))
    ]
    assert len(kept(plan_retention(backups, policy(keep_daily=9, timezone="Europe/Berlin"), NOW))) == 1
    assert len(kept(plan_retention(backups, policy(keep_daily=9), NOW))) == 2
    with pytest.raises(ConfigurationError, match="Mars"):
        plan_retention(backups, policy(keep_daily=9, timezone="Mars/Olympus"), NOW)


def test_only_what_is_proven_counts() -> None:
    """A hundred runs that died do not push out the one backup there is; when they are dead for good, they go."""
    good = backup(100 * DAY)
    dead = [backup(age * HOUR, complete=False, opened=frozenset()) for age in range(1, 100)]
    plan = plan_retention([good, *dead], policy(keep_last=1), NOW)
    assert good.backup_id in kept(plan)
    assert kept(plan) == {good.backup_id} | {facts.backup_id for facts in dead if NOW - facts.last_write <= DAY}
    assert "nothing in it is proven" in reasons(plan, dead[-1])[0]


def test_what_may_be_resumed_stays() -> None:
    """A dead run that the next one may continue is not taken from under it, whatever the grace."""
    dead = backup(5 * HOUR, complete=False, opened=frozenset())
    plan = plan_retention([dead, backup(DAY)], policy(keep_last=1, grace_hours=0), NOW)
    assert dead.backup_id in kept(plan)


def test_a_part_of_a_failed_run_does_not_replace_a_complete_backup() -> None:
    """The collection that it brought is kept by the minimum, the complete backup of that day by the rule."""
    complete, part = backup(50 * HOUR, "docs", "words"), backup(49 * HOUR, "docs", complete=False)
    plan = plan_retention([complete, part, backup(HOUR, "docs", "words")], policy(keep_daily=9), NOW)
    assert complete.backup_id in kept(plan)
    assert plan.deletes == (part.backup_id,)


def test_bad_weeks_keep_what_they_brought() -> None:
    """While one collection fails every night, the others have their history."""
    parts = [backup(age * DAY, "docs", complete=False) for age in range(30)]
    whole = backup(40 * DAY, "docs", "words")
    plan = plan_retention([*parts, whole], policy(keep_daily=7), NOW)
    assert ages([*parts, whole], plan) == [0, 1, 2, 3, 4, 5, 6, 40]
    assert "newest proven of words" in reasons(plan, whole)


def test_each_collection_has_its_minimum() -> None:
    """Also one that was dropped at the source long ago, until the policy lets go of it."""
    backups = [backup(age * DAY) for age in range(10)] + [backup(age * DAY, "docs", "old") for age in range(100, 110)]
    plan = plan_retention(backups, policy(keep_last=1, minimum_proven=3), NOW)
    assert ages(backups, plan) == [0, 1, 2, 100, 101, 102]
    assert reasons(plan, backups[11]) == ("minimum_proven of old",)
    assert "3 backups are kept only for old" in plan.findings[0].message
    lenient = plan_retention(backups, policy(keep_last=1, minimum_proven=3, forget_dropped_days=99), NOW)
    assert ages(backups, lenient) == [0, 1, 2]
    assert lenient.findings == ()
    assert (
        plan_retention(backups, policy(keep_last=1, minimum_proven=3, forget_dropped_days=101), NOW).deletes
        == plan.deletes
    )


def test_a_collection_is_not_forgotten_because_nothing_was_backed_up() -> None:
    """Only a newer complete backup without it shows that it was dropped."""
    backups = [
        backup(500 * DAY),
        backup(400 * DAY, "old", complete=False),
        backup(300 * DAY, complete=False),
    ]
    plan = plan_retention(backups, policy(keep_daily=1, forget_dropped_days=1), NOW)
    assert reasons(plan, backups[1]) == ("newest proven of old",)


def test_archives_that_were_never_opened_only_fill_the_minimum_up() -> None:
    """Proof level bytes is weaker: newer such backups do not push out the last that was opened."""
    weak = [backup(age * DAY, opened=frozenset(), bytes_only=frozenset({"docs"})) for age in range(5)]
    strong = backup(50 * DAY)
    plan = plan_retention([*weak, strong], policy(keep_last=1, minimum_proven=2), NOW)
    assert ages([*weak, strong], plan) == [0, 50]
    assert ages(weak, plan_retention(weak, policy(keep_last=1, minimum_proven=2), NOW)) == [0, 1]


@pytest.mark.parametrize("wrong", [-10 * YEAR, -DAY * 3, 10 * YEAR, timedelta(minutes=30)], ids=str)
def test_a_workers_wrong_clock_deletes_nothing_that_a_right_one_would_keep(wrong: timedelta) -> None:
    """The store's times stand beside the ids."""
    right = [backup(age * DAY) for age in range(20)]
    skewed = [
        backup(age * DAY - wrong, seed="skewed", stored_at=NOW - age * DAY, last_write=NOW - age * DAY)
        for age in (0.5, 1.5)
    ]
    true_times = [facts.model_copy(update={"taken_at": facts.stored_at}) for facts in skewed]
    rules = policy(keep_last=3, keep_daily=5)
    assert kept(plan_retention([*right, *skewed], rules, NOW)) >= kept(
        plan_retention([*right, *true_times], rules, NOW)
    )
    assert kept(plan_retention([*right, *skewed], rules, NOW)) >= kept(plan_retention(right, policy(keep_last=1), NOW))


def test_a_backup_from_the_future_is_kept_and_told() -> None:
    """Ten minutes are no finding, ten years are."""
    soon, late = backup(-timedelta(minutes=10)), backup(-10 * YEAR, stored_at=NOW - 9 * DAY)
    plan = plan_retention([soon, late, *(backup(age * DAY) for age in range(1, 4))], policy(keep_last=1), NOW)
    assert {soon.backup_id, late.backup_id} <= kept(plan)
    assert [finding.subject for finding in plan.findings] == [late.backup_id]
    assert any("from the future" in reason for reason in reasons(plan, late))


def test_a_copied_bucket_keeps_what_the_ids_ask_for() -> None:
    """Copying gives every object today's date; the ids still tell the days."""
    backups = [backup(age * DAY, stored_at=NOW, last_write=NOW) for age in range(30)]
    assert ages(backups, plan_retention(backups, policy(keep_daily=7), NOW)) == [0, 1, 2, 3, 4, 5, 6]


def test_what_cannot_be_judged_stays() -> None:
    """A newer release may have written it."""
    odd = backup(100 * DAY, opened=frozenset(), complete=False, unreadable="format version 2")
    plan = plan_retention([odd, backup(DAY)], policy(keep_last=1), NOW)
    assert plan.deletes == ()
    assert plan.findings[0].subject == odd.backup_id


def test_an_empty_backup_does_not_count_but_the_newest_stays() -> None:
    """A cluster that lost its collections goes on being backed up; its backups must not push out the good ones."""
    empty = [backup(age * DAY, opened=frozenset()) for age in range(10)]
    good = [backup(age * DAY) for age in range(20, 30)]
    assert ages([*empty, *good], plan_retention([*empty, *good], policy(keep_daily=3), NOW)) == [0, 1, 20, 21, 22]


# --- any history ---------------------------------------------------------------------------------------------------

HOURS = st.integers(0, 24 * 60).map(lambda hours: hours * HOUR)
SKEWS = st.one_of(
    st.just(0 * HOUR), st.sampled_from([10 * HOUR / 60, -10 * HOUR / 60, 2 * HOUR, -2 * DAY, 10 * YEAR, -10 * YEAR])
)


@st.composite
def backups_of_a_cluster(draw: st.DrawFn) -> list[BackupFacts]:
    """Up to 14 runs with failures, wrong clocks, holds, locks, readers and deletions that were begun."""
    made = []
    for number in range(draw(st.integers(0, 14))):
        age, skew, took = draw(HOURS), draw(SKEWS), draw(st.sampled_from([0, 0, 1, 30])) * HOUR
        names = draw(st.frozensets(st.sampled_from(NAMES)))
        weak = draw(st.frozensets(st.sampled_from(sorted(names)))) if names else frozenset()
        complete = draw(st.booleans())
        stored = NOW - age if names or complete else None
        made.append(
            backup(
                age + took - skew,
                *names,
                seed=str(number),
                stored_at=stored,
                last_write=NOW - age,
                complete=complete,
                opened=names - weak,
                bytes_only=weak,
                being_deleted=not complete and draw(st.integers(0, 5)) == 0,
                **draw(reasons_to_stay()),
            )
        )
    return made


def reasons_to_stay() -> st.SearchStrategy[dict[str, Any]]:
    rarely: list[dict[str, Any]] = [
        {"holds": ("ann: audit",)},
        {"readers": ("a restore",)},
        {"locked_until": NOW + DAY},
        {"locked_until": NOW - DAY},
        {"legal_hold": True},
        {"unreadable": "damaged"},
    ]
    return st.one_of(st.just({}), st.just({}), st.just({}), st.sampled_from(rarely))


RULES = st.builds(
    Retention,
    keep_last=st.none() | st.integers(1, 4),
    keep_within_days=st.none() | st.floats(0.1, 20),
    keep_daily=st.integers(0, 5),
    keep_weekly=st.integers(0, 3),
    keep_monthly=st.integers(0, 2),
    keep_yearly=st.integers(0, 2),
    minimum_proven=st.integers(1, 3),
    forget_dropped_days=st.none() | st.floats(1, 30),
    timezone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Auckland"]),
    grace_hours=st.sampled_from([0.0, 24.0]),
)
POLICIES = st.builds(PolicyProfile, retention=RULES, resume_hours=st.sampled_from([0.0, 6.0]))
HISTORIES = backups_of_a_cluster()


@settings(deadline=None, max_examples=15)
@given(HISTORIES, POLICIES)
def test_what_must_stay_stays(backups: list[BackupFacts], rules: PolicyProfile) -> None:
    """Holds, readers, locks, the future, the unread and the unfinished; the newest proven and the minimum of each."""
    stay = kept(plan_retention(backups, rules, NOW))
    grace = timedelta(hours=max(rules.retention.grace_hours, rules.resume_hours))
    for facts in backups:
        locked = facts.legal_hold or (facts.locked_until or NOW) > NOW
        future = facts.taken_at > NOW + SKEW
        young = not facts.complete and not facts.being_deleted and NOW - facts.last_write <= grace
        if facts.holds or facts.readers or locked or future or facts.unreadable or young or rules.retention.keeps_all:
            assert facts.backup_id in stay
    if rules.retention.forget_dropped_days is not None:
        return
    for name in NAMES:
        for clock in ("taken_at", "stored_at"):
            held = sorted((f for f in backups if name in f.proven), key=lambda f: (getattr(f, clock), f.backup_id))
            if clock == "taken_at":
                assert {facts.backup_id for facts in held[-1:]} <= stay
            opened = [facts for facts in held if name in facts.opened]
            left = [facts for facts in held if facts.backup_id in stay]
            assert len([f for f in left if name in f.opened]) >= min(len(opened), rules.retention.minimum_proven)
            assert len(left) >= min(len(held), rules.retention.minimum_proven)


@settings(deadline=None, max_examples=15)
@given(HISTORIES, POLICIES)
def test_done_once_is_done(backups: list[BackupFacts], rules: PolicyProfile) -> None:
    """Pruning again deletes nothing more."""
    stay = kept(plan_retention(backups, rules, NOW))
    again = plan_retention([facts for facts in backups if facts.backup_id in stay], rules, NOW)
    assert again.deletes == ()


@settings(deadline=None, max_examples=15)
@given(HISTORIES, POLICIES, st.data())
def test_a_reason_more_never_deletes_more(
    backups: list[BackupFacts], rules: PolicyProfile, data: st.DataObject
) -> None:
    """A hold, a reader or a lock on any backup, and any rule that asks for more."""
    stay = kept(plan_retention(backups, rules, NOW))
    if backups:
        number = data.draw(st.integers(0, len(backups) - 1))
        changed = backups[number].model_copy(update={"holds": ("bob: law",)})
        more = [*backups[:number], changed, *backups[number + 1 :]]
        assert kept(plan_retention(more, rules, NOW)) == stay | {changed.backup_id}
    wider = rules.retention.model_copy(update={"keep_daily": rules.retention.keep_daily + 1})
    if not rules.retention.keeps_all:
        assert kept(plan_retention(backups, rules.model_copy(update={"retention": wider}), NOW)) >= stay


@settings(deadline=None, max_examples=10)
@given(HISTORIES, POLICIES)
def test_a_failed_run_deletes_nothing(backups: list[BackupFacts], rules: PolicyProfile) -> None:
    """A run that proved nothing changes nothing about the others."""
    before = kept(plan_retention(backups, rules, NOW))
    died = backup(HOUR, seed="died", complete=False, opened=frozenset(), stored_at=None)
    assert kept(plan_retention([*backups, died], rules, NOW)) >= before


@settings(deadline=None, max_examples=10)
@given(HISTORIES, POLICIES)
def test_every_verdict_has_its_reason(backups: list[BackupFacts], rules: PolicyProfile) -> None:
    """And none depends on the order in which the store names things."""
    plan = plan_retention(backups, rules, NOW)
    assert all(verdict.reasons for verdict in plan.verdicts)
    assert len(plan.verdicts) == len({facts.backup_id for facts in backups})
    assert plan_retention(list(reversed(backups)), rules, NOW) == plan
