"""The sandbox itself: real parts start, answer, break as told, and leave nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from ferry.errors import ConfigurationError
from sandbox import binaries
from sandbox.data import WordShape, load_words, nearest_words
from sandbox.fault_proxy import FaultProxy, RotatingProxy
from sandbox.prefect_server import PrefectServer, PrefectWorker
from sandbox.process import LOOPBACK, Launch, Process, SandboxError, free_port, process_started
from sandbox.qdrant import QdrantCluster, QdrantNode, storage_limit_supported, wait_consensus
from sandbox.s3 import S3Server
from sandbox.state import SandboxState
from tests.workshop import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.servers
ROOT = Path(__file__).parents[2]
API_KEY = "sandbox-test-key"
BODY = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def cluster() -> Iterator[QdrantCluster]:
    """Give one cluster of three nodes to this module."""
    with QdrantCluster(3, api_key=API_KEY) as started:
        yield started


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """Give one S3 server to this module."""
    with S3Server() as started:
        yield started


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    """Give each test a fault proxy of its own in front of S3."""
    with FaultProxy(s3.host_port) as started:
        yield started


@pytest.fixture
def through(s3: S3Server, proxy: FaultProxy) -> S3Client:
    """Give a boto3 client that reaches S3 through the proxy, without retries."""
    return s3.client(proxy.url)


def status_of(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def test_a_binary_with_another_sha256_is_refused_and_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached binary whose bytes changed is deleted and never run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FERRY_QDRANT_BINARY", raising=False)
    forged = tmp_path / "ferry" / f"qdrant-{binaries.QDRANT_VERSION}"
    forged.parent.mkdir()
    forged.write_bytes(b"#!/bin/sh\necho not qdrant\n")
    with pytest.raises(ConfigurationError, match=hashlib.sha256(forged.read_bytes()).hexdigest()):
        binaries.qdrant_binary()
    assert not forged.exists()


def test_without_a_binary_and_npm_the_container_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be fetched, the error says which container to run instead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FERRY_QDRANT_BINARY", raising=False)
    with pytest.raises(ConfigurationError, match=r"docker run .*qdrant/qdrant:v1\.16\.3"):
        binaries.qdrant_binary()


def test_a_named_binary_wins_and_must_be_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FERRY_QDRANT_BINARY wins over everything and is refused when it cannot be run."""
    monkeypatch.setenv("FERRY_QDRANT_BINARY", sys.executable)
    assert binaries.qdrant_binary() == Path(sys.executable)
    monkeypatch.setenv("FERRY_QDRANT_BINARY", str(tmp_path / "nothing"))
    with pytest.raises(ConfigurationError, match="not an executable file"):
        binaries.qdrant_binary()


def test_a_reused_pid_is_not_our_process(tmp_path: Path) -> None:
    """A record whose start time is not the process's is dead, so that stopping it kills nobody."""
    sleeper = Process(Launch("sleeper", ("sleep", "60"), str(tmp_path / "log")))
    sleeper.start()
    stranger = Process.from_record({**sleeper.record(), "started": "1"})
    stranger.stop()
    assert (sleeper.alive(), stranger.alive()) == (True, False)
    sleeper.stop()
    assert process_started(sleeper.pid) is None


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    """The kernel ends a child that is not detached when its parent is SIGKILLed."""
    if sys.platform != "linux":
        pytest.skip("only Linux signals children on their parent's death")
    script = (
        "import sys, time; from sandbox.process import *;"
        f"p = Process(Launch('s', ('sleep', '60'), {str(tmp_path / 'log')!r}));"
        "p.start(); print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert process_started(child_pid)
        parent.kill()
    assert eventually(lambda: process_started(child_pid) is None)


def test_a_process_that_ends_at_once_tells_its_log(tmp_path: Path) -> None:
    """Waiting for a process that died fails at once, with what it wrote."""
    broken = Process(Launch("broken", ("sh", "-c", "echo no such flag; exit 2"), str(tmp_path / "log")))
    broken.start()
    with pytest.raises(SandboxError, match="no such flag"):
        broken.wait_ready(lambda: False, timeout_seconds=5)


def test_every_node_sees_every_peer_and_asks_for_the_key(cluster: QdrantCluster) -> None:
    """A started cluster has consensus on every node, and its key is asked for."""
    states = [node.cluster_state() for node in cluster.nodes]
    assert {len(state["peers"]) for state in states if state} == {3}
    assert len({state["peer_id"] for state in states if state}) == 3
    assert {httpx.get(f"{url}/collections").status_code for url in cluster.urls} == {401}


def test_a_cluster_without_consensus_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that does not reach consensus fails and ends the nodes that ran."""

    def disagree(*_: object) -> None:
        raise SandboxError("2 nodes did not agree")

    monkeypatch.setattr("sandbox.qdrant.wait_consensus", disagree)
    lonely = QdrantCluster(1)
    with pytest.raises(SandboxError, match="did not agree"):
        lonely.start()
    assert process_started(lonely.nodes[0].pid) is None
    assert not lonely.folder.exists()


def test_a_killed_node_restarts_with_its_data_and_rejoins(cluster: QdrantCluster) -> None:
    """SIGKILL ends one node only, and a restart brings it back on its port as the same peer."""
    node, before = cluster.nodes[1], cluster.nodes[1].cluster_state()
    node.kill()
    assert not node.answers()
    assert cluster.nodes[0].answers()
    with pytest.raises(SandboxError, match="did not agree"):
        wait_consensus(cluster.nodes, timeout_seconds=0.1)
    node.restart()
    wait_consensus(cluster.nodes)
    after = node.cluster_state()
    assert before is not None
    assert after is not None
    assert after["peer_id"] == before["peer_id"]


def test_a_frozen_node_accepts_and_never_answers_until_thawed(cluster: QdrantCluster) -> None:
    """A frozen node's port still accepts, its request times out, and it answers again when thawed."""
    node = cluster.nodes[2]
    node.freeze()
    with socket.create_connection((LOOPBACK, node.place.http_port), timeout=1):
        pass
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{node.url}/readyz", timeout=0.5)
    node.thaw()
    assert eventually(node.answers)


def test_a_frozen_node_can_be_stopped(cluster: QdrantCluster) -> None:
    """Stopping a frozen node thaws it to end in order, well before it would be killed, and it can be restarted."""
    node = cluster.nodes[2]
    node.freeze()
    begun = time.monotonic()
    node.process.stop(grace_seconds=20)
    assert time.monotonic() - begun < 15
    assert not node.process.alive()
    node.restart()
    wait_consensus(cluster.nodes)


def test_words_are_loaded_searched_and_aliased(cluster: QdrantCluster) -> None:
    """The demo data is acknowledged, counted exactly, spread as asked, and answers by its alias on any node."""
    seen: list[tuple[int, int]] = []
    load_words(cluster.urls[0], "words_2026", 5_000, api_key=API_KEY, shape=WordShape(2, 2, "words"),
               progress=lambda loaded, points: seen.append((loaded, points)))  # fmt: skip
    assert seen[-1] == (5_000, 5_000)
    headers = {"api-key": API_KEY}
    url = f"{cluster.urls[2]}/collections/words"
    count = httpx.post(f"{url}/points/count", json={"exact": True}, headers=headers).json()["result"]["count"]
    info = httpx.get(url, headers=headers).json()["result"]
    assert count == 5_000
    assert info["config"]["params"]["shard_number"] == 2
    assert {field: schema["points"] for field, schema in info["payload_schema"].items()}["rank"] == 5_000
    near = [word for word, _ in nearest_words(cluster.urls[1], "words", "king", 5, API_KEY)]
    assert {"prince", "queen"} <= set(near)
    assert "king" not in near


@pytest.mark.skipif(not storage_limit_supported(), reason="mounting a small disk needs root on Linux")
def test_a_full_disk_refuses_writes_until_freed() -> None:
    """A limited node's disk refuses points when full and takes them when freed, and no mount is left."""
    limit_bytes = 300 << 20
    points = {"points": [{"id": 1_000_000, "vector": [1.0] * 100, "payload": {}}]}
    with QdrantCluster(1, storage_limit_bytes=limit_bytes) as small:
        node = small.nodes[0]
        load_words(node.url, "words", 1_000, shape=WordShape(1, 1))
        assert node.fill_disk() > limit_bytes / 2
        room = os.statvfs(node.disk_path)
        assert room.f_bavail * room.f_frsize == 0
        refused = httpx.put(f"{node.url}/collections/words/points?wait=true", json=points)
        assert refused.status_code == 500
        assert "No space left on device" in refused.text
        node.free_disk()
        assert httpx.put(f"{node.url}/collections/words/points?wait=true", json=points).is_success
    assert not node.disk_path.is_mount()


def test_a_disk_without_a_limit_is_never_filled(cluster: QdrantCluster) -> None:
    """Filling a node that shares the machine's disk is refused."""
    with pytest.raises(SandboxError, match="does not fill"):
        cluster.nodes[0].fill_disk()


def test_signatures_stay_valid_through_the_proxy(s3: S3Server, through: S3Client, proxy: FaultProxy) -> None:
    """Bytes pass unchanged in both directions, signed for the proxy's address, and requests are seen."""
    through.put_object(Bucket="ferry", Key="honest", Body=BODY)
    assert through.get_object(Bucket="ferry", Key="honest")["Body"].read() == BODY
    presigned = through.generate_presigned_url("get_object", Params={"Bucket": "ferry", "Key": "honest"})
    assert httpx.get(presigned).content == BODY
    assert [line.split()[:1] for line in proxy.requests] == [["PUT"], ["GET"], ["GET"]]
    assert proxy.bytes_moved["to_target"] > len(BODY)
    assert proxy.bytes_moved["to_client"] > 2 * len(BODY)


def test_conditional_puts_have_one_winner(s3: S3Server) -> None:
    """The store refuses a second creation and a stale replacement with 412."""
    client = s3.client()
    etag = client.put_object(Bucket="ferry", Key="once", Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket="ferry", Key="once", Body=b"2", IfNoneMatch="*")
    assert status_of(refused.value) == 412
    client.put_object(Bucket="ferry", Key="once", Body=b"3", IfMatch=etag)
    with pytest.raises(ClientError) as stale:
        client.put_object(Bucket="ferry", Key="once", Body=b"4", IfMatch=etag)
    assert status_of(stale.value) == 412
    assert client.get_object(Bucket="ferry", Key="once")["Body"].read() == b"3"


def test_a_stalled_proxy_moves_nothing_until_cleared(through: S3Client, proxy: FaultProxy) -> None:
    """A stall accepts connections and moves no byte; clearing it lets the same request through."""
    proxy.stall()
    with socket.create_connection((LOOPBACK, proxy.port), timeout=1) as line:
        line.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        line.settimeout(0.3)
        with pytest.raises(TimeoutError):
            line.recv(1)
        assert proxy.bytes_total == 0
        proxy.clear()
        line.settimeout(5)
        assert line.recv(8) == b"HTTP/1.0"
    through.put_object(Bucket="ferry", Key="after-stall", Body=b"x")


def test_a_cut_resets_an_upload_in_the_middle(through: S3Client, proxy: FaultProxy) -> None:
    """A cut after a number of bytes resets the connection exactly there, and the next request is served."""
    proxy.after(1_000_000, proxy.cut)
    with pytest.raises((BotoCoreError, ClientError)):
        through.put_object(Bucket="ferry", Key="cut", Body=BODY)
    assert proxy.bytes_total == 1_000_000
    through.put_object(Bucket="ferry", Key="cut", Body=BODY)


def test_a_cut_is_a_reset_and_not_a_polite_end(proxy: FaultProxy) -> None:
    """An open connection that is cut sees ECONNRESET."""
    with socket.create_connection((LOOPBACK, proxy.port), timeout=5) as line:
        assert eventually(lambda: proxy.connections == 1 and len(proxy._open) == 1)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            line.recv(1)


def test_a_refusing_proxy_refuses_until_cleared(through: S3Client, proxy: FaultProxy) -> None:
    """New connections are refused by the kernel while refusing, and served on the same port afterwards."""
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, proxy.port), timeout=1)
    proxy.clear()
    through.put_object(Bucket="ferry", Key="after-refuse", Body=b"x")


def test_a_flipped_bit_is_flipped_once(s3: S3Server, through: S3Client, proxy: FaultProxy) -> None:
    """One bit of a download is flipped, at the place asked for, once."""
    s3.client().put_object(Bucket="ferry", Key="bits", Body=BODY)
    plain = s3.client().generate_presigned_url("get_object", Params={"Bucket": "ferry", "Key": "bits"})
    signed = through.generate_presigned_url("get_object", Params={"Bucket": "ferry", "Key": "bits"})
    proxy.corrupt("to_client", 1_000_000)
    damaged = httpx.get(signed).content
    different = [place for place, (a, b) in enumerate(zip(damaged, BODY, strict=True)) if a != b]
    assert len(different) == 1
    assert 990_000 < different[0] < 1_000_000
    assert damaged[different[0]] ^ BODY[different[0]] == 1
    assert httpx.get(signed).content == BODY == httpx.get(plain).content


def test_a_flipped_bit_of_an_upload_is_refused_by_the_store(through: S3Client, proxy: FaultProxy) -> None:
    """The store's checksum catches a bit flipped on the way in, and keeps nothing."""
    proxy.corrupt("to_target", 1_000_000)
    with pytest.raises(ClientError) as refused:
        through.put_object(Bucket="ferry", Key="damaged", Body=BODY, ChecksumAlgorithm="SHA256")
    assert status_of(refused.value) == 400
    with pytest.raises(ClientError):
        through.head_object(Bucket="ferry", Key="damaged")


def test_the_proxy_answers_with_a_status_as_often_as_told(through: S3Client, proxy: FaultProxy) -> None:
    """Matching requests get the status, as many as asked for, also on a reused connection; the store sees none."""
    through.put_object(Bucket="ferry", Key="first", Body=b"x")  # the connection that the next requests reuse
    proxy.http_status(503, count=2, match="PUT /ferry/busy")
    through.put_object(Bucket="ferry", Key="other", Body=b"x")
    for _ in range(2):
        with pytest.raises(ClientError) as refused:
            through.put_object(Bucket="ferry", Key="busy", Body=BODY)
        assert status_of(refused.value) == 503
    with pytest.raises(ClientError):
        through.head_object(Bucket="ferry", Key="busy")
    through.put_object(Bucket="ferry", Key="busy", Body=BODY)
    assert sum("PUT /ferry/busy" in line for line in proxy.requests) == 3


def test_a_slow_proxy_keeps_to_its_rate(s3: S3Server, through: S3Client, proxy: FaultProxy) -> None:
    """A slow proxy takes at least as long as its rate says, and is fast again when cleared."""
    body = BODY[:300_000]
    proxy.slow(600_000)
    begun = time.monotonic()
    through.put_object(Bucket="ferry", Key="slow", Body=body)
    assert time.monotonic() - begun >= 0.45
    proxy.clear()
    assert s3.client().get_object(Bucket="ferry", Key="slow")["Body"].read() == body


def test_a_rotating_proxy_answers_from_every_node(cluster: QdrantCluster) -> None:
    """Each new connection through a rotating address meets the next node."""
    targets = [(LOOPBACK, node.place.http_port) for node in cluster.nodes]
    with RotatingProxy(targets) as rotating:
        answers = [httpx.get(f"{rotating.url}/cluster", headers={"api-key": API_KEY}).json() for _ in range(3)]
    assert len({answer["result"]["peer_id"] for answer in answers}) == 3


def test_up_and_down_by_command(tmp_path: Path) -> None:
    """`up` survives its shell, writes private files that work, says what runs when repeated, and `down` ends it all."""
    folder = tmp_path / "box"
    command("up", folder, "--source-nodes", "1", "--target-nodes", "0", "--s3-proxy", "--api-key", API_KEY)
    try:
        state = SandboxState.load(folder)
        assert {process.launch.name for process in state.running()} == {
            "qdrant source/node-0", "s3 (SeaweedFS)", "s3 proxy",
        }  # fmt: skip
        assert {file.stat().st_mode & 0o777 for file in (state.file, state.settings_file)} == {0o600}
        assert f"nodes = {json.dumps([state.node('source', 0).url])}" in state.settings_file.read_text()
        assert "runs already" in command("up", folder)
        command("kill", folder, "source", "0")
        assert not state.node("source", 0).answers()
        command("restart", folder, "source", "0")
        node = SandboxState.load(folder).node("source", 0)
        assert node.answers()
        assert '"bytes"' in command("proxy", folder, "status", "503", "1").replace("'", '"')
        assert httpx.get(f"{state.s3_url()}/ferry").status_code == 503
        assert f"FERRY_CONFIG={state.settings_file}" in command("env", folder)
    finally:
        ended = command("down", folder)
    assert "Ended 3 processes" in ended
    assert "Nothing ran" in command("down", folder)
    assert not state.running()
    assert not node.process.alive()


def test_a_half_failed_up_leaves_nothing(tmp_path: Path) -> None:
    """When a part cannot start, `up` fails, names it, and ends the parts that had started."""
    folder = tmp_path / "box"
    broken = tmp_path / "qdrant"
    broken.write_text("#!/bin/sh\necho cannot start; exit 1\n")
    broken.chmod(0o755)
    answer = run_command("up", folder, env={"FERRY_QDRANT_BINARY": str(broken)})
    assert answer.returncode == 1
    assert "cannot start" in answer.stderr
    assert not (folder / "state.json").exists()
    s3_port = json.loads((folder / "s3" / "ports.json").read_text())["s3"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, s3_port), timeout=1)


@pytest.mark.soak  # tests/e2e starts both, too
def test_prefect_server_and_worker_answer(tmp_path: Path) -> None:
    """A real Prefect server is healthy, and its worker is online on its pool; both end by pid."""
    with PrefectServer(tmp_path / "prefect") as server:
        assert httpx.get(f"{server.api_url}/health").json() is True
        with PrefectWorker(server, "sandbox-test", {}, ROOT) as worker:
            pools = httpx.post(f"{server.api_url}/work_pools/filter", json={}).json()
            assert ("sandbox-test", "process") in {(pool["name"], pool["type"]) for pool in pools}
            assert worker.online()
    assert process_started(server.process.pid) is None
    assert process_started(worker.process.pid) is None


def command(name: str, folder: Path, *arguments: str) -> str:
    """Run one sandbox command that must succeed; return what it printed."""
    answer = run_command(name, folder, *arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def run_command(
    name: str, folder: Path, *arguments: str, env: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sandbox", name, "--folder", str(folder), *arguments]
    return subprocess.run(
        line, cwd=ROOT, env={**os.environ, "COLUMNS": "400", **(env or {})}, capture_output=True, text=True, check=False
    )


def test_a_port_is_handed_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports handed out are all different, also those of another process, and running out of them is an error."""
    first = random.randrange(12_000, 19_990)
    four = range(first, first + 4)
    monkeypatch.setattr("sandbox.process.PORT_RANGE", four)
    monkeypatch.setattr("sandbox.process._handed_out", {first})
    assert {free_port() for _ in range(3)} == set(four) - {first}
    with pytest.raises(SandboxError, match="No free port"):
        free_port()
    other = f"from sandbox import process as p; p.PORT_RANGE = range({first}, {first + 4}); print(p.free_port())"
    answer = subprocess.run([sys.executable, "-c", other], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == f"{first}\n"  # nobody listens on the others, and they are ours


def test_a_node_survives_its_record(cluster: QdrantCluster) -> None:
    """A node read back from its JSON record commands the same process."""
    again = QdrantNode.from_record(json.loads(json.dumps(cluster.nodes[0].record())))
    assert again.answers()
    assert again.process.alive()
    assert again.url == cluster.nodes[0].url
