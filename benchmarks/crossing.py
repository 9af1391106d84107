"""One way of moving a collection to another cluster, in a process of its own, to be watched from outside.

Run by `benchmarks.harbour` with FERRY_CONFIG set: ``python -m benchmarks.crossing WAY JOB``, the job as JSON. A line of
JSON on stdout begins the part that is measured, the last one says what it took.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks import peers
from benchmarks.figures import timed
from benchmarks.load import process_seconds
from benchmarks.stage import REPOSITORY
from ferry.connections import connect
from ferry.lanes import Job
from ferry.migration.plan import MigrationRequest, QdrantSource, WriterKind
from ferry.migration.run import run_migration
from ferry.models import Progress, no_progress
from ferry.settings import load_settings

# The step of a migration that only looks at what the others have done.
COMPARING = "compare"


@dataclass(frozen=True)
class Errand:
    """What to move: clusters by their names in the settings, and the processes of each."""

    source: str
    target: str
    collection: str
    into: str
    source_pids: tuple[int, ...]
    target_pids: tuple[int, ...]

    def used(self) -> tuple[float, float, float]:
        """Processor seconds used so far: by this process and its children, by the source and by the target."""
        source, target = (sum(map(process_seconds, pids)) for pids in (self.source_pids, self.target_pids))
        return sum(os.times()[:4]), source, target

    def argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


class Steps:
    """When the first step of a migration began, when the comparing did, and what the latter used and took."""

    def __init__(self, errand: Errand) -> None:
        self._errand = errand
        self._began = self._compared = 0.0
        self.comparing_seconds = 0.0
        self.comparing_used = (0.0, 0.0, 0.0)

    @property
    def filling_seconds(self) -> float:
        """From the first step until the comparing."""
        return self._compared - self._began

    @contextmanager
    def tell(self, label: str, _total: int | None) -> Iterator[Progress]:
        """To be given to a Job."""
        now = perf_counter()
        self._began = self._began or now
        comparing = label.startswith(COMPARING)
        if comparing:
            self._compared, before = now, self._errand.used()
        yield no_progress
        if comparing:
            self.comparing_seconds = perf_counter() - now
            self.comparing_used = difference(self._errand.used(), before)


def difference(after: tuple[float, float, float], before: tuple[float, float, float]) -> tuple[float, float, float]:
    """What was used in between."""
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def _measured(errand: Errand, work: Callable[[], object]) -> dict[str, Any]:
    _say(phase="move")
    before = errand.used()
    seconds, _ = timed(work)
    return {"seconds": seconds, "own_seconds": errand.used()[0] - before[0]}


def _peer(move: Callable[[peers.Ends], None], errand: Errand) -> dict[str, Any]:
    with _ends(errand) as ends:
        return _measured(errand, lambda: move(ends))


def _raw(errand: Errand) -> dict[str, Any]:
    with _ends(errand) as ends:
        messages = peers.encoded(ends)
        return _measured(errand, lambda: peers.upsert(ends, messages))


def _ferry(writer: WriterKind, errand: Errand) -> dict[str, Any]:
    connections, steps = connect(errand.target, REPOSITORY), Steps(errand)
    request = MigrationRequest(
        cluster=errand.target,
        repository=REPOSITORY,
        source=QdrantSource(cluster=errand.source, collection=errand.collection),
        into=errand.into,
        writer=writer,
    )
    told = _measured(errand, lambda: run_migration(connections, request, "bench", Job(steps.tell)))
    return told | {
        "whole": told["seconds"],
        "seconds": steps.filling_seconds,
        "comparing": steps.comparing_seconds,
        "comparing_used": steps.comparing_used,
    }


def _ends(errand: Errand) -> peers.Ends:
    settings = load_settings()
    source, target = settings.cluster(errand.source), settings.cluster(errand.target)
    return peers.Ends(source, target, errand.collection, errand.into)


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


WAYS: dict[str, Callable[[Errand], dict[str, Any]]] = {
    "stream": partial(_ferry, "stream"),
    "build": partial(_ferry, "build"),
    "migrate": partial(_peer, peers.migrate_with_client),
    "go": partial(_peer, peers.go_shaped),
    "raw": _raw,
}


if __name__ == "__main__":
    _say(**WAYS[sys.argv[1]](Errand(**json.loads(sys.argv[2]))))
