"""Limits of bandwidth in real seconds, against a real store."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from ferry.archive.encryption import StoredForm
from ferry.errors import StoppedError
from ferry.models import Progress, no_progress
from ferry.repository.bandwidth import limited, to_buckets
from ferry.verify.archive import snapshot_blocks
from tests.integration.crossings import SERVERS
from tests.workshop import Workshop

pytestmark = SERVERS

MB_PER_SECOND = 6.0
DATA = random.Random(1).randbytes(12_000_000)
Way = Callable[[Workshop, list[tuple[float, int]], Progress], None]


def noted(blocks: Iterator[bytes], passed: list[tuple[float, int]]) -> Iterator[bytes]:
    """The same blocks; when each passed, and how large it was."""
    for block in blocks:
        passed.append((time.monotonic(), len(block)))
        yield block


def up(shop: Workshop, passed: list[tuple[float, int]], progress: Progress) -> None:
    """As a backup uploads."""
    connections = shop.connect()
    blocks = (DATA[start : start + (1 << 20)] for start in range(0, len(DATA), 1 << 20))
    paced = noted(limited(blocks, to_buckets(connections.worker), progress), passed)
    connections.store.upload(f"{shop.folder.name}/up", paced, progress=progress)


def down(shop: Workshop, passed: list[tuple[float, int]], progress: Progress) -> None:
    """As a proof reads back, and a restore that uploads."""
    connections = shop.connect()
    uploaded = connections.store.upload(f"{shop.folder.name}/down", iter([DATA]))
    form = StoredForm(bytes=len(DATA), sha256=uploaded.sha256 or "")
    deque(noted(snapshot_blocks(connections, f"{shop.folder.name}/down", form, progress), passed), maxlen=0)


@pytest.fixture
def slow(workshop: Workshop) -> Iterator[Workshop]:
    """Both ways at six megabytes a second."""
    workshop.configure(worker={"upload_mb_per_second": MB_PER_SECOND, "download_mb_per_second": MB_PER_SECOND})
    yield workshop
    assert workshop.leftovers() == []


@pytest.mark.parametrize("way", [up, down])
def test_the_measured_rate_is_the_one_in_the_settings(slow: Workshop, way: Way) -> None:
    """Two seconds' worth takes two seconds, to fifteen in a hundred."""
    passed: list[tuple[float, int]] = []
    way(slow, passed, no_progress)
    seconds = passed[-1][0] - passed[0][0]
    assert sum(size for _, size in passed) == len(DATA)
    rate = (len(DATA) - passed[0][1]) / 1e6 / seconds
    assert MB_PER_SECOND * 0.85 <= rate <= MB_PER_SECOND * 1.15


@pytest.mark.parametrize("way", [up, down])
def test_a_stop_is_obeyed_within_a_second(slow: Workshop, way: Way) -> None:
    """Although a block of a megabyte has to wait for longer than that."""
    slow.configure(worker={"upload_mb_per_second": 0.3, "download_mb_per_second": 0.3})
    asked: list[float] = []

    def cancelled_soon(_done: int) -> None:
        asked.append(time.monotonic())
        if asked[-1] - asked[0] > 0.3:
            raise StoppedError("cancelled")

    with pytest.raises(StoppedError):
        way(slow, [], cancelled_soon)
    assert time.monotonic() - asked[0] < 1.3
    assert max(later - earlier for earlier, later in pairwise(asked)) < 0.9
    assert slow.objects("up") == []
