"""Which backups are kept, and why: a pure rule over what is known of each. Nothing here asks a server or a clock.

A backup is kept when any reason keeps it. Two times are known of a backup: ``taken_at``, in its id, by the clock of the
worker that made it, and ``stored_at``, when the store wrote its last commit point, by the store's own clock. Every rule
is applied by the first, and where the two contradict each other once more by the second; what either keeps is kept.
Ages are measured against the store's present time. So a worker's wrong clock can keep too much, never too little.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ferry.errors import ConfigurationError
from ferry.models import BackupId, Finding, Value
from ferry.profiles import PolicyProfile, Retention

# S3 itself refuses requests that are signed by a clock further off (RequestTimeTooSkewed):
# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
SKEW = timedelta(minutes=15)
# Longer than this between the id and the commit is no slow backup any more but a wrong clock, a run that was started
# late, or a bucket that was copied.
LONGEST_BACKUP = timedelta(hours=24)
_NAMED = 3  # collections named in one reason; the others are counted


class BackupFacts(Value):
    """What is known of one backup: of its documents, and of who needs it."""

    backup_id: BackupId
    taken_at: datetime
    stored_at: datetime | None = None
    last_write: datetime
    complete: bool
    opened: frozenset[str] = frozenset()
    bytes_only: frozenset[str] = frozenset()
    bytes: int = 0
    holds: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    locked_until: datetime | None = None
    legal_hold: bool = False
    being_deleted: bool = False
    unreadable: str | None = None

    @property
    def proven(self) -> frozenset[str]:
        """Collections of which the manifest is committed: manifests exist of proven archives only."""
        return self.opened | self.bytes_only


class Verdict(Value):
    """What becomes of one backup, with every reason."""

    backup_id: BackupId
    keep: bool
    reasons: tuple[str, ...]


class RetentionPlan(Value):
    """One verdict a backup, the newest first. ``guards`` are what minimum_proven relies on: backup and collection."""

    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...] = ()
    guards: frozenset[tuple[BackupId, str]] = frozenset()

    @property
    def deletes(self) -> tuple[BackupId, ...]:
        """What is to be deleted, the oldest first."""
        return tuple(verdict.backup_id for verdict in reversed(self.verdicts) if not verdict.keep)


def plan_retention(backups: Iterable[BackupFacts], policy: PolicyProfile, at: datetime) -> RetentionPlan:
    """Decide about every backup of one cluster. ``at`` is the present by the store's clock.

    Raises ConfigurationError when the time zone of the retention is unknown.
    """
    known = sorted(backups, key=lambda facts: (facts.taken_at, facts.backup_id), reverse=True)
    planner = _Planner(known, policy, at)
    planner.plan()
    verdicts = [planner.verdict(facts) for facts in known]
    return RetentionPlan(
        verdicts=tuple(verdicts),
        findings=tuple(planner.findings()),
        guards=frozenset((backup_id, name) for backup_id, names in planner.needed.items() for name in names),
    )


_Clock = Callable[[BackupFacts], datetime]


class _Planner:
    """The reasons that are found, backup by backup."""

    def __init__(self, backups: list[BackupFacts], policy: PolicyProfile, at: datetime) -> None:
        self._all = backups
        self._policy = policy
        self._rule: Retention = policy.retention
        self._at = at
        self._reasons: dict[BackupId, dict[str, None]] = defaultdict(dict)  # in order, each once
        self.needed: dict[BackupId, dict[str, str]] = defaultdict(dict)  # which collection needs it, and as what
        self._forgotten: set[str] = set()

    def plan(self) -> None:
        for facts in self._all:
            for reason in self._own_reasons(facts):
                self._keep(facts, reason)
        for clock in self._clocks():
            self._apply_rules(clock)
            self._keep_the_minimum(clock)

    def verdict(self, facts: BackupFacts) -> Verdict:
        reasons = [*self._reasons[facts.backup_id], *_said(self.needed[facts.backup_id])]
        if reasons:
            return Verdict(backup_id=facts.backup_id, keep=True, reasons=tuple(reasons))
        if facts.being_deleted:
            why = "its deletion was begun"
        elif not facts.proven:
            hours = (self._at - facts.last_write) / timedelta(hours=1)
            why = f"nothing in it is proven, and nothing was written to it for {hours:.0f} hours"
        else:
            why = "no rule keeps it"
        return Verdict(backup_id=facts.backup_id, keep=False, reasons=(why,))

    def findings(self) -> Iterator[Finding]:
        for facts in self._all:
            if self._ahead(facts):
                yield _finding(
                    facts,
                    f"Its id says {facts.taken_at:%Y-%m-%d %H:%M} UTC; by the store's clock it is "
                    f"{self._at:%Y-%m-%d %H:%M}. It is kept until then.",
                    "Set the clock of the machine that made it by NTP.",
                )
            if facts.unreadable:
                yield _finding(facts, f"It is kept, because it cannot be judged: {facts.unreadable}", _LOOK)
        yield from self._kept_for_the_dropped()

    def _kept_for_the_dropped(self) -> Iterator[Finding]:
        """One finding about all backups that only collections need which the newest complete one does not hold."""
        newest = next((facts for facts in self._all if facts.complete), None)
        only = {b: names for b, names in self.needed.items() if names and not self._reasons[b]}
        if newest is None or not only:
            return
        dropped = {b: names for b, names in only.items() if not newest.proven & names.keys()}
        if dropped:
            gone = ", ".join(_few({name for names in dropped.values() for name in names}))
            yield Finding(
                severity="info",
                subject="retention",
                message=f"{len(dropped)} backups are kept only for {gone}; the newest complete backup holds none.",
                remedy="If these collections are no longer wanted, set forget_dropped_days in the policy's retention.",
            )

    def _keep(self, facts: BackupFacts, reason: str) -> None:
        self._reasons[facts.backup_id].setdefault(reason)

    def _ahead(self, facts: BackupFacts) -> bool:
        return facts.taken_at > self._at + SKEW

    def _own_reasons(self, facts: BackupFacts) -> Iterator[str]:
        """What keeps a backup whatever the others are."""
        if self._rule.keeps_all:
            yield "no rule is set: all stay"
        yield from (f"held by {hold}" for hold in facts.holds)
        yield from (f"a reader is at work: {reader}" for reader in facts.readers)
        if facts.locked_until is not None and facts.locked_until > self._at:
            yield f"locked until {facts.locked_until:%Y-%m-%d %H:%M} UTC"
        if facts.legal_hold:
            yield "the store has a legal hold on it"
        if facts.unreadable:
            yield f"cannot be judged: {facts.unreadable}"
        if self._ahead(facts):
            yield f"from the future: by the store's clock it is {self._at:%Y-%m-%d %H:%M} UTC"
        wait = timedelta(hours=max(self._rule.grace_hours, self._policy.resume_hours))
        finished = facts.complete and facts.proven
        if not finished and not facts.being_deleted and self._at - facts.last_write <= wait:
            hours = wait / timedelta(hours=1)
            yield f"not proven as a whole, and written to in the last {hours:g} hours"

    def _clocks(self) -> list[_Clock]:
        """By the ids, and where the store's own times contradict them by these too.

        Runs of a cluster commit one after the other. Where complete backups are in another order by their ids than by
        the store's times, somebody's clock is wrong, however little, and the newest by each clock must stay.
        """
        clocks: list[_Clock] = [lambda facts: facts.taken_at]
        if any(_trusted(facts) != facts.taken_at for facts in self._all):
            clocks.append(_trusted)
        made = sorted((f for f in self._all if f.complete), key=lambda f: (f.taken_at, f.backup_id))
        stored = [_stored(facts) for facts in made]
        if stored != sorted(stored):
            clocks.append(_stored)
        return clocks

    def _timeline(self, clock: _Clock) -> list[BackupFacts]:
        """Backups that count, the newest first. What is proven counts, also of a run that did not finish."""
        counted = [f for f in self._all if f.proven and not f.being_deleted and clock(f) <= self._at + SKEW]
        return sorted(counted, key=lambda facts: (clock(facts), facts.backup_id), reverse=True)

    def _apply_rules(self, clock: _Clock) -> None:
        timeline, rule = self._timeline(clock), self._rule
        complete = [facts for facts in timeline if facts.complete]
        newest = max((f for f in self._all if f.complete), key=lambda f: (clock(f), f.backup_id), default=None)
        for facts in {*complete[:1], *([newest] if newest else [])}:  # the newest of all may hold no collection
            self._keep(facts, "newest complete")
        for facts in complete[: rule.keep_last or 0]:
            self._keep(facts, f"one of the last {rule.keep_last}")
        newer = [facts for facts in timeline if not facts.complete and (not complete or _after(facts, complete, clock))]
        for facts in newer[: rule.keep_last or 0]:
            self._keep(facts, f"one of the last {rule.keep_last} unfinished runs that proved something")
        for facts in timeline:
            age = self._at - max(clock(facts), facts.stored_at or clock(facts))
            if rule.keep_within_days is not None and age < timedelta(days=rule.keep_within_days):
                self._keep(facts, f"younger than {rule.keep_within_days:g} days")
        for name, number, period in self._periods():
            for label, facts in _newest_of_each(timeline, number, clock, period):
                self._keep(facts, f"{name} {label}")

    def _periods(self) -> list[tuple[str, int, Callable[[datetime], str]]]:
        rule, zone = self._rule, _zone(self._rule.timezone)

        def week(moment: datetime) -> str:
            year, number, _ = moment.astimezone(zone).isocalendar()
            return f"{year}-W{number:02}"

        def written(form: str) -> Callable[[datetime], str]:
            return lambda moment: moment.astimezone(zone).strftime(form)

        return [
            ("daily", rule.keep_daily, written("%Y-%m-%d")),
            ("weekly", rule.keep_weekly, week),
            ("monthly", rule.keep_monthly, written("%Y-%m")),
            ("yearly", rule.keep_yearly, written("%Y")),
        ]

    def _keep_the_minimum(self, clock: _Clock) -> None:
        """For each collection the newest, and so many whose archives were opened; bytes-only ones only fill up."""
        holders: dict[str, list[BackupFacts]] = defaultdict(list)
        for facts in sorted(self._all, key=lambda facts: (clock(facts), facts.backup_id), reverse=True):
            for name in sorted(facts.proven):
                holders[name].append(facts)
        for name, held in holders.items():
            if self._is_forgotten(name, held):
                continue
            opened = [facts for facts in held if name in facts.opened][: self._rule.minimum_proven]
            filling = [facts for facts in held if name in facts.bytes_only]
            chosen = opened + filling[: self._rule.minimum_proven - len(opened)]
            for facts in chosen:
                self.needed[facts.backup_id].setdefault(name, "minimum_proven")
            self.needed[held[0].backup_id][name] = "newest proven"

    def _is_forgotten(self, name: str, held: list[BackupFacts]) -> bool:
        """Whether the operator lets go of collections that were dropped so long ago, and this is one."""
        days = self._rule.forget_dropped_days
        if days is None:
            return False
        last = max(max(facts.taken_at, _trusted(facts)) for facts in held)
        later = any(f.complete and name not in f.proven and min(f.taken_at, _trusted(f)) > last for f in self._all)
        return later and self._at - last > timedelta(days=days)


_LOOK = "Look at it: python -m ferry show. A newer Ferry may have written it; a damaged one is deleted by hand."


def _trusted(facts: BackupFacts) -> datetime:
    """The time in the id unless the store's own contradicts it: a commit before the start, or a day or more after."""
    if facts.stored_at is None or -SKEW <= facts.stored_at - facts.taken_at <= LONGEST_BACKUP:
        return facts.taken_at
    return facts.stored_at


def _stored(facts: BackupFacts) -> datetime:
    """The time by the store's clock; what was never committed has only the one in its id."""
    return facts.stored_at or facts.taken_at


def _after(facts: BackupFacts, complete: list[BackupFacts], clock: _Clock) -> bool:
    return (clock(facts), facts.backup_id) > (clock(complete[0]), complete[0].backup_id)


def _newest_of_each(
    timeline: list[BackupFacts], number: int, clock: _Clock, period: Callable[[datetime], str]
) -> Iterator[tuple[str, BackupFacts]]:
    """For each of the newest so many periods that have one: the newest complete backup; where there is none, the
    newest of each collection that unfinished runs have proven."""
    groups: dict[str, list[BackupFacts]] = {}
    for facts in timeline:
        groups.setdefault(period(clock(facts)), []).append(facts)
    for label in sorted(groups, reverse=True)[:number]:
        complete = next((facts for facts in groups[label] if facts.complete), None)
        if complete is not None:
            yield label, complete
            continue
        seen: set[str] = set()
        for facts in groups[label]:
            if facts.proven - seen:
                seen |= facts.proven
                yield label, facts


def _said(names: Mapping[str, str]) -> list[str]:
    """``newest proven of docs, words``; ``minimum_proven of docs``."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, kind in names.items():
        kinds[kind].append(name)
    return [
        f"{kind} of {', '.join(_few(kinds[kind]))}" for kind in ("newest proven", "minimum_proven") if kind in kinds
    ]


def _few(names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    return [*ordered[:_NAMED], f"{more} more"] if more > 0 else ordered


def _finding(facts: BackupFacts, message: str, remedy: str) -> Finding:
    return Finding(severity="warning", subject=facts.backup_id, message=message, remedy=remedy)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        msg = f"The retention names the time zone {name!r}, which this machine does not know."
        raise ConfigurationError(
            msg, "Use a name such as Europe/Berlin, and install tzdata if it is missing."
        ) from None
