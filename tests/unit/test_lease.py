"""One writer at a time: takeover of the dead, never of the living, and no commit after a loss."""

import threading
import time

import pytest

from ferry.errors import ConflictError, LeaseHeldError, RepositoryError, StoppedError, StoreUnavailableError
from ferry.repository.lease import Lease, LeaseRecord, acquire
from tests.unit.fakes import MemoryStore, failing

KEY = "ferry/leases/test.json"
TTL = 0.2  # seconds; short, so that the tests are quick


@pytest.fixture
def store() -> MemoryStore:
    """An empty bucket."""
    return MemoryStore()


def record(store: MemoryStore) -> LeaseRecord:
    return LeaseRecord.model_validate_json(store.objects[KEY][0])


def take(store: MemoryStore, holder: str = "first", ttl: float = TTL) -> Lease:
    return acquire(store, KEY, holder, ttl)


def test_a_free_lease_is_taken_at_once_and_given_up_at_the_end(store: MemoryStore) -> None:
    """Nobody waits for a run that ended well."""
    with take(store, ttl=60) as lease:
        assert not record(store).released
        assert lease.fencing == 1
        assert not lease.lost
    assert record(store).released
    began = time.monotonic()
    with take(store, "second", ttl=60) as lease:
        assert lease.fencing == 2
    assert time.monotonic() - began < 1


def test_it_is_given_up_when_the_run_fails(store: MemoryStore) -> None:
    """A failed run must not lock out its own retry."""
    with pytest.raises(StoppedError), take(store):
        raise StoppedError("cancelled")
    assert record(store).released


def test_a_living_holder_is_named_and_left_alone(store: MemoryStore) -> None:
    """However long the second one would wait, the first sign of life ends it."""
    with take(store, "nightly run") as lease:
        with pytest.raises(LeaseHeldError, match=r"nightly run .*since 20.*fencing number 1"):
            take(store, "second")
        lease.confirm()


def test_a_slow_living_holder_keeps_it(store: MemoryStore) -> None:
    """One renewal in the middle of its time is enough, however the clocks of the two machines stand."""
    lease = take(store, ttl=0.4)
    looks: list[str] = []

    def renew_at_fourth_look(operation: str, key: str) -> None:
        if operation == "head":
            looks.append(key)
            if len(looks) == 4:
                lease.confirm()

    store.before = renew_at_fourth_look
    with pytest.raises(LeaseHeldError):
        take(store, "second")
    lease.confirm()
    assert record(store).holder == "first"


def test_a_dead_holder_is_replaced_after_its_own_time_to_live(store: MemoryStore) -> None:
    """Its time counts, not ours, and not its clock: the object says it was renewed tomorrow."""
    take(store, "dead")
    tomorrow = record(store).model_copy(update={"renewed_at": record(store).renewed_at.replace(year=2099)})
    store.put_document(KEY, tomorrow.to_bytes())
    began = time.monotonic()
    with take(store, "second", ttl=60) as lease:
        assert TTL <= time.monotonic() - began < 10 * TTL
        assert lease.fencing == 2
        assert record(store).holder == "second"


def test_the_fenced_holder_may_not_commit(store: MemoryStore) -> None:
    """It slept through its own death: the store's word ends it, again and again."""
    sleeper = take(store, "sleeper")
    with take(store, "second"):
        for _ in range(2):
            with pytest.raises(LeaseHeldError, match="second"):
                sleeper.confirm()
        assert sleeper.lost
        sleeper.release()
        assert record(store).holder == "second"
        assert not record(store).released


def test_the_heartbeat_of_a_fenced_holder_says_so(store: MemoryStore) -> None:
    """A run between two commits learns of it too."""
    with take(store, ttl=0.08) as lease:
        other = record(store).model_copy(update={"token": "other", "holder": "second", "fencing": 2})
        store.put_document(KEY, other.to_bytes())
        _wait_for(lambda: lease._taken_by is not None)
        assert lease.lost
    assert record(store) == other


def test_a_removed_lease_is_lost(store: MemoryStore) -> None:
    """Somebody deleted the object by hand: another may hold it by now."""
    lease = take(store)
    store.delete([KEY])
    with pytest.raises(ConflictError, match="removed"):
        lease.confirm()


def test_a_lease_given_up_cannot_be_confirmed(store: MemoryStore) -> None:
    """It would come back to life."""
    with take(store) as lease:
        pass
    with pytest.raises(ConflictError, match="given up"):
        lease.confirm()
    assert record(store).released


def test_fencing_numbers_never_go_back(store: MemoryStore) -> None:
    """Whether it was given up or taken over."""
    numbers = []
    for round_ in range(4):
        lease = take(store, ttl=0.05)
        numbers.append(lease.fencing)
        if round_ % 2:
            lease.release()
    assert numbers == [1, 2, 3, 4]


def test_an_outage_shorter_than_its_life_is_survived(store: MemoryStore) -> None:
    """The heartbeat goes on trying."""
    with take(store) as lease:
        store.before = failing(StoreUnavailableError("no answer"))
        time.sleep(TTL / 2)
        assert not lease.lost
        renewals = record(store).renewals
        store.before = lambda _operation, _key: None
        _wait_for(lambda: record(store).renewals > renewals)
        assert not lease.lost


def test_an_outage_longer_than_its_life_loses_it_until_the_store_says_otherwise(store: MemoryStore) -> None:
    """Another may have it; when the store shows that none has, it is ours again."""
    with take(store, ttl=0.08) as lease:
        store.before = failing(StoreUnavailableError("no answer"))
        _wait_for(lambda: lease.lost)
        with pytest.raises(StoreUnavailableError):
            lease.confirm()
        store.before = lambda _operation, _key: None
        lease.confirm()
        assert not lease.lost


def test_a_renewal_whose_answer_was_lost_is_recognised_as_ours(store: MemoryStore) -> None:
    """The store obeyed, the answer did not come: the next renewal meets our own object under another ETag."""
    lease = take(store, ttl=60)
    store.after = failing(StoreUnavailableError("answer lost"))
    with pytest.raises(StoreUnavailableError):
        lease.confirm()
    store.after = lambda _operation, _key: None
    lease.confirm()
    assert not lease.lost
    assert record(store).renewals > 0


def test_of_many_that_race_for_a_dead_holder_one_wins(store: MemoryStore) -> None:
    """The conditional put decides."""
    take(store, "dead", ttl=0.1)
    won, held = [], []

    def race(number: int) -> None:
        try:
            won.append(acquire(store, KEY, f"run {number}", 60))
        except LeaseHeldError as error:
            held.append(error)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(held)) == (1, 7)
    assert won[0].fencing == 2


def test_a_waiting_run_can_be_stopped(store: MemoryStore) -> None:
    """A cancel must not wait for somebody else's time to live."""
    take(store, "dead", ttl=60)

    def stop(_done: int) -> None:
        raise StoppedError("cancelled")

    with pytest.raises(StoppedError):
        acquire(store, KEY, "second", 60, progress=stop)
    assert record(store).holder == "dead"


def test_a_lease_given_up_while_another_waits_is_taken_at_once(store: MemoryStore) -> None:
    """Without waiting for the rest of its time to live."""
    lease = take(store, ttl=2)
    threading.Timer(0.05, lease.release).start()
    began = time.monotonic()
    assert acquire(store, KEY, "second", 60).fencing == 2
    assert time.monotonic() - began < 1.5


def test_what_is_no_lease_is_never_overwritten(store: MemoryStore) -> None:
    """It may be that of a newer release."""
    store.put_document(KEY, b'{"format": "new"}')
    with pytest.raises(RepositoryError, match="no lease"):
        take(store)


def _wait_for(condition: object, seconds: float = 3) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
