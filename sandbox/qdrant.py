"""Real Qdrant nodes on loopback, as one Raft cluster or several, with the faults a node can have."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from sandbox import disk
from sandbox.binaries import qdrant_binary
from sandbox.disk import storage_limit_supported
from sandbox.process import LOOPBACK, POLL_SECONDS, Launch, Process, SandboxError, free_port, stop_all
from sandbox.running import Running

__all__ = ["NodePlace", "QdrantCluster", "QdrantNode", "storage_limit_supported"]
ASK_SECONDS = 2.0


@dataclass(frozen=True)
class NodePlace:
    """Where a node lives: its folder and its ports, kept in the folder so that a later start finds its peers again."""

    folder: str
    http_port: int
    grpc_port: int
    p2p_port: int
    storage_limit_bytes: int | None = None

    @classmethod
    def found_or_made(cls, folder: Path, storage_limit_bytes: int | None) -> NodePlace:
        """Return the place an earlier start wrote down (peers know each other by port), or a new one."""
        note = folder / "node.json"
        if note.exists():
            return cls(**{**json.loads(note.read_text()), "storage_limit_bytes": storage_limit_bytes})
        place = cls(str(folder), free_port(), free_port(), free_port(), storage_limit_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(asdict(place)))
        return place


class QdrantNode:
    """One Qdrant process with a disk of its own."""

    def __init__(self, place: NodePlace, process: Process, api_key: str | None = None) -> None:
        self.place = place
        self.process = process
        self.api_key = api_key

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.place.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"http://{LOOPBACK}:{self.place.grpc_port}"

    @property
    def p2p_url(self) -> str:
        return f"http://{LOOPBACK}:{self.place.p2p_port}"

    @property
    def p2p_port(self) -> int:
        return self.place.p2p_port

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def folder(self) -> Path:
        return Path(self.place.folder)

    @property
    def log(self) -> Path:
        return self.process.log

    @property
    def disk_path(self) -> Path:
        """The folder whose filesystem bounds the node: storage and snapshots are both in it."""
        return self.folder / "data"

    @property
    def storage_path(self) -> Path:
        return self.disk_path / "storage"

    @property
    def snapshots_path(self) -> Path:
        return self.disk_path / "snapshots"

    def start(self) -> None:
        """Start the process on its disk; `wait_ready` says when it answers."""
        if self.place.storage_limit_bytes is not None:
            disk.mount_limited(self.disk_path, self.place.storage_limit_bytes)
        self.disk_path.mkdir(parents=True, exist_ok=True)
        self.process.start()

    def wait_ready(self, timeout_seconds: float = 30) -> None:
        """Wait until the node answers /readyz, which it does when its shards are loaded."""
        self.process.wait_ready(self.answers, timeout_seconds)

    def answers(self) -> bool:
        """Tell whether the node says that it is ready."""
        try:
            return self._get("/readyz").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def cluster_state(self) -> dict[str, Any] | None:
        """Return what the node says of its cluster (GET /cluster), or None when it does not answer."""
        try:
            answer = self._get("/cluster")
            return dict(answer.json()["result"]) if answer.is_success else None
        except (httpx.HTTPError, ValueError, KeyError):
            return None

    def stop(self) -> None:
        """End the node; its disk stays as it is."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and never answered."""
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        self.process.thaw()

    def restart(self, timeout_seconds: float = 30) -> None:
        """End the node if it runs, start it again with the same command and ports, and wait until it answers."""
        self.process.stop()
        self.start()
        self.wait_ready(timeout_seconds)

    def fill_disk(self, leave_bytes: int = 0) -> int:
        """Fill the node's own small disk; only with a storage limit. Return the bytes taken."""
        return disk.fill(self.disk_path, leave_bytes)

    def free_disk(self) -> None:
        """Give the disk back that `fill_disk` took."""
        disk.free(self.disk_path)

    def record(self) -> dict[str, Any]:
        """Return what another process needs to command this node; it may hold the API key."""
        return {"place": asdict(self.place), "process": self.process.record(), "api_key": self.api_key}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> QdrantNode:
        return cls(NodePlace(**record["place"]), Process.from_record(record["process"]), record["api_key"])

    def _get(self, path: str) -> httpx.Response:
        headers = {"api-key": self.api_key} if self.api_key else {}
        # trust_env=False: a proxy in the shell's environment must not be asked for loopback
        return httpx.get(self.url + path, headers=headers, timeout=ASK_SECONDS, trust_env=False)


class QdrantCluster(Running):
    """Several Qdrant nodes in one Raft cluster; ready when every node sees every peer and the same leader."""

    def __init__(
        self,
        nodes: int = 3,
        folder: Path | None = None,
        api_key: str | None = None,
        storage_limit_bytes: int | None = None,
        log_level: str = "WARN",
        detached: bool = False,
    ) -> None:
        """Prepare a cluster; a folder that is given is kept at the end, a temporary one is removed."""
        self._temporary = folder is None
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="ferry-qdrant-"))).absolute()
        self.api_key = api_key
        self.log_level = log_level
        self.detached = detached
        places = [
            NodePlace.found_or_made(self.folder / f"node-{number}", storage_limit_bytes) for number in range(nodes)
        ]
        self.nodes: list[QdrantNode] = [self._node(place, places[0]) for place in places]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def grpc_urls(self) -> list[str]:
        return [node.grpc_url for node in self.nodes]

    def start(self, timeout_seconds: float = 60) -> Self:
        """Start every node and wait for consensus; when it fails, end what was started."""
        try:
            first, *others = self.nodes
            first.start()
            first.wait_ready(timeout_seconds)  # the others bootstrap from it
            for node in others:
                node.start()
            for node in others:
                node.wait_ready(timeout_seconds)
            wait_consensus(self.nodes, timeout_seconds)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every node, unmount their disks, remove a temporary folder. Doing it twice is fine."""
        stop_nodes(self.nodes)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _node(self, place: NodePlace, first: NodePlace) -> QdrantNode:
        command = [str(qdrant_binary()), "--disable-telemetry", "--uri", f"http://{LOOPBACK}:{place.p2p_port}"]
        if place != first:
            command += ["--bootstrap", f"http://{LOOPBACK}:{first.p2p_port}"]
        folder = Path(place.folder)
        launch = Launch(
            name=f"qdrant {self.folder.name}/{folder.name}",
            command=tuple(command),
            log=str(folder / "qdrant.log"),
            env=self._env(place),
            cwd=str(folder),  # Qdrant looks for ./config and writes ./.qdrant-initialized
            detached=self.detached,
        )
        return QdrantNode(place, Process(launch), self.api_key)

    def _env(self, place: NodePlace) -> dict[str, str]:
        data = Path(place.folder) / "data"
        env = {
            "QDRANT__CLUSTER__ENABLED": "true",
            "QDRANT__CLUSTER__P2P__PORT": str(place.p2p_port),
            "QDRANT__SERVICE__HOST": LOOPBACK,
            "QDRANT__SERVICE__HTTP_PORT": str(place.http_port),
            "QDRANT__SERVICE__GRPC_PORT": str(place.grpc_port),
            "QDRANT__STORAGE__STORAGE_PATH": str(data / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(data / "snapshots"),
            "QDRANT__STORAGE__TEMP_PATH": str(data / "temp"),
            "QDRANT__TELEMETRY_DISABLED": "true",
            "QDRANT__LOG_LEVEL": self.log_level,
        }
        return {**env, "QDRANT__SERVICE__API_KEY": self.api_key} if self.api_key else env


def wait_consensus(nodes: Sequence[QdrantNode], timeout_seconds: float = 30) -> None:
    """Wait until every node sees as many peers as there are nodes, one leader, and nothing left to apply."""
    deadline = time.monotonic() + timeout_seconds
    while not _agree([node.cluster_state() for node in nodes], len(nodes)):
        if time.monotonic() > deadline:
            logs = ", ".join(str(node.log) for node in nodes)
            raise SandboxError(f"{len(nodes)} nodes did not agree within {timeout_seconds:g} s; logs: {logs}")
        time.sleep(POLL_SECONDS)


def _agree(states: Sequence[dict[str, Any] | None], count: int) -> bool:
    answered = [state for state in states if state is not None]
    rafts = [state["raft_info"] for state in answered]
    return (
        len(answered) == count
        and all(len(state["peers"]) == count for state in answered)
        and len({raft["leader"] for raft in rafts}) == 1
        and rafts[0]["leader"] in {state["peer_id"] for state in answered}
        and all(raft["pending_operations"] == 0 and raft["is_voter"] for raft in rafts)
    )


def stop_nodes(nodes: Sequence[QdrantNode]) -> None:
    """End nodes together and unmount their small disks."""
    stop_all([node.process for node in nodes])
    for node in nodes:
        if node.place.storage_limit_bytes is not None:
            disk.unmount(node.disk_path)
