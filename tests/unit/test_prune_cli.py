"""``prune``, ``gc``, ``hold`` and ``release`` as an operator meets them: show first, do when told, say why."""

from datetime import timedelta

import pytest

from ferry.__main__ import main
from ferry.cli import gc as gc_command
from ferry.cli import hold as hold_command
from ferry.cli import prune as prune_command
from ferry.connections import Repository
from ferry.models import now
from ferry.profiles import PolicyProfile, RepositoryProfile, Retention, WorkerSettings
from ferry.prune import gc, plan, run
from ferry.repository.catalog import Catalog
from ferry.repository.layout import Keys
from ferry.repository.upkeep import ObjectLock
from tests.fabricated import History
from tests.unit.builders import NOON
from tests.unit.fakes import MemoryStore

KEYS = Keys("ferry")
START = NOON - timedelta(days=30)
PRUNE = ["prune", "--cluster", "test", "--policy", "two"]


class Bucket(MemoryStore):
    """A store in memory that knows no unfinished uploads."""

    def uploads(self, _prefix: str) -> tuple[()]:
        return ()


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> History:
    """Three backups, and a policy ``two`` that keeps as many."""
    store = Bucket()
    made = History(store, KEYS)
    for day in range(3):
        made.back_up(START + timedelta(days=day))
    profile = RepositoryProfile(bucket="bucket")
    repository = Repository(profile, WorkerSettings(), store, KEYS, Catalog(store, KEYS))  # type: ignore[arg-type]

    class Settings:
        repositories = {"main": profile}  # noqa: RUF012

        def policy(self, name: str) -> PolicyProfile:
            assert name == "two"
            return PolicyProfile(retention=Retention(keep_last=2, minimum_proven=1, grace_hours=0), resume_hours=0)

    monkeypatch.setattr(plan, "lock_of", lambda _store, _key: ObjectLock())
    for module in (run, gc):
        monkeypatch.setattr(module, "store_time", lambda _store, _key: now() + timedelta(days=3))
    for command in (prune_command, gc_command, hold_command):
        monkeypatch.setattr(command, "connect_repository", lambda _name: repository)
        monkeypatch.setattr(command.terminal, "chosen_repository", lambda _name: "main")
    for command in (prune_command, gc_command):
        monkeypatch.setattr(command, "load_settings", Settings)
    return made


def test_prune_shows_first_and_deletes_when_told(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    """Every backup has a row with its reasons."""
    assert isinstance(history.store, Bucket)
    before = dict(history.store.objects)
    assert main(PRUNE) == 0
    said = capsys.readouterr().out
    assert history.store.objects == before
    assert "1 are to be deleted" in said
    assert "no rule keeps it" in said
    assert "one of the last 2" in said
    assert "--apply" in said
    assert main([*PRUNE, "--apply"]) == 0
    assert "1 of 1 were deleted" in capsys.readouterr().out
    assert len(history.catalog.backups("test")) == 2


def test_a_hold_is_put_and_taken_back(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    """Who and why are told; a release of what is not held fails with the way to look."""
    oldest = history.catalog.backups("test")[-1].backup_id
    assert main(["hold", "test", oldest, "--reason", "audit 2026", "--by", "ann"]) == 0
    assert "held by ann: audit 2026" in capsys.readouterr().out
    assert main([*PRUNE, "--apply"]) == 0
    assert "None is to be deleted" in capsys.readouterr().out
    assert main(["release", "test", oldest]) == 0
    assert main(["release", "test", oldest]) == 1
    assert "python -m ferry prune --cluster test" in capsys.readouterr().err


def test_gc_shows_first_and_takes_away_when_told(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    """The object, its size and the reason."""
    died = history.back_up(START - timedelta(days=1), complete=False, proven=False)
    archive = history.folder(died) + "shards/0.snapshot"
    line = ["gc", "--cluster", "test", "--policy", "two"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert archive in said
    assert "2 things of test that nobody needs are there; nothing was changed: 10 B" in said
    assert history.store.head(archive) is not None
    assert main([*line, "--apply"]) == 0
    assert "were taken away" in capsys.readouterr().out
    assert history.store.head(archive) is None


@pytest.mark.parametrize("line", [["prune"], ["gc"], ["hold", "test", "latest"], ["release", "test"]])
def test_wrong_command_lines_end_with_2(line: list[str]) -> None:
    """A hold without a reason, a prune without a cluster."""
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 2
