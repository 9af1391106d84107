"""What orchestration costs: the Prefect flow's wall time beside the plain runner's, on the same cluster and data."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.data import Shape
from benchmarks.figures import Figure, Target, middle, ratios
from benchmarks.stage import Stage
from sandbox.prefect_server import PrefectServer
from sandbox.process import SandboxError, inherited_env

TARGET = Target(5.0, "at most", " s")
SHARE = 0.03  # of a long backup; whichever is more
SHARDS, REPLICATION = 3, 2


def measure(stage: Stage, points: int, rounds: int) -> list[Figure]:
    """Back up one collection of three shards with content proof, by flow and by plain runner in turn."""
    collection = stage.collection(Shape("bench-flow", points, SHARDS, REPLICATION))
    watch = stage.load_watch()
    with PrefectServer(stage.folder / "prefect") as server, watch:
        told = _run(stage, server, collection, rounds)
        server.process.stop(grace_seconds=0)  # its runs are thrown away with the folder
    stage.drop(collection)
    flow, plain = told["flow"], told["plain"]
    values = tuple(mine - other for mine, other in zip(flow, plain, strict=True))
    share = middle(ratios(flow, plain)) - 1
    return [
        Figure(
            area="orchestration",
            name="Prefect flow − plain runner, the same backup of three shards, warm",
            ours=f"{middle(flow):.2f} s",
            raw=f"{middle(plain):.2f} s",
            value=middle(values),
            values=values,
            target=Target(max(5.0, SHARE * middle(plain)), "at most", " s"),
            limit=f"{share:+.0%} of this small backup; a fixed cost of its 13 task runs, their states and artifacts",
            unit=" s",
            notes=(f"the first flow run of the process took {told['first']:.1f} s",),
        )
    ]


def _run(stage: Stage, server: PrefectServer, collection: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.orchestrated", collection, str(rounds)]
    env = {**inherited_env(), **server.env()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SandboxError(f"the flow ended with {done.returncode}: {(done.stderr + done.stdout)[-1500:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
