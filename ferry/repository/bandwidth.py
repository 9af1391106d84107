"""Limits for the bytes a second to and from a bucket or a node, shared by all threads of this process.

boto3's own limiter (s3transfer.bandwidth.LeakyBucket) was tried and does not serve: it makes a block wait its whole
share of time however long the block took to arrive, so a source that is as fast as the limit gets half of it (measured:
see tests/unit/test_bandwidth.py); it reads the wall clock; and a waiter that gives up slows all others for good.
"""

import threading
import time
from collections.abc import Callable, Iterator

from ferry.models import Progress, no_progress
from ferry.profiles import WorkerSettings

_BURST_SECONDS = 0.25  # what a limiter that was idle lets through at once, so that a late wake-up costs nothing
_ASK_SECONDS = 0.5  # how often a waiting transfer asks whether to stop


class Bandwidth:
    """A rate in bytes a second, shared by whoever moves bytes under its name. Each waits its turn, in order."""

    def __init__(
        self,
        bytes_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def wait(self, size: int, progress: Progress = no_progress) -> None:
        """Return when ``size`` more bytes may have passed. ``progress`` gets 0 twice a second; what it raises ends it.

        Who gives up has used its share all the same: the others get no slower than the rate by that.
        """
        with self._lock:
            self._free_at = max(self._free_at, self._clock() - _BURST_SECONDS) + size / self.bytes_per_second
            turn = self._free_at
        while (left := turn - self._clock()) > 0:
            self._sleep(min(left, _ASK_SECONDS))
            progress(0)


def limited(blocks: Iterator[bytes], bandwidth: Bandwidth | None, progress: Progress = no_progress) -> Iterator[bytes]:
    """The same blocks at most at that rate; without one they pass as they are."""
    return blocks if bandwidth is None else _paced(blocks, bandwidth, progress)


def _paced(blocks: Iterator[bytes], bandwidth: Bandwidth, progress: Progress) -> Iterator[bytes]:
    for block in blocks:
        bandwidth.wait(len(block), progress)
        yield block


_known: dict[str, Bandwidth] = {}
_known_lock = threading.Lock()


def shared(name: str, mb_per_second: float | None) -> Bandwidth | None:
    """The limiter of that name in this process, at that rate in megabytes (10^6) a second; None where there is none."""
    if mb_per_second is None:
        return None
    with _known_lock:
        found = _known.setdefault(name, Bandwidth(mb_per_second * 1e6))
        found.bytes_per_second = mb_per_second * 1e6
        return found


def to_buckets(worker: WorkerSettings) -> Bandwidth | None:
    """What all uploads of this process share (worker.upload_mb_per_second)."""
    return shared("to buckets", worker.upload_mb_per_second)


def from_buckets(worker: WorkerSettings) -> Bandwidth | None:
    """What all downloads of this process share (worker.download_mb_per_second)."""
    return shared("from buckets", worker.download_mb_per_second)


def from_node(url: str, mb_per_second: float | None) -> Bandwidth | None:
    """What is read from one node by this process (policies.NAME.node_mb_per_second)."""
    return shared(f"from node {url}", mb_per_second)
