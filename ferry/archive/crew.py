"""Worker processes that open archives, seen from the process that asks: start, ask, listen, end."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

import ferry
from ferry import errors
from ferry.errors import ArchiveDamagedError, FerryError

HEARTBEAT_SECONDS = 0.5  # how soon a wish to stop is seen while the engine is silent, as it is during unpacking
READ_BYTES = 1 << 20
READER = "ferry.archive.worker"
KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX")
LOG_TAIL_BYTES = 2000


class Worker:
    """One worker process. It is started with a plain command line, not by multiprocessing: nothing is forked from a
    process with threads, and ``__main__`` of the caller (a Prefect engine, pytest, ``python -c``) is never imported.
    """

    def __init__(self, log: Path, module: str = READER) -> None:
        self.log = log
        with open(log, "wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(),
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise FerryError("A worker process was started without pipes.")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.pid = self._process.pid
        self._rest = b""

    def fileno(self) -> int:
        return self._stdout.fileno()

    def ask(self, job: dict[str, Any], data: bytes = b"") -> None:
        """Give the worker a job, and bytes that belong to it. Raises `FerryError` if it has died."""
        try:
            self._stdin.write(orjson.dumps(job) + b"\n" + data)
            self._stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def hear(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived. Raises what the worker raised, or `FerryError` if it has died."""
        data = os.read(self.fileno(), 1 << 16)
        if not data:
            raise self._death()
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages: list[dict[str, Any]] = [orjson.loads(line) for line in lines]
        for message in messages:
            if "error" in message:
                raise error_of(message)
        return messages

    def lines(self, job: dict[str, Any], alive: Callable[[int], None]) -> Iterator[bytes]:
        """Give the worker a job and yield its lines as they arrive; how much it is ahead, the pipe bounds.

        ``alive`` gets 0 at least every half second, and may raise. Raises `FerryError` if the worker died.
        """
        pieces: list[bytes] = []
        for data in self._arriving(job, alive):
            *whole, rest = data.split(b"\n")
            for end in whole:
                yield b"".join([*pieces, end])
                pieces = []
            pieces.append(rest)

    def pages(self, job: dict[str, Any], alive: Callable[[int], None]) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The same of messages that bytes may follow: as many as the message's ``body_bytes`` says."""
        data, head = bytearray(), None
        for arrived in self._arriving(job, alive):
            data += arrived
            while head is not None or b"\n" in data:
                if head is None:
                    end = data.index(b"\n")
                    head = orjson.loads(data[:end])
                    del data[: end + 1]
                size_bytes = head.get("body_bytes", 0)
                if len(data) < size_bytes:
                    break
                yield head, bytes(data[:size_bytes])
                del data[:size_bytes]
                head = None

    def _arriving(self, job: dict[str, Any], alive: Callable[[int], None]) -> Iterator[bytes]:
        """Give the worker a job and yield what it writes as it arrives."""
        self.ask(job)
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while True:
                if not selector.select(HEARTBEAT_SECONDS):
                    alive(0)
                    continue
                data = os.read(self.fileno(), READ_BYTES)
                if not data:
                    raise self._death()
                yield data

    def end(self) -> None:
        """End the process and wait for it; it has nothing to save."""
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        with suppress(BrokenPipeError):  # a job that it never read
            self._stdin.close()

    def _death(self) -> FerryError:
        code = self._process.wait()
        tail = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        fact = f"A worker process ended early with {how}; no data was changed."
        return FerryError(f"{fact} {tail}".strip(), _remedy(-code))


class Crew:
    """Some workers that live as long as the ``with`` block."""

    def __init__(self, size: int, logs: Path, module: str = READER) -> None:
        self.workers: list[Worker] = []
        self._size, self._logs, self._module = size, logs, module

    def __enter__(self) -> Self:
        try:
            for index in range(self._size):
                self.workers.append(Worker(self._logs / f"worker-{index}.log", self._module))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def results(self, jobs: list[dict[str, Any]], progress: Callable[[int], None]) -> list[dict[str, Any]]:
        """Give job i to worker i, wait for all, and return their results in order.

        ``progress`` gets the sum of points so far at every message, and at least every half second; it may raise.
        Raises what a worker raised, or `FerryError` if a worker died.
        """
        results: list[dict[str, Any] | None] = [None] * len(jobs)
        points = [0] * len(jobs)
        with selectors.DefaultSelector() as selector:
            for index, job in enumerate(jobs):
                self.workers[index].ask(job)
                selector.register(self.workers[index], selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select(HEARTBEAT_SECONDS):
                    index = key.data
                    for message in self.workers[index].hear():
                        points[index] = message.get("progress", points[index])
                        results[index] = message.get("result")
                    if results[index] is not None:
                        selector.unregister(key.fileobj)
                progress(sum(points))
        return [result for result in results if result is not None]

    def _end(self) -> None:
        for worker in self.workers:
            worker.end()


def _environment() -> dict[str, str]:
    """Where to find what this process found, and nothing else: a worker needs no credentials, so it gets none."""
    root = str(Path(ferry.__file__).parent.parent)
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join([root, *(path for path in sys.path if path)])}


def error_of(message: dict[str, Any]) -> FerryError:
    """What a worker raised."""
    kind = getattr(errors, message["error"], ArchiveDamagedError)
    error: FerryError = kind(message["message"], message["remedy"])
    return error


def _remedy(signal_number: int) -> str:
    if signal_number == signal.SIGKILL:
        return "If memory ran out (see dmesg), give the worker more or set fewer proof processes; then try again."
    if signal_number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT):
        return "Look for a full work disk first; if it has room, the archive is damaged or the engine has a fault."
    return "Try again; if it happens again, the lines above are the engine's last words."
