"""The two faults that last a real minute, at once, on clusters of their own: a frozen node and a store that stalls."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.faults.conftest import BACK_UP, SOURCE, Runs
from tests.faults.scene import Scene, fill, later, together
from tests.workshop import Workshop

MINUTE = 60.0
ANSWER_SECONDS = 2.0


@dataclass
class Minute:
    """How both runs ended, what they said, and how quickly the stalled one's collection answered meanwhile."""

    frozen: str
    stalled: str
    seconds: float
    slowest_search: float
    slowest_write: float
    asked: int


class Client(threading.Thread):
    """Somebody who searches and writes all the time."""

    def __init__(self, url: str, collection: str) -> None:
        super().__init__()
        self.url, self.collection = url, collection
        self.searches: list[float] = []
        self.writes: list[float] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Ask until told to end."""
        vector = np.ones(1024, dtype=np.float32).tolist()
        search = orjson.dumps({"query": vector, "limit": 3})
        write = orjson.dumps({"points": [{"id": 9_999_999, "vector": vector, "payload": {"of": "client"}}]})
        headers = {"content-type": "application/json"}
        with httpx.Client(base_url=f"{self.url}/collections/{self.collection}", headers=headers, timeout=90) as http:
            while not self.ended.wait(0.1):
                for times, method, path, body in (
                    (self.searches, "POST", "/points/query", search),
                    (self.writes, "PUT", "/points?wait=true", write),
                ):
                    began = time.monotonic()
                    http.request(method, path, content=body).raise_for_status()
                    times.append(time.monotonic() - began)


@pytest.fixture
def minute(
    runs: Runs,
    three_nodes: QdrantCluster,
    shared_s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Minute, Scene, Scene]]:
    """Run both with the usual time limits and retries."""
    with QdrantCluster(nodes=1) as fragile:
        scenes = []
        proxies = FaultProxy(("127.0.0.1", fragile.nodes[0].place.http_port)), FaultProxy(shared_s3.host_port)
        for name, cluster in (("frozen", fragile), ("stalled", three_nodes)):
            folder = tmp_path / f"{tmp_path.name}-{name}"  # its name is the prefix in the bucket
            folder.mkdir()
            shop = Workshop(folder, monkeypatch, shared_s3, {"source": cluster})
            fill(cluster, "large", 1800, size=1024, shards=1, replicas=1)
            scenes.append(Scene(shop))
        frozen, stalled = scenes
        with proxies[0] as node, proxies[1] as store:
            frozen.shop.configure(clusters={"source": {"nodes": [node.url]}})
            frozen.remember("source", "large")
            delays = {"delays": [2.0, 10.0, 30.0, 60.0]}
            began = time.monotonic()
            node.after(2_000_000, together(fragile.nodes[0].freeze, later(MINUTE, fragile.nodes[0].thaw)))
            first = runs.start(BACK_UP, SOURCE, **delays)
            stalled.shop.configure(repository={"endpoint_url": store.url, "part_bytes": 5 << 20, "lease_seconds": 60})
            stalled.mark_repository()
            store.after(3_000_000, together(store.stall, later(MINUTE, store.clear)))
            second = runs.start(BACK_UP, SOURCE, **delays)
            client = Client(three_nodes.urls[0], "large")
            client.start()
            ends = runs.wait(first), runs.wait(second)
            client.ended.set()
            client.join()
            for end, pid in zip(ends, (first, second), strict=True):
                assert end == "exit 0", runs.output(pid)[-3000:]
        yield (
            Minute(*ends, time.monotonic() - began, max(client.searches), max(client.writes), len(client.writes)),
            frozen,
            stalled,
        )
        for scene in scenes:
            scene.shop.__exit__()


@pytest.mark.soak
def test_a_minute_without_node_or_store_delays_a_backup_and_nobody_else(minute: tuple[Minute, Scene, Scene]) -> None:
    """Both runs complete after the minute; while S3 stalled, the collection answered every search and write in 2 s."""
    seen, frozen, stalled = minute
    assert seen.seconds > MINUTE
    assert seen.asked > MINUTE
    assert seen.slowest_search < ANSWER_SECONDS
    assert seen.slowest_write < ANSWER_SECONDS
    for scene in (frozen, stalled):
        scene.shop.configure()
        assert len(scene.complete()) == 1
        scene.require_sound()
