"""The store on real S3 servers, SeaweedFS and moto; the contract also holds for the store in memory."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConflictError, StoppedError, StoreRefusedError
from ferry.models import no_progress
from ferry.repository.catalog import Catalog
from ferry.repository.conformance import ensure_conforming
from ferry.repository.journal import Journal, unsettled
from ferry.repository.layout import Keys
from ferry.repository.probe import probe, require_conforming
from ferry.repository.store import Store
from sandbox.moto_s3 import MotoServer
from sandbox.s3 import S3Server
from tests.integration.stores import PART, AnyServer, AnyStore, blocks_of, payload, profile, read_all
from tests.unit.fakes import MemoryStore

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module", params=["seaweedfs", "moto"])
def server(request: pytest.FixtureRequest) -> AnyServer:
    """Both real servers."""
    name = {"seaweedfs": "shared_s3", "moto": "moto"}[request.param]
    return request.getfixturevalue(name)


@pytest.fixture(scope="module")
def honest(server: AnyServer) -> Store:
    """A store on each of them."""
    return Store(profile(server))


@pytest.fixture(scope="module", params=["seaweedfs", "moto", "memory"])
def store(request: pytest.FixtureRequest) -> AnyStore:
    """All stores, which must not differ."""
    if request.param == "memory":
        return MemoryStore()
    name = {"seaweedfs": "shared_s3", "moto": "moto"}[request.param]
    return Store(profile(request.getfixturevalue(name)))


# What every store must do


def test_a_document_comes_back_with_its_etag(store: AnyStore, folder: str) -> None:
    """And replaces what was there when no condition is given."""
    etag = store.put_document(folder + "a", b"one")
    assert store.get_document(folder + "a") == (b"one", etag)
    other = store.put_document(folder + "a", b"two")
    assert store.get_document(folder + "a") == (b"two", other)
    assert other != etag
    empty = store.put_document(folder + "empty", b"")
    assert store.get_document(folder + "empty") == (b"", empty)


def test_a_document_is_created_only_once(store: AnyStore, folder: str) -> None:
    """If-None-Match: the first stays."""
    store.put_document(folder + "a", b"one", if_absent=True)
    with pytest.raises(ConflictError, match=folder):
        store.put_document(folder + "a", b"two", if_absent=True)
    assert store.get_document(folder + "a")[0] == b"one"


def test_a_document_is_replaced_only_when_unchanged(store: AnyStore, folder: str) -> None:
    """If-Match: against another ETag, and against an object that is gone."""
    first = store.put_document(folder + "a", b"one")
    second = store.put_document(folder + "a", b"two", if_match=first)
    with pytest.raises(ConflictError):
        store.put_document(folder + "a", b"three", if_match=first)
    assert store.get_document(folder + "a") == (b"two", second)
    store.delete([folder + "a"])
    with pytest.raises(ConflictError):
        store.put_document(folder + "a", b"three", if_match=second)


def test_what_is_missing_is_not_found(store: AnyStore, folder: str) -> None:
    """Each way of asking says so in its own words; deleting it is fine."""
    with pytest.raises(BackupNotFoundError, match=folder):
        store.get_document(folder + "none")
    assert store.head(folder + "none") is None
    assert list(store.list(folder)) == []
    assert store.list_folders(folder) == []
    with pytest.raises(ArchiveDamagedError, match=folder):
        read_all(store, folder + "none", 3)
    store.delete([folder + "none"])


def test_listings_show_what_is_there_now(store: AnyStore, folder: str) -> None:
    """Keys with every odd character of ours, folders apart from objects, nothing from before a change."""
    keys = ["%2Ehidden/a", "a%2Fb/x/y", "a%2Fb/z", "backup.json", "backup.json.d/a", "sp%20ace"]
    for key in keys:
        store.put_document(folder + key, b"12345")
    assert [info.key for info in store.list(folder)] == sorted(folder + key for key in keys)
    assert {info.bytes for info in store.list(folder)} == {5}
    assert store.list_folders(folder) == ["%2Ehidden", "a%2Fb", "backup.json.d"]
    assert [info.key for info in store.list(folder + "a%2Fb/")] == [folder + "a%2Fb/x/y", folder + "a%2Fb/z"]
    store.delete([folder + key for key in keys[:5]])
    assert [info.key for info in store.list(folder)] == [folder + "sp%20ace"]


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 17])
def test_an_archive_of_any_size_comes_back_equal(store: AnyStore, folder: str, size: int) -> None:
    """Around every boundary between parts; progress adds up to the size."""
    data, done = payload(size), []
    uploaded = store.upload(
        folder + "a", blocks_of(data, 700_001), metadata={"sha256": "x"}, progress=done.append, expected_bytes=size
    )
    assert (uploaded.bytes, uploaded.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert sum(done) == size
    info = store.head(folder + "a")
    assert info is not None
    assert (info.bytes, info.etag, info.metadata["sha256"]) == (size, uploaded.etag, "x")
    assert read_all(store, folder + "a", size) == data


def test_an_archive_is_never_overwritten(store: AnyStore, folder: str) -> None:
    """It is refused before a byte is read from the source."""
    store.upload(folder + "a", [b"first"])
    source = blocks_of(b"second")
    with pytest.raises(ConflictError, match=folder):
        store.upload(folder + "a", source)
    assert next(source) == b"second"
    assert read_all(store, folder + "a", 5) == b"first"


@pytest.mark.parametrize("size", [10, 2 * PART])
def test_of_two_uploads_to_one_key_the_first_to_end_stays(store: AnyStore, folder: str, size: int) -> None:
    """A run that lost its lease must not change what another has committed meanwhile."""

    def overtaken() -> Iterator[bytes]:
        yield payload(size)
        store.upload(folder + "a", [b"first"])

    with pytest.raises(ConflictError, match=folder):
        store.upload(folder + "a", overtaken())
    assert read_all(store, folder + "a", 5) == b"first"
    if isinstance(store, Store):
        assert store.uploads(folder) == ()


def test_an_archive_of_another_size_or_etag_is_refused(store: AnyStore, folder: str) -> None:
    """Before a byte of it is used."""
    etag = store.upload(folder + "a", [b"12345"]).etag
    assert b"".join(store.read(folder + "a", expected_bytes=5, etag=etag)) == b"12345"
    for size, tag in ((4, None), (6, None), (5, "0" * 32)):
        with pytest.raises(ArchiveDamagedError, match=folder):
            next(store.read(folder + "a", expected_bytes=size, etag=tag))


@pytest.mark.parametrize("size", [10, 2 * PART + 10])
def test_a_source_that_ends_early_leaves_no_archive(store: AnyStore, folder: str, size: int) -> None:
    """A shorter archive is a failed one."""
    with pytest.raises(ArchiveDamagedError, match=str(size)):
        store.upload(folder + "a", blocks_of(payload(size)), expected_bytes=size + 1)
    assert store.head(folder + "a") is None


# Nothing is left behind


class _Interrupt(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [StoppedError("cancelled"), ValueError("node gone"), _Interrupt(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("source", ["blocks", "progress"])
def test_an_upload_that_is_ended_leaves_nothing(honest: Store, folder: str, error: BaseException, source: str) -> None:
    """Whatever ends it, from whichever side."""
    data = payload(4 * PART)

    def failing_blocks() -> Iterator[bytes]:
        yield data[: 3 * PART]
        raise error

    def failing_progress(_done: int) -> None:
        raise error

    blocks = failing_blocks() if source == "blocks" else blocks_of(data)
    progress = failing_progress if source == "progress" else no_progress
    with pytest.raises(type(error)):
        honest.upload(folder + "a", blocks, progress=progress)
    assert honest.uploads(folder) == ()
    assert honest.head(folder + "a") is None


def test_uploads_of_a_dead_run_are_found_and_aborted(honest: Store, folder: str) -> None:
    """Only those under the folder."""
    for name in ("one/a", "one/b", "two/a"):
        honest.client.create_multipart_upload(Bucket="ferry", Key=folder + name)
    assert [upload.key for upload in honest.uploads(folder + "one/")] == [folder + "one/a", folder + "one/b"]
    assert honest.abort_uploads(folder + "one/") == 2
    assert [upload.key for upload in honest.uploads(folder)] == [folder + "two/a"]
    assert honest.abort_uploads(folder) == 1
    assert honest.abort_uploads(folder) == 0


# The probe


def test_a_good_bucket_passes_and_nothing_is_left(honest: Store) -> None:
    """Every promise that a repository relies on."""
    results = probe(honest)
    assert [result for result in results if not result.ok] == []
    assert len(results) == 10
    assert "clocks 0 s apart" in results[0].detail or "clocks 1 s apart" in results[0].detail
    assert list(honest.list("ferry/probe/")) == []
    assert honest.uploads("ferry/probe/") == ()


@pytest.mark.parametrize(
    ("header", "failing"),
    [
        ("If-None-Match", {"put only when absent", "archives are written once"}),
        ("If-Match", {"put only when unchanged"}),
        ("Content-MD5", {"refuse damaged bytes"}),
    ],
)
def test_a_store_that_ignores_a_condition_is_found_out(shared_s3: S3Server, header: str, failing: set[str]) -> None:
    """Older stores do, without a word."""
    honest = Store(profile(shared_s3))

    def drop(request: Any, **_: Any) -> None:
        del request.headers[header]

    honest.client.meta.events.register("before-sign.s3", drop)
    results = probe(honest)
    assert {result.name for result in results if not result.ok} == failing
    assert all(result.remedy for result in results if not result.ok)
    assert list(honest.list("ferry/probe/")) == []


def test_a_missing_bucket_is_one_result(server: AnyServer) -> None:
    """And not ten that say the same."""
    (result,) = probe(Store(profile(server, bucket="nonesuch")))
    assert not result.ok
    assert "no such bucket" in result.detail


def test_a_store_without_conditional_put_is_refused_with_a_remedy(server: AnyServer, folder: str) -> None:
    """Before the first backup, and each time again: nothing is noted of a bucket that failed."""

    def drop(request: Any, **_: Any) -> None:
        del request.headers["If-None-Match"]

    keys, store = Keys(folder + "ferry"), Store(profile(server))
    store.client.meta.events.register("before-sign.s3", drop)
    with pytest.raises(StoreRefusedError, match="ignores If-None-Match") as caught:
        ensure_conforming(store, keys)
    assert caught.value.remedy is not None
    assert "conditional puts" in caught.value.remedy
    assert list(store.list(keys.prefix + "/")) == []
    store.client.meta.events.unregister("before-sign.s3", drop)
    tried = ensure_conforming(store, keys)
    assert ensure_conforming(store, keys) == tried
    data = store.get_document(keys.conformance)[0]
    assert server.secret_key.encode() not in data
    assert server.access_key.encode() not in data


def test_a_store_that_lacks_a_promise_is_refused() -> None:
    """moto without our gate does not compare Content-MD5, as some real stores do not."""
    with MotoServer(gate=False) as server, pytest.raises(StoreRefusedError, match="Content-MD5") as caught:
        require_conforming(Store(profile(server)))
    assert "another store" in (caught.value.remedy or "")


# What is built upon it


def test_catalog_and_journal_work_on_a_real_store(honest: Store, tmp_path: Path) -> None:
    """The unit tests prove their rules in memory; this proves the keys and calls."""
    keys = Keys(f"test/{tmp_path.name}-{os.urandom(4).hex()}")
    catalog = Catalog(honest, keys)
    assert catalog.ensure_repository() == catalog.ensure_repository()
    assert catalog.clusters() == []
    journal = Journal(honest, keys, "test", "20261122T020000Z-aaaaaa")
    entry = journal.update(journal.note("node_snapshot", "a/b-0-1", {"peer_id": 1}), name="x")
    assert [found.detail for found in unsettled(honest, keys, "test")] == [{"peer_id": 1, "name": "x"}]
    journal.settle(entry)
    assert unsettled(honest, keys, "test") == []
