"""A wire with a round trip, as between two sites: TCP proxies that hold every byte back and never limit how many pass.

Python's `tc` needs rights that a test machine does not give, so a process of its own holds the bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from sandbox.process import LOOPBACK, SandboxError

READ_BYTES = 1 << 18
START_SECONDS = 30.0


class SlowWire:
    """A proxy in front of each of some ports of this machine, with one round trip for all, while the ``with`` lasts."""

    def __init__(self, ports: Sequence[int], round_trip_seconds: float) -> None:
        """Half of the round trip is spent on each way."""
        context = get_context("spawn")  # a fork would inherit locks of threads that it does not have
        self._ours, self._theirs = context.Pipe()
        arguments = (self._theirs, list(ports), round_trip_seconds / 2)
        self._process = context.Process(target=_work, args=arguments, name="bench-slow-wire", daemon=True)
        self._behind = list(ports)
        self.ports: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # so that its end is seen here
        try:
            if not self._ours.poll(START_SECONDS):
                raise SandboxError(f"the slow wire did not start within {START_SECONDS:g} s")
            self.ports = dict(zip(self._behind, self._ours.recv(), strict=True))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()

    @property
    def pid(self) -> int:
        """Of the process that holds the bytes back."""
        return self._process.pid or 0


def _work(pipe: Connection, ports: list[int], seconds: float) -> None:
    asyncio.run(_serve(pipe, ports, seconds))


async def _serve(pipe: Connection, ports: list[int], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda port=port: _Near(port, seconds), LOOPBACK, 0)  # type: ignore[misc]
        for port in ports
    ]
    pipe.send([server.sockets[0].getsockname()[1] for server in servers])
    await asyncio.Event().wait()  # until the process is ended


class _End(asyncio.BufferedProtocol):
    """One end of a connection: what it reads is written to the other end after the delay, in order."""

    def __init__(self, seconds: float) -> None:
        self.other: asyncio.Transport | None = None
        self._seconds = seconds
        self._buffer = bytearray(READ_BYTES)
        self._held: deque[bytes] = deque()
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._held.append(bytes(memoryview(self._buffer)[:nbytes]))
        asyncio.get_running_loop().call_later(self._seconds, self._forward)

    def connection_lost(self, exc: Exception | None) -> None:
        asyncio.get_running_loop().call_later(self._seconds, self._close)

    def join(self, other: asyncio.Transport) -> None:
        self.other = other
        for data in self._early:
            other.write(data)
        self._early.clear()

    def _forward(self) -> None:
        data = self._held.popleft()
        if self.other is None:
            self._early.append(data)  # the other end is still connecting
        else:
            self.other.write(data)

    def _close(self) -> None:
        if self.other is not None:
            self.other.close()


class _Near(_End):
    """The end towards the client; it opens the one towards the server."""

    def __init__(self, port: int, seconds: float) -> None:
        super().__init__(seconds)
        self._port = port
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._task = asyncio.get_running_loop().create_task(self._reach())

    async def _reach(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            far, end = await loop.create_connection(lambda: _End(self._seconds), LOOPBACK, self._port)
        except OSError:
            self.transport.abort()
            return
        end.join(self.transport)
        self.join(far)
