"""A real Prefect server and worker as processes; Prefect itself is never imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from sandbox.process import LOOPBACK, Launch, Process, SandboxError, free_port, inherited_env
from sandbox.running import Running

QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_CLI_PROMPT": "false"}
# Kept in memory, which is the default, a slot held by a run would be lost with the server.
LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"


class PrefectServer(Running):
    """`prefect server start` with a home of its own; ready when /api/health says so."""

    def __init__(self, folder: Path | None = None, port: int | None = None, detached: bool = False) -> None:
        """Prepare a server; a folder that is given is kept at the end (with its runs), a temporary one is removed."""
        self._temporary = folder is None
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="ferry-prefect-"))).absolute()
        self.port = port or free_port()
        self.detached = detached
        command = (sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(self.port))
        env = {
            **QUIET,
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_ON_DISK,
        }
        log = str(self.folder / "server.log")
        self.process = Process(Launch("prefect server", command, log, env, str(self.folder), detached))

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/api"

    @property
    def ui_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def env(self) -> dict[str, str]:
        """Return what a client of this server needs in its environment; Ferry's log lines reach the run's log."""
        return {
            **QUIET,
            "PREFECT_HOME": str(self.folder / "client"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "ferry",
            "PREFECT_LOGGING_ROOT_LEVEL": "INFO",
            # A line from a thread of ours that belongs to no run, such as the lease's, is not worth a warning.
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }

    def start(self, timeout_seconds: float = 120) -> Self:
        """Start it and wait until it is healthy; the first start in a folder also makes the database."""
        try:
            (self.folder / "home").mkdir(parents=True, exist_ok=True)
            self.process.start()
            self.process.wait_ready(self.healthy, timeout_seconds)
        except BaseException:
            self.stop()
            raise
        return self

    def healthy(self) -> bool:
        """Tell whether the server says that it is healthy."""
        try:
            return httpx.get(f"{self.api_url}/health", timeout=2, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """End the server and remove a temporary folder. Twice is fine."""
        self.process.stop(grace_seconds=10)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def record(self) -> dict[str, Any]:
        """Return what another process needs to end this server and to reach it."""
        return {"process": self.process.record(), "api_url": self.api_url, "ui_url": self.ui_url, "env": self.env()}


class PrefectWorker(Running):
    """A process worker on a pool of its own making; ready when the server has heard from it."""

    def __init__(self, server: PrefectServer, pool: str, env: Mapping[str, str], cwd: Path) -> None:
        """Prepare a worker whose runs see `env` besides the server's client environment, and start in `cwd`."""
        self.server = server
        self.pool = pool
        self.env = {**server.env(), "PREFECT_WORKER_QUERY_SECONDS": "1", **env}
        self._prefect = (sys.executable, "-m", "prefect", "--no-prompt")
        command = (*self._prefect, "worker", "start", "--pool", pool, "--type", "process", "--name", f"{pool}-worker")
        log = str(server.folder / f"worker-{pool}.log")
        self.process = Process(Launch(f"prefect worker {pool}", command, log, self.env, str(cwd), server.detached))

    def start(self, timeout_seconds: float = 60) -> Self:
        """Create or overwrite the work pool, start the worker, wait until the server lists it as online."""
        command = [*self._prefect, "work-pool", "create", self.pool, "--type", "process", "--overwrite"]
        answer = subprocess.run(
            command, env={**inherited_env(), **self.env}, capture_output=True, text=True, check=False
        )
        if answer.returncode != 0:
            raise SandboxError(f"Could not create the work pool {self.pool}: {(answer.stderr or answer.stdout)[-800:]}")
        try:
            self.process.start()
            self.process.wait_ready(self.online, timeout_seconds)
        except BaseException:
            self.stop()
            raise
        return self

    def online(self) -> bool:
        """Tell whether the server has heard from a worker of this pool."""
        url = f"{self.server.api_url}/work_pools/{self.pool}/workers/filter"
        try:
            answer = httpx.post(url, json={}, timeout=2, trust_env=False)
            return answer.is_success and any(worker["status"] == "ONLINE" for worker in answer.json())
        except (httpx.HTTPError, ValueError):
            return False

    def stop(self) -> None:
        """End the worker and the runs it started: it cancels them first, for which it gets its time."""
        self.process.stop(grace_seconds=15)
