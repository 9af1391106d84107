"""Runs that can be killed, quick retries, and scenes with data in them."""

import gc
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ferry.connections import forget_connections
from sandbox.fault_proxy import FaultProxy
from sandbox.prefect_server import PrefectServer
from tests.faults import killed
from tests.faults.scene import ALIAS, COLLECTION, LIVE, QUICK_DELAYS, Scene, fill
from tests.workshop import AS_IN_A_TERMINAL, Workshop

# Clients are thrown away between runs, as a killed process would; their sockets then close when they are collected.
UNCLOSED = "ignore::ResourceWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sockets that are only collected are no failure here."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(UNCLOSED))
            item.add_marker(pytest.mark.servers)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect this test's sockets before the next one, which may be stricter."""
    yield
    forget_connections()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


BACK_UP = "flows.back_up_cluster:back_up_cluster"
MIGRATE = "flows.migrate_collection:migrate_collection"
RESTORE = "flows.restore_collection:restore_collection"
SOURCE = {"cluster": "source", "repository": "main"}
TARGET = {
    "cluster": "target",
    "repository": "main",
    "source_cluster": "source",
    "collection": COLLECTION,
    "alias": ALIAS,
}


class Runs:
    """Flow runs in processes of their own, as clients of the real Prefect server."""

    def __init__(self, server: PrefectServer) -> None:
        root = Path(__file__).parents[2]
        command = [*AS_IN_A_TERMINAL, sys.executable, "-m", "tests.faults.killed"]
        env = {**os.environ, **server.env(), "PYTHONWARNINGS": "default"}
        env.pop("FERRY_CONFIG", None)
        self._process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._pids: list[int] = []
        self.folder = server.folder

    def start(self, flow: str, parameters: dict[str, Any], **order: Any) -> int:
        """Start a run under the settings of this test; its pid."""
        env = {"FERRY_CONFIG": os.environ["FERRY_CONFIG"]} | order.pop("env", {})
        out = self.folder / f"run-{len(self._pids)}.log"
        pid = int(self._ask({"start": flow, "with": parameters, "env": env, "out": str(out), **order}))
        self._pids.append(pid)
        return pid

    def wait(self, pid: int) -> str:
        """Wait until a run has ended or was stopped: ``exit N``, ``signal N`` or ``stopped N``."""
        return str(self._ask({"wait": pid}))

    def killed(self, flow: str, parameters: dict[str, Any], at: str, when: str = "after", nth: int = 1) -> None:
        """Run a flow that is killed by SIGKILL at a step; anything else is an error of the test."""
        pid = self.start(flow, parameters, at=at, when=when, nth=nth)
        how = self.wait(pid)
        assert how == f"signal {int(signal.SIGKILL)}", f"{how}:\n{self.output(pid)[-3000:]}"

    def output(self, pid: int) -> str:
        """What a run has printed."""
        return (self.folder / f"run-{self._pids.index(pid)}.log").read_text()

    def close(self) -> None:
        """End everything that was started."""
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that runs flows has ended"
        return json.loads(answer)


@pytest.fixture(scope="session")
def runs(prefect_server: PrefectServer) -> Iterator[Runs]:
    """Flow runs that may be killed."""
    made = Runs(prefect_server)
    yield made
    made.close()


@pytest.fixture
def quick(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flows in this process are runs on the real server, and try again within seconds instead of minutes."""
    from prefect import Task
    from prefect.settings import temporary_settings

    for name in killed.TASK_MODULES:
        for task in vars(killed.importlib.import_module(name)).values():
            if isinstance(task, Task):
                monkeypatch.setattr(task, "retry_delay_seconds", list(QUICK_DELAYS))
    # Prefect has read its settings when it was imported, which is before there was a server.
    with temporary_settings({"api.url": prefect_server.api_url, "server.ephemeral.enabled": False}):
        yield


@pytest.fixture
def scene(workshop: Workshop) -> Scene:
    """The shared clusters: ``docs`` on the source (3 shards, 2 replicas), ``live`` behind an alias on the target."""
    return furnished(workshop)


@pytest.fixture
def large(scene: Scene) -> Scene:
    """On the source a collection that takes several parts of 5 MiB."""
    fill(scene.shop.clusters["source"], "large", 1800, size=1024, shards=1, replicas=1)
    scene.remember("source", "large")
    return scene


@pytest.fixture
def slow(large: Scene) -> Iterator[FaultProxy]:
    """S3 behind a proxy that can be slowed, and something large to send there."""
    with FaultProxy(large.shop.s3.host_port) as proxy:
        large.configure(repository={"endpoint_url": proxy.url, "part_bytes": 5 << 20, "parts_in_flight": 2})
        large.mark_repository()
        yield proxy


def furnished(workshop: Workshop) -> Scene:
    """Load a workshop's clusters and remember what they hold."""
    scene = Scene(workshop)
    scene.configure()
    if "source" in workshop.clusters:
        fill(workshop.clusters["source"])
        scene.remember("source", COLLECTION)
    if "target" in workshop.clusters:
        fill(workshop.clusters["target"], LIVE, 60, shards=1, replicas=1, alias=ALIAS)
        scene.remember("target", LIVE)
    return scene
