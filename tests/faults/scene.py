"""What every fault test looks at: data before and after, and the oracle that says whether all is well again."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import orjson

from ferry.backup.plan import BackupRequest
from ferry.backup.run import prepare, run_backup
from ferry.connections import Connections, connect, forget_connections
from ferry.errors import BackupNotFoundError
from ferry.lanes import Job
from ferry.models import now
from ferry.repository.conformance import ensure_conforming
from ferry.repository.layout import new_backup_id
from ferry.restore.plan import RestoreRequest
from ferry.restore.run import run_restore
from ferry.verify.archive import verify_archive
from ferry.verify.replica import shard_digest
from sandbox.qdrant import QdrantCluster, wait_consensus
from tests.workshop import Workshop

QUICK_DELAYS = (0.2, 0.5, 1.0, 2.0)
COLLECTION, LIVE, ALIAS = "docs", "live", "docs-live"
Digests = dict[tuple[int, int], str]


@contextmanager
def session(cluster: QdrantCluster) -> Iterator[httpx.Client]:
    """A client of the first node that answers."""
    url = next(node.url for node in cluster.nodes if node.answers())
    headers = {"content-type": "application/json"} | ({"api-key": cluster.api_key} if cluster.api_key else {})
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
        yield http


def fill(
    cluster: QdrantCluster,
    name: str = COLLECTION,
    points: int = 240,
    *,
    size: int = 16,
    shards: int = 3,
    replicas: int = 2,
    alias: str | None = None,
) -> None:
    """A collection of random vectors with a payload, acknowledged; the same for the same name."""
    vectors = np.random.default_rng(len(name) + points).random((points, size), dtype=np.float32)
    shape = {
        "vectors": {"size": size, "distance": "Dot"},
        "shard_number": shards,
        "replication_factor": replicas,
        "optimizers_config": {"default_segment_number": 2},
    }
    with session(cluster) as http:
        http.put(f"/collections/{name}", content=orjson.dumps(shape)).raise_for_status()
        for begin in range(0, points, 250):
            rows = [
                {"id": i, "vector": vectors[i], "payload": {"number": i, "of": name}}
                for i in range(begin, min(begin + 250, points))
            ]
            body = orjson.dumps({"points": rows}, option=orjson.OPT_SERIALIZE_NUMPY)
            http.put(f"/collections/{name}/points?wait=true", content=body).raise_for_status()
        if alias:
            action = {"create_alias": {"collection_name": name, "alias_name": alias}}
            http.post("/collections/aliases", content=orjson.dumps({"actions": [action]})).raise_for_status()


def names_and_aliases(cluster: QdrantCluster) -> tuple[set[str], dict[str, str]]:
    """The collections of a cluster, and what its aliases point at."""
    with session(cluster) as http:
        names = {entry["name"] for entry in http.get("/collections").json()["result"]["collections"]}
        aliases = http.get("/aliases").json()["result"]["aliases"]
    return names, {entry["alias_name"]: entry["collection_name"] for entry in aliases}


def soon(what: Callable[[], Any], seconds: float = 60) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return answer


def together(*acts: Callable[[], object]) -> Callable[[], None]:
    """One thing to do, made of several."""

    def do() -> None:
        for act in acts:
            act()

    return do


def later(seconds: float, act: Callable[[], object]) -> Callable[[], None]:
    """Something to do that only starts a clock for something else."""
    return lambda: threading.Timer(seconds, act).start()


class Scene:
    """A source with data, a target with a live collection behind an alias, and what they looked like before."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.before: dict[tuple[str, str], Digests] = {}

    def configure(self, *, repository: dict[str, Any] | None = None, **tables: Any) -> None:
        """Settings as usual, but a dead run's lease can be had after a second."""
        self.shop.configure(repository={"lease_seconds": 1} | (repository or {}), **tables)

    def remember(self, cluster: str, *collections: str) -> None:
        """Note what these collections hold now; ``require_sound`` compares."""
        for name in collections:
            self.before[cluster, name] = self.content(cluster, name)

    def content(self, cluster: str, collection: str) -> Digests:
        """The content digest of every replica of a collection, each read from its own node."""
        forget_connections()
        clients = self.shop.connect(cluster).cluster
        layout = clients.read_layout([collection]).collection(collection)
        assert layout is not None
        return {
            (shard.shard_id, replica.peer_id): shard_digest(
                clients.node(replica.peer_id), collection, shard.shard_id
            ).hexdigest
            for shard in layout.shards
            for replica in shard.replicas
        }

    def connections(self, cluster: str = "source", repository: str = "main") -> Connections:
        """Ferry's clients, made anew: a killed run's knowledge is gone too."""
        forget_connections()
        return connect(cluster, repository)

    def back_up(self, delays: Sequence[float] = QUICK_DELAYS, **wishes: Any) -> str:
        """A backup by the plain runner, the same steps as the flow; its id."""
        wishes = {"cluster": "source", "repository": "main", "backup_id": new_backup_id(now(), uuid4().hex)} | wishes
        connections = self.connections(wishes["cluster"], wishes["repository"])
        planned = prepare(connections, BackupRequest(**wishes))
        return run_backup(connections, planned, "a test", Job(retry_delays_seconds=delays)).backup_id

    def restore(self, delays: Sequence[float] = QUICK_DELAYS, **wishes: Any) -> str:
        """A restore by the plain runner; the name of the new collection."""
        usual = {"cluster": "target", "repository": "main", "source_cluster": "source", "collection": COLLECTION}
        wishes = usual | {"verify": "content", "restore_id": new_backup_id(now(), uuid4().hex)} | wishes
        connections = self.connections(wishes["cluster"], wishes["repository"])
        return run_restore(
            connections, RestoreRequest(**wishes), "a test", Job(retry_delays_seconds=delays)
        ).plan.target

    def mark_repository(self) -> None:
        """As the first backup under the settings of now does: it tries the bucket out with uploads of its own."""
        connections = self.connections()
        ensure_conforming(connections.store, connections.keys)
        connections.catalog.ensure_repository()

    def complete(self) -> list[str]:
        """Ids of the backups that are listed as complete."""
        return [found.backup_id for found in self.connections().catalog.backups("source") if found.complete]

    def manifests(self) -> list[str]:
        """Keys of all manifests in the bucket; a fence in the place of one is none."""
        found = [key for key in self.shop.objects("backups/") if key.endswith("/manifest.json")]
        return [key for key in found if "fence" not in self.shop.read(key)]

    def require_honest(self) -> None:
        """Every manifest verifies against its archives' bytes, and what is listed as complete is."""
        connections = self.connections()
        catalog, keys = connections.catalog, connections.keys
        for key in self.manifests():
            backup_id, collection = key.split("/")[2:4]
            manifest = catalog.read_manifest("source", backup_id, collection)
            assert {shard.shard_id for shard in manifest.layout} == {shard for shard, _ in manifest.proofs()}
            for archive in manifest.archives:
                assert verify_archive(connections, manifest, archive).problems == ()
        for summary in catalog.backups("source"):
            try:
                record = catalog.read_backup("source", summary.backup_id)
            except BackupNotFoundError:
                assert not summary.complete
                continue
            for entry in record.collections:
                assert catalog.read_manifest("source", summary.backup_id, entry.collection).bytes == entry.bytes
                assert connections.store.head(keys.manifest("source", summary.backup_id, entry.collection))

    def require_untouched(self) -> None:
        """Whatever was remembered is as it was, replica by replica."""
        for (cluster, name), digests in self.before.items():
            assert self.content(cluster, name) == digests, f"{name} on {cluster} has changed"
        if ("target", LIVE) in self.before:
            assert names_and_aliases(self.shop.clusters["target"])[1].get(ALIAS) is not None

    def require_sound(self) -> None:
        """The oracle: nothing is left, no manifest lies, the data is as it was."""
        left = self.shop.leftovers()
        assert left == [], left
        self.require_honest()
        self.require_untouched()

    def settled(self, cluster: str) -> None:
        """Wait until a cluster of which a node was away is whole again."""
        wait_consensus(self.shop.clusters[cluster].nodes)

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """Every object under this test's prefix, whole."""
        client = self.shop.s3.client()
        for key in self.shop.objects():
            yield key, client.get_object(Bucket="ferry", Key=f"{self.shop.folder.name}/{key}")["Body"].read()

    def lease(self, name: str = "source") -> dict[str, Any]:
        """The lease object."""
        found = dict(self.documents())[f"leases/{name}.json"]
        return dict(json.loads(found))
