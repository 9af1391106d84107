"""How a task elsewhere learns that its run is over."""

import pytest

from ferry.errors import LeaseHeldError, StoppedError, StoreUnavailableError
from ferry.repository.lease import Lease, LeaseRecord, acquire
from ferry.repository.lease_watch import LeaseWatch, call_back_tasks
from tests.unit.fakes import MemoryStore, failing

KEY = "ferry/leases/prod.json"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def lease(store: MemoryStore) -> Lease:
    return acquire(store, KEY, "run one", 60)


def watch(store: MemoryStore, lease: Lease, every_seconds: float = 0.0) -> LeaseWatch:
    return LeaseWatch(store, KEY, lease.fencing, every_seconds)


def test_a_held_lease_lets_its_tasks_go_on(store: MemoryStore, lease: Lease) -> None:
    """Renewals change the object, not whose it is."""
    watching = watch(store, lease)
    for _ in range(3):
        watching.require_held()
        lease.confirm()


def test_a_run_that_called_its_tasks_back_keeps_the_lease(store: MemoryStore, lease: Lease) -> None:
    """The tasks stop, those that looked before and those that begin now; the run may still tidy, and nobody else."""
    watching = watch(store, lease)
    watching.require_held()
    given = lease.fencing
    call_back_tasks(lease)
    with pytest.raises(StoppedError, match="is over"):
        watching.require_held()
    with pytest.raises(LeaseHeldError, match=rf"\(fencing number {given}\) is over: .* has number {given + 1}"):
        LeaseWatch(store, KEY, given).require_held()
    lease.confirm()
    assert lease.fencing == given + 1
    lease.release()
    assert acquire(store, KEY, "run two", 60).fencing == given + 2


def test_a_lease_that_was_given_up_stops_the_tasks(store: MemoryStore, lease: Lease) -> None:
    """Once over is over: the second question is not asked of the store, and has the same answer."""
    watching = watch(store, lease)
    lease.release()
    for _ in range(2):
        with pytest.raises(StoppedError, match="is over"):
            watching.require_held()
        store.before = failing(AssertionError("asked again"), "get")  # type: ignore[arg-type]


def test_a_lease_that_is_gone_stops_the_tasks(store: MemoryStore, lease: Lease) -> None:
    """Whoever deletes it wants nobody to be at work."""
    store.delete([KEY])
    with pytest.raises(StoppedError, match="is gone"):
        watch(store, lease).require_held()


def test_a_lease_that_was_taken_over_says_by_whom(store: MemoryStore, lease: Lease) -> None:
    """A run that was taken for dead: its tasks stop, and name the run that works now."""
    watching = watch(store, lease)
    watching.require_held()
    taken = LeaseRecord.model_validate_json(store.get_document(KEY)[0]).model_copy(
        update={"holder": "run two", "token": "another", "fencing": lease.fencing + 1}
    )
    store.put_document(KEY, taken.to_bytes())
    with pytest.raises(LeaseHeldError, match="is held by run two"):
        watching.require_held()


def test_a_store_that_does_not_answer_stops_nothing(store: MemoryStore, lease: Lease) -> None:
    """Neither while the tasks work nor when the run wants to call them back."""
    watching = watch(store, lease)
    store.before = failing(StoreUnavailableError("no answer"), "get")
    watching.require_held()
    store.before = failing(StoreUnavailableError("no answer"), "put")
    call_back_tasks(lease)
    watching.require_held()


def test_a_run_that_died_ends_its_tasks(store: MemoryStore, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a renewal for two lives, by the task's own clock; what it could not read counts for nothing."""
    at = [1000.0]
    monkeypatch.setattr("ferry.repository.lease_watch.time.monotonic", lambda: at[0])
    watching = watch(store, lease)
    watching.require_held()
    at[0] += 119
    watching.require_held()
    store.before = failing(StoreUnavailableError("no answer"), "get")
    at[0] += 100
    watching.require_held()
    store.before = lambda _operation, _key: None
    watching.require_held()
    at[0] += 121
    with pytest.raises(StoppedError, match=r"run one has not renewed its lease .* for 121 s"):
        watching.require_held()


def test_it_reads_seldom(store: MemoryStore, lease: Lease) -> None:
    """At every part it is asked; the store is not."""
    asked = []
    store.before = lambda operation, _key: asked.append(operation)
    watching = watch(store, lease, 60)
    for _ in range(100):
        watching.require_held()
    assert asked == ["get"]
