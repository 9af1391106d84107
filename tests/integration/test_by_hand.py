"""The break-glass commands on real servers: back up, look, verify, restore, and Ctrl-C in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ferry.__main__ import main
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.conftest import API_KEY
from tests.workshop import AS_IN_A_TERMINAL

pytestmark = pytest.mark.servers
ROOT = Path(__file__).parents[2]
Configure = Callable[..., Path]
COLLECTION = "by hand"
POINTS = 3000


@pytest.fixture
def collection(source: QdrantCluster) -> Iterator[str]:
    """A collection of three shards with two replicas each; every collection is dropped afterwards."""
    with httpx.Client(base_url=source.urls[0], headers={"api-key": API_KEY}, timeout=60, trust_env=False) as client:
        body = {"vectors": {"size": 8, "distance": "Dot"}, "shard_number": 3, "replication_factor": 2}
        client.put(f"/collections/{COLLECTION}", json=body).raise_for_status()
        points = [
            {"id": number, "vector": [number / (place + 1) for place in range(8)], "payload": {"n": number}}
            for number in range(POINTS)
        ]
        client.put(f"/collections/{COLLECTION}/points?wait=true", json={"points": points}).raise_for_status()
        yield COLLECTION
        for found in client.get("/collections").json()["result"]["collections"]:
            client.delete(f"/collections/{found['name']}").raise_for_status()


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command with --json printed."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def goes_on(key: str, keys: list[str]) -> bool:
    """Whether that is the request of a run with a committed collection and no record: the next run goes on with it."""
    if not key.endswith("/run/request.json"):
        return False
    begun = [other for other in keys if f"/{key.split('/')[-3]}/" in other and "/backups/" in other]
    return any(other.endswith("/manifest.json") for other in begun) and not any(
        "/backup.json" in other for other in begun
    )


def left_behind(s3: S3Server, source: QdrantCluster, prefix: str) -> list[str]:
    """What no ended run may leave: files on nodes, uploads, journals, archives without manifest, leases still held."""
    client = s3.client()
    left = [str(file) for node in source.nodes for file in node.snapshots_path.rglob("*") if file.is_file()]
    left += [
        upload["Key"] for upload in client.list_multipart_uploads(Bucket="ferry", Prefix=prefix).get("Uploads", [])
    ]
    keys = [found["Key"] for found in client.list_objects_v2(Bucket="ferry", Prefix=prefix + "/").get("Contents", [])]
    left += [key for key in keys if "/runs/" in key and not goes_on(key, keys)]
    for key in keys:
        if "/leases/" in key and not json.loads(client.get_object(Bucket="ferry", Key=key)["Body"].read())["released"]:
            left.append(key)
        if "/shards/" in key and key.partition("/shards/")[0] + "/manifest.json" not in keys:
            left.append(key)
    return left


def test_back_up_look_verify_restore(
    configure: Configure,
    collection: str,
    s3: S3Server,
    source: QdrantCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without Prefect from a live collection to an equal one behind an alias, with nothing left behind."""
    prefix = configure().parent.name
    assert main(["backup", "source", "--dry-run"]) == 0
    assert answer(capsys, "list") == []
    assert main(["backup", "source", "--include", collection]) == 0
    [listed] = answer(capsys, "list", "--cluster", "source")
    assert (listed["complete"], listed["points"], listed["proof"]) == (True, POINTS, "content")
    shown = answer(capsys, "show", "source", listed["backup_id"])
    assert [len(manifest["archives"]) for manifest in shown["collections"]] == [3]
    assert main(["verify", "source"]) == 0
    where = ["restore", "--cluster", "source", "--source-cluster", "source", "--into", "again", "--alias", "live"]
    assert main([*where, "--dry-run", collection]) == 0
    assert main([*where, "--replication-factor", "1", "--verify", "content", collection]) == 0
    assert "again is restored and equal to its proof" in capsys.readouterr().out
    with httpx.Client(base_url=source.urls[1], headers={"api-key": API_KEY}, trust_env=False) as client:
        counted = client.post("/collections/live/points/count", json={"exact": True}).json()["result"]["count"]
    assert counted == POINTS
    assert main([*where, collection]) == 1
    assert "again is already a collection" in capsys.readouterr().err
    assert left_behind(s3, source, prefix) == []


def test_verify_finds_damage(
    configure: Configure, collection: str, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """One changed byte in one archive: that archive is named, the others are intact, and the exit code is 1."""
    prefix = configure().parent.name
    assert main(["backup", "source", "--include", collection]) == 0
    client = s3.client()
    found = client.list_objects_v2(Bucket="ferry", Prefix=f"{prefix}/backups/")["Contents"]
    key = next(each["Key"] for each in found if "/shards/1." in each["Key"])
    data = bytearray(client.get_object(Bucket="ferry", Key=key)["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(Bucket="ferry", Key=key, Body=bytes(data))
    capsys.readouterr()
    assert main(["verify", "source"]) == 1
    shown = capsys.readouterr()
    assert "1 of 3 archives" in shown.err
    assert shown.out.count("intact") == 2
    assert "sha256" in next(line for line in shown.out.splitlines() if key in line)


def interrupted(
    command: list[str], environment: dict[str, str], order: signal.Signals, delay_seconds: float
) -> tuple[int, str]:
    """A backup that gets this signal so long after its plan was shown: its exit code, and what it said."""
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert running.stdout is not None
    assert "Plan of backup" in running.stdout.readline()  # from here on it creates, uploads and proves
    time.sleep(delay_seconds)
    if order is signal.SIGINT:
        os.killpg(running.pid, order)
    else:
        running.send_signal(order)
    _, said = running.communicate(timeout=60)
    return running.returncode, said


@pytest.mark.parametrize("delay_seconds", [0.1, 0.6])
@pytest.mark.parametrize("order", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_cleans_up(
    configure: Configure,
    collection: str,
    s3: S3Server,
    source: QdrantCluster,
    order: signal.Signals,
    delay_seconds: float,
) -> None:
    """Ctrl-C in a terminal reaches the whole process group, a stopped pod only the process: both leave nothing."""
    path = configure()
    environment = {**os.environ, "FERRY_CONFIG": str(path), "PYTHONUNBUFFERED": "1"}
    command = [*AS_IN_A_TERMINAL, sys.executable, "-m", "ferry", "backup", "source"]
    code, said = interrupted(command, environment, order, delay_seconds)
    if code == 0:  # this machine was slow to interrupt, and the backup ended before
        code, said = interrupted(command, environment, order, delay_seconds / 10)
    assert code == 130, said
    assert "Traceback" not in said
    assert left_behind(s3, source, path.parent.name) == []
