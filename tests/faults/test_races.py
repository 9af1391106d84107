"""Backups, prunes and restores beside each other, from processes whose clocks do not agree."""

import signal
from collections.abc import Iterator

import pytest

from tests.faults.scene import soon
from tests.soak.content import SMALL
from tests.soak.soak import BACKUP, PRUNE, Soak
from tests.soak.tripwire import Snare, Tripwire
from tests.workshop import Workshop

TEN_MINUTES = 600.0
RESTORE = ("restore", "docs", "--cluster", "target", "--repository", "main", "--source-cluster", "source")


@pytest.fixture
def soak(workshop: Workshop) -> Iterator[Soak]:
    """A small source with three backups, each of another state; the prune keeps two."""
    with Soak(workshop, seed=1, shapes=SMALL) as made:
        made.content.load()
        for _ in range(3):
            made.undisturbed()
            made.content.change()
        made.look()
        yield made


@pytest.mark.parametrize("backup_shift", [TEN_MINUTES, -TEN_MINUTES], ids=["backup ahead", "backup behind"])
def test_a_backup_and_a_prune_with_clocks_ten_minutes_apart(soak: Soak, backup_shift: float) -> None:
    """Together or one after the other: what was made last stays, whatever its clock says, and what is left is true."""
    before = soak.look().complete()
    runs = [
        (BACKUP, backup_shift, soak.commands.start(*BACKUP, shift_seconds=backup_shift)),
        (PRUNE, 0.0, soak.commands.start(*PRUNE)),
    ]
    for arguments, shift, run in runs:
        if run.wait() != "exit 0":  # it must be because of the other; alone it goes through
            assert "lease" in run.output, str(run)
            soak.obeyed(*arguments, shift_seconds=shift)
    for shift in (0.0, backup_shift, -backup_shift):
        soak.obeyed(*PRUNE, shift_seconds=shift)
    bucket = soak.truth.look()
    soak.truth.require_readable(bucket)
    assert before[0] in bucket.complete(), "of those made by a right clock the newest stays"
    [made] = set(bucket.complete()) - set(before)
    soak.truth.require_latest(bucket, made)
    assert soak.truth.left_behind(bucket) == []


def test_prunes_that_are_killed_are_finished_by_the_next_and_two_at_once_by_one(soak: Soak) -> None:
    """Killed at each of its deletes a prune leaves only what reads back; of two together one works, the other tells."""
    for _ in range(4):
        run = soak.commands.start(*PRUNE)
        soak.store.on_change = Snare(1, lambda run=run: run.send(signal.SIGKILL), match="DELETE")
        assert run.wait() == f"signal {int(signal.SIGKILL)}", str(run)
        soak.store.on_change = None
        soak.look()
    runs = [soak.commands.start(*PRUNE) for _ in range(2)]
    ends = [run.wait() for run in runs]
    assert "exit 0" in ends, "\n".join(map(str, runs))
    for run in runs:
        assert run.ended == "exit 0" or "lease" in run.output, str(run)
    assert len(soak.require_clean().complete()) == 2


def test_a_restore_and_a_prune_of_its_backup(soak: Soak) -> None:
    """A backup that is being restored stays; one that is being deleted is restored whole, or refused as gone."""
    oldest = soak.look().complete()[-1]
    with Tripwire(("127.0.0.1", soak.shop.clusters["target"].nodes[0].place.http_port)) as wire:
        _reach_target_by(soak, wire)
        wire.hold("/snapshots/recover", lambda: None)
        restore = soak.commands.start(*RESTORE, "--backup", oldest, "--into", "first")
        soon(lambda: wire.held or restore.ended)
        assert wire.held, str(restore)
        said = soak.obeyed(*PRUNE).output
        assert "a reader is at work" in said, said
        assert oldest in soak.truth.look().complete()
        wire.let_go()
        assert restore.wait() == "exit 0", str(restore)
        soak.store.hold(f"DELETE /ferry/{soak.shop.folder.name}/backups/source/{oldest}/backup.json", lambda: None)
        prune = soak.commands.start(*PRUNE)
        soon(lambda: soak.store.held or prune.ended)
        assert soak.store.held, str(prune)  # it has looked for readers, and deletes now
        restore = soak.commands.start(*RESTORE, "--backup", oldest, "--into", "second")
        soon(lambda: soak.truth.readers() or restore.ended)
        soak.store.let_go()
        assert prune.wait() == "exit 0", str(prune)
        assert restore.wait() == "exit 0" or oldest in restore.output, str(restore)
    soak.obeyed(*PRUNE)
    assert oldest not in soak.require_clean().complete()


def _reach_target_by(soak: Soak, wire: Tripwire) -> None:
    """Let Ferry ask the first node of the target through a wire."""
    target = soak.shop.clusters["target"].nodes[0].url
    soak.shop.config.write_text(soak.shop.config.read_text().replace(target, wire.url))
