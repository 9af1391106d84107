"""What runs in a sandbox folder: which processes, on which ports; and the settings file that names them for Ferry."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.process import Process, SandboxError
from sandbox.qdrant import QdrantNode
from sandbox.s3 import REGION


@dataclass
class SandboxState:
    """The parts of one sandbox, as records that outlive the process which started them."""

    folder: Path
    clusters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    s3: dict[str, Any] | None = None
    proxy: dict[str, Any] | None = None
    prefect: dict[str, Any] | None = None

    @property
    def file(self) -> Path:
        return self.folder / "state.json"

    @property
    def settings_file(self) -> Path:
        return self.folder / "ferry.toml"

    @classmethod
    def load(cls, folder: Path) -> SandboxState:
        """Return what the folder's state file says; a folder without one has no parts."""
        folder = folder.absolute()
        file = folder / "state.json"
        return cls(folder, **json.loads(file.read_text())) if file.exists() else cls(folder)

    def save(self) -> None:
        """Write the state file in one step; it holds keys, so only its owner may read it."""
        parts = {"clusters": self.clusters, "s3": self.s3, "proxy": self.proxy, "prefect": self.prefect}
        write_private(self.file, json.dumps(parts, indent=2))

    def processes(self) -> list[Process]:
        """Return every process that was started, those first that others depend on."""
        records = [node["process"] for nodes in self.clusters.values() for node in nodes]
        records += [part["process"] for part in (self.s3, self.proxy) if part]
        if self.prefect:
            records += [self.prefect["server"], self.prefect["worker"]]
        return [Process.from_record(record) for record in records if record]

    def running(self) -> list[Process]:
        return [process for process in self.processes() if process.alive()]

    def node(self, cluster: str, number: int) -> QdrantNode:
        """Return one node, to be commanded."""
        nodes = self.clusters.get(cluster, [])
        if not 0 <= number < len(nodes):
            known = ", ".join(f"{name} 0…{len(nodes) - 1}" for name, nodes in self.clusters.items())
            raise SandboxError(f"There is no node {cluster} {number} in {self.folder}", f"Known: {known or 'none'}.")
        return QdrantNode.from_record(nodes[number])

    def keep_node(self, cluster: str, number: int, node: QdrantNode) -> None:
        """Write down a node's new pid."""
        self.clusters[cluster][number] = node.record()
        self.save()

    def s3_url(self) -> str | None:
        """Return where clients find S3: the proxy when there is one."""
        if self.s3 is None:
            return None
        return self.proxy["url"] if self.proxy else str(self.s3["endpoint_url"])

    def env(self) -> dict[str, str]:
        """Return the environment in which Ferry and Prefect's client find this sandbox."""
        prefect: Mapping[str, str] = self.prefect["env"] if self.prefect else {}
        return {"FERRY_CONFIG": str(self.settings_file), **prefect}

    def write_settings(self) -> None:
        """Write ferry.toml for what runs, readable by its owner only."""
        lines = [line for name, nodes in self.clusters.items() for line in _cluster_lines(name, nodes)]
        if self.s3 is not None:
            lines += [
                "[repositories.sandbox]",
                f"bucket = {_toml(self.s3['buckets'][0])}",
                'prefix = "ferry"',
                f"endpoint_url = {_toml(self.s3_url())}",
                f"region = {_toml(REGION)}",
                f"access_key = {_toml(self.s3['access_key'])}",
                f"secret_key = {_toml(self.s3['secret_key'])}",
            ]
        lines += ["", "[policies.nightly]", *_POLICY]
        write_private(self.settings_file, "\n".join([*lines, ""]))


_POLICY = (
    "retention = {keep_last = 3, keep_daily = 7, keep_weekly = 4, keep_monthly = 12, minimum_proven = 2}",
    "answers = {pause_above_ms = 2000, stop_above_ms = 10000}",
)


def _cluster_lines(name: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    nodes = [QdrantNode.from_record(record) for record in records]
    api_key = [f"api_key = {_toml(nodes[0].api_key)}"] if nodes[0].api_key else []
    return [
        f"[clusters.{name}]",
        f"nodes = {_toml([node.url for node in nodes])}",
        f"grpc_nodes = {_toml([node.grpc_url for node in nodes])}",
        *api_key,
        f"[clusters.{name}.headroom]",
        'kind = "local"',
        f"paths = {_toml([str(node.disk_path) for node in nodes])}",
        "",
    ]


def _toml(value: Any) -> str:
    """Write a string or a list of strings, for which JSON is TOML."""
    return json.dumps(value, ensure_ascii=False)


def write_private(file: Path, text: str) -> None:
    """Replace a file in one step, mode 0600 from its first byte."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    partial.replace(file)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one command at a time change a sandbox; the kernel gives the lock back whatever happens to its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SandboxError(
                f"Another command is at work on {folder}", "Wait for it, then try again: python -m sandbox status"
            ) from None
        yield
