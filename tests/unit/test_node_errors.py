"""What a node's wrong answers become: against a local server that answers as it is told."""

import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from ferry.errors import ConfigurationError, LayoutError, NodeRefusedError, NodeUnreachableError, SnapshotError
from ferry.models import PeerId, ShardId
from ferry.profiles import ClusterProfile
from ferry.qdrant import http, points, snapshots
from ferry.qdrant.http import NotFoundError, ReplyLostError, WrongRequestError
from ferry.qdrant.node import Node
from ferry.qdrant.redaction import redact

KEY = "sk-very-secret-0123456789"
SIGNED = (
    "http://s3.local:9000/bucket/a.snapshot?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261122"
    "&X-Amz-Signature=deadbeefdeadbeef"
)
Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers each request by ``reply`` and notes its line and headers."""

    def __init__(self) -> None:
        self.reply: Reply = answer(200, '{"result": true}')
        self.seen: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet: else each answer waits 40 ms for an acknowledgement

            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                self.rfile.read(length)
                outer.seen.append((f"{self.command} {self.path}", {k.lower(): v for k, v in self.headers.items()}))
                outer.reply(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - names that the base class calls

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Clients that hang up are what is tested here."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def answer(status: int, body: str | bytes, **headers: str) -> Reply:
    def reply(request: BaseHTTPRequestHandler) -> None:
        data = body.encode() if isinstance(body, str) else body
        kind = "application/json" if data.startswith(b"{") else "text/plain"
        request.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return reply


def error(status: int, text: str, **headers: str) -> Reply:
    return answer(status, json.dumps({"status": {"error": text}, "time": 0.0}), **headers)


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)


def in_turn(first: Reply, then: Reply) -> Reply:
    replies = [first]

    def reply(request: BaseHTTPRequestHandler) -> None:
        (replies.pop() if replies else then)(request)

    return reply


@pytest.fixture(name="server")
def _server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(name="node")
def _node(server: Server) -> Iterator[Node]:
    profile = ClusterProfile(nodes=[server.url], api_key=SecretStr(KEY), timeout_seconds=2, stall_seconds=0.2)
    with Node(server.url, profile, PeerId(1)) as node:
        yield node


@pytest.fixture(name="naps")
def _naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be slept; none is."""
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


@pytest.mark.parametrize(
    ("reply", "kind", "transient"),
    [
        (error(500, "broken"), NodeUnreachableError, True),
        (error(503, "busy"), NodeUnreachableError, True),
        (error(429, "slow down"), NodeUnreachableError, True),
        (error(400, "wrong"), WrongRequestError, False),
        (error(413, "too large"), WrongRequestError, False),
        (error(422, "unprocessable"), WrongRequestError, False),
        (error(429, "Write rate limit exceeded, request larger than rate limiter capacity"), WrongRequestError, False),
        (error(404, "no such thing"), NotFoundError, False),
        (answer(404, "File not found: x"), NotFoundError, False),
        (error(401, "Must provide an API key"), NodeRefusedError, False),
        (error(403, "Forbidden"), NodeRefusedError, False),
        (error(500, "No space left on device"), NodeRefusedError, False),
        (error(507, "over the limit"), NodeRefusedError, False),
        (answer(504, "<html>gateway timeout</html>"), ReplyLostError, True),
        (answer(302, "moved", location="https://elsewhere/"), NodeRefusedError, False),
        (hang_up, ReplyLostError, True),
    ],
)
def test_each_wrong_answer_is_one_error_of_ferrys(
    server: Server, node: Node, reply: Reply, kind: type[Exception], transient: bool
) -> None:
    """Kind, transience, node, method and path are right, and the error survives pickling."""
    server.reply = reply
    with pytest.raises(NodeRefusedError if kind is NodeRefusedError else kind) as caught:
        node.collection("dö cs/1")
    assert type(caught.value).transient is transient
    assert node.label in caught.value.message
    assert "GET /collections/d%C3%B6%20cs%2F1" in caught.value.message
    assert KEY not in f"{caught.value!r}{caught.value}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes


def test_an_answer_of_qdrants_is_not_a_lost_reply(server: Server, node: Node) -> None:
    """A 500 that Qdrant itself wrote says how it ended; only a proxy's or a broken one leaves it open."""
    server.reply = error(500, "Service internal error")
    with pytest.raises(NodeUnreachableError) as caught:
        node.collections()
    assert not isinstance(caught.value, ReplyLostError)


def test_a_node_that_does_not_listen_or_answer_is_unreachable(server: Server, node: Node) -> None:
    """Refused connections and timeouts are transient errors; only the second leaves open what happened."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with Node(url, ClusterProfile(nodes=[url])) as gone, pytest.raises(NodeUnreachableError) as refused:
            gone.identify()
    assert not isinstance(refused.value, ReplyLostError)
    server.reply = lambda _request: threading.Event().wait(0.3) and None
    with pytest.raises(ReplyLostError, match="may still do"):
        node.request("POST", "/x", timeout=0.05)


def test_a_presigned_url_that_qdrant_echoes_loses_its_signature(server: Server, node: Node) -> None:
    """Of the whole echoed URL only address and path are left, also in the traceback."""
    server.reply = error(400, f"Failed to download snapshot from {SIGNED}: status 404 for url ({SIGNED})")
    with pytest.raises(NodeRefusedError) as caught:
        snapshots.recover_shard(node, "docs", ShardId(0), location=SIGNED, checksum=None)
    assert "http://s3.local:9000/bucket/a.snapshot" in caught.value.message
    for secret in ("X-Amz", "AKIA", "deadbeef"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        SIGNED,
        SIGNED.replace("http://s3.local:9000", ""),
        SIGNED.replace("http://s3.local:9000", "").replace("=", "%3D"),
        f"'{SIGNED}', and {SIGNED}",
        "https://storage/x?sv=2020&sig=deadbeef",
        "https://user:deadbeef@host/x",
        "api-key=deadbeef",
        "key deadbeef",
    ],
)
def test_redaction_leaves_nothing_secret(text: str) -> None:
    """Whole, relative, encoded, several and foreign signed URLs, passwords and the key itself are cut."""
    assert "deadbeef" not in redact(text, "deadbeef" if text.startswith("key") else None)


def test_ordinary_text_is_not_redacted() -> None:
    """Words and plain addresses stay as they are."""
    text = "Collection `docs` at http://node:6333/collections/docs: 3 = 3? Yes & no."
    assert redact(text) == text


def test_the_key_is_sent_and_never_shown_even_when_a_server_echoes_it(server: Server, node: Node) -> None:
    """The key goes into its header and is taken out of what comes back."""
    server.reply = error(401, f"wrong key {KEY}")
    with pytest.raises(NodeRefusedError) as caught:
        node.collections()
    _, headers = server.seen[-1]
    assert headers["api-key"] == KEY
    assert headers["accept-encoding"] == "identity"
    assert KEY not in str(caught.value)
    assert "api_key" in str(caught.value.remedy)


def test_a_key_that_no_header_can_hold_is_a_setting_error_without_the_key() -> None:
    """Line breaks at its ends are cut off, as files have them; other wrong characters are refused."""
    profile = ClusterProfile(nodes=["http://n:1"], api_key=SecretStr("secret\nsecret"))
    with pytest.raises(ConfigurationError) as caught:
        Node("http://n:1", profile)
    assert "secret" not in str(caught.value)


def test_another_peer_at_the_address_is_a_layout_error(server: Server, node: Node) -> None:
    """The identity is learnt once and then held to."""
    server.reply = answer(200, '{"result": {"status": "enabled", "peer_id": 1}}')
    node.require_identity()
    server.reply = answer(200, '{"result": {"status": "enabled", "peer_id": 2}}')
    with pytest.raises(LayoutError, match="peer 2, and as peer 1 before"):
        node.require_identity()


def test_a_rate_limit_is_waited_for_as_long_as_the_node_asks(server: Server, node: Node, naps: list[float]) -> None:
    """Reads wait for Retry-After, then give up with a transient error; a hopeless request is refused at once."""
    server.reply = error(429, "Rate limiting exceeded", retry_after="7")
    with pytest.raises(NodeUnreachableError):
        points.count(node, "docs")
    assert naps == [7.0] * 7
    naps.clear()
    server.reply = error(429, "request larger than rate limiter capacity")
    with pytest.raises(NodeRefusedError):
        points.count(node, "docs")
    assert naps == []


DATA = bytes(range(256)) * 4096  # 1 MiB


def download(node: Node, expected_bytes: int = len(DATA)) -> bytes:
    blocks = snapshots.download_snapshot(node, "docs", ShardId(0), "s.snapshot", expected_bytes=expected_bytes)
    return b"".join(blocks)


def serve_file(pieces: list[int | None], etag: str = "e1") -> Reply:
    """Serve DATA with Range; each request is cut or stalls after the next number of bytes (None: whole)."""

    def reply(request: BaseHTTPRequestHandler) -> None:
        start = int((request.headers.get("range") or "bytes=0-")[6:-1])
        length = pieces.pop(0) if pieces else None
        request.send_response(206 if start else 200)
        request.send_header("content-length", str(len(DATA) - start))
        request.send_header("etag", etag)
        request.end_headers()
        request.wfile.write(DATA[start:] if length is None else DATA[start : start + length])
        request.wfile.flush()
        if length is not None:
            hang_up(request)

    return reply


def test_a_download_goes_on_where_it_broke(server: Server, node: Node, naps: list[float]) -> None:
    """Breaks with progress are not counted, and every byte comes once."""
    server.reply = serve_file([70_000] * 9)
    assert download(node) == DATA
    ranges = [headers.get("range") for _, headers in server.seen]
    assert ranges[:3] == [None, "bytes=70000-", "bytes=140000-"]
    assert len(ranges) == 10


def test_a_download_without_progress_ends(server: Server, node: Node, naps: list[float]) -> None:
    """Five fruitless attempts in a row are enough."""
    server.reply = serve_file([70_000] + [0] * 20)
    with pytest.raises(NodeUnreachableError):
        download(node)
    assert len(server.seen) == 6
    assert naps == sorted(naps)


def test_a_stalled_download_goes_on(server: Server, node: Node, naps: list[float]) -> None:
    """Without a byte for stall_seconds the connection is given up and another one continues."""
    whole = serve_file([])
    downloaded = threading.Event()

    def stall_once(request: BaseHTTPRequestHandler) -> None:
        if len(server.seen) > 1:
            whole(request)
            return
        request.send_response(200)
        request.send_header("content-length", str(len(DATA)))
        request.send_header("etag", "e1")
        request.end_headers()
        request.wfile.write(DATA[:1000])
        request.wfile.flush()
        given_up.append(downloaded.wait(3))
        request.close_connection = True

    given_up: list[bool] = []
    server.reply = stall_once
    assert download(node) == DATA
    assert not given_up  # the first connection still hangs
    downloaded.set()
    assert [headers.get("range") for _, headers in server.seen] == [None, "bytes=1000-"]


def test_a_server_without_range_is_read_past_what_is_known(server: Server, node: Node, naps: list[float]) -> None:
    """Qdrant with its snapshots in S3 answers 200 to a Range: what was read is skipped."""
    server.reply = in_turn(serve_file([123_456]), answer(200, DATA, etag="e1"))
    assert download(node) == DATA


def test_a_file_replaced_underway_is_an_error(server: Server, node: Node, naps: list[float]) -> None:
    """Two files are never glued together."""
    server.reply = in_turn(serve_file([100]), serve_file([], etag="e2"))
    with pytest.raises(SnapshotError, match="replaced"):
        download(node)


@pytest.mark.parametrize("expected_bytes", [len(DATA) - 1, len(DATA) + 1])
def test_a_file_of_another_size_is_an_error(server: Server, node: Node, naps: list[float], expected_bytes: int) -> None:
    """More or fewer bytes than Qdrant said are no snapshot."""
    server.reply = serve_file([])
    with pytest.raises(SnapshotError, match=f"not the {expected_bytes}"):
        download(node, expected_bytes)


def test_a_snapshot_that_is_gone_or_compressed_is_an_error(server: Server, node: Node) -> None:
    """A 404 and a compressing proxy are told apart from a broken connection."""
    server.reply = answer(404, "File not found")
    with pytest.raises(SnapshotError):
        download(node)
    server.reply = answer(200, DATA, content_encoding="gzip")
    with pytest.raises(SnapshotError, match="compresses"):
        download(node)


def test_an_upload_of_the_wrong_length_fails_and_a_reader_error_passes(server: Server, node: Node) -> None:
    """The archive's own reader may stop the upload; its error is not turned into another one."""
    with pytest.raises(SnapshotError, match="has 3 bytes, and not 4"):
        snapshots.upload_shard(node, "docs", ShardId(0), iter([b"abc"]), 4, None)
    with pytest.raises(SnapshotError, match="has more bytes"):
        snapshots.upload_shard(node, "docs", ShardId(0), iter([b"abc", b"de"]), 4, None)

    def blocks() -> Iterator[bytes]:
        yield b"ab"
        raise LayoutError("mine")

    with pytest.raises(LayoutError, match="mine"):
        snapshots.upload_shard(node, "docs", ShardId(0), blocks(), 4, None)


HEALTHY = {"local_shards": [{"shard_id": 0, "state": "Active"}]}


def snapshot_server(names: list[list[str]], start: list[str]) -> Reply:
    """A node that loses the reply of every POST; each later GET shows the next list of names, the last for ever."""
    lists, starts = list(names), list(start)

    def reply(request: BaseHTTPRequestHandler) -> None:
        if request.command == "POST":
            hang_up(request)
        elif request.path.startswith("/telemetry"):
            process = starts.pop(0) if len(starts) > 1 else starts[0]
            answer(200, json.dumps({"result": {"id": process, "collections": {"snapshots": []}}}))(request)
        elif request.path.endswith("/cluster"):
            answer(200, json.dumps({"result": HEALTHY}))(request)
        else:
            shown = lists.pop(0) if len(lists) > 1 else lists[0]
            answer(200, json.dumps({"result": [{"name": name, "size": 1} for name in shown]}))(request)

    return reply


def posts(server: Server) -> int:
    return sum(line.startswith("POST") for line, _ in server.seen)


def test_a_lost_reply_is_answered_by_the_one_new_name(server: Server, node: Node, naps: list[float]) -> None:
    """The snapshot that appears later is taken, and no second one is asked for."""
    server.reply = snapshot_server([["old"], ["old"], ["old"], ["old", "new"]], ["p"])
    assert snapshots.create_snapshot(node, "docs", ShardId(0)).name == "new"
    assert posts(server) == 1


@pytest.mark.parametrize(
    ("shard_id", "names", "start", "says"),
    [
        (0, [["old"], ["old", "new", "newer"]], ["p"], "several"),
        (0, [["old"]], ["p", "p", "q"], "restarted"),
        (None, [["old"]], ["p"], "runs none"),
        (0, [["old"]], ["p"], "in 0 s"),
    ],
)
def test_a_lost_reply_without_one_new_name_is_an_error(
    server: Server, naps: list[float], shard_id: int | None, names: list[list[str]], start: list[str], says: str
) -> None:
    """Two new names, a restart, nothing running and the deadline each end the wait, and nothing is made twice."""
    seconds = 0.2 if says == "in 0 s" else 60
    server.reply = snapshot_server(names, start)
    with (
        Node(server.url, ClusterProfile(nodes=[server.url], snapshot_timeout_seconds=seconds)) as node,
        pytest.raises(SnapshotError, match=says),
    ):
        snapshots.create_snapshot(node, "docs", None if shard_id is None else ShardId(shard_id))
    assert posts(server) == 1


@pytest.mark.parametrize(
    ("shown", "taken"), [(["", "ab", "a" * 64], "a" * 64), ([""], None), ([None], None), (["b" * 64], "b" * 64)]
)
def test_a_checksum_is_awaited_until_all_of_it_is_written(
    server: Server, node: Node, naps: list[float], shown: list[str | None], taken: str | None
) -> None:
    """Before 1.17.1 Qdrant may show an empty or partial one for a moment; it is never taken for the snapshot's."""
    checksums = list(shown)

    def reply(request: BaseHTTPRequestHandler) -> None:
        made: dict[str, object] = {"name": "new", "size": 1, "checksum": None}
        if request.path.endswith("/cluster"):
            answer(200, json.dumps({"result": HEALTHY}))(request)
            return
        if request.command == "POST" or posts(server):
            made["checksum"] = checksums.pop(0) if len(checksums) > 1 else checksums[0]
        listed = request.command == "GET" and not request.path.startswith("/telemetry")
        answer(200, json.dumps({"result": [made] if listed else made | {"id": "p"}}))(request)

    server.reply = reply
    assert snapshots.create_snapshot(node, "docs", ShardId(0)).checksum == taken
    assert posts(server) == 1


@pytest.mark.parametrize("states", [["Partial"], ["Active", "Dead"], [None]])
def test_a_replica_that_is_not_active_gives_no_snapshot(
    server: Server, node: Node, naps: list[float], states: list[str | None]
) -> None:
    """Before, nothing is made; after, what was made is deleted; a replica that is gone is neither."""
    left = list(states)

    def reply(request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith("/cluster"):
            state = left.pop(0) if len(left) > 1 else left[0]
            local = [{"shard_id": 0, "state": state}] if state else []
            answer(200, json.dumps({"result": {"local_shards": local}}))(request)
        elif request.command == "GET" and not request.path.startswith("/telemetry"):
            answer(200, json.dumps({"result": []}))(request)
        else:
            made = {"id": "p", "name": "new", "size": 1, "checksum": "a" * 64}
            answer(200, json.dumps({"result": made}))(request)

    server.reply = reply
    with pytest.raises(SnapshotError, match="would lack points"):
        snapshots.create_snapshot(node, "docs", ShardId(0))
    deleted = [line for line, _ in server.seen if line.startswith("DELETE")]
    assert (posts(server), len(deleted)) == ((1, 1) if len(states) > 1 else (0, 0))


def test_a_private_authority_is_read_from_its_file(tmp_path: Path) -> None:
    """A file without certificates is refused when the node is made, not at the first request."""
    empty = tmp_path / "ca.pem"
    empty.write_text("")
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        Node("https://n:1", ClusterProfile(nodes=["https://n:1"], ca_file=empty))
    assert http.path_of("a/b", 1) == "/a%2Fb/1"
