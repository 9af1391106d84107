"""The same backup by the Prefect flow and by the plain runner, turn by turn, in a warm process of its own.

Run by `benchmarks.bench_flow` with the settings of Ferry and of Prefect in the environment, which both read when they
are imported. One line of JSON on stdout: seconds of each round.
"""

from __future__ import annotations

import json
import sys

from benchmarks.figures import timed
from benchmarks.stage import CLUSTER, REPOSITORY, backup_request
from ferry.backup import run
from ferry.connections import connect
from ferry.lanes import Job
from ferry.models import now
from ferry.repository.layout import new_backup_id
from flows.back_up_cluster import back_up_cluster


def main(collection: str, rounds: int) -> None:
    """Alternate; the very first flow run, which also imports and connects, is told apart."""

    def flow() -> None:
        back_up_cluster(CLUSTER, REPOSITORY, [collection])

    def plain() -> None:
        connections = connect(CLUSTER, REPOSITORY)
        planned = run.prepare(connections, backup_request(new_backup_id(now(), f"plain-{now()}"), collection))
        run.run_backup(connections, planned, "bench", Job())

    seconds: dict[str, list[float]] = {"flow": [], "plain": []}
    plain()
    first, _ = timed(flow)
    for number in range(rounds):
        for way in (flow, plain) if number % 2 else (plain, flow):
            seconds[way.__name__].append(timed(way)[0])
    print(json.dumps({"first": first, **seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
