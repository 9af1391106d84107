"""Snapshots on one node: make, list, fetch, delete and recover them. ``shard_id`` None means a collection snapshot."""

import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import httpx

from ferry.errors import NodeUnreachableError, SnapshotError
from ferry.models import ShardId, Value
from ferry.qdrant.http import NotFoundError, ReplyLostError, path_of
from ferry.qdrant.node import Node
from ferry.qdrant.view import require_active

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
_POLL_SECONDS = 1.0
AWAY_SECONDS = 120.0  # a node that is restarted or stopped for a minute is waited for
_FRUITLESS_ATTEMPTS = 5
_CHECKSUM_LOOKS = 10
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_PAUSE_SECONDS = 15.0

Priority = Literal["no_sync", "snapshot", "replica"]


class Snapshot(Value):
    """A snapshot file on a node. ``checksum`` is sha256 in hex, or None where Qdrant keeps its snapshots in S3."""

    name: str
    size: int
    checksum: str | None = None
    created_at: datetime | None = None


def list_snapshots(node: Node, collection: str, shard_id: ShardId | None) -> list[Snapshot]:
    """The finished snapshots; a file appears only when it is whole (Qdrant renames it into place)."""
    return [_snapshot(entry) for entry in node.request("GET", _folder(collection, shard_id))]


def create_snapshot(node: Node, collection: str, shard_id: ShardId | None) -> Snapshot:
    """Make one snapshot, and never a second one when the reply is lost on the way.

    The node works on when the connection breaks, so a lost reply is awaited by looking for the one new name. Raises
    SnapshotError when the node was restarted, two new names appear, ``snapshot_timeout_seconds`` have passed, or a
    replica was not Active just before or after (then the snapshot is deleted again).
    """
    require_active(node, collection, shard_id)
    deadline = time.monotonic() + node.profile.snapshot_timeout_seconds
    known = {snapshot.name for snapshot in list_snapshots(node, collection, shard_id)}
    started = process_id(node)
    try:
        reply = node.request(
            "POST",
            _folder(collection, shard_id),
            params={"wait": "true"},
            timeout=node.profile.snapshot_timeout_seconds,
        )
    except ReplyLostError as error:
        logger.warning("%s; waiting for the snapshot to appear", error.message)
        made = _await_snapshot(node, collection, shard_id, known=known, started=started, deadline=deadline)
    else:
        made = _snapshot(reply)
    made = with_whole_checksum(node, collection, shard_id, made)
    try:
        require_active(node, collection, shard_id)
    except SnapshotError:
        delete_snapshot(node, collection, shard_id, made.name)
        raise
    return made


def delete_snapshot(node: Node, collection: str, shard_id: ShardId | None, name: str) -> bool:
    """Delete one snapshot and its checksum on the node; False when the node knows no such snapshot or collection."""
    try:
        node.request(
            "DELETE",
            _folder(collection, shard_id) + path_of(name),
            params={"wait": "true"},
            timeout=node.profile.snapshot_timeout_seconds,
        )
    except NotFoundError:
        return False
    return True


def snapshots_running(node: Node, collection: str) -> bool:
    """Whether the node says that it makes a snapshot of the collection or recovers one.

    Qdrant 1.16.3 counts collection snapshots only: shard snapshots and shard recoveries show 0 while they run (seen).
    So True is certain, False is not.
    """
    for entry in node.telemetry(2).get("collections", {}).get("snapshots") or []:
        if entry["id"] == collection:
            return bool(entry.get("running_snapshots") or entry.get("running_snapshot_recovery"))
    return False


def download_snapshot(
    node: Node,
    collection: str,
    shard_id: ShardId | None,
    name: str,
    *,
    expected_bytes: int,
    start: int = 0,
) -> Iterator[bytes]:
    """The snapshot's bytes from byte ``start`` on in blocks of 1 MiB, the last one shorter; at most two in memory.

    After a stall (``stall_seconds`` without a byte), a reset or a short body it goes on from where it was, with
    back-off, until five attempts in a row brought nothing: then NodeUnreachableError. Raises SnapshotError when the
    file is not there, was replaced underway, or has another size than ``expected_bytes``.
    """
    fetch = _Fetch(node, _folder(collection, shard_id) + path_of(name), expected_bytes)
    fetch.position = start
    buffer = bytearray()
    for piece in fetch.pieces():
        buffer += piece
        while len(buffer) >= MIB:
            yield bytes(buffer[:MIB])
            del buffer[:MIB]
    if buffer:
        yield bytes(buffer)


def recover_shard(
    node: Node,
    collection: str,
    shard_id: ShardId,
    *,
    location: str,
    checksum: str | None,
    priority: Priority = "no_sync",
) -> None:
    """Let the node load the shard from a URL, or from a bare snapshot name of its own.

    Returns when the node has loaded it; other nodes may not know yet. ``priority`` is always sent, for Qdrant's own
    default, ``snapshot``, turns the other replicas Dead. Raises ReplyLostError when nobody knows how it ended: up to
    1.18 the node must be done before the same shard is recovered again, because two recoveries interleave.
    """
    node.request(
        "PUT",
        _folder(collection, shard_id) + "/recover",
        # api_key stays null: Qdrant would send it to the bucket, and to wherever the bucket redirects.
        json={"location": location, "priority": priority, "checksum": checksum},
        params={"wait": "true"},
        timeout=node.profile.snapshot_timeout_seconds,
    )


def upload_shard(
    node: Node,
    collection: str,
    shard_id: ShardId,
    blocks: Iterator[bytes],
    size: int,
    checksum: str | None,
) -> None:
    """Send a shard's snapshot as multipart and let the node load it; one block at a time in memory.

    For nodes that cannot reach the bucket or forbid URLs. Raises SnapshotError when ``blocks`` are not ``size`` bytes;
    errors that ``blocks`` raises pass through, and the node drops what it had.
    """
    boundary = uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="snapshot"; filename="ferry.snapshot"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    path = _folder(collection, shard_id) + "/upload"
    with (
        node.stream(
            "POST",
            path,
            content=_framed(head, blocks, tail, size=size),
            params={"wait": "true", "priority": "no_sync"} | ({"checksum": checksum} if checksum else {}),
            headers={
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(len(head) + size + len(tail)),
            },
            timeout=node.profile.snapshot_timeout_seconds,
        ) as response,
        node.translated("POST", path),
    ):
        response.read()


class _Fetch:
    """One file of a known size, fetched over as many connections as it takes."""

    def __init__(self, node: Node, path: str, expected_bytes: int) -> None:
        self.node = node
        self.path = path
        self.expected_bytes = expected_bytes
        self.position = 0
        self.etag: str | None = None

    def pieces(self) -> Iterator[bytes]:
        fruitless = 0
        while self.position < self.expected_bytes:
            before = self.position
            broken: NodeUnreachableError | None = None
            try:
                yield from self._attempt()
            except NotFoundError as error:
                raise SnapshotError(error.message, "It was deleted underway: make a new snapshot.") from error
            except NodeUnreachableError as error:
                broken = error
            fruitless = 0 if self.position > before else fruitless + 1
            if fruitless == _FRUITLESS_ATTEMPTS:
                raise broken or self._wrong_size()
            if self.position < self.expected_bytes:
                logger.warning("%s %s broke off at byte %d; going on", self.node.label, self.path, self.position)
                time.sleep(min(0.5 * 2.0**fruitless, _LONGEST_PAUSE_SECONDS))
        if self.position != self.expected_bytes:
            raise self._wrong_size()

    def _attempt(self) -> Iterator[bytes]:
        headers = {"Range": f"bytes={self.position}-"} if self.position else {}
        with self.node.stream("GET", self.path, headers=headers, timeout=self.node.profile.stall_seconds) as response:
            repeated = self._repeated_bytes(response)
            pieces = response.iter_raw()
            while True:
                # Only the read is translated: what the consumer raises at the yield is its own.
                with self.node.translated("GET", self.path):
                    piece = next(pieces, None)
                if piece is None:
                    return
                fresh, repeated = piece[repeated:], max(0, repeated - len(piece))
                if fresh:
                    self.position += len(fresh)
                    if self.position > self.expected_bytes:
                        raise self._wrong_size()
                    yield fresh

    def _repeated_bytes(self, response: httpx.Response) -> int:
        """Bytes of this answer that were read before: all of them where Range is not honoured (snapshots in S3)."""
        if response.headers.get("content-encoding", "identity") != "identity":
            msg = f"Something between Ferry and {self.node.label} compresses {self.path}."
            raise SnapshotError(msg, "Configure the address of the node itself, or switch the proxy's compression off.")
        etag = response.headers.get("etag")
        if self.etag is not None and etag != self.etag:
            msg = f"Node {self.node.label}: {self.path} was replaced while it was read (ETag {self.etag} → {etag})."
            raise SnapshotError(msg, "Something else makes snapshots of the same shard: stop it, then run this again.")
        self.etag = etag
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            return 0
        announced = response.headers.get("content-length")
        if announced is not None and int(announced) != self.expected_bytes:
            raise self._wrong_size(int(announced))
        return self.position

    def _wrong_size(self, found: int | None = None) -> SnapshotError:
        msg = (
            f"Node {self.node.label}: {self.path} has {self.position if found is None else found} bytes, "
            f"and not the {self.expected_bytes} that Qdrant said."
        )
        return SnapshotError(msg, "Make a new snapshot: run the backup again.")


def _await_snapshot(
    node: Node,
    collection: str,
    shard_id: ShardId | None,
    *,
    known: set[str],
    started: str,
    deadline: float,
) -> Snapshot:
    what = f"{collection} " + ("(collection)" if shard_id is None else f"shard {shard_id}")
    idle_polls = 0
    last_look = False
    silence = Silence(node)
    while not last_look:
        time.sleep(_POLL_SECONDS)
        last_look = time.monotonic() >= deadline
        try:
            # Asked before the list, so that one finished in between is in the list.
            running = snapshots_running(node, collection)
            new = [found for found in list_snapshots(node, collection, shard_id) if found.name not in known]
            restarted = process_id(node) != started
        except NodeUnreachableError as error:
            silence.heard(error)
            continue
        silence.broken()
        if len(new) > 1:
            names = ", ".join(snapshot.name for snapshot in new)
            msg = f"Node {node.label} has several new snapshots of {what}, and the reply naming ours was lost: {names}."
            raise SnapshotError(msg, "Stop what else makes snapshots there, delete these, then run this again.")
        if new:
            return new[0]
        # Only collection snapshots are counted on 1.16.3, so only for them does "none running" say anything.
        idle_polls = 0 if running or shard_id is not None else idle_polls + 1
        if restarted or idle_polls > 1:
            why = "was restarted" if restarted else "runs none any more"
            msg = f"Node {node.label} {why} and has no new snapshot of {what}."
            raise SnapshotError(msg, "See the node's log for the reason, then run this again.")
    msg = f"Node {node.label} made no snapshot of {what} in {node.profile.snapshot_timeout_seconds:.0f} s."
    raise SnapshotError(msg, "It may still appear on the node; raise snapshot_timeout_seconds if its disk is slow.")


def with_whole_checksum(node: Node, collection: str, shard_id: ShardId | None, made: Snapshot) -> Snapshot:
    """The snapshot with its checksum, once Qdrant has written all of it.

    Before 1.17.1 Qdrant may read the checksum's file before it has been written, and then shows an empty one, or a part
    (Qdrant 8219; seen on 1.16.3 under load). Where it stays so the snapshot has none, and the caller says what follows.
    """
    for _ in range(_CHECKSUM_LOOKS):
        if made.checksum is None or _SHA256.fullmatch(made.checksum):
            return made
        logger.warning("%s: the checksum of %s is not whole yet; looking again", node.label, made.name)
        time.sleep(_POLL_SECONDS)
        found = list_snapshots(node, collection, shard_id)
        made = next((snapshot for snapshot in found if snapshot.name == made.name), made)
    return made.model_copy(update={"checksum": None})


class Silence:
    """How long a node has answered nothing while it was doing something for us."""

    def __init__(self, node: Node) -> None:
        self._label = node.label
        self._since: float | None = None

    def broken(self) -> None:
        """It answers."""
        self._since = None

    def heard(self, error: NodeUnreachableError) -> None:
        """It does not. Raises SnapshotError when it has not for ``AWAY_SECONDS``: it does not come back by itself."""
        self._since = self._since or time.monotonic()
        seconds = time.monotonic() - self._since
        if seconds >= AWAY_SECONDS:
            msg = f"Node {self._label} went away over a snapshot and has not answered for {seconds:.0f} s."
            remedy = "See its log (did it run out of memory or disk?), start it, then run this again."
            raise SnapshotError(msg, remedy) from error


def process_id(node: Node) -> str:
    """A value that changes when the node is restarted."""
    return str(node.telemetry(0)["id"])


def _framed(head: bytes, blocks: Iterator[bytes], tail: bytes, *, size: int) -> Iterator[bytes]:
    sent = 0
    yield head
    for block in blocks:
        sent += len(block)
        if sent > size:
            break
        yield block
    if sent != size:
        msg = f"The archive to upload has {'more' if sent > size else sent} bytes, and not {size}; nothing was changed."
        raise SnapshotError(msg)
    yield tail


def _folder(collection: str, shard_id: ShardId | None) -> str:
    shard = "" if shard_id is None else path_of("shards", shard_id)
    return path_of("collections", collection) + shard + "/snapshots"


def _snapshot(entry: dict[str, object]) -> Snapshot:
    made = entry.get("creation_time")
    return Snapshot.model_validate(
        {
            "name": entry["name"],
            "size": entry["size"],
            "checksum": entry.get("checksum"),
            "created_at": datetime.fromisoformat(str(made)).replace(tzinfo=UTC) if made else None,
        }
    )
