"""Two runs on one cluster: one works, the other says who holds it; a holder that was frozen commits nothing."""

import os
import signal
import time

import pytest

from ferry.errors import LeaseHeldError
from flows.back_up_cluster import back_up_cluster
from sandbox.fault_proxy import FaultProxy
from tests.faults.conftest import BACK_UP, SOURCE, Runs
from tests.faults.scene import Scene, fill, soon
from tests.soak.content import SMALL
from tests.soak.soak import BACKUP, Soak
from tests.workshop import Workshop

pytestmark = pytest.mark.usefixtures("quick")


def test_the_second_backup_says_who_holds_the_cluster(scene: Scene, runs: Runs) -> None:
    """Of two backups at once the later ends at once with the holder's run, process and host; the first one counts."""
    fill(scene.shop.clusters["source"], "large", 1800, size=1024, shards=1, replicas=1)
    scene.mark_repository()
    with FaultProxy(scene.shop.s3.host_port) as proxy:
        scene.configure(repository={"endpoint_url": proxy.url, "lease_seconds": 4})
        scene.mark_repository()
        proxy.slow(1_000_000)
        pid = runs.start(BACK_UP, SOURCE)
        soon(lambda: scene.shop.objects("leases/"))
        scene.configure(repository={"lease_seconds": 4})
        began = time.monotonic()
        with pytest.raises(LeaseHeldError, match=rf"backup \d.* process {pid} on .*, fencing number 1"):
            back_up_cluster(**SOURCE)
        assert time.monotonic() - began < 10
        proxy.clear()
        assert runs.wait(pid) == "exit 0", runs.output(pid)
    assert len(scene.complete()) == 1
    scene.require_sound()


@pytest.mark.parametrize(
    ("at", "when"),
    [("ferry.backup.steps:_uploaded", "before"), ("ferry.repository.lease:Lease.confirm", "after")],
    ids=["before its upload", "before its manifest"],
)
def test_a_holder_that_was_frozen_commits_nothing(scene: Scene, runs: Runs, at: str, when: str) -> None:
    """A run that slept past its lease is no longer alone: it ends with an error, and the next goes on with its work."""
    nth = 2 if at.endswith("confirm") else 1  # the first one is of the tidying at the start
    pid = runs.start(BACK_UP, SOURCE, at=at, when=when, nth=nth, signal=int(signal.SIGSTOP))
    assert runs.wait(pid) == f"stopped {int(signal.SIGSTOP)}"
    first = back_up_cluster(**SOURCE)
    os.kill(pid, signal.SIGCONT)
    assert runs.wait(pid) == "exit 1", runs.output(pid)
    assert "lost the lease" in runs.output(pid)
    assert scene.complete() == [first]
    second = back_up_cluster(**SOURCE)
    assert scene.complete() == [second, first]
    scene.require_sound()


@pytest.mark.parametrize(
    ("place", "next_one"),
    [
        pytest.param("/manifest.json", (), id="manifest, continued", marks=pytest.mark.soak),
        pytest.param("/manifest.json", ("--include", "docs"), id="manifest, given up"),
        pytest.param("/backup.json", (), id="record, continued"),
        pytest.param("/backup.json", ("--include", "docs"), id="record, given up", marks=pytest.mark.soak),
    ],
)
def test_the_store_refuses_the_commit_of_a_holder_that_was_taken_for_dead(
    workshop: Workshop, next_one: tuple[str, ...], place: str
) -> None:
    """A commit that was on its way when its run froze arrives after another run has taken over: refused, by the store.

    The next run continues the same backup, or gives it up because it asks for something else. Either way the late
    commit changes nothing, its run ends with a refusal, and what the bucket holds reads back at every moment.
    """
    with Soak(workshop, seed=1, shapes=SMALL) as soak:
        soak.content.load()
        first = soak.commands.start(*BACKUP)
        soak.store.hold(place, lambda: first.send(signal.SIGSTOP))
        soon(lambda: soak.store.held)
        second = soak.commands.start(*BACKUP, *next_one)
        assert second.wait() == "exit 0", str(second)
        committed = soak.look().committed()
        first.send(signal.SIGCONT)  # its heart finds the lease taken; the request that it has made is on its way still
        time.sleep(0.5)
        soak.store.let_go()
        how = first.wait()
        assert soak.look().committed() == committed
        if how != "exit 0" or place != "/backup.json":  # its successor may have committed just that record for it
            assert how == "exit 1", str(first)
            assert "lost the lease" in first.output or "has taken over" in first.output, str(first)
        soak.undisturbed()
        soak.require_clean()
