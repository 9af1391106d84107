"""What Ferry's migration is measured against: qdrant-client's migrate(), a loop like the Go tool's, bare upserts.

The Go tool (github.com/qdrant/migration, `migrate_from_qdrant.go`) does not run here; its loop does, with the same
requests in the same order, on the cheapest messages that Python has: points pass undecoded, so it is faster than a
Python client could be, and the servers do what Go would make them do.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count, cycle
from time import sleep
from types import TracebackType
from typing import Any, Self

from qdrant_client import QdrantClient, grpc, models
from qdrant_client.migrate.migrate import _recreate_collection, migrate

from ferry.migration.batch import PointId
from ferry.profiles import ClusterProfile
from ferry.qdrant import wire
from ferry.qdrant.grpc import open_channel

# The Go tool's: flags --migration.batch-size and --migration.offsets-collection, SAMPLE_SIZE_PER_WORKER.
BATCH_POINTS = 50
OFFSETS = "_migration_offsets"
SAMPLES_A_WORKER = 10
WORKERS = 4
# The limit of upserts: messages of about 1 MiB, so many on their way at once.
MESSAGE_BYTES = 1 << 20
IN_FLIGHT = 4
READ_POINTS = 1_000
CALL_SECONDS = 120
DRAIN_SECONDS = 0.05
NO_WAIT = b"\x10\x00"  # UpsertPoints.wait = false: the last value of a field counts

Call = Callable[[bytes], bytes]


class Ends:
    """The two clusters of a move, as clients that know one address of each, and by gRPC every node of the target."""

    def __init__(self, source: ClusterProfile, target: ClusterProfile, collection: str, into: str) -> None:
        self.collection, self.into = collection, into
        self._profiles = source, target
        self._stack = ExitStack()
        self.source = QdrantClient(url=source.nodes[0], timeout=CALL_SECONDS, check_compatibility=False)
        self.target = QdrantClient(url=target.nodes[0], timeout=CALL_SECONDS, check_compatibility=False)

    def __enter__(self) -> Self:
        for client in (self.source, self.target):
            self._stack.callback(client.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def scrolling(self) -> Call:
        """Scroll requests to one node of the source, over a connection of its own."""
        return self._calling(0, 0, wire.SCROLL)

    def upserting(self, node: int = 0) -> Call:
        """Upsert requests to a node of the target, over a connection of its own."""
        return self._calling(1, node, wire.UPSERT)

    def target_nodes(self) -> int:
        """How many nodes the target has."""
        return len(self._profiles[1].nodes)

    def make_target(self) -> None:
        """Create the collection as migrate() does, and as the Go tool does: with the source's configuration."""
        renamed = _Renamed(self.source, self.collection)
        _recreate_collection(renamed, self.target, self.into)  # type: ignore[arg-type]

    def count(self, client: QdrantClient, name: str) -> int:
        """Points of a collection, exactly."""
        return client.count(name, exact=True).count

    def _calling(self, end: int, node: int, method: str) -> Call:
        profile = self._profiles[end]
        channel = self._stack.enter_context(open_channel(profile.grpc_addresses[node], profile))
        call = channel.unary_unary(method)
        return lambda request: call(request, CALL_SECONDS)


class _Renamed:
    """A client whose one collection has the name that its copy shall have."""

    def __init__(self, client: QdrantClient, collection: str) -> None:
        self._client, self._collection = client, collection

    def get_collection(self, _name: str) -> models.CollectionInfo:
        return self._client.get_collection(self._collection)


def migrate_with_client(ends: Ends) -> None:
    """qdrant-client's own migrate() with its defaults. The copy has the name of the source."""
    migrate(ends.source, ends.target, [ends.collection], recreate_on_collision=True)


def go_shaped(ends: Ends) -> None:
    """Random ids part the collection, four workers take a part each: 50 points read, sent without waiting for them,
    and the offset stored in a collection of the target; at the end all points are waited for."""
    ends.target.create_collection(OFFSETS, vectors_config={})
    ends.make_target()
    sample = models.SampleQuery(sample=models.Sample.RANDOM)
    limit = WORKERS * SAMPLES_A_WORKER
    found = ends.source.query_points(ends.collection, query=sample, limit=limit, with_payload=False).points
    ids = sorted(point.id for point in found)
    parts = list(zip(count(), [None, *ids], [*ids, None], strict=False))
    scroll, upsert = ends.scrolling(), ends.upserting()  # one connection for each end, as the Go client has
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda part: _go_worker(ends, scroll, upsert, part), parts))
    expected = ends.count(ends.source, ends.collection)
    while ends.count(ends.target, ends.into) < expected:
        sleep(DRAIN_SECONDS)
    ends.target.delete_collection(OFFSETS)


def _go_worker(ends: Ends, scroll: Call, upsert: Call, part: tuple[int, Any, Any]) -> None:
    number, offset, end = part
    selection, done = wire.Selection(ends.collection), 0
    while True:
        page = wire.scroll_page(scroll(wire.scroll_request(selection, offset, BATCH_POINTS)))
        last, points = _up_to(page.points, end)
        if last is None:
            return
        upsert(wire.upsert_request(ends.into, wire.retag(points), None) + NO_WAIT)
        done += len(points)
        upsert(_offset_request(f"{ends.collection}-workers-{WORKERS}-range-{number}", last, done))
        if page.following is None or last == end:
            return
        offset = page.following


def _up_to(points: Sequence[Any], end: PointId | None) -> tuple[PointId | None, Sequence[Any]]:
    """The points of a page that belong to the part (its end does), and the id of the last one."""
    last = wire.retrieved_id(points[-1]) if points else None
    if end is None or last is None or last <= end:  # type: ignore[operator]
        return last, points
    ids = [wire.retrieved_id(point) for point in points]
    kept = [point for point, point_id in zip(points, ids, strict=True) if point_id <= end]  # type: ignore[operator]
    return (ids[len(kept) - 1] if kept else None), kept


def _offset_request(key: str, last: PointId, done: int) -> bytes:
    payload = {
        f"{key}_offset": grpc.Value(integer_value=last) if isinstance(last, int) else grpc.Value(string_value=last),
        f"{key}_offsetCount": grpc.Value(integer_value=done),
        f"{key}_lastUpsertAt": grpc.Value(string_value="2026-11-22T20:00:00Z"),
    }
    empty = grpc.Vectors(vectors=grpc.NamedVectors())
    point_id = grpc.PointId(uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, key)))
    point = grpc.PointStruct(id=point_id, payload=payload, vectors=empty)
    return bytes(grpc.UpsertPoints(collection_name=OFFSETS, points=[point]).SerializeToString())


def encoded(ends: Ends) -> list[bytes]:
    """The whole collection as finished upsert requests, and an empty collection for them on the target."""
    ends.make_target()
    messages, held, size = [], [], 0
    for point in _points(ends):
        held.append(point)
        size += len(point)
        if size >= MESSAGE_BYTES:
            messages.append(wire.upsert_request(ends.into, held, None))
            held, size = [], 0
    return [*messages, wire.upsert_request(ends.into, held, None)] if held else messages


def _points(ends: Ends) -> Iterator[bytes]:
    scroll, selection = ends.scrolling(), wire.Selection(ends.collection)
    page = wire.Page((), None)
    while True:
        page = wire.scroll_page(scroll(wire.scroll_request(selection, page.following, READ_POINTS)))
        yield from wire.retag(page.points)
        if page.following is None:
            return


def upsert(ends: Ends, messages: Sequence[bytes]) -> None:
    """Send finished requests, some at a time, to one node after the other; each is answered when it is applied."""
    calls = [ends.upserting(node % ends.target_nodes()) for node in range(IN_FLIGHT)]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(lambda pair: pair[0](pair[1]), zip(cycle(calls), messages, strict=False)))
