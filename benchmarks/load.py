"""Who used the processors during a measurement: Ferry, the servers, or somebody else on the same machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")


class Load:
    """Processor time by part of the sandbox, in cores, over the length of a ``with`` block or several."""

    def __init__(self, parts: Mapping[str, Sequence[int]]) -> None:
        """Watch this process and the given ones, by part."""
        self._parts = {"Ferry": [os.getpid()], **{name: list(pids) for name, pids in parts.items()}}
        self._seconds = 0.0
        self._used = dict.fromkeys([*self._parts, "all"], 0.0)

    def __enter__(self) -> Self:
        self._began, self._before = perf_counter(), self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seconds += perf_counter() - self._began
        for name, used in self._read().items():
            self._used[name] += used - self._before[name]

    def cores(self) -> dict[str, float]:
        """Cores used by each part, by ``others`` beside them, and by ``all`` together."""
        cores = {name: used / max(self._seconds, 1e-9) for name, used in self._used.items()}
        cores["others"] = max(0.0, cores["all"] - sum(cores[name] for name in self._parts))
        return cores

    def per_megabytes(self, megabytes: float) -> str:
        """Processor seconds of each part for 100 MB, which a busy machine changes less than the clock's, and the bound
        that they set when all parts share these cores."""
        each = ", ".join(f"{name} {self._used[name] * 100 / megabytes:.2f}" for name in self._parts)
        used = sum(self._used[name] for name in self._parts)
        most = megabytes * (os.cpu_count() or 1) / max(used, 1e-9)
        return f"processor seconds for 100 MB: {each}; so all cores together carry {most:,.0f} MB/s at most"

    def __str__(self) -> str:
        cores = self.cores()
        parts = ", ".join(f"{name} {cores[name]:.1f}" for name in [*self._parts, "others"])
        return f"{cores['all']:.1f} of {os.cpu_count()} cores busy: {parts}"

    def _read(self) -> dict[str, float]:
        used = {name: sum(map(process_seconds, pids)) for name, pids in self._parts.items()}
        return used | {"all": machine_seconds()}


def process_seconds(pid: int) -> float:
    """Processor seconds that a process has used so far, with those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


def machine_seconds() -> float:
    """Processor seconds that were not idle so far, of all cores together."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS
