"""Turning a function that pulls from one file and pushes to another into an iterator over an iterator."""

import io
import threading
from collections.abc import Callable, Iterable, Iterator


def piped(work: Callable[["Pump", "Pump"], None], blocks: Iterable[bytes]) -> Iterator[bytes]:
    """What ``work`` makes of the blocks. They are asked for here and never in its thread, which only computes.

    Memory is about four blocks. What ``work`` raises is raised here; abandoned half way, its thread ends.
    """
    pump = Pump(work)
    try:
        for block in blocks:  # each one is fetched while the one before it is worked on
            pump.rest()
            if made := pump.take():
                yield made
            pump.put(block)
        pump.rest()
        pump.end()
        if made := pump.take():
            yield made
    finally:
        pump.stop()


class Pump:
    """A function in a thread of its own that is fed and emptied from outside, one block at a time.

    It rests after each block until it gets the next one: pyrage 1.4 holds the interpreter's lock while it computes, and
    with a queue before it, it never let go for less than 5 ms (160 MB/s so, 400 MB/s this way on a free machine).
    It waits for nothing but blocks, so it ends at once when it is told to.
    """

    def __init__(self, work: Callable[["Pump", "Pump"], None]) -> None:
        self._changed = threading.Condition()
        self._block: bytes | None = None
        self._made: list[bytes] = []
        self._current = io.BytesIO()
        self._hungry = self._all_given = self._done = False
        self._error: BaseException | None = None
        # A daemon: an iterator that nobody closes must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=(work,), name="ferry-pipe", daemon=True)
        self._thread.start()

    def put(self, block: bytes) -> None:
        """Give one block to a function that rests."""
        with self._changed:
            self._block, self._hungry = block, False
            self._changed.notify_all()

    def rest(self) -> None:
        """Wait until it wants the next block, or has ended; raises what it raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._hungry)
            self._raise_error()

    def end(self) -> None:
        """Tell a function that rests that no more blocks come, and wait for its end; raises what it raised."""
        with self._changed:
            self._all_given = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done)
            self._raise_error()

    def take(self) -> bytes:
        """All that was made since the last time, as one block; only while the function rests."""
        made, self._made = self._made, []
        return b"".join(made)

    def stop(self) -> None:
        """End the thread and wait for that: for the function it looks like the end of the blocks."""
        with self._changed:
            self._all_given = True
            self._changed.notify_all()
        self._thread.join()

    def read(self, size: int = -1) -> bytes:
        """For the function: some bytes, at the end none."""
        while not (data := self._current.read(size)):
            with self._changed:
                self._hungry = self._block is None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._block is not None or self._all_given)
                if self._block is None:
                    return b""
                self._current, self._block = io.BytesIO(self._block), None
        return data

    def write(self, data: bytes) -> int:
        """For the function: give out some bytes."""
        self._made.append(data)
        return len(data)

    def flush(self) -> None:
        """For the function; nothing is held back."""

    def _run(self, work: Callable[["Pump", "Pump"], None]) -> None:
        try:
            work(self, self)
        except BaseException as error:  # noqa: BLE001 - a panic too is raised again where the blocks are asked for
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
