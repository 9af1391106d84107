"""Ranges and cursors of a live source over a model of a scroll, while its points come and go."""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc

from ferry.errors import ConfigurationError, StoppedError
from ferry.migration.batch import PointId
from ferry.migration.plan import QdrantSource
from ferry.migration.source import Ask, SourceRange
from ferry.migration.sources.qdrant import QdrantLive, _before, _borders, _order
from ferry.models import CollectionLayout, Progress
from ferry.qdrant import wire
from ferry.qdrant.grpc import TooLargeError
from ferry.qdrant.messages import MESSAGES, id_message
from ferry.qdrant.rota import Rota

IDS = st.integers(0, 2**64 - 1) | st.uuids().map(str)


@dataclass
class Scroll:
    """Qdrant's scroll: up to so many points from an id on, and the id that follows."""

    ids: set[PointId]

    def page(self, start: PointId | None, limit: int) -> wire.Page:
        ordered = sorted(self.ids, key=_order)
        left = [point_id for point_id in ordered if start is None or _order(point_id) >= _order(start)]
        shown = [MESSAGES["RetrievedPoint"](id=id_message(each).SerializeToString()) for each in left[:limit]]
        return wire.Page(shown, left[limit] if len(left) > limit else None)


def read(scroll: Scroll, start: PointId | None, end: PointId | None, limit: int) -> list[list[PointId]]:
    """The pages of a range."""
    pages, following = [], start
    while True:
        shown, following = _before(scroll.page(following, limit), end)
        pages.append([wire.retrieved_id(point) for point in shown])
        if following is None:
            return pages


def test_numbers_come_before_uuids_and_both_rise() -> None:
    ids: list[PointId] = [str(uuid.UUID(int=1)), 2**64 - 1, str(uuid.UUID(int=2**127)), 0, str(uuid.UUID(int=2))]
    assert sorted(ids, key=_order) == [0, 2**64 - 1, *(str(uuid.UUID(int=value)) for value in (1, 2, 2**127))]


@given(
    ids=st.sets(IDS, max_size=60), sample=st.lists(IDS, max_size=20), pieces=st.integers(2, 8), limit=st.integers(1, 9)
)
def test_whatever_the_borders_every_point_is_in_one_range(
    ids: set[PointId], sample: Sequence[PointId], pieces: int, limit: int
) -> None:
    ends = [None, *_borders(sample, pieces), None]
    assert len(ends) <= pieces + 1
    found = [point for start, end in pairwise(ends) for page in read(Scroll(ids), start, end, limit) for point in page]
    assert found == sorted(ids, key=_order)


@given(ids=st.sets(IDS, min_size=2, max_size=60), pieces=st.integers(2, 4), limit=st.integers(1, 9), seed=st.integers())
def test_what_stays_is_read_once_while_others_come_and_go(
    ids: set[PointId], pieces: int, limit: int, seed: int
) -> None:
    rng = random.Random(seed)
    ends = [None, *_borders(sorted(ids, key=_order), pieces), None]
    scroll, staying, found = Scroll(set(ids)), set(rng.sample(sorted(ids, key=_order), len(ids) // 2)), []
    for start, end in pairwise(ends):
        following = start
        while True:
            shown, following = _before(scroll.page(following, limit), end)
            found += [wire.retrieved_id(point) for point in shown]
            if following is None:
                break
            scroll.ids -= {each for each in scroll.ids - staying if rng.random() < 0.2}
            scroll.ids |= {rng.randrange(2**64) for _ in range(2)}
    assert [each for each in found if each in staying] == sorted(staying, key=_order)
    assert len(found) == len(set(found))


def test_borders_cut_a_sample_into_equal_parts() -> None:
    assert _borders(range(1000), 4) == [250, 500, 750]
    assert _borders([5, 5, 5], 4) == []
    assert _borders([], 4) == []
    assert _borders([1, 2], 8) == [2]


def test_a_range_ends_before_its_end_and_asks_for_nothing_beyond() -> None:
    scroll = Scroll({1, 2, 3, 4})
    assert read(scroll, 1, 3, 2) == [[1, 2]]
    assert read(scroll, 1, 4, 2) == [[1, 2], [3]]
    assert read(scroll, 1, 2, 9) == [[1]]
    assert read(scroll, 5, 9, 2) == [[]]


class Limited(QdrantLive):
    """A source of 100 points of 1000 bytes behind a proxy that lets 8 of them through at once."""

    def __init__(self) -> None:
        super().__init__(QdrantSource(cluster="source", collection="docs"))
        self._found = CollectionLayout(
            name="docs", config={"params": {}}, payload_schema={}, status="green", shards=()
        )  # as if it had been asked
        self._scrolls = self._gets = Rota([lambda request, timeout: b""], "")
        self.limits: list[int] = []

    def _answer(self, calls: object, request: bytes, progress: Progress) -> bytes:
        asked = grpc.ScrollPoints.FromString(request)
        self.limits.append(asked.limit)
        if asked.limit > 8:
            raise TooLargeError("message larger than max")
        left = range(asked.offset.num, 100)
        points = [
            grpc.RetrievedPoint(id=grpc.PointId(num=number), payload={"text": grpc.Value(string_value="x" * 1000)})
            for number in left[: asked.limit]
        ]
        following = grpc.PointId(num=left[asked.limit]) if len(left) > asked.limit else None
        return bytes(grpc.ScrollResponse(result=points, next_page_offset=following).SerializeToString())


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limited:
    (tmp_path / "ferry.toml").write_text('[clusters.source]\nnodes = ["http://127.0.0.1:1"]\n')
    monkeypatch.setenv("FERRY_CONFIG", str(tmp_path / "ferry.toml"))
    return Limited()


RANGE = SourceRange(number=0, label="all ids", part="docs")


def test_pages_shrink_to_what_a_proxy_lets_through_and_to_the_size_that_is_asked_for(limited: Limited) -> None:
    reads = list(limited.read(RANGE, None, Ask(wire=True, batch_bytes=1 << 20)))
    assert [wire.point_id(point) for read in reads for point in read.batch.points] == list(range(100))
    assert limited.limits == [16, *[8] * 13]
    limited.limits.clear()
    assert sum(len(read.batch.points) for read in limited.read(RANGE, 50, Ask(wire=True, batch_bytes=3500))) == 50
    assert limited.limits[2:] == [3] * 14


def test_a_point_that_is_too_large_alone_is_no_endless_loop(limited: Limited, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise TooLargeError("message larger than max")

    monkeypatch.setattr(limited, "_answer", refuse)
    with pytest.raises(TooLargeError):
        next(limited.read(RANGE, None, Ask()))


def test_an_alias_that_has_moved_is_not_read_with_the_ranges_of_another_collection(limited: Limited) -> None:
    with pytest.raises(ConfigurationError, match="docs of source is docs now; it was old when the ranges were planned"):
        next(limited.read(RANGE.model_copy(update={"part": "old"}), None, Ask()))


def test_a_reader_can_be_stopped_between_pages(limited: Limited) -> None:
    def stop(_done: int) -> None:
        if len(limited.limits) == 4:
            raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        list(limited.read(RANGE, None, Ask(), stop))
    assert len(limited.limits) == 4
