"""The worker's disk for opening archives."""

import subprocess
import sys
from pathlib import Path

import pytest

from ferry.errors import HeadroomError
from ferry.profiles import WorkerSettings
from ferry.verify import spool

DIES_INSIDE = """
import os, signal, sys
from pathlib import Path
from ferry.profiles import WorkerSettings
from ferry.verify import spool
with spool.folder(WorkerSettings(spool_dir=Path(sys.argv[1]))) as folder:
    (folder / "archive.snapshot").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def worker(folder: Path, **more: str) -> WorkerSettings:
    return WorkerSettings.model_validate({"spool_dir": folder, **more})


def test_a_folder_is_removed_afterwards(tmp_path: Path) -> None:
    """Nothing stays on the spool disk after a proof."""
    with spool.folder(worker(tmp_path)) as folder:
        (folder / "archive.snapshot").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    """SIGKILL leaves a folder behind only until somebody takes one on the same disk."""
    subprocess.run([sys.executable, "-c", DIES_INSIDE, str(tmp_path)], check=False, timeout=30)
    [left] = tmp_path.iterdir()
    with spool.folder(worker(tmp_path)) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        assert folder != left


def test_the_folder_of_a_living_one_stays(tmp_path: Path) -> None:
    """Two proofs at a time never take each other's disk away."""
    with spool.folder(worker(tmp_path)) as first, spool.folder(worker(tmp_path)) as second:
        assert first.exists()
        assert second.exists()


def test_an_archive_is_kept_for_its_proof_only_when_asked(tmp_path: Path) -> None:
    """With prove_from = spool the bytes that pass are the bytes of the kept copy; by default none is made."""
    there = tmp_path / "there"
    for prove_from, kept in (("bucket", False), ("spool", True)):
        settings = worker(tmp_path / "spool", prove_from=prove_from)
        assert b"".join(spool.keeping(settings, "a/key", [b"one", b"two"])) == b"onetwo"
        assert spool.take_kept(settings, "a/key", there) is kept
    assert there.read_bytes() == b"onetwo"
    assert not spool.take_kept(settings, "a/key", there)
    spool.drop_kept(settings)
    assert list((tmp_path / "spool").iterdir()) == []


def test_too_small_a_disk_is_refused_with_numbers(tmp_path: Path) -> None:
    """The worker's disk is in the preflight: nobody finds out in the middle of a proof."""
    with pytest.raises(HeadroomError, match="Nothing was changed"):
        spool.require_spool(worker(tmp_path), 1 << 60)
