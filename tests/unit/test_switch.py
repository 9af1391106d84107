"""The pure part of blue/green: where an alias is, what is kept and until when, and what may be dropped."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry import switch_report
from ferry.__main__ import parser
from ferry.errors import ConfigurationError, ConflictError, PreflightError, RestoreError
from ferry.models import BackupId
from ferry.repository.layout import Keys
from ferry.restore import finish as finishing
from ferry.restore import roll_back as rolling
from ferry.restore import switch as switching
from ferry.restore.finish import Finished, FinishedAlias
from ferry.restore.roll_back import WayBack
from ferry.restore.switch_record import (
    FinishWishes,
    Kept,
    Place,
    Seen,
    Side,
    Switch,
    SwitchPlace,
    SwitchUnknownError,
    judge,
    succeed,
    switches,
    where,
)
from tests.unit.builders import BACKUP_ID, NOON
from tests.unit.fakes import MemoryStore

KEYS = Keys("ferry")
OLD, NEW = Side(collection="old", uuid="1", points=10), Side(collection="new", uuid="2", points=20)
KEPT = Kept(**OLD.model_dump(), keep_until=NOON)
HERE = {"old": "1", "new": "2", "third": "3"}
WISHES = FinishWishes()


def switch(**other: Any) -> Switch:
    """A planned switch of alias ``live`` from old to new."""
    usual: dict[str, Any] = {
        "cluster": "target",
        "alias": "live",
        "old": OLD,
        "new": NEW,
        "restore_id": BackupId("20261122T030000Z-aaaaaa"),
        "backup_id": BACKUP_ID,
        "planned_at": NOON,
    }
    return Switch(**(usual | other))


def seen(at: str | None, **uuids: str | None) -> Seen:
    """A cluster whose alias ``live`` points there."""
    return Seen(aliases={"live": at} if at else {}, uuids=HERE | uuids)


@pytest.mark.parametrize(
    ("found", "place"),
    [
        (seen("old"), "old"),
        (seen("new"), "new"),
        (seen("third"), "elsewhere"),
        (seen(None), "elsewhere"),
        (seen("new", new="another"), "elsewhere"),
        (seen("old", old="another"), "elsewhere"),
        (seen("new", new=None), "new"),
    ],
)
def test_where_the_alias_is_the_cluster_says(found: Seen, place: Place) -> None:
    """By name and uuid, whatever state the record is in; without a uuid the name decides."""
    for state in ("planned", "moved", "rolled_back", "finished", "void"):
        assert where(switch(state=state), found) == place


def test_a_new_alias_is_at_its_old_place_while_there_is_none() -> None:
    """Before the first switch of an alias nothing answers, and that is no third collection."""
    assert where(switch(old=None), seen(None)) == "old"
    assert where(switch(old=None), seen("new")) == "new"
    assert where(switch(old=None), seen("third")) == "elsewhere"


def test_the_old_one_is_kept_from_the_moment_the_alias_was_seen_to_have_left_it() -> None:
    """Not from the plan on, which a dead restore may have made long before; a planned switch keeps nothing."""
    assert switch().kept == ()
    later = NOON + timedelta(hours=3)
    moved = switch(keep_days=2).moved(later, 11)
    assert moved.kept == (Kept(collection="old", uuid="1", points=11, keep_until=later + timedelta(days=2)),)
    assert moved.ended("rolled_back", later).kept == ()
    again = moved.ended("rolled_back", later).moved(later, 12)
    assert (again.ended_at, again.kept[0].points) == (None, 12)


def test_the_next_switch_takes_over_what_is_kept_but_not_its_own_two() -> None:
    """A collection that serves again, or is restored to under the same name, is nobody's to drop."""
    first = switch().moved(NOON, 10)
    third = Side(collection="third", uuid="3", points=1)
    second = succeed(switch(old=NEW, new=third), first)
    assert second.earlier == first.kept
    assert [kept.collection for kept in second.moved(NOON, 20).kept] == ["old", "new"]
    assert second.without({"old"}).kept == ()
    assert succeed(switch(old=NEW, new=OLD), first).earlier == ()
    assert succeed(switch(old=OLD, new=third), first).earlier == ()
    assert succeed(switch(), None).earlier == ()


@pytest.mark.parametrize(
    ("found", "points", "wishes", "state", "reason"),
    [
        (seen("new"), 10, WISHES, "drop", "its time is over since"),
        (Seen(aliases={}, uuids={"new": "2"}), None, WISHES, "gone", "not there any more"),
        (seen("new", old="another"), 10, WISHES, "gone", "another one now (another), which stays"),
        (seen("new", old=None), 10, WISHES, "refused", "does not tell its uuid"),
        (seen("old"), 10, WISHES, "refused", "alias live points at it"),
        (seen("old"), 10, FinishWishes(now=True, drop_changed="old"), "refused", "alias live points at it"),
        (seen("new"), 11, WISHES, "refused", "it has 11 points and had 10 at the switch"),
        (seen("new"), 9, FinishWishes(drop_changed="new"), "refused", "it has 9 points and had 10"),
        (seen("new"), None, WISHES, "refused", "could not be counted now"),
        (seen("new"), 11, FinishWishes(drop_changed="old"), "drop", "its time is over"),
    ],
)
def test_what_anybody_may_be_using_is_not_dropped(
    found: Seen, points: int | None, wishes: FinishWishes, state: str, reason: str
) -> None:
    """An alias, another uuid, other points: each is seen, and only a typed name goes over the last."""
    verdict = judge(KEPT, found, points, wishes, NOON)
    assert (verdict.state, reason in verdict.reason) == (state, True), verdict
    assert (verdict.remedy is None) == (state != "refused")


def test_what_was_never_counted_needs_its_name_typed() -> None:
    """A broken collection, which was the reason for the restore, has no count to compare with."""
    uncounted = KEPT.model_copy(update={"points": None})
    assert judge(uncounted, seen("new"), None, WISHES, NOON).state == "refused"
    assert judge(uncounted, seen("new"), 10, WISHES, NOON).state == "refused"
    assert judge(uncounted, seen("new"), None, FinishWishes(drop_changed="old"), NOON).state == "drop"


def test_nothing_goes_before_its_time_unless_asked() -> None:
    """To the second, by the clock that is given."""
    before = NOON - timedelta(seconds=1)
    assert judge(KEPT, seen("new"), None, WISHES, before).reason == "it is kept until 2026-11-22 12:00 UTC"
    asked = judge(KEPT, seen("new"), 10, FinishWishes(now=True), before)
    assert (asked.state, asked.reason) == ("drop", "its time would last until 2026-11-22 12:00 UTC")


@given(
    at=st.sampled_from(["old", "new", "third", None]),
    uuid=st.sampled_from(["1", "9", None]),
    points=st.sampled_from([10, 11, None]),
    now=st.booleans(),
    typed=st.sampled_from(["old", "new", None]),
    hours=st.integers(-2, 2),
)
def test_a_drop_is_always_of_a_known_unused_collection(
    at: str | None, uuid: str | None, points: int | None, now: bool, typed: str | None, hours: int
) -> None:
    """Whatever comes together: same uuid, no alias, its time over or asked, its points as noted or its name typed."""
    wishes = FinishWishes(now=now, drop_changed=typed)
    verdict = judge(KEPT, seen(at, old=uuid), points, wishes, NOON + timedelta(hours=hours))
    allowed = uuid == "1" and at != "old" and (now or hours >= 0) and (points == 10 or typed == "old")
    assert (verdict.state == "drop") == allowed


def test_the_record_is_written_only_over_what_was_read() -> None:
    """Of two that read it one writes; the key holds any name; what is damaged is told and hides no other."""
    store = MemoryStore()
    first, second = (SwitchPlace(store, KEYS, "target", "a/b") for _ in range(2))
    assert first.read() is None
    assert second.read() is None
    first.write(switch(alias="a/b"))
    assert list(store.objects) == ["ferry/switches/target/a%2Fb.json"]
    with pytest.raises(ConflictError):
        second.write(switch())
    assert second.read() == switch(alias="a/b")
    moved = switch(alias="a/b").moved(NOON, 1)
    second.write(moved)
    second.write(moved.ended("finished", NOON))
    with pytest.raises(ConflictError):
        first.write(switch())
    store.put_document(KEYS.switch("target", "broken"), b'{"alias": "x"}')
    found, problems = switches(store, KEYS, "target")
    assert [each.state for each in found] == ["finished"]
    assert "ferry/switches/target/broken.json" in problems[0]
    broken = SwitchPlace(store, KEYS, "target", "broken")
    with pytest.raises(SwitchUnknownError, match="nothing was changed"):
        broken.read()
    assert broken.find() is None
    broken.write(switch())  # a restore goes into service all the same
    assert broken.read() == switch()


def connected(store: MemoryStore) -> Any:
    """Connections to a store in memory and to a cluster that nobody asks."""
    return SimpleNamespace(store=store, keys=KEYS, cluster=SimpleNamespace(name="target"))


@pytest.mark.parametrize("state", ["planned", "moved", "rolled_back", "finished", "void"])
@pytest.mark.parametrize("at", ["old", "new", "third", None])
def test_a_dry_finish_writes_nothing_wherever_the_alias_is(
    monkeypatch: pytest.MonkeyPatch, state: str, at: str | None
) -> None:
    """Also where the finish itself would first set the record right; an old one whose move was not noted is kept."""
    store = MemoryStore()
    moved = switch(keep_days=0).moved(NOON - timedelta(days=1), 10)
    SwitchPlace(store, KEYS, "target", "live").write(moved.model_copy(update={"state": state}))
    before = list(store.writes)
    monkeypatch.setattr(finishing, "store_time", lambda _store, _key: NOON)
    monkeypatch.setattr(finishing, "look", lambda _cluster: seen(at))
    monkeypatch.setattr(finishing, "count_of", lambda _cluster, _side: 10)
    for alias in (None, "live"):
        foreseen = finishing.look_at_finish(connected(store), alias, WISHES)
        may_drop = state == "moved" or at == "new"
        assert (foreseen.dropped == ["old"]) == (may_drop and at != "old" and state not in ("finished", "void"))
        assert foreseen.aliases[0].moved == (alias == "live" and (state, at) == ("planned", "old"))
        assert any("was to move alias" in told.message for told in foreseen.findings) == (
            state == "planned" and at != "new" and not foreseen.aliases[0].moved
        )
    assert store.writes == before


def test_a_switch_of_an_alias_that_is_elsewhere_is_not_even_noted() -> None:
    """The record of the switch before stays what it was."""
    store = MemoryStore()
    alias = switching.HeldAlias(connected(store), "live", lease=None, place=SwitchPlace(store, KEYS, "target", "live"))  # type: ignore[arg-type]
    intent = switching.Intent(alias="live", old="old", new="new", restore_id=BACKUP_ID, backup_id=BACKUP_ID)
    with pytest.raises(RestoreError, match="pointed at old when planned and at third now") as caught:
        switching.ready(alias, intent, seen("third"))
    assert "new is restored and verified" in str(caught.value.remedy)
    assert store.writes == []


@pytest.mark.parametrize(
    ("noted", "found", "refusal"),
    [
        (switch(), seen("new"), None),
        (switch(), seen(None), None),
        (switch(old=None), seen("new"), "there is no collection to go back to"),
        (switch(), seen("third"), "points at third, which is neither old nor the new of the restore"),
        (switch(), seen("new", new="another"), "points at new, which is neither"),
        (switch(), Seen(aliases={"live": "new"}, uuids={"new": "2"}), "is gone. Nothing was changed"),
        (switch(), seen("new", old="another"), "is another collection now. Nothing was changed"),
        (switch().ended("finished", NOON), Seen(aliases={}, uuids={}), "is gone; it was dropped at 2026-11-22 12:00"),
    ],
)
def test_the_way_back_leads_only_to_the_very_old_one(noted: Switch, found: Seen, refusal: str | None) -> None:
    """From the new collection, or from nowhere, which is what dropping the new one by hand leaves."""
    if refusal is None:
        assert rolling._require_way(noted, found) == "old"
        return
    with pytest.raises(PreflightError) as caught:
        rolling._require_way(noted, found)
    assert refusal in caught.value.message
    assert "Nothing was changed" in caught.value.message


def test_what_goes_over_a_rule_is_for_one_alias_and_a_refusal_is_its_error() -> None:
    """A schedule names no alias, so it can neither drop early nor what has changed."""
    for wishes in (FinishWishes(now=True), FinishWishes(drop_changed="old")):
        with pytest.raises(ConfigurationError, match="one alias at a time"):
            finishing.look_at_finish(connected(MemoryStore()), None, wishes)
    refused = judge(KEPT, seen("new"), 11, WISHES, NOON)
    done = FinishedAlias(switch=switch(), verdicts=(refused,))
    with pytest.raises(PreflightError, match=r"old was not dropped: it has 11 points .* Nothing was dropped") as caught:
        finishing._require_none_refused(done)
    assert "--drop-changed old" in str(caught.value.remedy)


def test_the_words_say_what_is_lost_and_what_stays() -> None:
    """More, fewer, as many, unknown; and of a finish what went and what is still to do."""
    moved = switch().moved(NOON, 10)
    told = {
        points: switch_report.roll_back_text(WayBack(switch=moved, moves=True, points=points))
        for points in (23, 19, 20, None)
    }
    assert "**new has 3 points more than at the switch** (23, and 20 then)" in told[23]
    assert "1 point fewer" in told[19]
    assert "overwritten ones do not show" in told[20]
    assert "is not known" in told[None]
    assert "new stays; roll back with drop_new" in told[20]
    assert "new is dropped" in switch_report.roll_back_text(WayBack(switch=moved, moves=False, drops=True))
    verdict = judge(KEPT, seen("new"), 10, WISHES, NOON)
    finished = Finished(aliases=(FinishedAlias(switch=moved, verdicts=(verdict,)),))
    assert finished.dropped == ["old"]
    assert "**Would be dropped: old**" in switch_report.finish_text(finished, dry_run=True)
    assert switch_report.finish_rows(finished)[0]["old collection"] == "old"
    for state in ("planned", "rolled_back", "finished", "void"):
        quiet = Finished(aliases=(FinishedAlias(switch=switch(state=state)),))
        assert "Nothing was dropped." in switch_report.finish_text(quiet, dry_run=False)


def test_command_lines_are_understood() -> None:
    """As the documentation shows them."""
    line = "finish --cluster prod --alias docs-live --now --drop-changed docs --dry-run"
    expected = {"alias": "docs-live", "now": True, "drop_changed": "docs", "dry_run": True, "command": "finish"}
    assert vars(parser().parse_args(line.split())).items() >= expected.items()
    assert vars(parser().parse_args(["finish", "--cluster", "prod"])).items() >= {"alias": None, "now": False}.items()
    line = "roll-back --cluster prod --alias docs-live --drop-new"
    expected = {"alias": "docs-live", "drop_new": True, "dry_run": False}
    assert vars(parser().parse_args(line.split())).items() >= expected.items()
