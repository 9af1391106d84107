"""A live collection of a Qdrant cluster, read over gRPC by ranges of ids.

Ids have one order on every node, numbers before UUIDs, and a scroll may begin at an id that is not there. So a range of
ids stays what it is whatever is inserted or deleted, and any id is a cursor. With shard keys every key is read by
itself: one id may be a point under each, and a scroll over all keys shows it once (seen on 1.16.3).
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self
from uuid import UUID

import orjson
from pydantic import ValidationError

from ferry.errors import ConfigurationError, LayoutError
from ferry.migration.batch import PointBatch, PointId, WireBatch
from ferry.migration.plan import QdrantSource
from ferry.migration.source import Ask, Cursor, Read, SourceDescription, SourceRange
from ferry.models import ClusterLayout, CollectionLayout, Finding, Progress, ShardKey, ShardLayout, no_progress
from ferry.qdrant import points, wire
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.grpc import Call, TooLargeError, open_channels
from ferry.qdrant.http import WrongRequestError, path_of
from ferry.qdrant.node import Node
from ferry.qdrant.rota import Rota
from ferry.settings import load_settings

_FIRST_PAGE_POINTS = 16  # before anybody knows how large a point is
_MOST_POINTS = 10_000
_GROWTH = 8  # of a page over the one before: the next points may be larger
_MOST_IDS = 1000
_SAMPLE_IDS = 2000  # 2000 random ids put the borders of 64 ranges within some 20 % of equal parts
_READ_SECONDS = 60.0
_WAIT_SECONDS = 0.25


class QdrantLive:
    """A source; open it with ``with``, from then on it may be used by several threads."""

    def __init__(self, source: QdrantSource) -> None:
        """Raises ConfigurationError for a cluster that the settings do not have; asks nobody yet."""
        self._cluster = Cluster(source.cluster, load_settings().cluster(source.cluster))
        self._asked = source.collection
        self._found: CollectionLayout | None = None
        self._task = f"has shown points of {source.collection}"
        self._filters: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._cluster)
        channels = [self._stack.enter_context(channel) for channel in open_channels(self._cluster.profile)]
        self._nodes: Rota[Node] = Rota(self._cluster.nodes, self._task)
        self._scrolls: Rota[Call] = Rota([channel.unary_unary(wire.SCROLL) for channel in channels], self._task)
        self._gets: Rota[Call] = Rota([channel.unary_unary(wire.GET) for channel in channels], self._task)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def describe(self) -> SourceDescription:
        """The collection as it is now, whatever alias was asked for.

        Raises ConfigurationError for a name that is not there, LayoutError for a shard without an Active replica.
        """
        layout = self._find()
        [found] = layout.collections
        subject, findings = f"{found.name} of {self._cluster.name}, live", list[Finding]()
        try:
            self._cluster.require_quiet(layout)
        except LayoutError as error:
            findings.append(Finding(severity="warning", subject=subject, message=error.message, remedy=error.remedy))
        count = self._nodes.ask(lambda node: points.count(node, found.name), _patient(no_progress))
        return SourceDescription(
            kind="qdrant",
            name=subject,
            identity=f"qdrant/{self._cluster.name}/{found.name}/{found.uuid or ''}",
            config=found.config,
            payload_schema=found.payload_schema,
            consistency="live",
            points=count,
            bytes=count * self._mean_bytes(found),
            shards=found.shards,
            versions=tuple(sorted({node.version for node in layout.nodes})),
            wire=True,
            findings=tuple(findings),
        )

    def plan_ranges(self, wanted: int) -> list[SourceRange]:
        """Ranges of ids, borders drawn once from a random sample; at least one for each shard key."""
        found = self._collection()
        counts = {key: self._count(key) for key in _keys(found)}
        total, ranges = max(1, sum(counts.values())), list[SourceRange]()
        for key, count in counts.items():
            pieces = max(1, round(wanted * count / total))
            borders = _borders(self._sample(key), pieces) if pieces > 1 else []
            ends: list[PointId | None] = [None, *borders, None]
            for start, end in pairwise(ends):
                label = _label(key, start, end)
                each = count // (len(borders) + 1)
                ranges.append(
                    SourceRange(
                        number=len(ranges), label=label, key=key, part=found.name, start=start, end=end, points=each
                    )
                )
        return ranges

    def read(
        self, part: SourceRange, cursor: Cursor | None, ask: Ask, progress: Progress = no_progress
    ) -> Iterator[Read]:
        """The points of a range, page after page, each asked of the next node; a cursor is an id.

        A page that fails is asked of another node, for two minutes until one answers. ``progress`` gets 0 at every page
        and while nobody answers. Raises what `Rota.ask` does, and ConfigurationError for a filter that is none, and for
        an alias that has moved since the range was planned.
        """
        self._require_same(part)
        selection = self._selection(part.key, ask)
        most = self._most_points("max_query_limit", _MOST_POINTS)
        give = self._passed_on if ask.wire else self._columns
        following, limit = part.start if cursor is None else cursor, min(most, _FIRST_PAGE_POINTS)
        while True:
            progress(0)
            page, passed = self._page(selection, following, limit, progress)
            if passed < limit:  # no larger page will pass either
                limit = most = passed
            shown, following = _before(page, part.end)
            yield Read(give(shown, part.key, ask, progress), following)
            if following is None:
                return
            if shown:
                fitting = ask.batch_bytes * len(page.points) // page.size_bytes
                limit = max(1, min(most, fitting, limit * _GROWTH))

    def retrieve(self, ids: Sequence[PointId], key: ShardKey | None, ask: Ask) -> Iterator[PointBatch]:
        """Those of these points that are there, and pass the filter where one is asked for."""
        selection = self._selection(key, ask)
        # Strict mode charges one token for each id, and refuses for good what is larger than a minute's worth.
        most = min(self._most_points(name, _MOST_IDS) for name in ("read_rate_limit", "max_query_limit"))
        size, start = min(most, _FIRST_PAGE_POINTS), 0
        while start < len(ids):
            found = self._chosen(selection, ids[start : start + size], ask)
            start += size
            if found:
                yield self._columns(found, key, ask, no_progress)
                mean = max(1, sum(point.ByteSize() for point in found) // len(found))
                size = max(1, min(most, ask.batch_bytes // mean, size * _GROWTH))

    def require_filter(self, conditions: dict[str, Any]) -> bytes:
        """The filter as gRPC takes it. Raises ConfigurationError for one that the source's Qdrant does not know.

        Over gRPC it silently ignores conditions that are newer than itself (seen on 1.16.3: `slice`), over REST it
        refuses them; so it is asked there, once.
        """
        text = orjson.dumps(conditions)
        if text not in self._filters:
            try:
                encoded = wire.filter_bytes(conditions)
                self._rest("/count", {"filter": conditions, "exact": False}, no_progress)
            except (ValidationError, WrongRequestError) as error:
                said = error.message if isinstance(error, WrongRequestError) else str(error)
                msg = f"The filter cannot be applied to {self._asked} of {self._cluster.name}: {said}"
                raise ConfigurationError(msg, "Correct the filter; nothing was read.") from error
            self._filters[text] = encoded
        return self._filters[text]

    def _find(self) -> ClusterLayout:
        """The layout with this one collection in it."""
        layout = self._cluster.read_layout(include=())
        name = layout.aliases.get(self._asked, self._asked)
        if name not in layout.names:
            known = ", ".join(sorted({*layout.names, *layout.aliases})) or "none"
            msg = f"Cluster {self._cluster.name} has no collection and no alias {self._asked}, but: {known}."
            raise ConfigurationError(msg, "Correct the source's collection; nothing was changed.")
        layout = self._cluster.read_layout(include=(name,))
        [self._found] = layout.collections
        _require_active(self._found, self._cluster.name)
        return layout

    def _collection(self) -> CollectionLayout:
        with self._lock:
            return self._found or self._find().collections[0]

    def _require_same(self, part: SourceRange) -> None:
        if part.part not in (None, self._collection().name):
            msg = f"{self._asked} of {self._cluster.name} is {self._collection().name} now; it was {part.part} when the"
            raise ConfigurationError(f"{msg} ranges were planned.", f"Name the collection itself: {part.part}.")

    def _selection(self, key: ShardKey | None, ask: Ask) -> wire.Selection:
        chosen = None if ask.filter is None else self.require_filter(ask.filter)
        return wire.Selection(self._collection().name, key, chosen, ask.vectors, ask.payload)

    def _page(
        self, selection: wire.Selection, start: Cursor | None, limit: int, progress: Progress
    ) -> tuple[wire.Page, int]:
        """A page, and how many points it was asked for: fewer when a proxy lets no larger message through."""
        while True:
            try:
                return self._shown(selection, start, limit, progress), limit
            except TooLargeError:
                if limit == 1:
                    raise
                limit //= 2

    def _shown(self, selection: wire.Selection, start: Cursor | None, limit: int, progress: Progress) -> wire.Page:
        """A page, in no order; of several shards by its ids, which are asked for first.

        For a scroll every shard gives a whole page, and all but one page is thrown away: 38 µs of the source's
        processors a point with 3 shards and 78 with 6, by ids 20 and 25 (1.16.3, 100 dimensions).
        """
        by_ids = self._by_ids(selection.key)
        asked = replace(selection, vectors=(), payload=False) if by_ids else selection
        page = wire.scroll_page(self._answer(self._scrolls, wire.scroll_request(asked, start, limit), progress))
        if not by_ids or not page.points:
            return page
        request = wire.get_request(selection, map(wire.retrieved_id, page.points))
        answer = self._answer(self._gets, request, progress)
        return wire.Page(wire.got_points(answer), page.following, len(answer))

    def _by_ids(self, key: ShardKey | None) -> bool:
        """Whether a key has several shards, and strict mode does not charge for each id."""
        found = self._collection()
        strict = found.config.get("strict_mode_config") or {}
        charged = strict.get("enabled") and strict.get("read_rate_limit")
        return not charged and sum(shard.key == key for shard in found.shards) > 1

    def _chosen(self, selection: wire.Selection, ids: Sequence[PointId], ask: Ask) -> Sequence[Any]:
        if ask.filter is None:
            return wire.got_points(self._answer(self._gets, wire.get_request(selection, ids), no_progress))
        both = wire.filter_bytes({"must": [ask.filter, {"has_id": list(ids)}]})
        return self._page(replace(selection, filter=both), None, len(ids), no_progress)[0].points

    def _answer(self, calls: Rota[Call], request: bytes, progress: Progress) -> bytes:
        seconds = max(self._cluster.profile.timeout_seconds, _READ_SECONDS)
        return calls.ask(lambda call: call(request, timeout=seconds), _patient(progress))

    def _columns(self, shown: Sequence[Any], key: ShardKey | None, ask: Ask, progress: Progress) -> PointBatch:
        batch = wire.decode(shown, key)
        odd = wire.not_carried(shown) if ask.payload else []
        return self._exact(batch, odd, progress) if odd else batch

    def _passed_on(self, shown: Sequence[Any], key: ShardKey | None, ask: Ask, progress: Progress) -> WireBatch:
        odd = set(wire.not_carried(shown)) if ask.payload else None
        if not odd:  # nearly always
            return WireBatch(wire.retag(shown), key)
        few = [point for point in shown if wire.retrieved_id(point) in odd]
        encoded = wire.encode(self._columns(few, key, ask, progress))
        others = wire.retag(point for point in shown if wire.retrieved_id(point) not in odd)
        return WireBatch([*others, *encoded.points], key, encoded.plain)

    def _exact(self, batch: PointBatch, odd: Sequence[PointId], progress: Progress) -> PointBatch:
        """The batch with the payloads of these points as they are stored, which gRPC may not show so."""
        payloads: dict[PointId, dict[str, Any]] = {}
        for shard in self._collection().shards:
            if shard.key == batch.key:
                payloads |= self._stored_payloads(shard, odd, progress)
        # One that was deleted meanwhile keeps what was shown: reading later finds that it is gone.
        both = zip(batch.ids, batch.payloads, strict=True)
        return replace(batch, payloads=[payloads.get(point_id, payload) for point_id, payload in both])

    def _stored_payloads(
        self, shard: ShardLayout, ids: Sequence[PointId], progress: Progress
    ) -> dict[PointId, dict[str, Any]]:
        """Those that a shard has, from a replica on its own node: nodes show each other's points over gRPC."""
        holders = [self._cluster.node(replica.peer_id) for replica in shard.replicas if replica.state == "Active"]
        url = path_of("collections", self._collection().name, "shards", shard.shard_id, "points")
        body = {"ids": ids, "with_payload": True, "with_vector": False}
        answers: Rota[Node] = Rota(holders, self._task)
        shown = answers.ask(lambda node: node.request("POST", url, json=body), _patient(progress))
        return {point["id"]: point["payload"] or {} for point in shown}

    def _rest(self, path: str, body: dict[str, Any], progress: Progress) -> Any:
        url = path_of("collections", self._collection().name) + "/points" + path
        return self._nodes.ask(lambda node: node.request("POST", url, json=body), _patient(progress))

    def _most_points(self, limit: str, most: int) -> int:
        """What strict mode allows, at most ``most``."""
        strict = self._collection().config.get("strict_mode_config") or {}
        return min(most, (strict.get("enabled") and strict.get(limit)) or most)

    def _count(self, key: ShardKey | None) -> int:
        """About how many points a key has."""
        return int(self._rest("/count", {"exact": False, **_of(key)}, no_progress)["count"])

    def _sample(self, key: ShardKey | None) -> list[PointId]:
        limit = self._most_points("max_query_limit", _SAMPLE_IDS)
        body = {"query": {"sample": "random"}, "limit": limit, **_of(key)}
        return [point["id"] for point in self._rest("/query", body, no_progress)["points"]]

    def _mean_bytes(self, found: CollectionLayout) -> int:
        """Bytes of a point on the wire, by the first ones of the first key."""
        for key in _keys(found)[:1]:
            page, _ = self._page(wire.Selection(found.name, key), None, _FIRST_PAGE_POINTS, no_progress)
            return page.size_bytes // max(1, len(page.points))
        return 0


def _of(key: ShardKey | None) -> dict[str, Any]:
    return {} if key is None else {"shard_key": key}


def _require_active(found: CollectionLayout, cluster: str) -> None:
    for shard in found.shards:
        if all(replica.state != "Active" for replica in shard.replicas):
            msg = f"Shard {shard.shard_id} of {found.name} has no Active replica, so its points cannot be read."
            raise LayoutError(msg, f"See GET /collections/{found.name}/cluster on each node of {cluster}.")


def _keys(found: CollectionLayout) -> list[ShardKey | None]:
    """The shard keys; without custom sharding there is one part, of no key."""
    if not found.custom_sharding:
        return [None]
    return sorted({shard.key for shard in found.shards}, key=lambda key: (isinstance(key, str), key))


def _order(point_id: PointId) -> tuple[int, int]:
    """Qdrant's own order of ids: numbers, then UUIDs by value."""
    return (0, point_id) if isinstance(point_id, int) else (1, UUID(point_id).int)


def _borders(sample: Sequence[PointId], pieces: int) -> list[PointId]:
    """Ids that cut a sample into so many equal parts, or fewer where it is small."""
    ordered = sorted(set(sample), key=_order)
    places = sorted({len(ordered) * piece // pieces for piece in range(1, pieces)} - {0})
    return [ordered[place] for place in places if place < len(ordered)]


def _before(page: wire.Page, end: Cursor | None) -> tuple[Sequence[Any], PointId | None]:
    """The points of a page that lie before ``end``, and where to go on; None at the end."""
    if end is None or (page.following is not None and _order(page.following) < _order(end)):
        return page.points, page.following
    return [point for point in page.points if _order(wire.retrieved_id(point)) < _order(end)], None


def _label(key: ShardKey | None, start: PointId | None, end: PointId | None) -> str:
    ids = "all ids" if start is None and end is None else f"ids from {start or 'the first'} to {end or 'the last'}"
    return ids if key is None else f"shard key {key}, {ids}"


def _patient(progress: Progress) -> Callable[[float], None]:
    """Waiting that asks ``progress`` four times a second whether to go on."""

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        progress(0)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _WAIT_SECONDS))
            progress(0)

    return pause
