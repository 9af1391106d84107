"""The guard on a real node: slow answers pause a download and stop a run, whatever the node and its rights are like."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import numpy as np
import orjson
import pytest

from ferry.backup.answers import ShardQuestion
from ferry.backup.guard import Guard, guarded
from ferry.connections import forget_connections
from ferry.errors import FerryError, LimitError
from ferry.models import ShardId, no_progress, now
from ferry.profiles import AnswerLimits, ClusterProfile, PolicyProfile
from ferry.qdrant import snapshots
from ferry.qdrant.node import Node
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantNode
from tests.integration.crossings import SERVERS, back_up
from tests.integration.tokens import API_KEY, TokenCluster, token
from tests.workshop import Workshop

pytestmark = [*SERVERS, pytest.mark.timeout(120)]

LARGE, EMPTY = "large", "empty"
SHARD = ShardId(0)
POINTS, DIMENSIONS = 8000, 1024  # 32 MB


@pytest.fixture(scope="module")
def real() -> Iterator[QdrantNode]:
    """One node of our own, which may be frozen, with a large collection and an empty one."""
    with TokenCluster(nodes=1) as cluster, http(cluster.urls[0]) as client:
        for name, size in ((LARGE, DIMENSIONS), (EMPTY, 4)):
            settings = {"vectors": {"size": size, "distance": "Dot"}, "shard_number": 1}
            client.put(f"/collections/{name}", json=settings).raise_for_status()
        fill(client, POINTS)
        yield cluster.nodes[0]


def fill(client: httpx.Client, points: int) -> None:
    rows = np.random.default_rng(7).integers(-9, 10, size=(points, DIMENSIONS), dtype=np.int8)
    for start in range(0, points, 1000):
        batch = [{"id": n, "vector": rows[n]} for n in range(start, start + 1000)]
        body = orjson.dumps({"points": batch}, option=orjson.OPT_SERIALIZE_NUMPY)
        client.put(f"/collections/{LARGE}/points?wait=true", content=body).raise_for_status()


def http(url: str) -> httpx.Client:
    headers = {"api-key": API_KEY, "content-type": "application/json"}
    return httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False)


def profile(url: str, key: str = API_KEY) -> ClusterProfile:
    return ClusterProfile.model_validate({"nodes": [url], "api_key": key})


@pytest.fixture
def answers(real: QdrantNode) -> Iterator[FaultProxy]:
    """The way that the guard's questions take."""
    with FaultProxy(("127.0.0.1", real.place.http_port)) as proxy:
        yield proxy


@pytest.fixture
def data(real: QdrantNode) -> Iterator[FaultProxy]:
    """The way that snapshots take, whose bytes are counted."""
    with FaultProxy(("127.0.0.1", real.place.http_port)) as proxy:
        yield proxy


def policy(limits: AnswerLimits, **settings: float) -> PolicyProfile:
    return PolicyProfile.model_validate({"answers": limits, **settings})


def one_archive(node: Node, guard: Guard) -> str:
    """What a backup does of it: make, read, delete; the sha256 of what was read, which is what Qdrant said."""
    guard.admit()
    made = snapshots.create_snapshot(node, LARGE, SHARD)
    try:
        digest = hashlib.sha256()
        blocks = snapshots.download_snapshot(node, LARGE, SHARD, made.name, expected_bytes=made.size)
        for block in guard.paced(blocks):
            digest.update(block)
    finally:
        snapshots.delete_snapshot(node, LARGE, SHARD, made.name)
    assert digest.hexdigest() == made.checksum
    return digest.hexdigest()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nothing_runs() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "ferry-answers"]


def test_a_download_pauses_while_answers_are_slow_and_goes_on(
    real: QdrantNode, answers: FaultProxy, data: FaultProxy
) -> None:
    """No byte leaves the node meanwhile; afterwards every byte is there, and a finding says how long it was."""
    rules = policy(AnswerLimits(interval_seconds=0.05, pause_above_ms=400), node_mb_per_second=10)
    with (
        Node(answers.url, profile(answers.url)) as asked,
        Node(data.url, profile(data.url)) as node,
        guarded(asked, LARGE, rules, no_progress, SHARD) as guard,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(one_archive, node, guard)
        until(lambda: data.bytes_moved["to_client"] > 5_000_000 or running.done())
        answers.stall()
        time.sleep(1.0)  # the limit, and what the kernel's buffers still take
        moved = data.bytes_total
        time.sleep(1.5)
        assert data.bytes_total == moved
        assert not running.done()
        answers.clear()
        running.result(timeout=60)
        [finding] = guard.findings
    assert finding.severity == "warning"
    assert "The backup was paused for " in finding.message
    assert LARGE in finding.message
    asked = {line.rpartition(" ")[0] for line in answers.requests}
    assert asked == {f"GET /collections/{LARGE}", f"POST /collections/{LARGE}/shards/0/points/scroll"}  # writes nothing
    assert nothing_runs()


def test_a_backup_obeys_its_policy(workshop: Workshop) -> None:
    """Quiet hours and a limit that every answer passes end it before anything is made; without them it succeeds."""
    with http(workshop.clusters["source"].urls[0]) as client:
        for name in ("one", "two"):
            settings = {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 3}
            client.put(f"/collections/{name}", json=settings).raise_for_status()
    hours = f"{now() - timedelta(minutes=5):%H:%M}-{now() + timedelta(hours=3):%H:%M}"
    workshop.config.write_text(
        workshop.config.read_text()
        + f'[policies.quiet]\nquiet_hours = ["{hours}"]\n'
        + "[policies.strict]\nanswers = {stop_above_ms = 0.001, stop_after_seconds = 0.5, interval_seconds = 0.1}\n"
        + "[policies.slow]\nnode_mb_per_second = 10\npause_seconds = 0.1\nnodes_at_a_time = 1\n"
    )
    forget_connections()
    for policy, says in (("quiet", "because of quiet hours"), ("strict", r"the policy allows 0\.5 s")):
        began = time.monotonic()
        with pytest.raises(FerryError, match=says):
            back_up(workshop, policy=policy)
        assert time.monotonic() - began < 30
        assert workshop.leftovers() == []
        assert workshop.objects("backups/") == []
    assert len(back_up(workshop, policy="slow").collections) == 2
    assert workshop.leftovers() == []


def test_a_backup_that_stops_itself_in_mid_download_cleans_up(workshop: Workshop) -> None:
    """The whole run, on a node that stands still while its snapshot is read: nothing is left, and the next succeeds."""
    source = workshop.clusters["source"]
    with http(source.urls[0]) as client:
        settings = {"vectors": {"size": DIMENSIONS, "distance": "Dot"}, "shard_number": 1}
        client.put(f"/collections/{LARGE}", json=settings).raise_for_status()
        fill(client, 5000)
    layout = workshop.connect().cluster.read_layout([LARGE])
    holder = layout.node(layout.collections[0].shards[0].replicas[0].peer_id).url
    with FaultProxy(("127.0.0.1", int(holder.rpartition(":")[2]))) as proxy:
        urls = [proxy.url if url == holder else url for url in source.urls]
        workshop.configure(clusters={"source": {"nodes": urls}})
        limits = "{stop_above_ms = 300, stop_after_seconds = 1, interval_seconds = 0.1}"
        policies = f"[policies.calm]\nnode_mb_per_second = 5\nanswers = {limits}\n"
        workshop.config.write_text(workshop.config.read_text() + policies)
        forget_connections()
        going_on = threading.Timer(2.5, proxy.clear)

        def stand_still() -> None:
            proxy.stall()
            going_on.start()

        proxy.after(6_000_000, stand_still)
        with pytest.raises(LimitError, match=r"more than 300 ms.*while its snapshot was read"):
            back_up(workshop, policy="calm")
        going_on.join()
        assert workshop.leftovers() == []
        assert workshop.objects("backups/") == []
        assert back_up(workshop).collections


def test_a_run_stops_when_answers_stay_slow(real: QdrantNode, answers: FaultProxy, data: FaultProxy) -> None:
    """With the numbers, before the rest is read; what lies on the node is deleted by whoever made it."""
    limits = AnswerLimits(interval_seconds=0.05, stop_above_ms=300, stop_after_seconds=1)
    with (
        Node(answers.url, profile(answers.url)) as asked,
        Node(data.url, profile(data.url)) as node,
        guarded(asked, LARGE, policy(limits, node_mb_per_second=10), no_progress, SHARD) as guard,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(one_archive, node, guard)
        until(lambda: data.bytes_moved["to_client"] > 5_000_000 or running.done())
        answers.stall()
        with pytest.raises(LimitError, match=r"more than 300 ms for \d+\.\d s; the policy allows 1 s") as raised:
            running.result(timeout=20)
        answers.clear()
        assert data.bytes_moved["to_client"] < POINTS * DIMENSIONS * 4
    assert "large shard 0 on 127.0.0.1" in raised.value.message
    assert list(real.snapshots_path.rglob("*.snapshot")) == []
    assert nothing_runs()


def test_what_is_passed_while_a_snapshot_is_made_stops_after_it(real: QdrantNode) -> None:
    """Qdrant cannot be told to stop making it: nothing is read then, though answers are quick again."""
    limits = AnswerLimits(interval_seconds=0.05, stop_above_ms=200, stop_after_seconds=1)
    with Node(real.url, profile(real.url)) as node, guarded(node, LARGE, policy(limits), no_progress, SHARD) as guard:
        guard.admit()
        thaw = threading.Timer(2.0, real.thaw)
        thaw.start()
        real.freeze()
        made = snapshots.create_snapshot(node, LARGE, SHARD)
        thaw.join()
        until(lambda: guard._times.current_ms(time.monotonic()) < 200)
        try:
            with pytest.raises(LimitError, match=r"policy allows 1 s"):
                list(guard.paced(iter([b"never asked for"])))
        finally:
            snapshots.delete_snapshot(node, LARGE, SHARD, made.name)
    assert nothing_runs()


def test_what_is_asked_works_on_odd_collections_and_with_few_rights(real: QdrantNode) -> None:
    """An empty collection, one that is not there, a shard that is elsewhere, strict mode, and a token for one alone."""
    with http(real.url) as client, Node(real.url, profile(real.url)) as node:

        def ask(collection: str, shard: int | None = 0, by: Node = node) -> str:
            return ShardQuestion(by, collection, None if shard is None else ShardId(shard), AnswerLimits()).ask().kind

        assert ask(LARGE) == ask(EMPTY) == ask(EMPTY, None) == ask(EMPTY, 7) == "answered"
        assert ask("missing") == ask("missing", None) == "refused"
        for access, kind in (("rw", "answered"), ("r", "answered")):
            key = token({"access": [{"collection": LARGE, "access": access}]})
            with Node(real.url, profile(real.url, key)) as limited:
                assert ask(LARGE, by=limited) == kind
                assert ask(EMPTY, by=limited) == "refused"
        strict = {"strict_mode_config": {"enabled": True, "read_rate_limit": 40, "max_query_limit": 1}}
        client.patch(f"/collections/{EMPTY}", json=strict).raise_for_status()
        question = ShardQuestion(node, EMPTY, SHARD, AnswerLimits())
        assert question.least_interval_seconds() == 30
        kinds = [question.ask().kind for _ in range(45)]
        assert (kinds[0], kinds[-1]) == ("answered", "refused")  # a limit that is reached is no slow answer
        assert "silent" not in kinds
