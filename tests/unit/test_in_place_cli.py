"""The command that overwrites a live collection: what it must be given, and what it says at the end."""

from typing import Any

import pytest

from ferry.__main__ import main
from ferry.cli import in_place
from ferry.in_place_report import in_place_verdict
from ferry.models import BackupId
from ferry.restore.in_place import InPlaceRequest, plan_in_place
from ferry.restore.overwrite import Overwritten
from tests.unit.builders import BACKUP_ID, archive, collection, layout, manifest, node, shard

LINE = (
    f"restore-in-place docs --cluster prod --repository main --source-cluster prod --backup {BACKUP_ID} --confirm docs"
)
LATER = BackupId("20261123T120000Z-abcdef")


def overwritten(request: InPlaceRequest, before: BackupId | None) -> Overwritten:
    docs = collection("docs", [shard(0, [1])])
    plan = plan_in_place(request, manifest(docs, [archive(0)]), layout([node(1)], [docs]))
    return Overwritten(plan=plan, before=before, recovered=(), verdicts=(), findings=())


@pytest.mark.parametrize("left_out", ["--backup", "--confirm", "--source-cluster", "--cluster"])
def test_what_is_overwritten_by_what_must_be_said(left_out: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that matters has a default."""
    words = LINE.split()
    at = words.index(left_out)
    with pytest.raises(SystemExit) as ended:
        main(words[:at] + words[at + 2 :])
    assert ended.value.code == 2
    assert left_out in capsys.readouterr().err


@pytest.mark.parametrize("waived", [False, True])
def test_the_command_asks_for_what_was_typed(
    waived: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every point is compared unless less is asked for, and the verdict says where the state of before is."""
    asked: list[InPlaceRequest] = []

    def run(_connections: Any, request: InPlaceRequest, *_more: Any, **_named: Any) -> Overwritten:
        asked.append(request)
        return overwritten(request.model_copy(update={"verify": "count"}), None if waived else LATER)

    monkeypatch.setattr(in_place.terminal, "chosen_repository", lambda name: name)
    monkeypatch.setattr(in_place, "connect", lambda *_names: None)
    monkeypatch.setattr(in_place, "run_in_place", run)
    assert main([*LINE.split(), *(["--waive-backup"] if waived else [])]) == 0
    [request] = asked
    assert (request.collection, request.target, request.confirm, request.backup) == ("docs", "docs", "docs", BACKUP_ID)
    assert (request.verify, request.waive_backup) == ("content", waived)
    assert ("waived" if waived else LATER) in capsys.readouterr().out


def test_the_verdict_says_that_the_way_back_was_waived() -> None:
    """Whoever reads the report next week must not look for a backup that there is none of."""
    request = InPlaceRequest(
        restore_id=LATER,
        cluster="prod",
        repository="main",
        source_cluster="prod",
        collection="docs",
        backup=BACKUP_ID,
        confirm="docs",
        waive_backup=True,
        verify="count",
    )
    assert "**not backed up**: that was waived" in in_place_verdict(overwritten(request, None))
    assert f"The state before is backup {LATER}" in in_place_verdict(overwritten(request, LATER))
