"""What a run may leave behind is found again by the next one."""

import pytest

from ferry.models import BackupId
from ferry.repository.journal import Journal, unsettled
from ferry.repository.layout import Keys
from tests.unit.fakes import MemoryStore

KEYS = Keys("ferry")
FIRST, SECOND = BackupId("20261122T020000Z-aaaaaa"), BackupId("20261123T020000Z-bbbbbb")


@pytest.fixture
def store() -> MemoryStore:
    """An empty bucket."""
    return MemoryStore()


@pytest.fixture
def journal(store: MemoryStore) -> Journal:
    """The journal of the first run."""
    return Journal(store, KEYS, "test", FIRST)


def test_what_was_noted_is_found_by_another_process(journal: Journal, store: MemoryStore) -> None:
    """After a kill there is only the bucket."""
    journal.note("node_snapshot", "docs-0-1", {"node_url": "http://node-1:6333", "names_before": ["old"]})
    found = unsettled(store, KEYS, "test")
    assert [(entry.run_id, entry.kind, entry.name) for entry in found] == [(FIRST, "node_snapshot", "docs-0-1")]
    assert found[0].detail["names_before"] == ["old"]


def test_what_is_settled_is_gone_for_all(journal: Journal, store: MemoryStore) -> None:
    """And settling it once more does no harm."""
    entry = journal.note("archive", "docs-0-1", {"key": "k"})
    unsettled(store, KEYS, "test")[0].journal.settle(entry)
    journal.settle(entry)
    assert unsettled(store, KEYS, "test") == []
    assert journal.entries() == []
    assert journal.find("archive", "docs-0-1") is None


def test_an_update_adds_to_the_entry_and_keeps_the_rest(journal: Journal) -> None:
    """The name of a snapshot is known only after it was made."""
    entry = journal.note("node_snapshot", "docs-0-1", {"peer_id": 1})
    updated = journal.update(entry, name="docs.snapshot")
    assert updated.detail == {"peer_id": 1, "name": "docs.snapshot"}
    assert updated.noted_at == entry.noted_at
    assert journal.find("node_snapshot", "docs-0-1") == updated


def test_entries_of_a_kind_and_name_are_one_and_others_are_others(journal: Journal) -> None:
    """A task that runs twice notes the same thing once."""
    journal.note("archive", "docs-0-1", {"key": "old"})
    journal.note("archive", "docs-0-1", {"key": "new"})
    journal.note("node_snapshot", "docs-0-1", {})
    journal.note("archive", "docs-1-1", {})
    assert [(entry.kind, entry.name) for entry in journal.entries()].count(("archive", "docs-0-1")) == 1
    assert len(journal.entries()) == 3
    found = journal.find("archive", "docs-0-1")
    assert found is not None
    assert found.detail == {"key": "new"}


@pytest.mark.parametrize("name", ["a/b-0-1", "..", "日" * 255, "x" * 1000])
def test_any_name_can_be_noted(journal: Journal, name: str) -> None:
    """Names come from collections; a key has at most 1,024 bytes."""
    entry = journal.note("collection", name, {})
    assert journal.find("collection", name) == entry
    assert len(entry.key) < 400


def test_runs_and_clusters_are_kept_apart(journal: Journal, store: MemoryStore) -> None:
    """A run tidies its own; the next start tidies those of all runs of its own cluster."""
    journal.note("archive", "one", {})
    Journal(store, KEYS, "test", SECOND).note("archive", "two", {})
    Journal(store, KEYS, "other", FIRST).note("archive", "three", {})
    assert [entry.name for entry in journal.entries()] == ["one"]
    assert [(entry.run_id, entry.name) for entry in unsettled(store, KEYS, "test")] == [(FIRST, "one"), (SECOND, "two")]


def test_an_entry_that_is_not_understood_is_left_alone(journal: Journal, store: MemoryStore) -> None:
    """A newer release may note more; an older one must not act on half of it, nor stumble over it."""
    store.put_document(KEYS.journal_prefix("test", FIRST) + "archive/x.json", b'{"kind": "new"}')
    journal.note("archive", "one", {})
    assert [entry.name for entry in unsettled(store, KEYS, "test")] == ["one"]


@pytest.fixture
def write_only(store: MemoryStore) -> MemoryStore:
    """The same bucket with keys that may not delete."""
    store.can_delete = False
    return store


def test_what_is_settled_by_keys_that_may_not_delete_is_settled_for_all(
    journal: Journal, write_only: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty object says so; it is not even read, and nobody is warned of it."""
    entry = journal.note("archive", "docs-0-1", {"key": "k"})
    journal.note("archive", "docs-1-1", {"key": "k"})
    journal.settle(entry)
    journal.settle(entry)
    read: list[str] = []
    write_only.before = lambda operation, key: read.append(key) if operation == "get" else None
    assert [found.name for found in unsettled(write_only, KEYS, "test")] == ["docs-1-1"]
    assert [found.name for found in journal.entries()] == ["docs-1-1"]
    assert len(read) == 2
    assert journal.find("archive", "docs-0-1") is None
    assert write_only.objects[entry.key][0] == b""
    assert caplog.records == []


def test_what_was_settled_can_be_noted_again(journal: Journal, write_only: MemoryStore) -> None:
    """A task that runs twice notes the same thing once more."""
    journal.settle(journal.note("archive", "docs-0-1", {"key": "k"}))
    again = journal.note("archive", "docs-0-1", {"key": "k"})
    assert journal.find("archive", "docs-0-1") == again
    assert unsettled(write_only, KEYS, "test")[0].detail == {"key": "k"}


def test_dropping_what_was_never_noted_leaves_nothing(journal: Journal, write_only: MemoryStore) -> None:
    """Or empty objects would pile up."""
    journal.drop("proof", "docs-0-1")
    assert write_only.objects == {}
    journal.note("proof", "docs-0-1", {})
    journal.drop("proof", "docs-0-1")
    assert journal.entries() == []
