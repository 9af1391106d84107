"""What runs while a ``with`` lasts: servers, workers, proxies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Running(ABC):
    """Started by entering it, ended by leaving it."""

    @abstractmethod
    def start(self) -> Self:
        """Start it, and return when it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """End it. Twice is fine."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
