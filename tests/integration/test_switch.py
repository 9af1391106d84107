"""Blue/green on real servers: the alias moves, the old collection stays for its time, goes, or serves again."""

from collections.abc import Iterator
from typing import Any

import pytest

from ferry.__main__ import main
from ferry.errors import (
    ConfigurationError,
    LayoutError,
    NodeUnreachableError,
    PreflightError,
    RestoreError,
)
from ferry.qdrant.schema import mark_restore, unmark_restore
from ferry.restore import finish as finishing
from ferry.restore import roll_back as rolling
from ferry.restore import switch as switching
from ferry.restore.finish import Finished, finish, look_at_finish
from ferry.restore.roll_back import WayBack, look_at_roll_back, roll_back
from ferry.restore.switch import Intent, make_switch
from ferry.restore.switch_record import FinishWishes, Switch
from tests.integration.crossings import (
    HOLDER,
    SERVERS,
    Eavesdropper,
    back_up,
    changes_something,
    new_id,
    restore,
)
from tests.integration.samples import Api, few
from tests.workshop import Workshop, drop_everything

pytestmark = SERVERS
ALIAS, RECORD = "docs live", "switches/target/docs%20live.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody searches for seconds here."""
    for module in (finishing, rolling):
        monkeypatch.setattr(module, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(switching, "EVERYWHERE_SECONDS", 0.2)
    monkeypatch.setattr(switching, "CALM_SECONDS", 0.3)


@pytest.fixture
def target(workshop: Workshop) -> Iterator[Api]:
    """The target, as its second node answers."""
    with Api(workshop.clusters["target"].urls[1]) as api:
        yield api


def make(api: Api, name: str, points: int = 12) -> None:
    """A small collection."""
    api.make(name, few(name, points))


def add(api: Api, name: str, number: int = 1) -> None:
    """More points."""
    points = [{"id": 1_000_000 + n, "vector": [n, 1, 2, 3]} for n in range(number)]
    api.call("PUT", f"{api.of(name)}/points?wait=true", {"points": points})


def switched(shop: Workshop, old: str | None, new: str, **other: Any) -> Switch:
    """The alias goes from one to the other."""
    usual: dict[str, Any] = {"alias": ALIAS, "restore_id": new_id(), "backup_id": new_id(), "keep_days": 0}
    return make_switch(shop.connect("target"), Intent(old=old, new=new, **(usual | other)), HOLDER)


def finished(shop: Workshop, alias: str | None = ALIAS, **wishes: Any) -> Finished:
    """A finish; as the word of one alias without one."""
    return finish(shop.connect("target"), alias, FinishWishes(**wishes), HOLDER)


def verdicts(done: Finished) -> dict[str, str]:
    """What became of each collection that was kept."""
    return {verdict.collection: verdict.state for each in done.aliases for verdict in each.verdicts}


def rolled_back(shop: Workshop, drop_new: bool = False) -> WayBack:
    """A roll back."""
    return roll_back(shop.connect("target"), ALIAS, drop_new, HOLDER)


def no_way_back(shop: Workshop, api: Api, kind: type[Exception], match: str) -> None:
    """The roll back is refused, before and under its lease, and leaves every alias and collection as it was."""
    before = (api.aliases(), api.collections())
    with pytest.raises(kind, match=match):
        look_at_roll_back(shop.connect("target"), ALIAS, drop_new=True)
    with pytest.raises(kind, match=match):
        rolled_back(shop, drop_new=True)
    assert (api.aliases(), api.collections()) == before


def test_a_switch_is_noted_before_it_is_made_and_ended_when_the_old_one_is_gone(
    workshop: Workshop, target: Api
) -> None:
    """Note, one request, note; a finish drops the old one, again does nothing, and then there is no way back."""
    make(target, "old")
    make(target, "new", 20)
    target.alias(ALIAS, "old")
    with Eavesdropper(workshop, "target") as heard:
        switch = switched(workshop, "old", "new")
        noted = [line for line in heard.bucket.requests if "switches/" in line and changes_something(line)]
        moves = [line for line in heard.of_nodes() if changes_something(line)]
    assert [len(noted), len(moves)] == [2, 1]
    assert moves[0].startswith("POST /collections/aliases")
    workshop.configure()
    assert target.aliases() == {ALIAS: "new"}
    record = workshop.read(RECORD)
    assert (record["state"], record["old"]["points"], record["new"]["points"]) == ("moved", 12, 20)
    assert record["old"]["uuid"]
    assert record["old"]["uuid"] != record["new"]["uuid"]
    assert switched(workshop, "old", "new") == switch  # the same call again
    assert verdicts(finished(workshop, None)) == {"old": "dropped"}
    assert target.collections() == {"new"}
    assert workshop.read(RECORD)["state"] == "finished"
    assert finished(workshop, None).aliases == ()
    assert verdicts(finished(workshop)) == {}
    no_way_back(workshop, target, PreflightError, r"old, which alias docs live .* is gone; it was dropped at 20")
    assert (target.aliases(), target.count(ALIAS)) == ({ALIAS: "new"}, 20)
    assert workshop.leftovers() == []


def test_old_ones_are_kept_for_their_time_whatever_comes_next(
    workshop: Workshop, target: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each old one of two switches waits for its own time; now is for a named alias; a dry run changes nothing."""
    for name in ("first", "second", "third"):
        make(target, name)
    target.alias(ALIAS, "first")
    switched(workshop, "first", "second", keep_days=0)
    switched(workshop, "second", "third", keep_days=7)
    with Eavesdropper(workshop, "target") as heard:
        foreseen = look_at_finish(workshop.connect("target"), None, FinishWishes())
        assert main(["finish", "--cluster", "target", "--dry-run"]) == 0
    assert [line for line in (*heard.of_nodes(), *heard.bucket.requests) if changes_something(line)] == []
    workshop.configure()
    assert verdicts(foreseen) == {"first": "drop", "second": "waits"}
    assert "Would be dropped: first" in capsys.readouterr().out
    assert verdicts(finished(workshop, None)) == {"first": "dropped", "second": "waits"}
    assert verdicts(finished(workshop)) == {"second": "waits"}
    for wishes in ({"now": True}, {"drop_changed": "second"}):
        with pytest.raises(ConfigurationError, match="one alias at a time"):
            finished(workshop, None, **wishes)
    with pytest.raises(PreflightError, match="No restore has moved alias other"):
        finished(workshop, "other")
    assert target.collections() == {"second", "third"}
    assert verdicts(finished(workshop, now=True)) == {"second": "dropped"}
    assert target.collections() == {"third"}
    assert workshop.leftovers() == []


def test_what_somebody_uses_is_not_dropped(workshop: Workshop, target: Api) -> None:
    """An alias, points written after the switch, another collection of the name; a typed name goes over points only."""
    make(target, "old")
    make(target, "new")
    target.alias(ALIAS, "old")
    switched(workshop, "old", "new")
    target.alias("other", "old")
    assert verdicts(finished(workshop, None)) == {"old": "refused"}
    with pytest.raises(PreflightError, match=r"alias other points at it\. Nothing was dropped"):
        finished(workshop, now=True, drop_changed="old")
    target.call("POST", "/collections/aliases", {"actions": [{"delete_alias": {"alias_name": "other"}}]})
    add(target, "old", 3)
    told = finished(workshop, None)
    assert "it has 15 points and had 12 at the switch" in told.findings[0].message
    with pytest.raises(PreflightError) as refusal:
        finished(workshop, now=True)
    assert "--drop-changed old" in str(refusal.value.remedy)
    assert target.collections() == {"old", "new"}
    target.call("DELETE", "/collections/old")
    make(target, "old")
    assert verdicts(finished(workshop, drop_changed="old")) == {"old": "gone"}
    assert target.count("old") == 12
    assert workshop.read(RECORD)["state"] == "finished"
    switched(workshop, "new", "old")
    add(target, "new")
    assert verdicts(finished(workshop, drop_changed="new")) == {"new": "dropped"}
    assert (target.aliases(), workshop.leftovers()) == ({ALIAS: "old"}, [])


def test_the_alias_goes_back_and_what_is_lost_is_said_before(
    workshop: Workshop, target: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request back; again is fine; the new one stays until it is asked to go; the old one is never dropped."""
    make(target, "old")
    make(target, "new", 20)
    target.alias(ALIAS, "old")
    switched(workshop, "old", "new")
    add(target, ALIAS, 3)
    with Eavesdropper(workshop, "target") as heard:
        assert look_at_roll_back(workshop.connect("target"), ALIAS, drop_new=True).lost_points == 3
        assert main(["roll-back", "--cluster", "target", "--alias", ALIAS, "--dry-run"]) == 0
        assert [line for line in (*heard.of_nodes(), *heard.bucket.requests) if changes_something(line)] == []
        assert main(["roll-back", "--cluster", "target", "--alias", ALIAS]) == 0
        assert len([line for line in heard.of_nodes() if changes_something(line)]) == 1
    workshop.configure()
    said = capsys.readouterr().out
    assert said.count("new has 3 points more than at the switch (23, and 20 then)") == 2
    assert target.aliases() == {ALIAS: "old"}
    assert rolled_back(workshop).moves is False
    assert verdicts(finished(workshop, None)) == {}
    assert verdicts(finished(workshop, now=True, drop_changed="old")) == {}
    assert target.collections() == {"old", "new"}
    target.alias("other", "new")
    no_way_back(workshop, target, PreflightError, "new cannot be dropped: alias other points at it, too")
    target.call("POST", "/collections/aliases", {"actions": [{"delete_alias": {"alias_name": "other"}}]})
    assert rolled_back(workshop, drop_new=True).drops
    assert rolled_back(workshop, drop_new=True).drops is False
    assert (target.collections(), target.count(ALIAS)) == ({"old"}, 12)
    assert workshop.leftovers() == []


def test_there_is_no_way_back_to_what_is_not_there_or_not_whole(workshop: Workshop, target: Api) -> None:
    """A third collection, a node away, a replica that is not Active, another or no old collection: refused."""
    for name in ("old", "new", "third"):
        make(target, name)
    switched(workshop, None, "new")
    no_way_back(workshop, target, PreflightError, "was new with new: there is no collection to go back to")
    target.call("PUT", "/collections/filled", few("filled").body | {"sharding_method": "custom"})
    switched(workshop, "new", "filled")
    switched(workshop, "filled", "third")
    target.alias(ALIAS, "old")
    no_way_back(workshop, target, PreflightError, "points at old, which is neither filled nor the third of the restore")
    target.alias(ALIAS, "third")
    with Eavesdropper(workshop, "target") as heard:
        heard.nodes[1].refuse()
        with pytest.raises(NodeUnreachableError):
            rolled_back(workshop)
    workshop.configure()
    # A shard key that waits for its points, as 1.16 makes them for tenants that are moved: Partial until it is filled.
    target.call("PUT", "/collections/filled/shards", {"shard_key": "k", "initial_state": "Partial"})
    no_way_back(workshop, target, LayoutError, r"shard 1 of filled is Partial on peer")
    assert target.aliases() == {ALIAS: "third"}
    target.call("DELETE", "/collections/filled")
    no_way_back(workshop, target, PreflightError, "filled, which alias docs live pointed at before, is gone. Nothing")
    make(target, "filled")
    no_way_back(workshop, target, PreflightError, "is another collection now")
    assert (target.aliases(), workshop.leftovers()) == ({ALIAS: "third"}, [])


def test_what_somebody_does_meanwhile_is_seen(workshop: Workshop, target: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias that comes to the old collection while it is counted; one that is moved after a roll back was said."""
    for name in ("old", "new", "third"):
        make(target, name)
    switched(workshop, None, "old")
    switched(workshop, "old", "new")
    count = finishing.count_of

    def count_and_be_late(cluster: Any, side: Any) -> int | None:
        target.alias("other", "old")
        return count(cluster, side)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(finishing, "count_of", count_and_be_late)
        assert verdicts(finished(workshop, None)) == {"old": "refused"}
    with pytest.raises(RestoreError, match="pointed at new when planned and at third now"):
        roll_back(workshop.connect("target"), ALIAS, True, HOLDER, lambda _way: target.alias(ALIAS, "third"))
    assert target.aliases() == {ALIAS: "third", "other": "old"}
    assert target.collections() == {"old", "new", "third"}
    assert workshop.leftovers() == []


def test_an_alias_that_went_with_its_collection_comes_back(workshop: Workshop, target: Api) -> None:
    """Dropping a collection takes its aliases away: then the way back is what makes the alias answer again."""
    make(target, "old")
    make(target, "new")
    target.alias(ALIAS, "old")
    switched(workshop, "old", "new", keep_days=7)
    target.call("DELETE", "/collections/new")
    assert target.aliases() == {}
    assert rolled_back(workshop, drop_new=True).points is None
    assert (target.aliases(), target.count(ALIAS)) == ({ALIAS: "old"}, 12)


def test_a_switch_that_was_planned_and_not_made_goes_forward_or_is_given_up(workshop: Workshop, target: Api) -> None:
    """A scheduled finish only tells; a named one makes the move of the very collection; a roll back gives it up."""
    make(target, "old")
    make(target, "new")
    target.alias(ALIAS, "old")

    def planned() -> None:
        with Eavesdropper(workshop, "target") as heard:
            for node in heard.nodes:
                node.http_status(502, count=100, match="POST /collections/aliases")
            with pytest.raises(NodeUnreachableError):
                switched(workshop, "old", "new", keep_days=7)
        workshop.configure()
        assert workshop.read(RECORD)["state"] == "planned"
        assert target.aliases() == {ALIAS: "old"}

    planned()
    told = finished(workshop, None)
    assert "was to move alias docs live to new" in told.findings[0].message
    assert look_at_finish(workshop.connect("target"), ALIAS, FinishWishes()).aliases[0].moved
    assert target.aliases() == {ALIAS: "old"}
    node = workshop.connect("target").cluster.nodes[0]
    mark_restore(node, "new", "a restore")
    with pytest.raises(PreflightError, match="new still belongs to restore"):
        finished(workshop)
    unmark_restore(node, "new", None)
    add(target, "new")
    with pytest.raises(PreflightError, match="new has 13 points and had 12"):
        finished(workshop)
    target.call("POST", "/collections/new/points/delete?wait=true", {"points": [1_000_000]})
    assert finished(workshop, now=True).aliases[0].moved
    assert target.aliases() == {ALIAS: "new"}
    assert verdicts(finished(workshop)) == {"old": "waits"}
    assert rolled_back(workshop).moves
    planned()
    assert rolled_back(workshop).moves is False
    assert workshop.read(RECORD)["state"] == "rolled_back"
    planned()
    make(target, "third")
    target.alias(ALIAS, "third")
    with pytest.raises(RestoreError, match="pointed at old when planned and at third now"):
        switched(workshop, "old", "new")
    assert finished(workshop).aliases[0].switch.state == "void"
    no_way_back(workshop, target, PreflightError, "points at third, which is neither")
    assert finished(workshop, None).findings == ()
    assert target.collections() == {"old", "new", "third"}
    assert workshop.leftovers() == []


def test_a_restore_leaves_its_switch(workshop: Workshop, target: Api) -> None:
    """A restore with an alias notes what it was made of and how long the old one is kept."""
    with Api(workshop.clusters["source"].urls[0]) as source:
        make(source, "docs", 30)
    record = back_up(workshop)
    make(target, "old")
    target.alias(ALIAS, "old")
    restored = restore(workshop, record, "docs", alias=ALIAS, keep_days=3)
    noted = Switch.model_validate(workshop.read(RECORD))
    assert (noted.state, noted.old and noted.old.collection) == ("moved", "old")
    assert noted.new.collection == restored.plan.target
    assert (noted.new.points, noted.backup_id) == (30, record.backup_id)
    assert noted.moved_at is not None
    assert noted.keep_until is not None
    assert (noted.keep_until - noted.moved_at).days == 3
    assert target.count(ALIAS) == 30
    drop_everything(workshop.clusters["source"])
