"""Reading points of an open archive into a digest and a sample: the same loop in this process and in a worker's."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ferry.archive.digest import ContentDigest, PointId, PointSample, ShardDigest, point_sample
from ferry.archive.reader import PAGE_POINTS, OpenArchive, PlainId, before

PAGE_BYTES = 8 << 20  # encoded bytes that one page should hold at most; the engine holds about the same again
FIRST_PAGE_POINTS = 16  # before the size of a point is known


@dataclass(frozen=True)
class Part:
    """Which points to read: ids from ``start`` up to, but without, ``stop``; None is an open end."""

    start: PlainId | None = None
    stop: PlainId | None = None


@dataclass
class Sampler:
    """Keeps the ``size`` points with the smallest hashes: a random choice, the same in any order."""

    size: int
    _heap: list[tuple[int, PointSample]] = field(default_factory=list)

    def offer(self, value: int, point_id: PointId, payload: dict[str, object] | None, vectors: object) -> None:
        """Keep a point with hash ``value`` if it is among the smallest so far."""
        if len(self._heap) < self.size or (self._heap and -value > self._heap[0][0]):
            self.keep(value, point_sample(point_id, payload, vectors))

    def keep(self, value: int, sample: PointSample) -> None:
        """Keep a sample with hash ``value`` if it is among the smallest so far."""
        heapq.heappush(self._heap, (-value, sample))
        if len(self._heap) > self.size:
            heapq.heappop(self._heap)

    def chosen(self) -> list[tuple[int, PointSample]]:
        """Return what was kept, by rising hash."""
        return sorted(((-value, sample) for value, sample in self._heap), key=lambda pair: pair[0])


@dataclass(frozen=True)
class Scanned:
    """What one part holds: its digest, and its points with the smallest hashes."""

    content: ContentDigest
    sample: list[tuple[int, PointSample]]


def scan(archive: OpenArchive, part: Part, sample: int, progress: Callable[[int], None]) -> Scanned:
    """Read one part of an open archive; ``progress`` gets the points read so far after every page, and may raise."""
    digest, sampler = ShardDigest(), Sampler(sample)
    limit, following = FIRST_PAGE_POINTS, part.start
    while True:
        bytes_before = digest.encoded_bytes
        records, following = archive.page(limit, following)
        kept = before(records, part.stop)
        for record in kept:
            point_id, payload, vector = record.id, record.payload, record.vector
            sampler.offer(digest.add(point_id, payload, vector), point_id, payload, vector)
        progress(digest.points)
        if following is None or len(kept) < len(records):
            return Scanned(digest.value(), sampler.chosen())
        limit = page_points((digest.encoded_bytes - bytes_before) // len(kept))


def joined(parts: Iterable[Scanned], sample: int) -> Scanned:
    """Put the parts of a shard together."""
    digest, sampler = ShardDigest(), Sampler(sample)
    for part in parts:
        digest.merge(part.content)
        for value, kept in part.sample:
            sampler.keep(value, kept)
    return Scanned(digest.value(), sampler.chosen())


def page_points(point_bytes: int) -> int:
    """Fewer points a page when they are large, so that memory is bounded by bytes and not by the data."""
    return max(1, min(PAGE_POINTS, PAGE_BYTES // max(1, point_bytes)))
