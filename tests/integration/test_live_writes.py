"""Backups of a collection that is written to all the while."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.integration.crossings import SERVERS, back_up, manifest_of, proven_everywhere, restore
from tests.integration.samples import Api, Sample
from tests.workshop import Workshop

pytestmark = SERVERS

LIVE = "live"
UNTOUCHED, CHURNED = range(1000), range(1000, 1200)
WRITES_PER_SECOND = 100
SHARDS = 3


def point(number: int, round_: int) -> dict[str, Any]:
    return {"id": number, "vector": [number / 7, float(round_), 0.5, -1.0], "payload": {"n": number, "round": round_}}


class Writer:
    """Adds new points, and deletes and rewrites old ones, one request each, some hundred a second."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.errors: list[str] = []
        self.rounds = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write from another thread."""
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()

    def _write(self) -> None:
        path = f"/collections/{LIVE}/points"
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as http:
            for round_ in itertools.count(1):
                if self._done.is_set():
                    return
                churned = CHURNED[round_ % len(CHURNED)]
                for answer in (
                    http.put(path, json={"points": [point(10_000 + round_, round_)]}),
                    http.post(path + "/delete", json={"points": [churned]}),
                    http.put(path, json={"points": [point(churned, round_)]}),
                ):
                    if not answer.is_success:
                        self.errors.append(answer.text)
                self.rounds = round_
                time.sleep(3 / WRITES_PER_SECOND / 2)


@pytest.mark.parametrize("kind", ["shard", "node"])
def test_a_backup_under_writes_is_what_its_archives_prove(workshop: Workshop, kind: str) -> None:
    """It succeeds, says its skew, holds every point that nobody touched, and the restore is equal to the archives."""
    body = {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": SHARDS, "replication_factor": 2}
    with (
        Api(workshop.clusters["source"].urls[0]) as source,
        Api(workshop.clusters["target"].urls[0]) as target,
    ):
        source.make(LIVE, Sample(body, [point(number, 0) for number in (*UNTOUCHED, *CHURNED)]))
        writer = Writer(workshop.clusters["source"].urls[0])
        before = source.count(LIVE)
        with writer.writing():
            time.sleep(0.3)
            record = back_up(workshop, kind=kind)
            rounds_at_end = writer.rounds
            time.sleep(0.1)
        after = source.count(LIVE)
        assert writer.errors == []
        assert rounds_at_end > 5
        assert workshop.leftovers() == []

        manifest = manifest_of(workshop.connect(), record, LIVE)
        assert all(shard.proof.content for archive in manifest.archives for shard in archive.shards)
        assert manifest.points is not None
        # In each shard one point at most is deleted and not yet written again.
        assert before - SHARDS <= manifest.points <= after
        assert manifest.points > before
        first = min(archive.started_at for archive in manifest.archives)
        last = max(archive.finished_at for archive in manifest.archives)
        assert manifest.skew_seconds == pytest.approx((last - first).total_seconds())
        assert manifest.skew_seconds > 0

        restored = restore(workshop, record, LIVE)
        assert proven_everywhere(restored)
        found = {each["id"]: each for each in target.pages(restored.plan.target, with_vector=True)}
        assert len(found) == manifest.points
        for number in UNTOUCHED:
            assert found[number]["payload"] == {"n": number, "round": 0}
        for number, each in found.items():
            assert each["payload"]["n"] == number
            assert each["vector"][1] == each["payload"]["round"] <= writer.rounds
        assert workshop.leftovers() == []
