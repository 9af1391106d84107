"""Measure Ferry against the raw operations: python -m benchmarks [--quick] [--only AREA] [--write FILE]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from rich.console import Console

from benchmarks import (
    bench_backup,
    bench_encryption,
    bench_flow,
    bench_many,
    bench_memory,
    bench_migration,
    bench_proof,
    bench_restore,
    bench_stall,
)
from benchmarks.figures import Figure
from benchmarks.machine import Machine
from benchmarks.numbers import page, table
from benchmarks.sizes import SIZES, Sizes
from benchmarks.stage import Stage

PAGE = Path(__file__).parents[1] / "docs" / "numbers.md"
AREAS: dict[str, Callable[[Stage, Sizes], list[Figure]]] = {
    "backup": lambda stage, sizes: bench_backup.measure(stage, sizes.backup_points, sizes.rounds, sizes.warm_rounds),
    "restore": lambda stage, sizes: bench_restore.measure(stage, sizes.restore_points, sizes.rounds, sizes.warm_rounds),
    "memory": lambda stage, sizes: bench_memory.measure(stage, list(sizes.memory_shapes)),
    "proof": lambda _stage, sizes: bench_proof.measure(sizes.proof_points, sizes.rounds),
    "encryption": lambda stage, sizes: bench_encryption.measure(
        stage, sizes.backup_points, sizes.rounds, sizes.warm_rounds, sizes.memory_shapes[-1]
    ),
    "stall": lambda stage, sizes: bench_stall.measure(
        stage, sizes.stall_points, sizes.rounds, sizes.stall_rest_seconds
    ),
    "many": lambda stage, sizes: bench_many.measure(stage, *sizes.many),
    "migration": lambda stage, sizes: bench_migration.measure(stage, sizes.migration),
    "orchestration": lambda stage, sizes: bench_flow.measure(stage, sizes.flow_points, sizes.rounds),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print one table, and write the page when all areas were measured in full size or a file is named."""
    given = _parser().parse_args(arguments)
    sizes = SIZES[given.size]
    began = perf_counter()
    console = Console(width=None if sys.stdout.isatty() else 160)
    figures: list[Figure] = []
    with Stage(given.folder) as stage:
        with console.status("The machine"):
            machine = Machine.examined(stage.folder, sizes.disk_bytes, sizes.rounds)
        for area in given.only or AREAS:
            with console.status(f"{area}"):
                found = AREAS[area](stage, sizes)
            for figure in found:
                console.print(
                    f"{figure.area}: {figure.name}: [bold]{figure.shown}[/] ({figure.spread}), {figure.limit}"
                )
            figures += found
    console.print(table(figures, machine))
    target = given.write or (PAGE if sizes is SIZES["full"] and not given.only else None)
    if target:
        target.write_text(page(figures, machine, given.size, perf_counter() - began), encoding="utf-8")
        console.print(f"Written: {target}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Ferry on this machine.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="small sizes, about a minute")
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="to see that it runs, no numbers")
    parser.set_defaults(size="full")
    parser.add_argument("--only", action="append", choices=list(AREAS), help="this area; may be given again")
    parser.add_argument("--write", type=Path, help="write the page to this file (default: docs/numbers.md, full only)")
    parser.add_argument("--folder", type=Path, help="a disk for the servers' data (default: where temporary files go)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
