"""The stream writer: points into a live collection over gRPC, a few batches in flight, acknowledged in their order.

An upsert may be sent again without harm, so whatever was lost on the way is. Only what a node has applied (``wait``) is
acknowledged, and a batch only after all before it: the last cursor that was acknowledged is where to go on.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from ferry.archive.points import Batch
from ferry.errors import NodeRefusedError, StoppedError
from ferry.migration.batch import PointId, Refused, WireBatch
from ferry.migration.ids import source_id_of
from ferry.models import Progress, ShardKey, no_progress
from ferry.qdrant import wire
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.finite import surely_finite
from ferry.qdrant.grpc import Call, TooLargeError, open_channels
from ferry.qdrant.http import WrongRequestError
from ferry.qdrant.rota import Rota
from ferry.qdrant.rounding import points_json
from ferry.qdrant.writer import (
    FEWEST_IN_FLIGHT,
    HEARTBEAT_SECONDS,
    MOST_IN_FLIGHT,
    WRITE_SECONDS,
    PointRefusedError,
    write_points,
)
from ferry.restore.passing import too_large

# gRPC's own limit for a message is 4 MiB, which proxies keep to; Qdrant has none. Ours leaves room for the rest of it.
MOST_BYTES = (4 << 20) - (64 << 10)
# What is left out must be few: with more refused, or with none of the first taken, the schema is wrong and not points.
MOST_REFUSED, FIRST_REFUSED = 100, 10
_TOO_LARGE = (
    "its payload holds an integer from 2^63 on, which becomes a float on the way from one node to another; finished "
    "shards carry it (writer: build)"
)
_NOT_FINITE = "a vector of it holds NaN or an infinity, which Qdrant would take and no search would find"

C = TypeVar("C")


@dataclass(frozen=True)
class Acknowledged(Generic[C]):
    """A batch that is applied, as are all before it: the cursor that came with it, how many points of it, which not."""

    cursor: C
    points: int
    refused: tuple[Refused, ...] = ()


class StreamWriter:
    """Writes batches into one collection; holds no connection between two calls of `write`.

    ``leave_out``: a point that is refused is left out and named, not an error. At most ``in_flight`` batches are sent
    at a time by each call of `write`; absent: one for each node, but 2 to 4.
    """

    def __init__(
        self, cluster: Cluster, collection: str, *, leave_out: bool = False, in_flight: int | None = None
    ) -> None:
        self.cluster = cluster
        self.collection = collection
        self.leave_out = leave_out
        self.in_flight = in_flight or max(FEWEST_IN_FLIGHT, min(MOST_IN_FLIGHT, len(cluster.nodes)))
        self.limits = Limits()
        self.tally = Tally(collection)

    def write(
        self,
        batches: Iterable[tuple[WireBatch, C]],
        acknowledged: Callable[[Acknowledged[C]], None],
        progress: Progress = no_progress,
    ) -> None:
        """Have all points of all batches applied; safe to call from several threads, and again after any failure.

        ``acknowledged`` is called in the order of the batches, by this thread. ``progress`` gets the points that were
        applied since, or 0 twice a second, and may raise to stop. In memory are the batches in flight and two more;
        each is cut where it is too large. The first failure stops the rest; what was sent may have been applied.

        Raises NodeRefusedError naming the point that is refused, or when too many are that may be left out; NodeError
        when no node has taken a batch for ``ferry.qdrant.rota.AWAY_SECONDS``; and what a node says that no waiting
        mends: no right, no such collection, no space.
        """
        pending: deque[tuple[C, Future[_Applied]]] = deque()
        with _open_stream(self) as (stream, pool):
            for batch, cursor in batches:
                pending.append((cursor, pool.submit(stream.apply, batch)))
                _take(pending, self.in_flight + 1, acknowledged, progress)  # one waits, so that no thread does
            _take(pending, 1, acknowledged, progress)


@dataclass(frozen=True)
class _Applied:
    """What came of a batch."""

    points: int
    refused: tuple[Refused, ...]


def _take(
    pending: deque[tuple[C, Future[_Applied]]],
    below: int,
    acknowledged: Callable[[Acknowledged[C]], None],
    progress: Progress,
) -> None:
    """Wait until fewer than ``below`` batches are unfinished, and acknowledge those before which none is missing."""
    while True:
        flying = [future for _, future in pending if not future.done()]
        if len(flying) >= below:
            wait(flying, timeout=HEARTBEAT_SECONDS, return_when=FIRST_COMPLETED)
        points = 0
        while pending and pending[0][1].done():
            cursor, future = pending.popleft()
            applied = future.result()
            acknowledged(Acknowledged(cursor, applied.points, applied.refused))
            points += applied.points
        for _, future in pending:
            if future.done():
                future.result()  # a failure is raised without waiting for those before it
        progress(points)
        if sum(not future.done() for _, future in pending) < below and (below > 1 or not pending):
            return


class Limits:
    """What is learnt about how much a node, or a proxy before it, takes at once."""

    def __init__(self) -> None:
        self._bytes = MOST_BYTES
        self._points: int | None = None

    def allow(self, points: Sequence[bytes]) -> bool:
        """Whether so many may be sent at once; one always may."""
        few = self._points is None or len(points) <= self._points
        return len(points) == 1 or (few and sum(map(len, points)) <= self._bytes)

    def too_large(self, points: Sequence[bytes]) -> None:
        """So many bytes were refused."""
        self._bytes = min(self._bytes, sum(map(len, points)) // 2)

    def too_many(self, taken: int) -> None:
        """More points were refused, and none of them was when so many were sent."""
        self._points = min(self._points or taken, taken)


class Tally:
    """How many points were applied and refused: a few may be left out, not all of them."""

    def __init__(self, collection: str) -> None:
        self._collection = collection
        self._lock = threading.Lock()
        self._applied = self._refused = 0

    def applied(self, points: int) -> None:
        """Count points that were applied."""
        with self._lock:
            self._applied += points

    def refused(self, point: Refused) -> None:
        """Count a point that was refused. Raises NodeRefusedError when that is one too many."""
        with self._lock:
            self._refused += 1
            none = self._applied == 0 and self._refused >= FIRST_REFUSED
            if not none and self._refused <= MOST_REFUSED:
                return
            which = f"None of the first {self._refused} points" if none else f"{self._refused} points"
        verb = "can" if none else "cannot"
        msg = f"{which} {verb} be written to {self._collection}, the last of them {point.id}: {point.reason}"
        raise NodeRefusedError(msg, "Correct the source or the changes; the same migration then goes on where it was.")


@contextmanager
def _open_stream(writer: StreamWriter) -> Iterator[tuple["_Stream", ThreadPoolExecutor]]:
    """A stream and its threads, which have ended when it is left. A failure also ends calls that are under way."""
    channels = open_channels(writer.cluster.profile)
    stream = _Stream(writer, [channel.unary_unary(wire.UPSERT) for channel in channels])
    with ThreadPoolExecutor(writer.in_flight, thread_name_prefix="ferry-stream") as pool:
        try:
            yield stream, pool
        except BaseException:
            stream.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            for channel in channels:
                channel.close()


class _Stream:
    """What the threads of one call of `write` share."""

    def __init__(self, writer: StreamWriter, calls: Sequence[Call]) -> None:
        self.stop = threading.Event()
        self._writer, self._limits = writer, writer.limits
        self._rota = Rota(calls, f"has taken points of {writer.collection}")
        self._seconds = max(writer.cluster.profile.timeout_seconds, WRITE_SECONDS)

    def apply(self, batch: WireBatch) -> _Applied:
        """Have all points of a batch applied, save those that may be left out."""
        refused: list[Refused] = []
        points = batch.points
        wrong = set() if surely_finite(points) else set(wire.not_finite(points))
        if wrong:
            for point in points:
                if wire.point_id(point) in wrong:
                    self._refuse(source_id(point), _NOT_FINITE, refused)
            points = [point for point in points if wire.point_id(point) not in wrong]
        applied = self._write(points, batch.key, refused) + self._write_plain(batch, refused)
        return _Applied(applied, tuple(refused))

    def _write(self, points: Sequence[bytes], key: ShardKey | None, refused: list[Refused]) -> int:
        """Send points, in halves where they are too many or one of them is refused; how many were applied."""
        if not points:
            return 0  # "Empty update request"
        wrong = False
        if self._limits.allow(points):
            try:
                self._send(points, key)
            except WrongRequestError as error:
                if len(points) == 1:
                    self._refuse(source_id(points[0]), error.message, refused)
                    return 0
                wrong = not isinstance(error, TooLargeError)
                if not wrong:
                    self._limits.too_large(points)
            else:
                self._writer.tally.applied(len(points))
                return len(points)
        middle = (len(points) + 1) // 2
        applied = self._write(points[:middle], key, refused) + self._write(points[middle:], key, refused)
        if wrong and applied == len(points):
            self._limits.too_many(middle)
        return applied

    def _send(self, points: Sequence[bytes], key: ShardKey | None) -> None:
        """Send one request until a node has answered that it was applied."""
        request = wire.upsert_request(self._writer.collection, points, key)
        self._rota.ask(lambda call: call(request, self._seconds), self._pause)

    def _write_plain(self, batch: WireBatch, refused: list[Refused]) -> int:
        """Write the points that only REST can carry exactly; how many were applied.

        A node that does not hold a point's shard passes it on by gRPC, so several nodes cannot carry all of them.
        """
        left, writer = list(batch.plain), self._writer
        passed_on = len(writer.cluster.nodes) > 1
        for point in [each for each in left if passed_on and too_large(each["payload"])]:
            self._refuse(source_id_of(point["id"], point["payload"]), _TOO_LARGE, refused)
            left.remove(point)
        while left:
            body = Batch([point["id"] for point in left], [], points_json(left))
            try:
                write_points(
                    writer.cluster, writer.collection, [body], shard_key=batch.key, progress=lambda _: self._pause(0.0)
                )
            except PointRefusedError as error:
                point = next(point for point in left if point["id"] == error.point_id)
                self._refuse(source_id_of(error.point_id, point["payload"]), error.reason, refused)
                left.remove(point)
            else:
                writer.tally.applied(len(left))
                break
        return len(left)

    def _refuse(self, point_id: PointId, reason: str, refused: list[Refused]) -> None:
        """Note a point as left out, or raise NodeRefusedError that names it."""
        if not self._writer.leave_out:
            msg = f"Point {point_id} cannot be written to {self._writer.collection}: {reason}"
            raise NodeRefusedError(msg, "Correct this point, or run the migration again with leave_out_refused.")
        refused.append(Refused(point_id, reason))
        self._writer.tally.refused(refused[-1])

    def _pause(self, seconds: float) -> None:
        """Wait, unless a failure elsewhere stops all: then raise StoppedError."""
        if self.stop.wait(seconds):
            msg = f"Writing to {self._writer.collection} was stopped: it failed elsewhere, or a cancel was asked for."
            raise StoppedError(msg)


def source_id(point: bytes) -> PointId:
    """The id that a point of a `WireBatch` has in the source."""
    return source_id_of(wire.point_id(point), wire.payload_of(point))
