"""Start and end a whole sandbox whose parts outlive the command that started them."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox import disk
from sandbox.prefect_server import PrefectServer, PrefectWorker
from sandbox.process import LOOPBACK, Launch, Process, free_port
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import GRACE_SECONDS, S3Server, remove_sockets
from sandbox.state import SandboxState

WORKER_POOL = "ferry"
PREFECT_PORT = 4200  # where Prefect's documentation says that it is; another one when it is taken
Report = Callable[[str], None]


@dataclass(frozen=True)
class SandboxShape:
    """Which parts an `up` starts."""

    source_nodes: int = 3
    target_nodes: int = 2
    api_key: str | None = None
    storage_limit_bytes: int | None = None
    s3_proxy: bool = False
    prefect: bool = False


def start_sandbox(folder: Path, shape: SandboxShape, report: Report) -> SandboxState:
    """Start every part, detached; when one fails, end those that were started and say why."""
    stop_sandbox(folder)  # what a crash or a reboot left half standing would be in the way
    state = SandboxState(folder.absolute())
    try:
        _start_s3(state, shape, report)
        for name, nodes in (("source", shape.source_nodes), ("target", shape.target_nodes)):
            if nodes:
                report(f"cluster {name}, {nodes} nodes")
                _start_cluster(state, name, nodes, shape)
        state.write_settings()
        if shape.prefect:
            report("Prefect server and worker")
            _start_prefect(state)
    except BaseException:
        stop_sandbox(folder)
        raise
    return state


def stop_sandbox(folder: Path, delete_data: bool = False) -> int:
    """End every part that still runs and forget them; return how many ran. Doing it twice is fine.

    Data stays, so that the next `up` finds it, unless it was on a limited disk (which is memory) or is deleted.
    """
    state = SandboxState.load(folder)
    running = state.running()
    s3_pid = state.s3["process"]["pid"] if state.s3 else None
    for process in reversed(running):  # the worker before its server, everything before S3 and the nodes
        process.stop(GRACE_SECONDS if process.pid == s3_pid else 10)
    if state.s3:
        remove_sockets(state.s3["ports"])
    for nodes in state.clusters.values():
        for node in nodes:
            if node["place"]["storage_limit_bytes"] is not None:
                disk.unmount(Path(node["place"]["folder"]) / "data")
    for file in (state.file, state.settings_file):
        file.unlink(missing_ok=True)
    if delete_data:
        for part in ("source", "target", "s3", "prefect", "proxy"):
            shutil.rmtree(state.folder / part, ignore_errors=True)
    return len(running)


def _start_s3(state: SandboxState, shape: SandboxShape, report: Report) -> None:
    report("S3 server")
    server = S3Server(state.folder / "s3", detached=True)

    def write_down() -> None:
        state.s3 = server.record()
        state.save()

    server.process.on_start = write_down
    server.start()
    if shape.s3_proxy:
        report("proxy in front of S3")
        _start_proxy(state, server)


def _start_proxy(state: SandboxState, server: S3Server) -> None:
    port, control_port, target_port = free_port(), free_port(), server.host_port[1]
    command = (sys.executable, "-m", "sandbox.proxy_control", str(port), str(target_port), str(control_port))
    root = str(Path(__file__).parents[1])
    launch = Launch("s3 proxy", command, str(state.folder / "proxy" / "proxy.log"), cwd=root, detached=True)
    process = Process(launch)

    def write_down() -> None:
        url = f"http://{LOOPBACK}:{port}"
        state.proxy = {"process": process.record(), "url": url, "control_port": control_port}
        state.save()

    process.on_start = write_down
    process.start()
    process.wait_ready(lambda: _accepts(port) and _accepts(control_port))


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def _start_cluster(state: SandboxState, name: str, nodes: int, shape: SandboxShape) -> None:
    cluster = QdrantCluster(
        nodes, state.folder / name, shape.api_key, shape.storage_limit_bytes, log_level="INFO", detached=True
    )

    def write_down() -> None:
        state.clusters[name] = [node.record() for node in cluster.nodes]
        state.save()

    for node in cluster.nodes:
        node.process.on_start = write_down
    cluster.start()


def _start_prefect(state: SandboxState) -> None:
    server = PrefectServer(state.folder / "prefect", free_port(PREFECT_PORT), detached=True)
    root = Path(__file__).parents[1]
    env = {"FERRY_CONFIG": str(state.settings_file), "FERRY_HOME": str(root)}
    worker = PrefectWorker(server, WORKER_POOL, env, root)

    def write_down() -> None:
        records = {"server": server.process.record(), "worker": worker.process.record()}
        state.prefect = {**records, "api_url": server.api_url, "ui_url": server.ui_url, "env": server.env()}
        state.save()

    server.process.on_start = worker.process.on_start = write_down
    server.start()
    worker.start()
