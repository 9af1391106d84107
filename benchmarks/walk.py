"""One whole walk in a process of its own, to be watched from outside: create, upload, prove, commit, restore by upload.

Run by `benchmarks.bench_memory` with FERRY_CONFIG set; a line of JSON on stdout begins each kind of step, the last one
says what was done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.stage import CLUSTER, REPOSITORY, backup_request
from ferry.backup import run
from ferry.connections import connect
from ferry.lanes import Job
from ferry.models import Progress, no_progress, now
from ferry.repository.layout import new_backup_id
from ferry.restore.plan import RestoreRequest
from ferry.restore.run import run_restore


def main(collection: str) -> None:
    """Walk with one collection; the new collection stays for the caller to drop."""
    _say(phase="start")
    connections = connect(CLUSTER, REPOSITORY)
    planned = run.prepare(connections, backup_request(new_backup_id(now(), "walk"), collection))
    record = run.run_backup(connections, planned, "bench", Job(_tell))
    request = RestoreRequest(
        restore_id=new_backup_id(now(), "walk-restore"),
        cluster=CLUSTER,
        repository=REPOSITORY,
        source_cluster=CLUSTER,
        backup=record.backup_id,
        collection=collection,
        into=f"{collection}-walked",
        verify="content",
    )
    restored = run_restore(connections, request, "bench", Job(_tell))
    bytes_moved = sum(entry.bytes for entry in record.collections)
    _say(paths=[replica.path for replica in restored.recovered], bytes=bytes_moved)


@contextmanager
def _tell(label: str, _total: int | None) -> Iterator[Progress]:
    _say(phase=label.split(maxsplit=1)[0])
    yield no_progress


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
