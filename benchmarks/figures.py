"""What a benchmark gives back: rounds of a pair of times, and one line of the table made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A bound that a figure is held to; it is stated, never asserted."""

    bound: float
    kind: Literal["at least", "at most"]
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return value >= self.bound if self.kind == "at least" else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.kind == 'at least' else '≤'} {self.bound:,g}{self.unit}"


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured against what, in words and as the number that the target is about."""

    area: str
    name: str
    ours: str
    raw: str
    value: float
    values: tuple[float, ...]
    target: Target | None
    limit: str
    unit: str = ""
    digits: int = 2
    notes: tuple[str, ...] = field(default=())

    @property
    def shown(self) -> str:
        """The number with its unit."""
        return f"{self.value:,.{self.digits}f}{self.unit}"

    @property
    def spread(self) -> str:
        """Smallest to largest of the rounds."""
        if len(self.values) < 2:
            return "one round"
        return f"{min(self.values):,.{self.digits}f} to {max(self.values):,.{self.digits}f}, {len(self.values)} rounds"

    @property
    def verdict(self) -> str:
        """Whether the target is met; some numbers have none and stand there to explain others."""
        if self.target is None:
            return "-"
        return "met" if self.target.met(self.value) else "missed"


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that some work took, and what it returned."""
    began = perf_counter()
    result = work()
    return perf_counter() - began, result


def middle(values: Sequence[float]) -> float:
    """The median, which one disturbed round does not move."""
    return float(median(values))


def ratios(ours: Sequence[float], raw: Sequence[float]) -> tuple[float, ...]:
    """Ours over raw, round by round: both of a round were measured beside each other, so they saw the same machine."""
    return tuple(mine / other for mine, other in zip(ours, raw, strict=True))
