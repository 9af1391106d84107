"""A collection that is written to through its alias all the while is migrated, put into service, followed and left."""

import itertools
import json
import random
import sys
import threading
import time
from typing import Any, Self

import httpx
import pytest

from ferry.errors import LeaseHeldError, PreflightError, StoppedError, VerificationError
from ferry.migration import cut_over as cutting
from ferry.migration.cut_over import CutOver, cut_over
from ferry.migration.follow import follow
from ferry.migration.plan import MigrationPlan, MigrationRequest, QdrantSource
from ferry.migration.prepare import open_source, prepare_migration
from ferry.migration.reconcile import Pass, Rounds
from ferry.migration.run import alone, run_migration
from ferry.restore.roll_back import roll_back
from ferry.restore.shape import Shape
from tests.integration.crossings import HOLDER, SERVERS, quick_job
from tests.integration.samples import Api, Sample, everything, floats
from tests.workshop import Workshop

pytestmark = SERVERS
ALIAS, OLD, NEW = "shop", "shop-old", "shop-new"
POINTS = 2000
TICK_SECONDS = 0.05
INSERTED, UPDATED, DELETED = 3, 5, 2  # a tick: 200 a second
BODY: dict[str, Any] = {"vectors": {"size": 32, "distance": "Cosine"}, "shard_number": 3, "replication_factor": 2}


def a_point(number: int, version: int) -> dict[str, Any]:
    rng = random.Random(f"{number}/{version}")
    return {"id": number, "vector": floats(rng, 32), "payload": {"n": number, "version": version}}


class Writer:
    """Inserts, updates and deletes points through the alias, 200 a second, from a thread; ``held``: version by id."""

    def __init__(self, url: str, held: dict[int, int]) -> None:
        self._url, self.held, self.changes = url, held, 0
        self._rng = random.Random("writer")
        self._new = itertools.count(max(held) + 1)
        self._paused = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.errors: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()
        assert self.errors == []

    def pause(self) -> None:
        """Stop; everything that was written is applied when this returns."""
        self._paused.set()
        self._thread.join()

    def _write(self) -> None:
        due = time.monotonic()
        with httpx.Client(base_url=f"{self._url}/collections/{ALIAS}", timeout=30, trust_env=False) as http:
            for version in itertools.count(1):
                if self._paused.wait(max(0.0, due - time.monotonic())):
                    return
                self._tick(http, version)
                due += TICK_SECONDS

    def _tick(self, http: httpx.Client, version: int) -> None:
        known = self._rng.sample(sorted(self.held), UPDATED + DELETED)
        written, gone = [*known[DELETED:], *itertools.islice(self._new, INSERTED)], known[:DELETED]
        points = [a_point(number, version) for number in written]
        answers = (
            http.put("/points?wait=true", json={"points": points}),
            http.post("/points/delete?wait=true", json={"points": gone}),
        )
        self.errors += [answer.text for answer in answers if not answer.is_success]
        self.held |= dict.fromkeys(written, version)
        for number in gone:
            del self.held[number]
        self.changes += len(written) + len(gone)


def stock(shop: Workshop, points: int) -> dict[int, int]:
    """Make ``shop-old`` behind its alias; the version of each point."""
    with Api(shop.clusters["source"].urls[0]) as api:
        api.make(OLD, Sample(BODY))
        body = {"points": [a_point(number, 0) for number in range(points)]}
        api.call("PUT", f"{api.of(OLD)}/points?wait=true", body)
        api.alias(ALIAS, OLD)
    return dict.fromkeys(range(points), 0)


def asked(**wishes: Any) -> MigrationRequest:
    usual = {"cluster": "source", "repository": "main", "source": QdrantSource(cluster="source", collection=OLD)}
    return MigrationRequest(
        **{**usual, "into": NEW, "alias": ALIAS, "shape": Shape(shard_number=5), "batch_bytes": 4096, **wishes}
    )


def put_into_service(shop: Workshop, **how: Any) -> tuple[MigrationPlan, CutOver]:
    connections = shop.connect("source")
    plan = prepare_migration(connections, asked())
    with alone(connections, plan.request, HOLDER), open_source(plan.request) as source:
        return plan, cut_over(connections, plan, source, **how)


def versions(shop: Workshop, collection: str) -> dict[int, int]:
    """The version of every point, by Qdrant's REST API, the same on every replica."""
    found = everything(shop.clusters["source"], collection)
    return {int(number): json.loads(text)[0]["version"] for number, text in found.items()}


def test_nothing_is_lost_while_writers_write(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied, caught up with and put into service under 200 changes a second; then followed back and rolled back."""
    shop, held = workshop, stock(workshop, POINTS)
    connections, url = shop.connect("source"), shop.clusters["source"].urls[0]
    with Writer(url, held) as writer, Api(url) as api:
        report = run_migration(connections, asked(), HOLDER, quick_job())
        assert writer.changes > 0
        changes, began = writer.changes, time.monotonic()
        monkeypatch.setattr(cutting, "PROOF", Rounds(most=2))
        with pytest.raises(VerificationError, match="shop-new is not equal to its source"):
            put_into_service(shop)  # nobody pauses
        assert api.aliases() == {ALIAS: OLD}
        rate = (writer.changes - changes) / (time.monotonic() - began)
        monkeypatch.undo()
        shop.configure()
        plan, done = put_into_service(shop, pause=lambda _before: writer.pause())
        assert api.aliases() == {ALIAS: NEW}
    assert done.before
    assert done.final
    with capsys.disabled():
        before, final = ([each.differing for each in part.passes] for part in (done.before, done.final))
        sys.stdout.write(
            f"\n{rate:.0f} changes/s, {writer.changes} in all; points that differed: {before}, then {final} while "
            f"writers paused for {done.freeze_seconds:.2f} s\n"
        )
    assert report.migration_id == plan.migration_id
    assert done.final.equal
    assert done.final.last.source_digest == done.final.last.target_digest
    assert done.findings == ()
    assert everything(shop.clusters["source"], NEW) == everything(shop.clusters["source"], OLD)
    assert versions(shop, NEW) == held
    _follow_and_roll_back(shop, plan, held)


def _follow_and_roll_back(shop: Workshop, plan: MigrationPlan, held: dict[int, int]) -> None:
    connections, stop = shop.connect("source"), threading.Event()

    def unless_stopped(_points: int) -> None:
        if stop.is_set():
            raise StoppedError("a cancel")

    def following() -> None:
        with pytest.raises(StoppedError):
            follow(connections, plan, 0.1, progress=unless_stopped)

    thread = threading.Thread(target=following)
    with Writer(shop.clusters["source"].urls[0], held) as writer:
        thread.start()
        time.sleep(0.5)
    stop.set()
    thread.join()

    def shut(_pass: Pass) -> None:
        with pytest.raises(LeaseHeldError, match="follow of migration"):
            roll_back(connections, ALIAS, drop_new=False, holder=HOLDER)

    done = follow(connections, plan, None, announce=shut)
    assert done.equal
    assert writer.changes > 0
    way = roll_back(connections, ALIAS, drop_new=False, holder=HOLDER)
    assert way.lost_points == 0
    assert versions(shop, OLD) == held
    with Api(shop.clusters["source"].urls[0]) as api:
        assert api.aliases() == {ALIAS: OLD}
    with pytest.raises(PreflightError, match="was not moved to shop-new"):
        follow(connections, plan, None)


def test_a_cut_over_that_died_is_ended_and_late_writes_are_told(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the alias moved, the next call writes nothing any more; who did not pause is found out."""
    shop = workshop
    stock(shop, 50)
    connections = shop.connect("source")
    run_migration(connections, asked(), HOLDER, quick_job())
    with Api(shop.clusters["source"].urls[0]) as api:

        def late(*_: object) -> None:
            api.call("PUT", f"{api.of(OLD)}/points?wait=true", {"points": [a_point(1, 7)]})

        with monkeypatch.context() as patched:
            patched.setattr(cutting, "hand_over", late)
            _, done = put_into_service(shop)
        assert [finding.severity for finding in done.findings] == ["warning"]
        assert "after it was compared for the last time" in done.findings[0].message
        assert api.aliases() == {ALIAS: NEW}
        api.call("PUT", f"{api.of(ALIAS)}/points?wait=true", {"points": [a_point(2, 8)]})
        run_migration(connections, asked(), HOLDER, quick_job())
        plan, again = put_into_service(shop)
        assert (again.final, again.switch is not None) == (None, True)
        assert (versions(shop, NEW)[1], versions(shop, NEW)[2]) == (0, 8)
        assert put_into_service(shop)[1] == again
        api.alias(ALIAS, OLD)
    with pytest.raises(PreflightError, match="does not belong to migration"):
        put_into_service(shop)
    assert plan.target == NEW
