"""Backups are found, and a document that is not what it should be is refused."""

import hashlib
from datetime import datetime, timedelta

import orjson
import pytest

from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConfigurationError, ConflictError, RepositoryError
from ferry.models import BackupId
from ferry.repository.catalog import Catalog
from ferry.repository.layout import Keys, new_backup_id
from ferry.repository.manifest import BackupRecord, CollectionEntry, CollectionManifest
from tests.unit.builders import NOON, archive, collection, manifest, shard
from tests.unit.fakes import MemoryStore

KEYS = Keys("ferry")


@pytest.fixture
def store() -> MemoryStore:
    """An empty bucket."""
    return MemoryStore()


@pytest.fixture
def catalog(store: MemoryStore) -> Catalog:
    """The catalog of that bucket."""
    return Catalog(store, KEYS)


def moment(day: int) -> datetime:
    return NOON + timedelta(days=day)


def backup_id(day: int) -> BackupId:
    return new_backup_id(moment(day), "seed")


def manifest_of(name: str, day: int) -> CollectionManifest:
    made = manifest(collection(name, [shard(0, [1])]), [archive(0)])
    return made.model_copy(update={"backup_id": backup_id(day), "created_at": moment(day)})


def record_of(day: int, *manifests: CollectionManifest) -> BackupRecord:
    entries = [
        CollectionEntry(
            collection=made.collection,
            manifest_sha256=hashlib.sha256(made.to_bytes()).hexdigest(),
            points=made.points,
            bytes=made.bytes,
        )
        for made in manifests
    ]
    return BackupRecord(
        backup_id=backup_id(day),
        cluster="test",
        kind="shard",
        collections=tuple(entries),
        aliases={},
        started_at=moment(day),
        finished_at=moment(day),
        tool_versions={},
    )


def back_up(catalog: Catalog, day: int, *names: str) -> None:
    manifests = [manifest_of(name, day) for name in names]
    for made in manifests:
        catalog.write_manifest(made)
    catalog.write_backup(record_of(day, *manifests))


def test_backups_are_listed_newest_first_with_what_they_hold(catalog: Catalog) -> None:
    """Whatever the order in which they were written."""
    for day in (2, 0, 1):
        back_up(catalog, day, "docs", "a/b")
    found = catalog.backups("test")
    assert [summary.backup_id for summary in found] == [backup_id(day) for day in (2, 1, 0)]
    assert all(summary.complete for summary in found)
    assert found[0].collections == ("docs", "a/b")
    assert (found[0].points, found[0].bytes, found[0].taken_at) == (20, 2000, moment(2))
    assert catalog.clusters() == ["test"]


def test_a_run_without_its_record_is_listed_as_incomplete_and_is_never_the_latest(catalog: Catalog) -> None:
    """The record is the commit point of a run."""
    back_up(catalog, 0, "docs")
    catalog.write_manifest(manifest_of("docs", 1))
    summary = catalog.backups("test")[0]
    assert (summary.backup_id, summary.complete, summary.collections) == (backup_id(1), False, ("docs",))
    assert summary.problem
    assert catalog.read_backup("test", "latest").backup_id == backup_id(0)


def test_folders_of_others_are_passed_over(catalog: Catalog, store: MemoryStore) -> None:
    """A bucket may hold anything."""
    back_up(catalog, 0, "docs")
    for key in ("backups/test/not-an-id/x", "backups/.tmp/x", f"backups/test/{backup_id(0)}/.x/y", "backups/readme"):
        store.put_document(f"ferry/{key}", b"")
    assert catalog.clusters() == ["test"]
    assert len(catalog.backups("test")) == 1


def test_what_is_not_there_is_not_found(catalog: Catalog) -> None:
    """Never an empty backup."""
    back_up(catalog, 0, "docs")
    with pytest.raises(BackupNotFoundError):
        catalog.read_backup("test", backup_id(1))
    with pytest.raises(BackupNotFoundError):
        catalog.read_backup("other", "latest")
    with pytest.raises(BackupNotFoundError):
        catalog.read_manifest("test", backup_id(0), "other")
    with pytest.raises(BackupNotFoundError):
        catalog.latest_with("test", "other")
    with pytest.raises(ConfigurationError):
        catalog.read_backup("test", "../other")


def test_the_latest_with_a_collection_counts_a_run_of_which_another_collection_failed(catalog: Catalog) -> None:
    """The manifest is the commit point of a collection, with or without the record of its run."""
    back_up(catalog, 0, "docs", "other")
    catalog.write_manifest(manifest_of("docs", 1))
    assert catalog.latest_with("test", "docs").backup_id == backup_id(1)
    assert catalog.latest_with("test", "other").backup_id == backup_id(0)
    assert catalog.read_manifest("test", "latest", "docs").backup_id == backup_id(1)


def test_a_damaged_newest_manifest_is_an_error_and_not_an_older_backup(catalog: Catalog, store: MemoryStore) -> None:
    """An operator who asks for the latest must learn that it is damaged."""
    back_up(catalog, 0, "docs")
    back_up(catalog, 1, "docs")
    store.put_document(KEYS.manifest("test", backup_id(1), "docs"), b"{}")
    with pytest.raises(ArchiveDamagedError):
        catalog.latest_with("test", "docs")


def test_a_damaged_record_is_incomplete_in_the_list_and_an_error_when_read(
    catalog: Catalog, store: MemoryStore
) -> None:
    """One damaged backup must not hide the others."""
    back_up(catalog, 0, "docs")
    back_up(catalog, 1, "docs")
    store.put_document(KEYS.backup("test", backup_id(1)), b"{}")
    assert [summary.complete for summary in catalog.backups("test")] == [False, True]
    with pytest.raises(ArchiveDamagedError):
        catalog.read_backup("test", "latest")


@pytest.mark.parametrize(("cluster", "day", "name"), [("other", 0, "docs"), ("test", 1, "docs"), ("test", 0, "copy")])
def test_a_manifest_copied_elsewhere_is_refused(
    catalog: Catalog, store: MemoryStore, cluster: str, day: int, name: str
) -> None:
    """Its hash is right, its place is not."""
    back_up(catalog, 0, "docs")
    data, _ = store.get_document(KEYS.manifest("test", backup_id(0), "docs"))
    store.put_document(KEYS.manifest(cluster, backup_id(day), name), data)
    with pytest.raises(ArchiveDamagedError, match="copied"):
        catalog.read_manifest(cluster, backup_id(day), name)


def test_a_record_copied_elsewhere_is_refused(catalog: Catalog, store: MemoryStore) -> None:
    """The same for the record of a run."""
    back_up(catalog, 0, "docs")
    store.put_document(KEYS.backup("test", backup_id(1)), record_of(0).to_bytes())
    with pytest.raises(ArchiveDamagedError, match="copied"):
        catalog.read_backup("test", backup_id(1))


def test_a_manifest_that_its_run_did_not_record_is_refused(catalog: Catalog, store: MemoryStore) -> None:
    """Somebody who can rewrite a manifest with its hash must rewrite the record too, and its hash."""
    back_up(catalog, 0, "docs")
    forged = manifest_of("docs", 0).model_copy(update={"payload_schema": {"forged": {}}})
    store.put_document(KEYS.manifest("test", backup_id(0), "docs"), forged.to_bytes())
    with pytest.raises(ArchiveDamagedError, match="not the manifest that its run recorded"):
        catalog.read_manifest("test", backup_id(0), "docs")


@pytest.mark.parametrize("key", ["../docs/shards/0.snapshot", "shards/1.snapshot", "/shards/0.snapshot", ""])
def test_an_archive_elsewhere_than_its_place_is_refused(catalog: Catalog, key: str) -> None:
    """Nodes are sent to fetch these keys with our signature: a manifest may not name any other object."""
    made = manifest_of("docs", 0)
    moved = made.archives[0].model_copy(update={"key": key})
    catalog.write_manifest(made.model_copy(update={"archives": (moved,)}))
    with pytest.raises(ArchiveDamagedError, match="no place"):
        catalog.read_manifest("test", backup_id(0), "docs")


def test_the_same_document_may_be_written_twice_but_no_other(catalog: Catalog, store: MemoryStore) -> None:
    """A retried commit is fine; two runs with one id are not, and the first one's stays."""
    made = manifest_of("docs", 0)
    catalog.write_manifest(made)
    catalog.write_manifest(made)
    with pytest.raises(ConflictError, match="other content"):
        catalog.write_manifest(made.model_copy(update={"skew_seconds": 1.0}))
    assert store.get_document(KEYS.manifest("test", backup_id(0), "docs"))[0] == made.to_bytes()


def test_a_repository_is_marked_once(catalog: Catalog, store: MemoryStore) -> None:
    """Its id stays the same for ever."""
    assert catalog.ensure_repository() == catalog.ensure_repository()
    assert store.writes == [KEYS.repository]


def test_two_runs_that_mark_a_repository_at_a_time_agree(catalog: Catalog, store: MemoryStore) -> None:
    """Both see nothing, one writes first, and both go on with what it wrote."""
    other = Catalog(store, KEYS)
    seen = []

    def overtake(operation: str, _key: str) -> None:
        if operation == "put" and not seen:
            seen.append(True)
            seen.append(other.ensure_repository())

    store.before = overtake
    assert catalog.ensure_repository() == seen[1]


@pytest.mark.parametrize("content", [{"format_version": 2, "new": 1}, {}, []])
def test_a_repository_of_an_unknown_format_is_refused(catalog: Catalog, store: MemoryStore, content: object) -> None:
    """Nothing is written into what a newer release made."""
    store.put_document(KEYS.repository, orjson.dumps(content))
    with pytest.raises(RepositoryError, match="format"):
        catalog.ensure_repository()
