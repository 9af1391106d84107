"""HTTP to one Qdrant node: one client, and the only place where vendor errors become Ferry's.

Raw JSON over httpx and not qdrant-client: its typed models drop fields that they do not know, and a backup that drops
a field of a newer server's configuration would recreate another collection than the one it backed up. It also reads
whole snapshots into memory.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from ferry.errors import ConfigurationError, FerryError, NodeRefusedError, NodeUnreachableError
from ferry.profiles import ClusterProfile
from ferry.qdrant.redaction import redact

# Qdrant closes idle connections after 5 s; a client that keeps them as long sends into a closing one.
_IDLE_SECONDS = 2.0
# Making a snapshot sends no byte for minutes: only the kernel's probes show that the node is gone, or keep a NAT open.
_PROBES = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]
_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 60.0
_ERROR_CHARACTERS = 1000
_WRONG = (400, 413, 422)
_NO_SPACE = ("no space left", "not enough space")
# After these, nobody knows whether the node did what it was asked: the request was sent, the answer did not arrive.
_REPLY_LOST = (httpx.ReadTimeout, httpx.ReadError, httpx.WriteError, httpx.WriteTimeout, httpx.RemoteProtocolError)


@lru_cache(maxsize=1)
def _public_authorities() -> ssl.SSLContext:
    """Reading them takes 20 ms, and finding out who answers takes many clients."""
    return httpx.create_ssl_context()


def _private_authority(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # SSLError is one
        msg = f"The certificate authority {ca_file} cannot be read: {error.strerror or error}."
        raise ConfigurationError(msg) from error


class ReplyLostError(NodeUnreachableError):
    """The request was sent and no answer of Qdrant's came back: the node may have done it, or still be doing it."""


class NoSpaceError(NodeRefusedError):
    """The node's disk or memory does not suffice; asking in another way does not help."""


class WrongRequestError(NodeRefusedError):
    """A 400, 413 or 422, or a request that costs more than a rate limit ever gives: a part of it may be taken."""


class NodeFaultError(NodeUnreachableError):
    """A 5xx that Qdrant itself wrote: the node is there and says why it cannot, for instance that a shard is broken."""


class NotFoundError(NodeRefusedError):
    """A 404: the collection, shard or snapshot that the request names is not on the node."""


def header_key(profile: ClusterProfile, label: str) -> str | None:
    """The profile's key for a header. Raises ConfigurationError for one that none may hold; it does not show it."""
    key = profile.api_key.get_secret_value().strip() if profile.api_key else None
    if key and not (key.isascii() and key.isprintable()):
        msg = f"The api_key for {label} holds characters that no HTTP header may hold."
        raise ConfigurationError(msg)
    return key


def path_of(*segments: str | int) -> str:
    """The path made of these segments, each percent-encoded: collection names may hold spaces and any letters."""
    return "".join("/" + quote(str(segment), safe="") for segment in segments)


class Transport:
    """One httpx client to one address, safe to use from several threads."""

    def __init__(self, url: str, profile: ClusterProfile) -> None:
        self.url = url.rstrip("/")
        self.label = self.url.split("://", 1)[-1]
        self._key = header_key(profile, self.label)
        self._timeout_seconds = profile.timeout_seconds
        self.received_bytes = 0  # bodies of the answers to `request`
        self._lock = threading.Lock()
        headers = {"Accept-Encoding": "identity"}  # else the node gzips whole snapshots
        if self._key:
            headers["api-key"] = self._key
        tls = _private_authority(profile.ca_file) if profile.ca_file else _public_authorities()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=_IDLE_SECONDS)
        # trust_env: a proxy of the environment must not stand between Ferry and a node (rule 2: know who answered).
        self._client = httpx.Client(
            headers=headers,
            transport=httpx.HTTPTransport(verify=tls, limits=limits, socket_options=_PROBES, trust_env=False),
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send one request and return Qdrant's ``result``, or the whole answer where it has none.

        ``timeout`` is the longest wait for a byte, in seconds. Raises NodeUnreachableError (transient: no answer, 5xx,
        429), its kind ReplyLostError, or NodeRefusedError.
        """
        content = None if json is None else orjson.dumps(json)
        with self.stream(method, path, content=content, params=params, timeout=timeout) as response:
            with self._translated(method, path):
                body = response.read()
            with self._lock:
                self.received_bytes += len(body)
            return self._result(method, path, response, body)

    def patient_request(self, method: str, path: str, *, json: Any, attempts: int = 8) -> Any:
        """Like ``request``, but waits as long as Qdrant asks (at most a minute each time) when it answers 429.

        For reads only: strict mode limits them per minute, and a limit is no fault.
        """
        for attempt in range(attempts):
            try:
                return self.request(method, path, json=json)
            except BusyError as error:
                if attempt == attempts - 1:
                    raise
                time.sleep(min(error.retry_after_seconds or 2.0**attempt, _LONGEST_PAUSE_SECONDS))
        raise AssertionError  # the loop always returns or raises

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        content: bytes | Iterable[bytes] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read; anything but a 2xx is raised as in ``request``.

        Reading the body is the caller's: do it inside ``translated``.
        """
        seconds = timeout or self._timeout_seconds
        request = self._client.build_request(
            method,
            self.url + path,
            content=content,
            params=params,
            headers={"Content-Type": "application/json", **(headers or {})},
            timeout=httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)),
        )
        with self._translated(method, path):
            response = self._client.send(request, stream=True)
        try:
            if not response.is_success:
                with self._translated(method, path):
                    body = response.read()
                raise self._refusal(method, path, response, body)
            yield response
        finally:
            response.close()

    @contextmanager
    def _translated(self, method: str, path: str) -> Iterator[None]:
        """Map httpx's errors to Ferry's. Errors of the caller's own (a body that it streams) pass unchanged."""
        try:
            yield
        except httpx.TransportError as error:
            kind = ReplyLostError if isinstance(error, _REPLY_LOST) else NodeUnreachableError
            said = redact(str(error), self._key) or type(error).__name__
            lost = " The node may still do what it was asked." if kind is ReplyLostError and method != "GET" else ""
            # The cause is cut off where it holds the key, which httpx quotes in "Illegal header value".
            cause = None if self._key and self._key in str(error) else error
            msg = f"Node {self.label} did not answer {method} {path}: {said} ({type(error).__name__}).{lost}"
            raise kind(msg, "See whether the node runs and this host can reach it: python -m ferry doctor") from cause

    translated = _translated

    def _result(self, method: str, path: str, response: httpx.Response, body: bytes) -> Any:
        if "json" not in response.headers.get("content-type", ""):
            return body.decode("utf-8", "replace")
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            msg = f"Node {self.label} answered {method} {path} with {len(body)} bytes that are not JSON."
            raise ReplyLostError(msg) from error
        return document["result"] if isinstance(document, dict) and "result" in document else document

    def _refusal(self, method: str, path: str, response: httpx.Response, body: bytes) -> FerryError:
        status = response.status_code
        by_qdrant, said = _said(body)
        said = redact(said, self._key)[:_ERROR_CHARACTERS]
        msg = f"Node {self.label} answered {method} {path} with {status}: {said}"
        if status == httpx.codes.INSUFFICIENT_STORAGE or lacks_space(said):
            return NoSpaceError(msg, f"Free disk or memory on {self.label}, then run it again.")
        if status == httpx.codes.TOO_MANY_REQUESTS:
            return too_busy(msg, response.headers.get("retry-after"))
        if response.is_server_error:
            return NodeFaultError(msg) if by_qdrant else ReplyLostError(msg)
        if status in _WRONG:
            return WrongRequestError(msg)
        return NotFoundError(msg) if status == httpx.codes.NOT_FOUND else NodeRefusedError(msg, _remedy(status, path))


class BusyError(NodeUnreachableError):
    """A 429; ``retry_after_seconds`` is what the node asked for."""

    retry_after_seconds: float | None = None


def lacks_space(said: str) -> bool:
    """Whether these words of a node's mean that its disk or memory does not suffice."""
    return any(words in said.lower() for words in _NO_SPACE)


def too_busy(message: str, retry_after: str | None) -> NodeRefusedError | BusyError:
    """The error for a limit that was passed, with the seconds to wait; another one where no waiting would help."""
    if "larger than rate limiter" in message:  # waiting would never help
        limit = "write" if "write rate limit" in message.lower() else "read"
        return WrongRequestError(message, f"Raise {limit}_rate_limit in the collection's strict mode.")
    error = BusyError(message, "The collection's strict mode limits requests: run it when there is less load.")
    error.retry_after_seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return error


def _remedy(status: int, path: str) -> str | None:
    if status in range(300, 400):
        return "Configure the address that the node itself listens on, with its scheme."
    if status not in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return None
    remedy = "Set the cluster's api_key to one with the right to manage; snapshots and recovering need it."
    if path.endswith("/recover"):
        remedy += " If the key is right, the node forbids URLs (service.enable_snapshot_url_recovery, 1.18): upload."
    return remedy


def _said(body: bytes) -> tuple[bool, str]:
    """Whether Qdrant itself wrote the answer (else a proxy did), and its text."""
    try:
        return True, str(orjson.loads(body)["status"]["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False, body[:_ERROR_CHARACTERS].decode("utf-8", "replace").strip() or "no text"
