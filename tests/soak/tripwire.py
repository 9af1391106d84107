"""A proxy that tells of every request that changes something, before it is passed on, and can drop it."""

import asyncio
from collections.abc import Callable

from sandbox.fault_proxy import Address, FaultProxy
from tests.integration.crossings import changes_something


class Tripwire(FaultProxy):
    """A fault proxy with a listener for requests that change something."""

    def __init__(self, target: Address) -> None:
        super().__init__(target)
        self.on_change: Callable[[str], bool] | None = None  # called in the proxy's thread; True: drop the request

    async def _note_request(self, data: bytes, reader: asyncio.StreamReader) -> bytes:
        data = await super()._note_request(data, reader)
        if self.on_change is not None and changes_something(self.requests[-1]) and self.on_change(self.requests[-1]):
            raise ConnectionResetError  # as the network would: nobody knows whether it was obeyed
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
