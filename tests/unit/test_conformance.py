"""What a bucket has shown is kept, and tried again when it may have changed."""

from datetime import timedelta
from typing import Any

import pytest

from ferry.cli.trials import recorded
from ferry.errors import StoreRefusedError, StoreUnavailableError
from ferry.models import now
from ferry.profiles import RepositoryProfile
from ferry.repository import conformance
from ferry.repository.conformance import ensure_conforming, passed, read_conformance, settings_that_matter
from ferry.repository.layout import Keys
from ferry.repository.probe import ProbeResult
from tests.unit.fakes import MemoryStore

KEYS = Keys("ferry")
USUAL = {"bucket": "one", "access_key": "key-id", "secret_key": "canary"}


class Bucket(MemoryStore):
    """A store in memory whose trials are counted."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.profile = RepositoryProfile(**(USUAL | changes))

    def seen_by(self, **changes: Any) -> "Bucket":
        """The same objects under other settings."""
        other = Bucket(**changes)
        other.objects = self.objects
        return other


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The profiles with which the bucket was tried."""
    noted: list[Any] = []

    def try_out(store: Any) -> list[ProbeResult]:
        noted.append(store.profile)
        return [ProbeResult(name="put and get", ok=True, detail="equal")]

    monkeypatch.setattr(conformance, "require_conforming", try_out)
    return noted


def test_a_bucket_that_passed_is_not_tried_again(tries: list[Any]) -> None:
    """By whichever process: the note lies in the bucket."""
    store = Bucket()
    first = ensure_conforming(store, KEYS)
    assert ensure_conforming(store.seen_by(), KEYS) == first
    assert len(tries) == 1
    assert passed(read_conformance(store, KEYS), store.profile) == first


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint_url": "http://other"},
        {"node_endpoint_url": "http://other"},
        {"checksums": "when_required"},
        {"addressing_style": "virtual"},
        {"sse": "AES256"},
        {"sse": "aws:kms", "sse_kms_key_id": "k"},
        {"lock_mode": "COMPLIANCE", "lock_days": 1},
        {"can_delete": False},
        {"role_arn": "arn:aws:iam::1:role/x"},
    ],
)
def test_settings_that_matter_have_trials_of_their_own(tries: list[Any], change: dict[str, Any]) -> None:
    """Two workers with different settings do not push each other's results out."""
    store = Bucket()
    ensure_conforming(store, KEYS)
    ensure_conforming(store.seen_by(**change), KEYS)
    ensure_conforming(store, KEYS)
    assert len(tries) == 2


def test_settings_that_do_not_matter_change_nothing(tries: list[Any]) -> None:
    """Neither keys nor sizes of parts; how long a lock lasts is no other promise."""
    store = Bucket(lock_mode="COMPLIANCE", lock_days=1)
    ensure_conforming(store, KEYS)
    other = {"access_key": "other", "part_bytes": 6 << 20, "lock_mode": "COMPLIANCE", "lock_days": 9}
    ensure_conforming(store.seen_by(**other), KEYS)
    assert len(tries) == 1


def test_after_a_month_it_is_tried_again_and_old_results_go(tries: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers change; a note from the time to come counts as old, too."""
    store = Bucket()
    ensure_conforming(store.seen_by(sse="AES256"), KEYS)
    ensure_conforming(store, KEYS)
    for days in (31, 100, 10):
        monkeypatch.setattr(conformance, "now", lambda days=days: now() + timedelta(days=days))
        ensure_conforming(store, KEYS)
        assert len(read_conformance(store, KEYS).tried) == 1
    assert len(tries) == 5


def test_doctor_shows_what_is_noted(tries: list[Any]) -> None:
    """Of just the settings that it looks at."""
    store = Bucket()
    assert "none with these settings" in recorded(store)
    ensure_conforming(store, KEYS)
    assert f"1 passed on {now():%Y-%m-%d}" in recorded(store)
    assert "none with these settings" in recorded(store.seen_by(sse="AES256"))
    assert len(tries) == 1


def test_a_note_that_is_not_understood_is_written_anew(tries: list[Any]) -> None:
    """It is only a note: a newer Ferry's, or a torn one, costs one more trial."""
    store = Bucket()
    store.put_document(KEYS.conformance, b'{"format_version": 2}')
    ensure_conforming(store, KEYS)
    ensure_conforming(store, KEYS)
    assert len(tries) == 1


def test_a_store_that_is_busy_when_it_is_tried_again_keeps_its_old_result(
    tries: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup in a month's time must not fail for a trial that says nothing; without a result it does."""

    def busy(_store: Any) -> list[ProbeResult]:
        raise StoreUnavailableError("busy")

    store = Bucket()
    first = ensure_conforming(store, KEYS)
    monkeypatch.setattr(conformance, "now", lambda: now() + timedelta(days=40))
    monkeypatch.setattr(conformance, "require_conforming", busy)
    assert ensure_conforming(store, KEYS) == first
    with pytest.raises(StoreUnavailableError):
        ensure_conforming(store.seen_by(sse="AES256"), KEYS)
    assert len(tries) == 1


def test_nothing_is_noted_of_a_bucket_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator repairs it and runs again."""

    def fail(_store: Any) -> list[ProbeResult]:
        raise StoreRefusedError("not fit")

    monkeypatch.setattr(conformance, "require_conforming", fail)
    store = Bucket()
    with pytest.raises(StoreRefusedError):
        ensure_conforming(store, KEYS)
    assert store.objects == {}


def test_no_secret_is_noted(tries: list[Any]) -> None:
    """Nor the key's id."""
    store = Bucket()
    ensure_conforming(store, KEYS)
    data = store.get_document(KEYS.conformance)[0]
    assert b"canary" not in data
    assert b"key-id" not in data
    assert settings_that_matter(store.profile)["bucket"] == "one"
    assert len(tries) == 1
