"""Channels to a real gRPC server on loopback, and what its answers and failures become."""

import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Timer
from typing import Any

import grpc
import pytest
from pydantic import SecretStr, ValidationError

from ferry.errors import ConfigurationError, FerryError, NodeRefusedError, NodeUnreachableError
from ferry.profiles import ClusterProfile
from ferry.qdrant.grpc import Channel, TooLargeError, open_channel, open_channels, require_answers
from ferry.qdrant.http import (
    BusyError,
    NodeFaultError,
    NoSpaceError,
    NotFoundError,
    ReplyLostError,
    WrongRequestError,
)
from tests.integration.keyed_s3 import Authority
from tests.workshop import eventually

METHOD = "/qdrant.Points/Upsert"
KEY = "s3cret-key"
Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@dataclass
class Server:
    """One server that answers every method by ``handler``."""

    handler: Handler = lambda request, _context: request
    calls: list[tuple[str, dict[str, Any], float]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append((details.method, dict(details.invocation_metadata), context.time_remaining()))
            return self.handler(request, context)

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def serving(made: Server, port: int = 0, authority: Authority | None = None) -> Iterator[Server]:
    """Answer on a port, or a free one; with a certificate of that authority."""

    class Generic(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return made.service(handler_call_details)

    running = grpc.server(ThreadPoolExecutor(4), [Generic()])
    if authority is None:
        made.port = running.add_insecure_port(f"127.0.0.1:{port}")
    else:
        pair = (authority.key_file.read_bytes(), authority.cert_file.read_bytes())
        made.port = running.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair]))
    running.start()
    try:
        yield made
    finally:
        running.stop(0).wait()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that gives back what it gets."""
    with serving(Server()) as made:
        yield made


def profile(url: str = "http://127.0.0.1:1", **wishes: Any) -> ClusterProfile:
    return ClusterProfile(nodes=["http://127.0.0.1:2"], grpc_nodes=[url], **wishes)


@pytest.fixture
def channel(server: Server) -> Iterator[Channel]:
    """A channel to it, with a key."""
    with open_channel(server.url, profile(api_key=SecretStr(KEY))) as opened:
        yield opened


def test_bytes_pass_unchanged_with_the_key_and_a_deadline(server: Server, channel: Channel) -> None:
    """A call has the profile's deadline, or one of its own."""
    call = channel.unary_unary(METHOD)
    assert call(b"\x00\xff points") == b"\x00\xff points"
    assert call(b"", timeout=300.0) == b""
    (method, metadata, seconds), (_, _, longer) = server.calls
    assert method == METHOD
    assert metadata["api-key"] == KEY
    assert 28 < seconds < 32
    assert 298 < longer < 302


def test_answers_of_any_size_are_taken(server: Server, channel: Channel) -> None:
    """grpcio's own limit is 4 MiB."""
    server.handler = lambda _request, _context: bytes(6 << 20)
    assert len(channel.unary_unary(METHOD)(b"")) == 6 << 20


def failing(code: grpc.StatusCode, said: str = "words of the node", metadata: Any = ()) -> Handler:
    def fail(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(metadata)
        context.abort(code, said)

    return fail


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        ("INVALID_ARGUMENT", "Vector dimension error: expected dim: 2, got 1", WrongRequestError),
        ("NOT_FOUND", "Collection `docs` doesn't exist!", NotFoundError),
        ("UNAUTHENTICATED", "Must provide an API key", NodeRefusedError),
        ("PERMISSION_DENIED", "Forbidden: Write access to collection docs is required", NodeRefusedError),
        ("UNIMPLEMENTED", "", NodeRefusedError),
        ("ALREADY_EXISTS", "it is there", NodeRefusedError),
        ("UNAVAILABLE", "1 of 2 shards failed", NodeUnreachableError),
        ("DEADLINE_EXCEEDED", "Timeout: operation took 60 s", ReplyLostError),
        ("UNKNOWN", "connection lost", ReplyLostError),
        ("INTERNAL", "Service internal error: RocksDB", NodeFaultError),
        ("FAILED_PRECONDITION", "no active replica", NodeFaultError),
        ("INTERNAL", "No space left on device: WAL buffer size exceeds available disk space", NoSpaceError),
        ("RESOURCE_EXHAUSTED", "Rate limiting exceeded: Write rate limit exceeded, retry later", BusyError),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5242905 vs. 4194304)", TooLargeError),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 5 bytes, the limit is: 4", TooLargeError),
        ("RESOURCE_EXHAUSTED", "Write rate limit exceeded, request larger than rate limiter", WrongRequestError),
    ],
)
def test_every_status_becomes_one_kind_of_error(
    server: Server, channel: Channel, code: str, said: str, kind: type[FerryError]
) -> None:
    """The error names the node, the method and what was said, and is transient where waiting may help."""
    server.handler = failing(grpc.StatusCode[code], said)
    with pytest.raises(FerryError) as caught:
        channel.unary_unary(METHOD)(b"")
    assert type(caught.value) is kind
    assert caught.value.transient is issubclass(kind, NodeUnreachableError)
    assert f"127.0.0.1:{server.port} did not do {METHOD} (gRPC {code}): {said}" in caught.value.message
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own


@pytest.mark.parametrize(("metadata", "seconds"), [((("retry-after", "7"),), 7.0), ((), None)])
def test_a_limit_says_how_long_to_wait(server: Server, channel: Channel, metadata: Any, seconds: float | None) -> None:
    """As Qdrant does in the trailing metadata."""
    server.handler = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "Rate limiting exceeded", metadata)
    with pytest.raises(BusyError) as caught:
        channel.unary_unary(METHOD)(b"")
    assert caught.value.retry_after_seconds == seconds


def test_the_key_shows_in_no_error(server: Server, channel: Channel) -> None:
    """Not when the server echoes it, and not in what an error was made from."""
    server.handler = failing(grpc.StatusCode.PERMISSION_DENIED, f"no such key: {KEY}")
    with pytest.raises(NodeRefusedError, match=r"no such key: \[key\]") as caught:
        channel.unary_unary(METHOD)(b"")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with pytest.raises(ConfigurationError, match="characters that no HTTP header may hold") as wrong:
        open_channel(server.url, profile(api_key=SecretStr("kéy\n1")))
    assert "kéy" not in str(wrong.value)


def test_a_node_that_is_not_there_is_an_error_at_once_and_found_when_it_has_come() -> None:
    """By the same channel; the error says what may be wrong."""
    with serving(Server()) as gone:
        pass
    with open_channel(gone.url, profile()) as channel:
        began = time.monotonic()
        with pytest.raises(NodeUnreachableError, match="UNAVAILABLE") as caught:
            channel.require_answer()
        assert time.monotonic() - began < 5
        with pytest.raises(NodeUnreachableError, match=gone.url.rpartition("/")[2]):
            require_answers(profile(gone.url))
        assert caught.value.remedy is not None
        assert "grpc_nodes" in caught.value.remedy
        with serving(gone, gone.port):
            assert eventually(lambda: answers(channel), 3.0)
            require_answers(profile(gone.url))


def answers(channel: Channel) -> bool:
    try:
        channel.require_answer()
    except NodeUnreachableError:
        return False
    return True


def test_a_closed_channel_ends_what_is_under_way_and_what_comes_later(server: Server, channel: Channel) -> None:
    """A cancel need not wait for the deadline of a call."""
    release = Event()
    server.handler = lambda request, _context: request if release.wait(20) else b""
    call = channel.unary_unary(METHOD)
    Timer(0.1, channel.close).start()
    with pytest.raises(ReplyLostError, match="CANCELLED"):
        call(b"")
    release.set()
    with pytest.raises(ReplyLostError, match="closed"):
        call(b"")


def test_a_private_authority_is_trusted_when_it_is_named_and_no_other_is(tmp_path: Path) -> None:
    """One that is not known is no node that is away."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    with serving(Server(), authority=ours) as made:
        url = made.url.replace("http:", "https:")
        with open_channel(url, profile(ca_file=ours.ca_file)) as channel:
            channel.require_answer()
        for other in ({"ca_file": theirs.ca_file}, {}):
            with (
                open_channel(url, profile(**other)) as channel,
                pytest.raises(NodeRefusedError, match="certificate is not trusted") as caught,
            ):
                channel.require_answer()
            assert "ca_file" in (caught.value.remedy or "")


def test_an_authority_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=r"ca\.pem cannot be read: No such file"):
        open_channel("https://127.0.0.1:1", profile(ca_file=tmp_path / "ca.pem"))


def test_addresses_are_the_configured_ones_or_the_usual_port() -> None:
    """Of each node, in their order, with its scheme."""
    usual = ClusterProfile(nodes=["http://a:6333/", "https://b", "http://[::1]:7000"])
    assert usual.grpc_addresses == ["http://a:6334", "https://b:6334", "http://[::1]:6334"]
    own = ClusterProfile(nodes=["http://a:1", "http://b:1"], grpc_nodes=["http://c:9/", "https://d:9"])
    assert own.grpc_addresses == ["http://c:9", "https://d:9"]
    channels = open_channels(own)
    assert [channel.label for channel in channels] == ["c:9", "d:9"]
    for channel in channels:
        channel.close()


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (["http://c:9"], "grpc_nodes has 1 entries for 2 nodes; it needs one for each"),
        (["http://c:9", "http://c:9/"], "the same address stands twice"),
        (["http://c", "http://d:9"], "should match pattern"),
        (["c:9", "http://d:9"], "should match pattern"),
    ],
)
def test_addresses_that_cannot_be_right_are_refused(nodes: list[str], said: str) -> None:
    """One for each node, each its own, with a port."""
    with pytest.raises(ValidationError, match=said):
        ClusterProfile(nodes=["http://a:1", "http://b:1"], grpc_nodes=nodes)
