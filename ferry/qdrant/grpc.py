"""gRPC to one Qdrant node: its channel, and the only place where gRPC's errors become Ferry's.

Only the migration speaks it: points pass as bytes, and vectors are never JSON (sources.md §0). Everything else goes
over REST (`ferry.qdrant.http`), whose kinds of errors these are too, so that one writer's rules hold for both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self

import grpc

from ferry.errors import ConfigurationError, FerryError, NodeRefusedError, NodeUnreachableError
from ferry.profiles import ClusterProfile
from ferry.qdrant.http import (
    NodeFaultError,
    NoSpaceError,
    NotFoundError,
    ReplyLostError,
    WrongRequestError,
    header_key,
    lacks_space,
    too_busy,
)
from ferry.qdrant.redaction import redact


class Call(Protocol):
    """One method of a node's: a serialized request, and the serialized answer."""

    def __call__(self, request: bytes, timeout: float | None = None) -> bytes: ...


_HEALTH = "/qdrant.Qdrant/HealthCheck"
_ERROR_CHARACTERS = 1000
_OPTIONS: list[tuple[str, Any]] = [
    # Identity only. grpcio offers gzip, and Qdrant then spends 200 µs instead of 9 on each point of an answer (measured
    # on 1.16.3; `compression=NoCompression` is about requests and does not help).
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # As over REST: no proxy of the environment stands between Ferry and a node.
    ("grpc.enable_http_proxy", 0),
    # Each channel has its own connection, and who uses it sees every failure and decides what to do.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    # A node that is started again is found within 2 s; grpcio's own rest between two tries grows to 2 min.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # in fact how long one try to connect may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A machine that is gone, or a process that is stopped, is noticed after 30 s and not at the call's deadline.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_AWAY = "See whether the node runs; where its gRPC is not on port 6334 of its host, set the cluster's grpc_nodes."
_NOT_TRUSTED = "Set the cluster's ca_file to the authority that signed the certificates of its nodes' gRPC."
_FORBIDDEN = "Set the cluster's api_key to one with the right to write, and to manage where snapshots are used."
_KINDS: dict[grpc.StatusCode, tuple[type[FerryError], str | None]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (WrongRequestError, None),
    grpc.StatusCode.NOT_FOUND: (NotFoundError, None),
    grpc.StatusCode.UNAUTHENTICATED: (NodeRefusedError, _FORBIDDEN),
    grpc.StatusCode.PERMISSION_DENIED: (NodeRefusedError, _FORBIDDEN),
    grpc.StatusCode.UNIMPLEMENTED: (NodeRefusedError, "See that the address is that of Qdrant's gRPC, not of REST."),
    # Nobody knows whether the node did what it was asked.
    grpc.StatusCode.DEADLINE_EXCEEDED: (ReplyLostError, None),
    grpc.StatusCode.CANCELLED: (ReplyLostError, None),
    grpc.StatusCode.UNKNOWN: (ReplyLostError, None),
    # Qdrant's own words for a 5xx: a shard is broken, or has no replica that is active.
    grpc.StatusCode.INTERNAL: (NodeFaultError, None),
    grpc.StatusCode.ABORTED: (NodeFaultError, None),
    grpc.StatusCode.FAILED_PRECONDITION: (NodeFaultError, None),
}
_TOO_LARGE = ("larger than max", "message length too large", "too large", "status: 413")


class TooLargeError(WrongRequestError):
    """The message has more bytes than the node, or a proxy before it, takes: a part of it may be taken."""


class Channel:
    """One gRPC channel to one node, safe to use from several threads. Opens its connection with the first call."""

    def __init__(self, address: str, profile: ClusterProfile) -> None:
        self.address = address.rstrip("/")
        scheme, _, rest = self.address.partition("://")
        self.label = rest.split("/", 1)[0]
        self._key = header_key(profile, self.label)
        self._metadata = (("api-key", self._key),) if self._key else ()
        self._timeout_seconds = profile.timeout_seconds
        if scheme == "https":
            self._channel = grpc.secure_channel(self.label, _credentials(profile), _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(self.label, _OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that are under way end at once with ReplyLostError."""
        self._channel.close()

    def unary_unary(self, method: str) -> Call:
        """A method such as ``/qdrant.Points/Upsert`` as a call ``(request, timeout=None)`` of bytes that gives bytes.

        The key is sent with it. ``timeout`` is the deadline of the whole call in seconds; the profile's
        ``timeout_seconds`` without. Raises what `translated` says.
        """
        bare: Any = self._channel.unary_unary(method)

        def call(request: bytes, timeout: float | None = None) -> bytes:
            with translated(self.label, method, self._key):
                answer: bytes = bare(request, timeout=timeout or self._timeout_seconds, metadata=self._metadata)
                return answer

        return call

    def require_answer(self) -> None:
        """Ask for the node's health, and raise as `translated` when it does not answer."""
        self.unary_unary(_HEALTH)(b"")


def open_channel(address: str, profile: ClusterProfile) -> Channel:
    """A channel to a gRPC address (a URL): no compression, messages of any size, the profile's key and authority.

    Raises ConfigurationError for a key that no header may hold, and for an authority that cannot be read.
    """
    return Channel(address, profile)


def open_channels(profile: ClusterProfile) -> list[Channel]:
    """A channel to every node of a profile, in the order of its nodes."""
    return [open_channel(address, profile) for address in profile.grpc_addresses]


def _credentials(profile: ClusterProfile) -> grpc.ChannelCredentials:
    """The profile's own authority, or the public ones that grpcio brings."""
    if profile.ca_file is None:
        return grpc.ssl_channel_credentials()
    try:
        return grpc.ssl_channel_credentials(profile.ca_file.read_bytes())
    except OSError as error:
        msg = f"The certificate authority {profile.ca_file} cannot be read: {error.strerror or error}."
        raise ConfigurationError(msg) from error


def require_answers(profile: ClusterProfile) -> None:
    """Ask the gRPC of every node for its health; raises as `translated` for the first that does not answer.

    REST may be reached where gRPC is not, and whoever writes would wait for it as for a node that is away.
    """
    for address in profile.grpc_addresses:
        with open_channel(address, profile) as channel:
            channel.require_answer()


@contextmanager
def translated(label: str, method: str, key: str | None = None) -> Iterator[None]:
    """Map gRPC's errors to Ferry's; ``key`` never shows in them.

    NodeUnreachableError (transient) with its kinds BusyError (``retry_after_seconds``), ReplyLostError and
    NodeFaultError; NodeRefusedError with its kinds WrongRequestError, TooLargeError, NotFoundError and NoSpaceError.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _translation(label, method, key, error) from None  # what grpcio shows of it has no more than is said
    except ValueError as error:
        if "closed channel" not in str(error):
            raise
        raise ReplyLostError(f"The channel to {label} was closed before {method}.") from None


def _translation(label: str, method: str, key: str | None, error: Any) -> FerryError:
    code, said = error.code(), redact(error.details() or "no text", key)[:_ERROR_CHARACTERS]
    msg = f"Node {label} did not do {method} (gRPC {code.name}): {said}"
    if lacks_space(said):
        return NoSpaceError(msg, f"Free disk or memory on {label}, then run it again.")
    if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.UNKNOWN) and any(
        words in said.lower() for words in _TOO_LARGE
    ):
        return TooLargeError(msg, "Write in smaller batches, or raise the limit of the proxy before the node.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        waits = {name: value for name, value in error.trailing_metadata() or ()}
        return too_busy(msg, waits.get("retry-after"))
    if code is grpc.StatusCode.UNAVAILABLE:
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return NodeRefusedError(f"The certificate is not trusted. {msg}", _NOT_TRUSTED)
        return NodeUnreachableError(msg, _AWAY)
    kind, remedy = _KINDS.get(code, (NodeRefusedError, None))
    return kind(msg, remedy)
