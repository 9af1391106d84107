"""Limits of bandwidth, on a clock of their own."""

import pytest
from s3transfer.bandwidth import LeakyBucket, RequestExceededException, RequestToken

from ferry.errors import StoppedError
from ferry.profiles import WorkerSettings
from ferry.repository.bandwidth import Bandwidth, from_buckets, from_node, limited, shared, to_buckets

MB = 1_000_000


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def bandwidth(clock: Clock, mb_per_second: float = 10) -> Bandwidth:
    return Bandwidth(mb_per_second * MB, clock.time, clock.sleep)


@pytest.mark.parametrize("source", [5, 9, 12, 20, 1000])
def test_the_rate_is_the_slower_of_source_and_limit(source: float) -> None:
    """Whatever the source gives, never more than the limit and never less than could be."""
    clock, passed = Clock(), 0
    limit = bandwidth(clock)
    while clock.now < 20:
        clock.sleep(MB / (source * MB))
        limit.wait(MB)
        passed += MB
    assert passed / MB / clock.now == pytest.approx(min(source, 10), rel=0.02)


def test_boto3_s_own_limiter_gives_half_when_the_source_is_as_fast() -> None:
    """The reason for ours; when this fails, ours may go."""
    clock, passed = Clock(), 0
    leaky = LeakyBucket(10 * MB, time_utils=clock)
    while clock.now < 20:
        clock.sleep(MB / (12 * MB))
        token = RequestToken()
        while True:
            try:
                leaky.consume(MB, token)
                break
            except RequestExceededException as wait:
                clock.sleep(wait.retry_time)
        passed += MB
    assert passed / MB / clock.now < 6


def test_all_lanes_together_keep_to_it() -> None:
    """Two streams that share a limiter get half each."""
    clock = Clock()
    limit = bandwidth(clock)
    one, two = limited(iter([b"x" * MB] * 100), limit), limited(iter([b"x" * MB] * 100), limit)
    for _ in range(50):
        next(one)
        next(two)
    assert clock.now == pytest.approx(10, rel=0.02)


def test_rest_saves_up_no_more_than_a_moment() -> None:
    """After an idle hour the next second brings a second's worth."""
    clock = Clock()
    limit = bandwidth(clock)
    clock.now = 3600
    for _ in range(10):
        limit.wait(MB)
    assert clock.now - 3600 == pytest.approx(0.75)


def test_a_stop_is_obeyed_while_waiting_and_slows_nobody_afterwards() -> None:
    """In the middle of a block's second: heard within half a second, and others wait for the rest of it and no more."""
    clock, asked = Clock(), []
    limit = bandwidth(clock, 1)

    def cancelled(done: int) -> None:
        asked.append(done)
        if clock.now >= 0.4:
            raise StoppedError("cancelled")

    blocks = limited(iter([b"x" * MB] * 3), limit, cancelled)
    with pytest.raises(StoppedError):
        list(blocks)
    assert clock.now <= 0.5
    assert set(asked) == {0}
    for _ in range(10):
        limit.wait(MB)
    assert clock.now == pytest.approx(11)


def test_without_a_limit_the_blocks_are_not_touched() -> None:
    """The very same iterator: it costs nothing."""
    blocks = iter([b"x"])
    assert limited(blocks, None) is blocks


def test_one_limiter_a_name_and_direction() -> None:
    """Up, down and each node count by themselves; a new rate in the settings counts at once."""
    worker = WorkerSettings(upload_mb_per_second=3, download_mb_per_second=5)
    up, down, node = to_buckets(worker), from_buckets(worker), from_node("http://a:6333", 7)
    assert None not in (up, down, node)
    assert len({id(up), id(down), id(node), id(from_node("http://b:6333", 7))}) == 4
    again = to_buckets(worker.model_copy(update={"upload_mb_per_second": 4}))
    assert again is up
    assert again is not None
    assert again.bytes_per_second == 4 * MB
    assert (to_buckets(WorkerSettings()), from_buckets(WorkerSettings()), shared("x", None)) == (None, None, None)
