"""A proxy that tells of every request that changes something, before it is passed on, and can drop or hold it."""

import asyncio
from collections.abc import Callable

from sandbox.fault_proxy import Address, FaultProxy
from tests.integration.crossings import changes_something


class Tripwire(FaultProxy):
    """A fault proxy with a listener for requests that change something."""

    def __init__(self, target: Address) -> None:
        super().__init__(target)
        self.on_change: Callable[[str], bool] | None = None  # called in the proxy's thread; True: drop the request
        self.held: str | None = None
        self._hold: tuple[str, Callable[[], None]] | None = None
        self._gate = asyncio.Event()

    def hold(self, match: str, act: Callable[[], None]) -> None:
        """Keep the next change whose request line contains ``match`` on its way until `let_go`, and do ``act``."""
        self._gate.clear()
        self.held, self._hold = None, (match, act)

    def let_go(self) -> None:
        """Pass on what is held: it reaches its target now, late."""
        self._hold = None
        self._in_loop(self._gate.set)

    async def _note_request(self, data: bytes, reader: asyncio.StreamReader) -> bytes:
        data = await super()._note_request(data, reader)
        if self.on_change is not None and changes_something(self.requests[-1]) and self.on_change(self.requests[-1]):
            raise ConnectionResetError  # as the network would: nobody knows whether it was obeyed
        if self._hold is not None and self._hold[0] in self.requests[-1] and changes_something(self.requests[-1]):
            (_, act), self._hold, self.held = self._hold, None, self.requests[-1]
            act()
            await self._gate.wait()
        return data


class Snare:
    """Does something at the nth change that passes any of some wires; then, where asked, the request is dropped."""

    def __init__(self, nth: int, act: Callable[[], None], dropped: bool = False, match: str = "") -> None:
        self._left = nth
        self._act = act
        self._dropped = dropped
        self._match = match
        self.sprung: str | None = None

    def __call__(self, request: str) -> bool:
        if self.sprung is not None or self._match not in request:
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self.sprung = request
        self._act()
        return self._dropped
