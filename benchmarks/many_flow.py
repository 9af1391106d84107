"""One backup of many collections by the Prefect flow and one by the plain runner, in a process of their own.

Run by `benchmarks.bench_many` with the settings of Ferry and of Prefect in the environment. One line of JSON on stdout:
seconds of each.
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


def main(pattern: str) -> None:
    """Plain first, so that connections are warm for both."""

    def plain() -> None:
        connections = connect(CLUSTER, REPOSITORY)
        planned = run.prepare(connections, backup_request(new_backup_id(now(), "many-plain"), pattern))
        run.run_backup(connections, planned, "bench", Job())

    seconds = {"plain": timed(plain)[0]}
    seconds["flow"] = timed(lambda: back_up_cluster(CLUSTER, REPOSITORY, [pattern]))[0]
    print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
