"""Many small collections, and many shards: what a backup costs beyond its bytes, and what it leaves in Prefect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.figures import Figure, timed
from benchmarks.stage import Stage, backup_request, forget
from ferry.backup import run
from ferry.lanes import Job
from ferry.models import ClusterLayout
from sandbox.fault_proxy import FaultProxy
from sandbox.prefect_server import PrefectServer
from sandbox.process import SandboxError, inherited_env

POINTS = 10
AREA = "many"


def measure(stage: Stage, collections: int, shards: int) -> list[Figure]:
    """One round each, for they are long: by hand, by Ferry, by Ferry through proxies that count, and by the flow."""
    for number in range(collections):
        _make(stage, f"many-{number}", 1)
    _make(stage, "wide", shards)
    figures: list[Figure] = []
    for name, pattern, archives in (
        (f"{collections} collections of {POINTS} points", "many-*", collections),
        (f"one collection of {shards} shards", "wide", shards),
    ):
        figures += [_against_hand(stage, name, pattern, archives), _requests(stage, name, pattern, archives)]
    figures.append(_prefect(stage, collections))
    for number in range(collections):
        stage.drop(f"many-{number}")
    stage.drop("wide")
    return figures


def _make(stage: Stage, name: str, shards: int) -> None:
    with httpx.Client(base_url=stage.cluster.urls[0], timeout=60, trust_env=False) as http:
        body = {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": shards}
        http.put(f"/collections/{name}", json=body).raise_for_status()
        points = [{"id": n, "vector": [1, 2, 3, n], "payload": {"n": n}} for n in range(POINTS * shards)]
        http.put(f"/collections/{name}/points?wait=true", json={"points": points}).raise_for_status()


def _against_hand(stage: Stage, name: str, pattern: str, archives: int) -> Figure:
    layout = stage.connect().cluster.read_layout([pattern])
    raw, _ = timed(lambda: _by_hand(stage, layout))
    ours, parts = timed(lambda: _by_ferry(stage, pattern))
    return Figure(
        area=AREA,
        name=f"{name}: plain runner ÷ create, download, put and delete by hand",
        ours=f"{ours:.1f} s",
        raw=f"{raw:.1f} s",
        value=ours / raw,
        values=(ours / raw,),
        target=None,
        limit=f"{ours / archives * 1000:.0f} ms an archive, of which {raw / archives * 1000:.0f} ms are Qdrant's and "
        f"the store's own; planning {parts['plan']:.1f} s. The rest is journal, proof (a second reading), manifests",
    )


def _by_hand(stage: Stage, layout: ClusterLayout) -> None:
    """The same lanes, a thread a node, without a journal, a checksum, a proof, or a look at who answers."""
    lanes: dict[str, list[tuple[str, int]]] = {node.url: [] for node in layout.nodes}
    for collection in layout.collections:
        for shard in collection.shards:
            home = layout.node(shard.replicas[0].peer_id).url
            lanes[home].append((collection.name, shard.shard_id))

    def lane(url: str) -> None:
        store = stage.boto()
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            for name, shard in lanes[url]:
                folder = f"/collections/{name}/shards/{shard}/snapshots"
                made = http.post(folder).raise_for_status().json()["result"]["name"]
                body = http.get(f"{folder}/{made}", headers={"Accept-Encoding": "identity"}).raise_for_status().content
                store.put_object(Bucket="ferry", Key=f"by-hand/{name}/{shard}", Body=body)
                http.delete(f"{folder}/{made}").raise_for_status()
        store.close()

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(lane, lanes))


def _by_ferry(stage: Stage, pattern: str) -> dict[str, float]:
    connections = stage.connect()
    planning, planned = timed(lambda: run.prepare(connections, backup_request(stage.new_id(), pattern)))
    working, _ = timed(lambda: run.run_backup(connections, planned, "bench", Job()))
    return {"plan": planning, "run": working}


def _requests(stage: Stage, name: str, pattern: str, archives: int) -> Figure:
    with _counted(stage) as (nodes, bucket):
        _by_ferry(stage, pattern)
        asked = sum(len(proxy.requests) for proxy in nodes)
        stored = len(bucket.requests)
    each = (asked + stored) / archives
    return Figure(
        area=AREA,
        name=f"{name}: requests an archive",
        ours=f"{asked:,} to nodes, {stored:,} to S3",
        raw=f"{archives * 3:,} and {archives:,}",
        value=each,
        values=(each,),
        target=None,
        limit=f"{asked / archives:.1f} to nodes and {stored / archives:.1f} to S3 for each archive, planning included; "
        "by hand it is three and one",
        digits=1,
    )


@contextmanager
def _counted(stage: Stage) -> Iterator[tuple[list[FaultProxy], FaultProxy]]:
    """Ferry's settings with proxies in front of every node and of the store, which note each request."""
    text = stage.config.read_text()
    with ExitStack() as stack:
        proxies = {
            url: stack.enter_context(FaultProxy(_place(url))) for url in [*stage.cluster.urls, stage.s3.endpoint_url]
        }
        for url, proxy in proxies.items():
            text = text.replace(url, proxy.url)
        other = stage.folder / "counted.toml"
        other.touch(mode=0o600)
        other.write_text(text)
        os.environ["FERRY_CONFIG"] = str(other)
        forget()
        try:
            yield [proxies[url] for url in stage.cluster.urls], proxies[stage.s3.endpoint_url]
        finally:
            os.environ["FERRY_CONFIG"] = str(stage.config)
            forget()


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 80)


def _prefect(stage: Stage, collections: int) -> Figure:
    """The flow over all small collections, on a server of its own: its seconds, and what it leaves in the database."""
    with PrefectServer(stage.folder / "prefect-many") as server:
        env = {**inherited_env(), **server.env()}
        command = [sys.executable, "-m", "benchmarks.many_flow", "many-*"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SandboxError(f"the flow ended with {done.returncode}: {(done.stderr + done.stdout)[-1500:]}")
        told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        rows = _rows(server.api_url)
        server.process.stop(grace_seconds=0)
    shown = ", ".join(f"{number} {what}" for what, number in rows.items())
    return Figure(
        area=AREA,
        name=f"{collections} collections of {POINTS} points by the Prefect flow: rows in Prefect",
        ours=f"{sum(rows.values()):,}",
        raw="-",
        value=sum(rows.values()) / collections,
        values=(sum(rows.values()) / collections,),
        target=None,
        limit=f"{shown}; {told['flow']:.1f} s by the flow's first run, {told['plain']:.1f} s by the plain runner in "
        "the same process",
        unit=" a collection",
    )


def _rows(api: str) -> dict[str, int]:
    """Task runs, artifacts and log lines that the server holds."""
    with httpx.Client(base_url=api, timeout=30, trust_env=False) as http:

        def asked(path: str, body: dict[str, Any]) -> Any:
            return http.post(path, json=body).raise_for_status().json()

        lines = 0
        while page := len(asked("/logs/filter", {"limit": 200, "offset": lines})):
            lines += page
        return {
            "task runs": int(asked("/task_runs/count", {})),
            "artifacts": int(asked("/artifacts/count", {})),
            "log lines": lines,
        }
