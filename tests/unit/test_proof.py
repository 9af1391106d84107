"""Proving archives: levels, worker processes, stopping, and workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from ferry.archive import crew, proof
from ferry.archive.digest import digest_of, point_fields
from ferry.archive.proof import Proof, ProofLevel, prove_archive
from ferry.archive.reader import open_archive
from ferry.archive.scan import Part, Sampler, joined, scan
from ferry.errors import ArchiveDamagedError, FerryError, HeadroomError, StoppedError
from tests.unit.shard_archives import build_archive, points

POINTS = 900
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive(tmp_path_factory.mktemp("proof"), points(POINTS))


@pytest.fixture
def always_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a small archive go the way of a large one."""
    monkeypatch.setattr(proof, "INLINE_BYTES", 0)
    monkeypatch.setattr(proof, "PART_POINTS", 10)


def test_content_is_proven_in_this_process(archive: Path, tmp_path: Path) -> None:
    """The digest, the count and the sampled fields are those of the points that went in."""
    seen: list[int] = []
    result = prove_archive(archive, tmp_path, "content", sample=10, progress=seen.append)
    assert (result.points, result.content) == (POINTS, digest_of(points(POINTS)))
    assert result.level is ProofLevel.CONTENT
    assert result.engine.startswith("qdrant-edge-py 0.")
    by_id = {point["id"]: point for point in points(POINTS)}
    assert len(result.sample) == 10
    for sample in result.sample:
        assert sample.fields == point_fields(sample.id, by_id[sample.id]["payload"], by_id[sample.id]["vector"])
    assert seen[-1] == POINTS
    assert Proof.model_validate_json(result.model_dump_json()) == result
    assert list(tmp_path.iterdir()) == []


def test_processes_come_to_the_same_proof(archive: Path, tmp_path: Path, always_crew: None) -> None:
    """Two processes over linked copies give the digest and the sample of one process, and report every point."""
    seen: list[int] = []
    shared = prove_archive(archive, tmp_path, "content", 10, 2, seen.append)
    alone = prove_archive(archive, tmp_path, "content", 10, processes=0)
    assert shared.model_copy(update={"seconds": 0.0}) == alone.model_copy(update={"seconds": 0.0})
    assert seen[-1] == POINTS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("processes", [0, 1])
def test_count_reads_no_content(archive: Path, tmp_path: Path, always_crew: None, processes: int) -> None:
    """The count level gives the exact count and a sample, in this process and in another one."""
    result = prove_archive(archive, tmp_path, "count", 5, processes)
    assert (result.points, result.content, len(result.sample)) == (POINTS, None, 5)


def test_bytes_opens_nothing(tmp_path: Path) -> None:
    """The bytes level states what the caller did: the file is not even looked at."""
    result = prove_archive(tmp_path / "missing", tmp_path, "bytes")
    assert (result.points, result.content, result.sample) == (None, None, [])


@pytest.mark.parametrize("processes", [0, 2])
def test_progress_can_stop_it(archive: Path, tmp_path: Path, always_crew: None, processes: int) -> None:
    """What progress raises comes out, the processes are gone and the work directory is empty."""
    pids: list[int] = []

    def stop(done: int) -> None:
        pids.extend(_children())
        if done:
            raise StoppedError("stop")

    with pytest.raises(StoppedError):
        prove_archive(archive, tmp_path, "content", 5, processes, stop)
    assert bool(pids) == bool(processes)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_a_clear_error(archive: Path, tmp_path: Path, always_crew: None) -> None:
    """A worker that the system kills is named with its signal, others end, and the work directory is empty."""

    def kill(done: int) -> None:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(FerryError, match=r"signal 9 \(SIGKILL\)") as caught:
        prove_archive(archive, tmp_path, "content", 5, 2, kill)
    assert "memory" in str(caught.value.remedy)
    assert list(tmp_path.iterdir()) == []


def test_a_workers_error_keeps_its_kind(archive: Path, tmp_path: Path, always_crew: None) -> None:
    """What a worker finds damaged is an ArchiveDamagedError here, with the same words."""
    broken = tmp_path / "broken.snapshot"
    broken.write_bytes(archive.read_bytes()[:-20000])
    with pytest.raises(ArchiveDamagedError, match=r"broken\.snapshot ends at byte"):
        prove_archive(broken, tmp_path / "work", "content", processes=2)
    assert isinstance(crew.error_of({"error": "HeadroomError", "message": "m", "remedy": None}), HeadroomError)


def test_points_that_cannot_be_read_are_found(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that is not the number of points read fails the proof, with both numbers."""
    monkeypatch.setattr("ferry.archive.reader.OpenArchive.count", lambda self: POINTS + 1)
    with pytest.raises(ArchiveDamagedError, match=f"counts {POINTS + 1} points, but {POINTS} could be read"):
        prove_archive(archive, tmp_path, "content")


def test_it_works_from_a_command_line_elsewhere(archive: Path, tmp_path: Path) -> None:
    """Called from `python -c` in a folder with a `ferry` of its own, under a strange __main__, workers still start."""
    (tmp_path / "ferry").mkdir()
    (tmp_path / "ferry" / "__init__.py").write_text("raise ImportError('not this one')")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from ferry.archive import proof; "
        f"proof.INLINE_BYTES = 0; sys.modules['__main__'].__spec__ = 'prefect.engine'; "
        f"print(proof.prove_archive(Path({str(archive)!r}), Path({str(tmp_path)!r}), 'count').points)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{POINTS}\n", "")


def test_a_worker_gets_no_secrets_and_no_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's environment holds no credentials, and its imports no Prefect."""
    monkeypatch.setenv("FERRY_CLUSTERS__PROD__API_KEY", "secret")
    assert not [name for name in crew._environment() if name.startswith(("FERRY", "AWS", "PREFECT"))]
    code = (
        "import sys, ferry.archive.worker; print([m for m in sys.modules if m.split('.')[0] in ('prefect', 'boto3')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], env=crew._environment(), capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_a_worker_ends_when_its_asker_does(archive: Path, tmp_path: Path) -> None:
    """A worker whose stdin closes ends by itself, so that a killed caller leaves no process."""
    worker = crew.Worker(tmp_path / "log")
    worker._stdin.close()
    assert worker._process.wait(5) == 0
    worker.end()


def test_what_the_engine_prints_does_not_reach_the_asker(archive: Path, tmp_path: Path) -> None:
    """A worker's answers are its only words on stdout; anything else that is printed there goes to its log."""
    code = (
        "import os, ferry.archive.worker as w; write = w.Desk._write; "
        "w.Desk._write = lambda desk, message: (os.write(1, b'noise'), write(desk, message)); w.main()"
    )
    job = {"job": "open", "archive": str(archive), "folder": str(tmp_path / "0"), "parts": 2, "sample": 0}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, env=crew._environment(), input=orjson.dumps(job) + b"\n", capture_output=True, check=True
    )
    assert orjson.loads(done.stdout)["result"]["points"] == POINTS
    assert done.stderr.endswith(b"noise")


def test_a_linked_folder_shares_only_large_files(tmp_path: Path) -> None:
    """Large files are the same inode, small ones are copies, and the locked write-ahead log stays behind."""
    source, target = tmp_path / "source", tmp_path / "target"
    for place in ("wal", "segments/a/wal"):
        (source / place).mkdir(parents=True)
    (source / "wal" / "open-1").write_bytes(b"log")
    (source / "segments" / "a" / "large").write_bytes(bytes(proof.LINKED_BYTES))
    (source / "segments" / "a" / "small").write_bytes(b"small")
    proof.link_folder(source, target)
    assert not (target / "wal").exists()
    assert (target / "segments" / "a" / "wal").is_dir()
    assert (target / "segments" / "a" / "large").samefile(source / "segments" / "a" / "large")
    assert not (target / "segments" / "a" / "small").samefile(source / "segments" / "a" / "small")
    assert (target / "segments" / "a" / "small").read_bytes() == b"small"


def test_the_sample_does_not_depend_on_parts(archive: Path, tmp_path: Path) -> None:
    """Any split of the points gives the same sample as one pass, at most as many as asked for."""
    with open_archive(archive, tmp_path) as opened:
        [cut] = opened.boundaries(2)
        parts = [scan(opened, part, 7, lambda points: None) for part in (Part(stop=cut), Part(start=cut))]
        whole = scan(opened, Part(), 7, lambda points: None)
    assert joined(parts, 7) == whole
    assert len(whole.sample) == 7
    none = Sampler(0)
    none.offer(1, 1, {}, {})
    assert none.chosen() == []


def _children() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children]
