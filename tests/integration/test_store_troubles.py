"""The store on a real S3 server with faults between, refusals, and leases when the line is bad."""

import hashlib
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ferry.errors import (
    ArchiveDamagedError,
    ConflictError,
    FerryError,
    LeaseHeldError,
    StoppedError,
    StoreRefusedError,
    StoreUnavailableError,
)
from ferry.repository.lease import Lease, acquire
from ferry.repository.store import Store
from sandbox.fault_proxy import FaultProxy
from sandbox.s3 import S3Server
from tests.integration.stores import MIB, PART, blocks_of, payload, profile, read_all

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server(shared_s3: S3Server) -> S3Server:
    """The server that all share."""
    return shared_s3


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of it that can misbehave."""
    with FaultProxy(server.host_port) as running:
        yield running


@pytest.fixture(scope="module")
def honest(server: S3Server) -> Store:
    """A store without faults."""
    return Store(profile(server))


@pytest.fixture
def troubled(server: S3Server, proxy: FaultProxy) -> Store:
    """The same bucket by way of the proxy."""
    return Store(profile(server, proxy.url))


# Faults between us and the store


def test_uploads_survive_a_burst_of_503(troubled: Store, proxy: FaultProxy, folder: str) -> None:
    """SlowDown on every verb: each part is sent again."""
    data = payload(4 * PART + 5)
    proxy.http_status(503, count=2)
    began = iter([True])

    def more_trouble(_done: int) -> None:
        if next(began, False):
            proxy.http_status(503, count=3)

    assert troubled.upload(folder + "a", blocks_of(data), progress=more_trouble).bytes == len(data)
    proxy.http_status(503, count=2)
    assert read_all(troubled, folder + "a", len(data)) == data


def test_documents_survive_a_burst_of_503(troubled: Store, proxy: FaultProxy, folder: str) -> None:
    """For reads and conditional writes alike."""
    proxy.http_status(503, count=2)
    troubled.put_document(folder + "a", b"one", if_absent=True)
    proxy.http_status(503, count=2)
    assert troubled.get_document(folder + "a")[0] == b"one"
    proxy.http_status(503, count=2)
    assert [info.key for info in troubled.list(folder)] == [folder + "a"]


def test_a_store_that_stays_away_is_unavailable_and_nothing_is_left(
    honest: Store, troubled: Store, proxy: FaultProxy, folder: str
) -> None:
    """After the patience of twice the read timeout; the abort gets through."""
    proxy.http_status(503, count=10**6, match="PUT")
    with pytest.raises(StoreUnavailableError, match=f"part [123] of .*{folder}") as caught:
        troubled.upload(folder + "a", blocks_of(payload(3 * PART)))
    assert caught.value.transient
    assert honest.uploads(folder) == ()


def test_an_upload_survives_a_reset_in_the_middle_of_a_part(troubled: Store, proxy: FaultProxy, folder: str) -> None:
    """Only that part is sent again."""
    data = payload(6 * PART)
    proxy.after(int(2.5 * PART), proxy.cut)
    assert troubled.upload(folder + "a", blocks_of(data)).sha256 == hashlib.sha256(data).hexdigest()
    assert proxy.bytes_moved["to_target"] < len(data) + 5 * PART


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_a_part_damaged_on_the_way_is_sent_again(
    server: S3Server, proxy: FaultProxy, folder: str, checksums: str
) -> None:
    """The store compares each part with its Content-MD5; SeaweedFS does not compare the hash in the signature."""
    store = Store(profile(server, proxy.url, checksums=checksums))
    data = payload(3 * PART)
    proxy.corrupt("to_target", int(1.5 * PART))
    assert store.upload(folder + "a", blocks_of(data)).sha256 == hashlib.sha256(data).hexdigest()
    assert read_all(store, folder + "a", len(data)) == data
    assert sum("partNumber" in request for request in proxy.requests) == 4


def test_a_whole_archive_damaged_on_the_way_is_sent_again(troubled: Store, proxy: FaultProxy, folder: str) -> None:
    """The same for one that is too small for parts."""
    data = payload(MIB)
    proxy.corrupt("to_target", MIB // 2)
    troubled.upload(folder + "a", [data])
    assert read_all(troubled, folder + "a", MIB) == data


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_read_goes_on_where_it_broke(troubled: Store, proxy: FaultProxy, folder: str, fault: str) -> None:
    """By Range, without a byte lost or twice."""
    data = payload(6 * PART)
    troubled.upload(folder + "a", blocks_of(data))
    moved = proxy.bytes_moved["to_client"]
    proxy.after(2 * PART, {"cut": proxy.cut, "stall": proxy.stall}[fault])
    if fault == "stall":
        threading.Timer(3.0, proxy.clear).start()
    assert read_all(troubled, folder + "a", len(data)) == data
    assert proxy.bytes_moved["to_client"] - moved < len(data) + 3 * PART


def test_a_read_that_never_moves_ends(troubled: Store, proxy: FaultProxy, folder: str) -> None:
    """After five attempts without a byte."""
    troubled.upload(folder + "a", [b"12345"])
    proxy.http_status(503, count=10**6)
    before = len(proxy.requests)
    with pytest.raises(StoreUnavailableError, match=folder):
        read_all(troubled, folder + "a", 5)
    assert len(proxy.requests) - before == 5


def test_an_archive_replaced_while_it_is_read_is_damage(
    honest: Store, troubled: Store, proxy: FaultProxy, folder: str
) -> None:
    """Two halves of two archives never become one."""
    data = payload(3 * PART)
    troubled.upload(folder + "a", blocks_of(data))
    reading = troubled.read(folder + "a", expected_bytes=len(data))
    next(reading)
    honest.delete([folder + "a"])
    honest.upload(folder + "a", blocks_of(payload(3 * PART, seed=1)))
    proxy.cut()
    with pytest.raises(ArchiveDamagedError, match=folder):
        list(reading)


def answer_lost(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, mark: bytes) -> Iterator[Any]:
    """Let the connection break once where the store's answer holds ``mark``; what comes back is used up by then."""
    cut_once = iter([proxy.cut])
    original = proxy._forward

    async def forward(data: bytes, writer: Any, direction: str) -> None:
        if direction == "to_client" and mark in data and (cut := next(cut_once, None)):
            cut()
            return
        await original(data, writer, direction)  # type: ignore[arg-type]

    monkeypatch.setattr(proxy, "_forward", forward)
    return cut_once


def test_a_conditional_put_whose_answer_was_lost_is_not_taken_for_anothers(
    honest: Store, troubled: Store, proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store obeys, the answer is lost, the repeated request meets our own object."""
    troubled.head(folder)  # the connection is open, so the next bytes to the client are the answer
    moved = proxy.bytes_moved["to_client"]
    lost = answer_lost(proxy, monkeypatch, b"HTTP/1.1 200")
    etag = troubled.put_document(folder + "a", b"ours", if_absent=True)
    assert next(lost, None) is None
    assert honest.get_document(folder + "a") == (b"ours", etag)
    assert sum(request.startswith("PUT") for request in proxy.requests) == 2
    with pytest.raises(ConflictError):
        troubled.put_document(folder + "a", b"ours", if_absent=True)
    assert proxy.bytes_moved["to_client"] > moved


def test_an_archive_whose_completion_was_answered_into_the_void_is_whole(
    honest: Store, troubled: Store, proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repeated completion is refused because the object is there; its ETag says that it is ours."""
    lost = answer_lost(proxy, monkeypatch, b"<CompleteMultipartUploadResult")
    data = payload(2 * PART + 1)
    assert troubled.upload(folder + "a", blocks_of(data)).sha256 == hashlib.sha256(data).hexdigest()
    assert next(lost, None) is None
    assert read_all(honest, folder + "a", len(data)) == data


def test_an_upload_begun_twice_because_an_answer_was_lost_leaves_no_second_one(
    honest: Store, troubled: Store, proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id was in the answer, so only a listing knows it."""
    lost = answer_lost(proxy, monkeypatch, b"<InitiateMultipartUploadResult")
    troubled.upload(folder + "a", [payload(PART + 1)])
    assert next(lost, None) is None
    assert honest.uploads(folder) == ()


def completes(request: str) -> bool:
    return request.startswith("POST") and "uploadId=" in request


def test_a_completion_answered_200_with_an_error_inside_is_no_success(
    honest: Store, troubled: Store, proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 may answer so after it has begun to answer; botocore makes a 500 of it, and it is asked again."""
    body = b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>try again</Message></Error>'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    original = proxy._answer_for
    lies = iter([answer])
    monkeypatch.setattr(
        proxy,
        "_answer_for",
        lambda request: (
            next(lies, None) if request.startswith("POST") and "uploadId=" in request else original(request)
        ),
    )
    data = payload(2 * PART)
    troubled.upload(folder + "a", blocks_of(data))
    assert sum(completes(request) for request in proxy.requests) == 2
    assert read_all(honest, folder + "a", len(data)) == data


def test_a_part_may_take_longer_than_the_time_to_connect(
    server: S3Server, proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent as a bytearray, all of it would have to go within that limit: a slow line would fail."""
    monkeypatch.setattr("ferry.repository.clients.CONNECT_TIMEOUT_SECONDS", 1.0)
    size = 80 * MIB  # more than the kernel's own buffers take at once
    store = Store(profile(server, proxy.url, parts_in_flight=3, part_bytes=size, read_timeout_seconds=30))
    proxy.slow(40 * MIB)
    store.upload(folder + "a", [bytes(size), bytes(size)])
    assert sum("partNumber" in request for request in proxy.requests) == 2


# Waiting, and memory


def test_a_waiting_upload_can_be_stopped(honest: Store, troubled: Store, proxy: FaultProxy, folder: str) -> None:
    """A store that takes no byte does not keep a run from being cancelled."""
    told: list[int] = []

    def stop(done: int) -> None:
        told.append(done)
        if done == 0:
            proxy.clear()  # so that the abort gets through
            raise StoppedError("cancelled")

    def stalling_blocks() -> Iterator[bytes]:
        for block in blocks_of(payload(8 * PART), PART):
            proxy.stall()
            yield block

    # The first request must have been answered before the stall: the upload is begun once the first part is full.
    began = time.monotonic()
    with pytest.raises(StoppedError):
        troubled.upload(folder + "a", _after_first(stalling_blocks(), payload(PART + 1)), progress=stop)
    assert time.monotonic() - began < 20
    assert told[-1] == 0
    assert honest.uploads(folder) == ()


def _after_first(rest: Iterator[bytes], first: bytes) -> Iterator[bytes]:
    yield first
    time.sleep(0.5)
    yield from rest


def test_at_most_the_configured_parts_are_in_memory(server: S3Server, folder: str, monkeypatch: Any) -> None:
    """However much faster the source is than the store."""
    from ferry.repository import upload as module

    store = Store(profile(server, parts_in_flight=3))
    made: list[int] = []

    class Counting(bytearray):
        def __new__(cls, size: int = 0) -> "Counting":
            if size == PART:
                made.append(size)
            return super().__new__(cls, size)

    monkeypatch.setattr(module, "bytearray", Counting, raising=False)
    data = payload(12 * PART)
    assert store.upload(folder + "a", blocks_of(data)).sha256 == hashlib.sha256(data).hexdigest()
    assert 1 <= len(made) <= 3


# Refusals and secrets


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"secret_key": "wrong"}, "secret key|keys"),
        ({"access_key": "WRONG"}, "access key|keys"),
        ({"bucket": "nonesuch"}, "no such bucket"),
    ],
)
def test_refusals_say_what_to_correct(server: S3Server, folder: str, changes: dict[str, str], expected: str) -> None:
    """Every verb refuses in the same words, and none is worth trying again."""
    store = Store(profile(server, **changes))
    for ask in (
        lambda: store.put_document(folder + "a", b""),
        lambda: store.get_document(folder + "a"),
        lambda: list(store.list(folder)),
        lambda: store.list_folders(folder),
    ):
        with pytest.raises(StoreRefusedError, match=expected) as caught:
            ask()
        assert caught.value.remedy
        assert not caught.value.transient


def test_a_store_that_is_not_there_is_unavailable(server: S3Server, folder: str) -> None:
    """For both clients."""
    store = Store(profile(server, "http://127.0.0.1:9"))
    for ask in (lambda: store.put_document(folder, b""), lambda: list(store.list(folder))):
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:9"):
            ask()


def test_no_secret_is_told(server: S3Server, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither keys nor signatures in messages, causes and logs, at the most talkative level too."""
    caplog.set_level(logging.DEBUG)
    store = Store(profile(server, session_token="canary-token", secret_key="canary-secret"))
    told = []
    asks: list[Callable[[], object]] = [
        lambda: store.put_document(folder + "a", b""),
        lambda: store.get_document(folder + "a"),
        lambda: store.upload(folder + "a", [b"x"]),
        lambda: list(store.list(folder)),
    ]
    for ask in asks:
        with pytest.raises(FerryError) as caught:
            ask()
        told += [str(caught.value), repr(caught.value.__cause__)]
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    address = store.presign(folder + "a")
    signature = address.rpartition("Signature=")[2]
    told += [record.getMessage() for record in caplog.records]
    for secret in ("canary-secret", "canary-token", signature):
        assert not [line for line in told if secret in line]


def test_a_signed_address_gives_one_object_without_keys(honest: Store, folder: str) -> None:
    """And no other one."""
    honest.upload(folder + "a%2Fb", [b"bytes"])
    address = honest.presign(folder + "a%2Fb")
    with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own address
        assert answer.read() == b"bytes"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address.replace("a%252Fb", "other"))  # noqa: S310 - the same
    caught.value.close()
    assert caught.value.code == 403


def test_addresses_are_signed_for_the_nodes_own_view(server: S3Server) -> None:
    """Nodes may reach the store by another name than the worker does."""
    store = Store(profile(server, node_endpoint_url="http://s3.internal:8333"))
    assert store.presign("a").startswith("http://s3.internal:8333/ferry/a?")


# What is built upon it, on the real server


def test_of_two_threads_one_gets_the_lease(honest: Store, folder: str) -> None:
    """And the other is told who has it."""
    key, won, held = folder + "lease.json", [], []
    start = threading.Barrier(2)

    def race(name: str) -> None:
        start.wait()
        try:
            won.append(acquire(honest, key, name, 1.0).__enter__())
        except LeaseHeldError as error:
            held.append(error)

    threads = [threading.Thread(target=race, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(held)) == (1, 1)
    won[0].__exit__(None, None, None)


def test_a_dead_holder_is_replaced_and_fenced(honest: Store, folder: str) -> None:
    """After its second, by a run that then commits where the dead one no longer can."""
    dead: Lease = acquire(honest, folder + "lease.json", "dead", 1.0)
    with acquire(honest, folder + "lease.json", "second", 1.0) as lease:
        assert lease.fencing == dead.fencing + 1
        with pytest.raises(LeaseHeldError, match="second"):
            dead.confirm()
        lease.confirm()


def test_a_slow_living_holder_is_never_replaced(honest: Store, troubled: Store, proxy: FaultProxy, folder: str) -> None:
    """Its renewals come late, by a slow line, but they come."""
    with acquire(troubled, folder + "lease.json", "slow", 6.0) as lease:
        proxy.slow(2000)
        with pytest.raises(LeaseHeldError, match="slow"):
            acquire(honest, folder + "lease.json", "second", 1.0)
        proxy.clear()
        lease.confirm()


def test_a_holder_that_is_cut_off_for_longer_than_its_life_commits_nothing(
    honest: Store, troubled: Store, proxy: FaultProxy, folder: str
) -> None:
    """The network comes back after another has taken over."""
    lease = acquire(troubled, folder + "lease.json", "cut off", 1.0)
    lease.__enter__()
    proxy.refuse()
    proxy.cut()
    with acquire(honest, folder + "lease.json", "second", 1.0):
        assert lease.lost
        proxy.clear()
        with pytest.raises(LeaseHeldError, match="second"):
            lease.confirm()
    lease.__exit__(None, None, None)
