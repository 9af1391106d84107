"""The figures as one table in the terminal, and as docs/numbers.md."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from rich.table import Table

from benchmarks.figures import Figure
from benchmarks.machine import Machine, today, versions

COMMAND = "python -m benchmarks --only {area}"
HEADER = ("what", "Ferry", "raw operation", "figure", "spread", "target", "")


def table(figures: Sequence[Figure], machine: Machine) -> Table:
    """Everything on one screen."""
    shown = Table(title="Ferry's numbers", show_lines=True, caption=" · ".join(limit_lines(machine)))
    for name in HEADER:
        shown.add_column(name, overflow="fold")
    for figure in figures:
        colour = {"met": "green", "missed": "red"}.get(figure.verdict, "dim")
        target = "-" if figure.target is None else str(figure.target)
        cells = [f"[bold]{figure.area}[/]: {figure.name}", figure.ours, figure.raw, figure.shown, figure.spread, target]
        shown.add_row(*cells, f"[{colour}]{figure.verdict}[/]")
    return shown


def limit_lines(machine: Machine) -> list[str]:
    """The machine's limits, one text each."""
    speeds = [f"{name} {middle:,.0f} MiB/s" for name, (middle, _, _) in machine.limits.items()]
    return [f"{machine.cores} cores", *speeds]


def page(figures: Sequence[Figure], machine: Machine, size: str, seconds: float) -> str:
    """docs/numbers.md."""
    lines = [
        "# Numbers",
        "",
        f"Written by `make bench` on {today()}, {size} sizes, in {seconds / 60:.1f} minutes. Do not edit: run it.",
        "",
        "Every figure is measured *within one run*: Ferry's step and the raw operation beside each other, round by",
        "round in changing order, on servers that share the machine with them. The figure is the median of the rounds,",
        "the spread their smallest and largest. Targets are stated here and never asserted in tests.",
        "",
        *_table(HEADER, [_cells(figure) for figure in figures]),
        "",
        "## What limits each",
        "",
    ]
    for figure in figures:
        lines += [f"- **{figure.area}, {figure.name}**: {figure.limit}.", *(f"  {note}." for note in figure.notes)]
    areas = dict.fromkeys(figure.area for figure in figures)
    commands = [(area, f"`{COMMAND.format(area=area)}`") for area in areas]
    lines += ["", "## The command for each", "", *_table(("area", "command"), commands)]
    return "\n".join([*lines, "", *_machine(machine)]) + "\n"


def _machine(machine: Machine) -> list[str]:
    limits = [
        (name, f"{middle:,.0f}", f"{low:,.0f} to {high:,.0f}") for name, (middle, low, high) in machine.limits.items()
    ]
    used = ", ".join(f"{tool} {number}" for tool, number in versions().items())
    return [
        "## The machine",
        "",
        f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / (1 << 30):.0f} GiB, "
        f"Linux {machine.kernel}. Load average {machine.load_before:.1f} when it began, {os.getloadavg()[0]:.1f} when "
        "it ended; what others used meanwhile stands with each figure, and widens its spread.",
        "",
        *_table(("limit", "MiB/s", "spread"), limits),
        "",
        f"Versions: {used}.",
    ]


def _cells(figure: Figure) -> tuple[str, ...]:
    target = "-" if figure.target is None else str(figure.target)
    what = f"{figure.area}: {figure.name}"
    return what, figure.ours, figure.raw, f"**{figure.shown}**", figure.spread, target, figure.verdict


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
