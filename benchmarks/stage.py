"""The servers that the benchmarks run on, in a temporary folder, and Ferry's settings for them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from benchmarks.data import Shape, load
from benchmarks.load import Load
from ferry.backup import run
from ferry.backup.plan import BackupPlan, BackupRequest
from ferry.backup.work import BackupRun, Work
from ferry.connections import Connections, connect, connect_repository
from ferry.models import BackupId, now
from ferry.repository.layout import new_backup_id
from ferry.repository.lease import acquire
from ferry.settings import load_settings
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CLUSTER, REPOSITORY = "bench", "bench"
NODES = 3
KEPT_VARIABLES = ("FERRY_QDRANT_BINARY", "FERRY_HOME")


class Stage:
    """A cluster of three nodes and a bucket, with Ferry's settings for them in force as long as the ``with`` block."""

    def __init__(self, parent: Path | None = None) -> None:
        """Prepare everything under ``parent``, or where temporary files go."""
        self.folder = Path(tempfile.mkdtemp(prefix="ferry-bench-", dir=parent))
        self.cluster = QdrantCluster(NODES, self.folder / "qdrant")
        self.s3 = S3Server(self.folder / "s3")
        self.config = self.folder / "ferry.toml"
        self._shapes: dict[Shape, str] = {}
        self._stack = ExitStack()
        self._shell = {name: value for name, value in os.environ.items() if name.startswith("FERRY_")}
        self._serial = 0

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.s3)
            self._stack.enter_context(self.cluster)
            for name in self._shell:
                if name not in KEPT_VARIABLES:
                    del os.environ[name]
            os.environ["FERRY_CONFIG"] = str(self.write_settings(self.config))
            forget()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def write_settings(self, path: Path, **repository: Any) -> Path:
        """Write a ferry.toml for the servers; ``repository`` overrides settings of the bucket."""
        bucket = {
            "bucket": "ferry",
            "endpoint_url": self.s3.endpoint_url,
            "access_key": self.s3.access_key,
            "secret_key": self.s3.secret_key,
        } | repository
        paths = [str(node.disk_path) for node in self.cluster.nodes]
        lines = [
            f"[clusters.{CLUSTER}]",
            f"nodes = {json.dumps(self.cluster.urls)}",
            f"grpc_nodes = {json.dumps(self.cluster.grpc_urls)}",
            f'headroom = {{kind = "local", paths = {json.dumps(paths)}}}',
            f"[repositories.{REPOSITORY}]",
            *(f"{name} = {json.dumps(value)}" for name, value in bucket.items()),
            "[worker]",
            f"spool_dir = {json.dumps(str(self.folder / 'spool'))}",
        ]
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")
        return path

    def connect(self) -> Connections:
        """Ferry's own clients."""
        return connect(CLUSTER, REPOSITORY)

    def boto(self) -> S3Client:
        """A plain boto3 client beside Ferry's."""
        return self.s3.client()

    def load_watch(self) -> Load:
        """A meter of who uses the processors."""
        return Load({"Qdrant": [node.pid for node in self.cluster.nodes], "S3": [self.s3.pid]})

    def collection(self, shape: Shape) -> str:
        """The collection of that shape, made when first asked for."""
        if shape not in self._shapes:
            load(self.cluster.urls[0], shape)
            self._shapes[shape] = shape.name
        return self._shapes[shape]

    def drop(self, name: str) -> None:
        """Remove a collection, so that it takes neither memory nor disk from what comes after."""
        self.connect().cluster.nodes[0].delete_collection(name)
        self._shapes = {shape: known for shape, known in self._shapes.items() if known != name}

    def plan(self, collection: str) -> BackupPlan:
        """The plan of a backup of one collection."""
        return run.prepare(self.connect(), backup_request(self.new_id(), collection))

    def only_work(self, collection: str) -> Work:
        """The one archive of a collection with one shard, under a lease that is given up again at once."""
        connections, planned = self.connect(), self.plan(collection)
        with acquire(connections.store, connections.keys.lease(planned.cluster), "a benchmark", 60) as lease:
            [[work]] = BackupRun(lease, planned).lanes(1)
        return work

    def new_id(self) -> BackupId:
        """Another id than all before."""
        self._serial += 1
        return new_backup_id(now(), f"bench-{self._serial}")

    def _end(self) -> None:
        for node in self.cluster.nodes:
            node.kill()  # nobody needs what they would save in the five seconds of an orderly end
        self._stack.close()
        for name in [name for name in os.environ if name.startswith("FERRY_")]:
            del os.environ[name]
        os.environ.update(self._shell)
        forget()
        shutil.rmtree(self.folder, ignore_errors=True)


def backup_request(backup_id: BackupId, collection: str) -> BackupRequest:
    """What every benchmark asks of a backup: one collection, every point proven."""
    return BackupRequest(backup_id=backup_id, cluster=CLUSTER, repository=REPOSITORY, include=(collection,))


def forget() -> None:
    """Let the next call read the settings and make its clients anew."""
    for cached in (load_settings, connect, connect_repository):
        cached.cache_clear()
