"""A TCP proxy whose faults are switched while it runs; bytes pass unchanged, so S3 signatures stay valid."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Literal, Self

from sandbox.process import LOOPBACK, SandboxError, free_port
from sandbox.running import Running

Direction = Literal["to_target", "to_client"]
Address = tuple[str, int]
READ_BYTES = 256 << 10
SLICES_PER_SECOND = 20
ANSWER_SECONDS = 10.0
_METHOD = re.compile(rb"(GET|PUT|POST|DELETE|HEAD|PATCH|OPTIONS) ")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, 0 seconds: close() sends RST instead of FIN


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    target: asyncio.StreamWriter

    def reset(self) -> None:
        for writer in (self.client, self.target):
            with suppress(OSError):
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    def close(self) -> None:
        for writer in (self.client, self.target):
            writer.close()


@dataclass
class _Answer:
    head: bytes
    left: int
    match: str


@dataclass
class _Faults:
    """What goes wrong now; touched only in the proxy's own thread."""

    moving: asyncio.Event = field(default_factory=asyncio.Event)
    bytes_per_second: float | None = None
    corrupt_at: dict[Direction, int] = field(default_factory=dict)
    answer: _Answer | None = None
    trigger: tuple[int, Callable[[], None]] | None = None


class FaultProxy(Running):
    """A proxy in a background thread in front of one address; enter it to start, leave it to end."""

    def __init__(self, target: Address, port: int | None = None) -> None:
        self._targets = cycle([target])
        self.port = port or free_port()
        self.requests: list[str] = []
        self.connections = 0
        self.bytes_moved: dict[Direction, int] = {"to_target": 0, "to_client": 0}
        self._open: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"fault-proxy-{self.port}", daemon=True)
        self._faults = _Faults()
        self._faults.moving.set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._free_at = 0.0

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def bytes_total(self) -> int:
        return sum(self.bytes_moved.values())

    def start(self) -> Self:
        """Listen, in a thread of its own."""
        self._thread.start()
        self._in_loop(self._listen)
        return self

    def stop(self) -> None:
        """Reset what is open, stop listening, end the thread. Twice is fine."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(ANSWER_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_SECONDS)
        self._loop.close()

    def stall(self) -> None:
        """Accept connections and move no bytes, until `clear`."""
        self._in_loop(self._faults.moving.clear)

    def cut(self) -> None:
        """Reset every open connection now, once; new ones are served."""
        self._in_loop(self._cut)

    def refuse(self) -> None:
        """Refuse new connections, until `clear`; open ones go on."""
        self._in_loop(self._refuse)

    def slow(self, bytes_per_second: float) -> None:
        """Move at most this much a second, all connections and both directions together, until `clear`."""
        if bytes_per_second <= 0:
            raise SandboxError("slow() needs more than 0 bytes per second", "To move nothing, stall the proxy.")
        self._in_loop(lambda: setattr(self._faults, "bytes_per_second", bytes_per_second))

    def corrupt(self, direction: Direction, after_bytes: int) -> None:
        """Flip one bit, once, in the byte that comes after this many more bytes in this direction."""
        self._in_loop(lambda: self._faults.corrupt_at.update({direction: self.bytes_moved[direction] + after_bytes}))

    def http_status(
        self, code: int, count: int = 1, match: str = "", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Answer the next `count` requests whose request line contains `match` with `code`; the target sees none."""
        lines = [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        head = f"HTTP/1.1 {code} Fault\r\n{length}{''.join(lines)}\r\n".encode() + body
        self._in_loop(lambda: setattr(self._faults, "answer", _Answer(head, count, match)))

    def after(self, bytes_moved: int, fault: Callable[[], None]) -> None:
        """Call `fault` (such as `proxy.cut`) once this many more bytes have passed, counting both directions."""
        self._in_loop(lambda: setattr(self._faults, "trigger", (self.bytes_total + bytes_moved, fault)))

    def clear(self) -> None:
        """Serve honestly again: no fault is left, and it listens."""
        self._in_loop(self._clear)

    def _in_loop(self, act: Callable[[], None]) -> None:
        """Run `act` in the proxy's thread and wait for it; in that thread (a trigger fires there) run it at once."""
        if threading.current_thread() is self._thread:
            act()
            return
        if not self._thread.is_alive():
            raise SandboxError("The proxy does not run", "Start it, or enter it as a context manager.")

        async def run() -> None:
            act()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(ANSWER_SECONDS)

    def _clear(self) -> None:
        self._faults.bytes_per_second = self._faults.answer = self._faults.trigger = None
        self._faults.corrupt_at.clear()
        self._faults.moving.set()
        self._listen()

    def _cut(self) -> None:
        for connection in list(self._open):
            connection.reset()

    def _refuse(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        self._listener = self._accepting = None

    def _listen(self) -> None:
        if self._listener is not None:
            return
        self._listener = socket.create_server((LOOPBACK, self.port), backlog=128)
        self._listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept(self._listener))

    async def _shut(self) -> None:
        self._refuse()
        self._cut()
        waiting = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            self.connections += 1
            task = self._loop.create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        client_reader, client = await asyncio.open_connection(sock=accepted)
        try:
            target_reader, target = await asyncio.open_connection(*next(self._targets))
        except OSError:
            client.transport.abort()
            return
        connection = _Connection(client, target)
        for writer in (client, target):
            writer.transport.set_write_buffer_limits(high=0)  # drain() then means: the kernel has it
        self._open.add(connection)
        try:
            await asyncio.gather(
                self._pump(client_reader, connection, "to_target"), self._pump(target_reader, connection, "to_client")
            )
        except OSError:
            connection.reset()  # one side was reset, so the other learns it in the same way
        finally:
            self._open.discard(connection)
            connection.close()

    async def _pump(self, reader: asyncio.StreamReader, connection: _Connection, direction: Direction) -> None:
        writer = connection.target if direction == "to_target" else connection.client
        while data := await reader.read(READ_BYTES):
            if direction == "to_target" and _METHOD.match(data):
                data = await self._note_request(data, reader)
                if (answer := self._answer_for(self.requests[-1])) is not None:
                    await self._answer(answer, reader, connection)
                    return
            await self._forward(data, writer, direction)
        await self._faults.moving.wait()
        if not writer.is_closing() and writer.can_write_eof():
            writer.write_eof()

    async def _note_request(self, data: bytes, reader: asyncio.StreamReader) -> bytes:
        """Read on until the request line is whole, and note it.

        A client that waits for each answer starts each request in a read of its own, so looking at the start of a read
        finds every request without reading bodies, whatever their encoding.
        """
        while b"\r\n" not in data and len(data) < READ_BYTES:
            more = await reader.read(READ_BYTES)
            if not more:
                break
            data += more
        self.requests.append(data.partition(b"\r\n")[0].decode("latin-1"))
        return data

    def _answer_for(self, request: str) -> bytes | None:
        answer = self._faults.answer
        if answer is None or answer.left <= 0 or answer.match not in request:
            return None
        answer.left -= 1
        return answer.head

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, connection: _Connection) -> None:
        """Answer, then take the rest of the request: closing before would reset it and lose the answer."""
        await self._faults.moving.wait()
        connection.client.write(head)
        await connection.client.drain()
        connection.client.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                while await reader.read(READ_BYTES):
                    pass
        connection.close()

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter, direction: Direction) -> None:
        while data:
            await self._faults.moving.wait()
            piece, data = self._next_piece(data)
            await self._pace(len(piece))
            await self._faults.moving.wait()
            writer.write(self._maybe_corrupt(piece, direction))
            await writer.drain()
            self.bytes_moved[direction] += len(piece)
            self._maybe_trigger()

    def _next_piece(self, data: bytes) -> tuple[bytes, bytes]:
        """Split off what may go now: a slice when slow, and not beyond the byte at which a trigger fires."""
        size = len(data)
        if self._faults.bytes_per_second is not None:
            size = min(size, max(1, int(self._faults.bytes_per_second / SLICES_PER_SECOND)))
        if self._faults.trigger is not None:
            size = min(size, max(1, self._faults.trigger[0] - self.bytes_total))
        return data[:size], data[size:]

    async def _pace(self, size: int) -> None:
        if self._faults.bytes_per_second is None:
            return
        begins = max(self._loop.time(), self._free_at)
        self._free_at = begins + size / self._faults.bytes_per_second
        await asyncio.sleep(self._free_at - self._loop.time())

    def _maybe_corrupt(self, piece: bytes, direction: Direction) -> bytes:
        at = self._faults.corrupt_at.get(direction)
        if at is None or at >= self.bytes_moved[direction] + len(piece):
            return piece
        del self._faults.corrupt_at[direction]
        place = max(0, at - self.bytes_moved[direction])
        return piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]

    def _maybe_trigger(self) -> None:
        if self._faults.trigger is not None and self.bytes_total >= self._faults.trigger[0]:
            _, fault = self._faults.trigger
            self._faults.trigger = None
            fault()


class RotatingProxy(FaultProxy):
    """A balancer without memory: each new connection goes to the next target, as a Kubernetes service does."""

    def __init__(self, targets: Sequence[Address], port: int | None = None) -> None:
        super().__init__(targets[0], port)
        self._targets = cycle(targets)
