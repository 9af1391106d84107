"""Switches, finishes and roll backs that die at any request, or meet, while somebody searches by the alias."""

from collections.abc import Iterator

import pytest

from ferry.errors import LeaseHeldError, PreflightError
from tests.faults.conftest import Runs
from tests.faults.scene import fill, soon
from tests.faults.switching import ACT, NEW, OLD, OTHER, Stage, act, hurry, watched
from tests.workshop import Workshop


@pytest.fixture(autouse=True)
def hurrying(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for searches that take long."""
    hurry(monkeypatch.setattr)


@pytest.fixture
def stage(workshop: Workshop, runs: Runs) -> Iterator[Stage]:
    """An alias at the old one of two collections, with somebody searching by it all the time."""
    with Stage(workshop, runs) as made:
        made.furnish()
        with watched(made):
            yield made


def begin(stage: Stage, what: str) -> None:
    """What must have been done before that can be done."""
    stage.furnish()
    if what != "switch":
        act("switch")


def refusal(what: str) -> PreflightError | None:
    """Do it; the error when it is refused."""
    try:
        act(what)
    except PreflightError as error:
        return error
    return None


def settle(stage: Stage, what: str, by: str) -> None:
    """The next call after a kill; where nothing was noted before the kill, a finish or a roll back says so."""
    noted, old_gone = stage.record(), OLD not in stage.names()
    error = refusal(by)
    assert error is None or noted is None or (by == "roll_back" and old_gone), (what, by, error)
    if error is not None and noted is None:
        assert stage.alias() == OLD
        act("switch")
    after = stage.record()
    assert after is not None
    assert stage.alias() == {"rolled_back": OLD}.get(after.state, NEW)
    if by == what:
        assert (after.state, stage.names() & {OLD, NEW}) == {
            "switch": ("moved", {OLD, NEW}),
            "finish": ("finished", {NEW}),
            "roll_back": ("rolled_back", {OLD}),
        }[what]
    assert stage.shop.leftovers() == []


# What each of them changes, in this order; a kill between two of them leaves what the first has left.
CHANGES = [
    ("switch", 1, "/switches/", "switch"),
    ("switch", 1, "/switches/", "roll_back"),
    ("switch", 1, "/collections/aliases", "switch"),
    ("switch", 1, "/collections/aliases", "finish"),
    ("finish", 1, "DELETE /collections/", "finish"),
    ("finish", 1, "DELETE /collections/", "roll_back"),
    ("roll_back", 1, "/collections/aliases", "roll_back"),
    ("roll_back", 1, "DELETE /collections/", "roll_back"),
]


def test_killed_at_any_change_the_alias_answers_and_the_next_call_settles_it(stage: Stage) -> None:
    """The request is on its way when the run dies, and obeyed; the same call, a finish or a roll back ends it."""
    for number, (what, nth, match, by) in enumerate(CHANGES):
        begin(stage, what)
        assert stage.killed_at(what, nth, match), (what, nth, match)
        if number:  # the first one waits for the dead run's lease
            stage.bury()
        settle(stage, what, by)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("what", "by"),
    [(what, by) for what in ("switch", "finish", "roll_back") for by in dict.fromkeys((what, "finish", "roll_back"))],
)
def test_killed_at_every_request(stage: Stage, what: str, by: str) -> None:
    """Also at each one that only reads, and at those of the lease."""
    nth, dies = 0, True
    while dies:
        nth += 1
        begin(stage, what)
        dies = stage.killed_at(what, nth, "", every=True) is not None
        stage.bury()
        settle(stage, what, by)
    assert nth > 20


def test_two_finishes_at_once_are_one(stage: Stage) -> None:
    """The second says who is at work, a roll back, too; the first ends its work, and again there is nothing to do."""
    act("switch")
    stage.nodes[0].hold("DELETE /collections/", lambda: None)
    pid = stage.runs.start(ACT, {"what": "finish"})
    soon(lambda: stage.nodes[0].held)
    for what in ("finish", "roll_back"):
        with pytest.raises(LeaseHeldError, match=rf"another run \(process {pid} on .*, fencing number 2"):
            act(what, "this run")
    stage.nodes[0].let_go()
    assert stage.runs.wait(pid) == "exit 0", stage.runs.output(pid)
    assert (stage.names() & {OLD, NEW}, stage.alias()) == ({NEW}, NEW)
    act("finish")


def test_an_alias_that_somebody_moves_meanwhile_is_left_to_them(stage: Stage) -> None:
    """Moved right after a switch was noted: it is left there. Moved after a switch: there is no way back by Ferry."""
    fill(stage.cluster, OTHER, 20, shards=1)
    stage.bucket.hold("/switches/", lambda: None)
    pid = stage.runs.start(ACT, {"what": "switch"})
    soon(lambda: stage.bucket.held)
    stage.point(OTHER)
    stage.bucket.let_go()
    assert stage.runs.wait(pid) == "exit 1"
    assert "pointed at shop-old when planned and at shop-other now" in stage.runs.output(pid)
    assert (stage.alias(), stage.names() & {OLD, NEW}) == (OTHER, {OLD, NEW})
    begin(stage, "roll_back")
    stage.point(OTHER)
    error = refusal("roll_back")
    assert error is not None
    assert "points at shop-other, which is neither shop-old nor the shop-new of the restore" in error.message
    act("finish")  # the time of the old one is over, and the alias has left it
    assert (stage.alias(), stage.names() & {OLD, NEW}) == (OTHER, {NEW})
