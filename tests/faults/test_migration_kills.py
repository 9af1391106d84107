"""SIGKILL at any batch of a migration: other readers each time, no point lost, none counted twice, nothing left."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ferry.lanes import Job
from ferry.migration import records
from ferry.migration.plan import MigrationRequest
from ferry.migration.run import run_migration
from sandbox.prefect_server import PrefectServer
from tests.faults.conftest import Runs
from tests.faults.scene import Scene, fill
from tests.workshop import Workshop

POINTS = 3000
FIXED_SEED = 20261122
MIGRATE = "tests.faults.migrating:migrate"
KILLED = "signal 9"
# Each batch, and what lies between the batches and the end. The last number: so many calls there may be in a run.
BATCH = ("ferry.migration.copy:_Copy.acknowledged", 12)
ELSEWHERE = [
    ("ferry.migration.records:keep_range_state", 4),
    ("ferry.migration.records:keep_plan", 1),
    ("ferry.migration.target:_note_load", 1),
    ("ferry.qdrant.node:Node.create_collection", 1),
    ("ferry.qdrant.node:Node.create_payload_index", 1),
    ("ferry.migration.target:put_back", 1),
    ("ferry.migration.reconcile:compare", 1),
    ("ferry.migration.records:keep_report", 1),
    ("ferry.migration.target:hand_over", 1),
]


class Victim:
    """One migration that is killed again and again, and gone on with by others."""

    def __init__(self, shop: Workshop, runs: Runs, dice: random.Random) -> None:
        self.shop, self.runs, self.dice = shop, runs, dice
        self.kills, self.number = 0, 0
        self.said: list[str] = []

    def request(self) -> dict[str, Any]:
        """The same migration as before, by another number of readers and with other batches."""
        return {
            "cluster": "target",
            "repository": "main",
            "source": {"kind": "qdrant", "cluster": "source", "collection": "docs"},
            "into": f"new-{self.number}",
            "shape": {"shard_number": 5},
            "readers": self.dice.randint(1, 6),
            "batch_bytes": self.dice.choice([2048, 8192, 32_768]),
        }

    def strike(self) -> None:
        """One run that is killed somewhere; one that was faster than that has to be equal, and another one is begun."""
        at, most = BATCH if self.dice.random() < 0.7 else self.dice.choice(ELSEWHERE)
        order = {"at": at, "when": self.dice.choice(["before", "after"]), "nth": self.dice.randint(1, most)}
        wishes = {"request": self.request(), "checkpoint_seconds": self.dice.choice([0.0, 0.0, 2.0])}
        pid = self.runs.start(MIGRATE, wishes, **order)
        how = self.runs.wait(pid)
        self.said.append(f"{how}: {order} {wishes}")
        if how == KILLED:
            self.kills += 1
            return
        assert how == "exit 0", f"{self.said}\n{self.runs.output(pid)[-3000:]}"
        self.require_equal()

    def require_equal(self) -> None:
        """Go on to the end, and compare by another reading than the migration's own; then another one is begun."""
        connections = Scene(self.shop).connections("target")
        asked = MigrationRequest.model_validate(self.request())
        report = run_migration(connections, asked, "a test", Job(retry_delays_seconds=(0.5,)))
        plan = records.saved_plan(connections, report.migration_id)
        assert plan is not None, self.said
        states = records.range_states(connections, plan)
        assert all(state.done for state in states), self.said
        counted = (report.verdict, report.read, report.written, report.repaired, report.deduplicated)
        assert counted == ("equal", POINTS, POINTS, 0, 0), self.said
        assert self.sums("target", asked.into) == self.sums("source", "docs"), self.said
        connections = Scene(self.shop).connections("target")  # those of before were closed by reading
        layout = connections.cluster.read_layout([asked.into]).collection(asked.into)
        assert layout is not None
        assert layout.config["optimizer_config"]["indexing_threshold"] != 0, self.said
        assert not layout.config.get("metadata"), self.said
        assert self.shop.objects("loads/") == [], self.said
        assert self.shop.leftovers() == [], self.said
        connections.cluster.nodes[0].delete_collection(asked.into)
        self.number += 1

    def sums(self, cluster: str, name: str) -> int:
        """The content digest of all of a collection, by reading its first replicas over REST; sums of shards add up."""
        found: dict[int, int] = {}
        for (shard, _), digest in sorted(Scene(self.shop).content(cluster, name).items()):
            found.setdefault(shard, int(digest, 16))
        return sum(found.values()) % 2**256


@pytest.fixture
def victim(workshop: Workshop, tmp_path: Path) -> Iterator[Victim]:
    """3000 points on the source; migrations of them can be killed. Dead runs' leases can be had after a second."""
    workshop.configure(repository={"lease_seconds": 1})
    fill(workshop.clusters["source"], points=POINTS)
    runs = Runs(cast("PrefectServer", SimpleNamespace(env=dict, folder=tmp_path)))
    yield Victim(workshop, runs, random.Random(FIXED_SEED))
    runs.close()


def test_six_kills_lose_nothing_and_count_nothing_twice(victim: Victim) -> None:
    """Three by dice that are always the same, three by others; the seed is in the message."""
    while victim.kills < 3:
        victim.strike()
    seed = os.urandom(4).hex()
    victim.said.append(f"seed {seed}")
    victim.dice = random.Random(seed)
    while victim.kills < 6:
        victim.strike()
    victim.require_equal()


@pytest.mark.soak
def test_a_hundred_kills_lose_nothing_and_count_nothing_twice(victim: Victim) -> None:
    """Several migrations, each killed until one run is faster; SOAK_SEED repeats an experiment, SOAK_KILLS counts."""
    kills = int(os.environ.get("SOAK_KILLS", "100"))
    seed = os.environ.get("SOAK_SEED") or os.urandom(4).hex()
    victim.said.append(f"seed {seed}")
    victim.dice = random.Random(seed)
    while victim.kills < kills:
        victim.strike()
    victim.require_equal()
