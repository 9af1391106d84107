"""Backups and restores by the plain runners, as short as a test wants to say them."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from ferry.backup.plan import BackupRequest
from ferry.backup.run import prepare, run_backup
from ferry.connections import Connections
from ferry.lanes import Job
from ferry.models import BackupId, now
from ferry.repository.layout import new_backup_id
from ferry.repository.manifest import BackupRecord, CollectionManifest
from ferry.restore.plan import RestoreRequest
from ferry.restore.run import Restored, run_restore
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import NodePlace, QdrantCluster
from tests.workshop import Workshop

HOLDER = "a test"
# Ferry keeps its clients for the life of the process, so those of a test are closed when they are collected; an error
# that a test has caught keeps them longer still.
SERVERS = [pytest.mark.servers, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


def new_id() -> BackupId:
    """An id that no other run has."""
    return new_backup_id(now(), str(uuid4()))


def quick_job() -> Job:
    """A job that tries again soon, and only once."""
    return Job(retry_delays_seconds=(0.5,))


def back_up(shop: Workshop, **asked: Any) -> BackupRecord:
    """Back up cluster ``source``."""
    connections = shop.connect("source")
    request = BackupRequest(**{"backup_id": new_id(), "cluster": "source", "repository": "main", **asked})
    return run_backup(connections, prepare(connections, request), HOLDER, quick_job())


def restore_request(record: BackupRecord, collection: str, **asked: Any) -> RestoreRequest:
    """What brings one collection of a backup of ``source`` to ``target``, compared point by point."""
    usual = {
        "restore_id": new_id(),
        "cluster": "target",
        "repository": "main",
        "source_cluster": "source",
        "backup": record.backup_id,
        "collection": collection,
        "verify": "content",
    }
    return RestoreRequest(**{**usual, **asked})


def restore(shop: Workshop, record: BackupRecord, collection: str, **asked: Any) -> Restored:
    """Restore one collection of a backup."""
    request = restore_request(record, collection, **asked)
    return run_restore(shop.connect(request.cluster), request, HOLDER, quick_job())


def manifest_of(connections: Connections, record: BackupRecord, collection: str) -> CollectionManifest:
    """The manifest of one collection of a backup of ``source``."""
    return connections.catalog.read_manifest("source", record.backup_id, collection)


def proven_everywhere(restored: Restored) -> bool:
    """Whether every replica was compared point by point, and none was left out or differed."""
    manifest = restored.plan.manifest
    proofs = {shard.shard_id: shard.proof for shard, _ in manifest.best_shards()}
    assert len(restored.verdicts) == len(proofs) * restored.plan.replication_factor
    for verdict in restored.verdicts:
        proof = proofs[verdict.shard_id]
        assert verdict.problems == ()
        assert proof.content is not None
        assert (verdict.points, verdict.compared, verdict.digest) == (proof.points, proof.points, proof.content.digest)
    return True


class StandaloneNode(QdrantCluster):
    """One node without cluster mode, as most people begin."""

    def __init__(self, folder: Path) -> None:
        super().__init__(nodes=1, folder=folder)

    def start(self, timeout_seconds: float = 60) -> Self:
        """Start it; there is no consensus to wait for."""
        self.nodes[0].start()
        try:
            self.nodes[0].wait_ready(timeout_seconds)
        except BaseException:
            self.stop()
            raise
        return self

    def _env(self, place: NodePlace) -> dict[str, str]:
        return super()._env(place) | {"QDRANT__CLUSTER__ENABLED": "false"}


class Eavesdropper(ExitStack):
    """A proxy in front of every node of some clusters and one in front of the bucket, which note every request."""

    def __init__(self, shop: Workshop, *clusters: str) -> None:
        super().__init__()
        self._shop = shop
        self._of = {name: [FaultProxy(address(url)) for url in shop.clusters[name].urls] for name in clusters}
        self.nodes = [proxy for proxies in self._of.values() for proxy in proxies]
        self.bucket = FaultProxy(shop.s3.host_port)

    def __enter__(self) -> Self:
        super().__enter__()
        for proxy in (*self.nodes, self.bucket):
            self.enter_context(proxy)
        self._shop.configure(
            clusters={name: {"nodes": [proxy.url for proxy in proxies]} for name, proxies in self._of.items()},
            repository={"endpoint_url": self.bucket.url},
        )
        return self

    def of_nodes(self) -> list[str]:
        """Request lines that the nodes have seen."""
        return [line for proxy in self.nodes for line in proxy.requests]

    def changes(self) -> list[str]:
        """Request lines, to nodes and bucket, of what may have changed something."""
        return [line for line in (*self.of_nodes(), *self.bucket.requests) if changes_something(line)]


def changes_something(request_line: str) -> bool:
    """Whether a request of Qdrant or S3 may change anything: all but GET, HEAD and POSTs that read points."""
    method, path, *_ = request_line.split(" ")
    reads = path.partition("?")[0].endswith(("/points/count", "/points/scroll", "/points/query", "/points"))
    return method not in ("GET", "HEAD") and not (method == "POST" and reads)


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port
