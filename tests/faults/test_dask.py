"""The same backup with its steps on a Dask cluster: two workers, one that dies, and a cancel that reaches both."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.fault_proxy import FaultProxy
from sandbox.process import LOOPBACK, Launch, Process, free_port
from tests.faults.conftest import BACK_UP, SOURCE, Runs
from tests.faults.scene import Scene, soon

ROOT = Path(__file__).parents[2]


class DaskCluster:
    """A scheduler and two workers, each a process of its own, as they would be on three machines."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.address = f"tcp://{LOOPBACK}:{free_port()}"
        env = {"PYTHONPATH": str(ROOT), "FERRY_CONFIG": str(config), "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s"}
        start = (sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", self.address, "--no-dashboard")
        self.scheduler = Process(Launch("dask scheduler", start, str(folder / "scheduler.log"), env, str(folder)))
        join = (sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--no-dashboard", "--no-nanny")
        self.workers = [
            Process(
                Launch(
                    f"dask worker {number}",
                    (*join, "--nthreads", "4", "--local-directory", str(folder / f"dask-{number}")),
                    str(folder / f"dask-{number}.log"),
                    env,
                    str(folder),
                )
            )
            for number in range(2)
        ]

    def __enter__(self) -> "DaskCluster":
        for process in (self.scheduler, *self.workers):
            process.start()
        for worker in self.workers:
            worker.wait_ready(lambda worker=worker: "Registered to" in worker.log.read_text())  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            process.stop()

    def env(self) -> dict[str, str]:
        """What makes a flow run's tasks run here."""
        return {"FERRY_WORKER__RUNNER": "dask", "FERRY_WORKER__RUNNER_ADDRESS": self.address}

    def at_work(self) -> list[Process]:
        """The workers that have a task in hand."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            busy = {name for name, tasks in client.processing().items() if tasks}
        return [worker for worker in self.workers if any(name in worker.log.read_text() for name in busy)]


@pytest.fixture
def dask(scene: Scene, slow: FaultProxy, tmp_path: Path) -> Iterator[DaskCluster]:
    """Two workers with this test's settings."""
    with DaskCluster(tmp_path, scene.shop.config) as cluster:
        yield cluster


def test_two_worker_processes_make_one_backup(scene: Scene, dask: DaskCluster, runs: Runs) -> None:
    """Every archive reads back as its manifest says, both processes have worked, and nothing is left."""
    pid = runs.start(BACK_UP, SOURCE, env=dask.env())
    assert runs.wait(pid) == "exit 0", runs.output(pid)
    assert len(scene.complete()) == 1
    assert len(scene.manifests()) == 2
    for worker in dask.workers:
        assert "Finished in state Completed()" in worker.log.read_text()
    scene.require_sound()


def uploading(scene: Scene) -> bool:
    """Whether the multipart upload of an archive is under way; that of the bucket's trial is not meant."""
    return any(found.startswith("upload") and "/backups/" in found for found in scene.shop.leftovers())


@pytest.mark.soak
def test_a_worker_that_is_killed_is_replaced_by_the_other(
    scene: Scene, slow: FaultProxy, dask: DaskCluster, runs: Runs
) -> None:
    """SIGKILL in mid-upload: the other worker does its steps again, and the backup is whole."""
    slow.slow(2_000_000)
    pid = runs.start(BACK_UP, SOURCE, env=dask.env())
    soon(lambda: uploading(scene))
    dask.at_work()[0].kill()
    slow.clear()
    assert runs.wait(pid) == "exit 0", runs.output(pid)
    assert len(scene.complete()) == 1
    scene.require_sound()


def test_a_cancel_reaches_the_workers(scene: Scene, slow: FaultProxy, dask: DaskCluster, runs: Runs) -> None:
    """The flow's process gets the signal; its steps on the workers stop and clean up before it has ended."""
    slow.slow(2_000_000)
    pid = runs.start(BACK_UP, SOURCE, env=dask.env())
    soon(lambda: uploading(scene))
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    runs.wait(pid)
    assert time.monotonic() - began < 20
    left = [found for found in scene.shop.leftovers() if not found.startswith(("journal", "archive"))]
    assert left == [], runs.output(pid)  # what it has proven waits for the next run
    assert any("is over" in worker.log.read_text() for worker in dask.workers)
    slow.clear()
    assert scene.complete() == []
    scene.back_up()
    scene.require_sound()
