"""Tasks of the compare flow: read what can differ, and show what does."""

from pathlib import Path

from prefect.futures import wait

from ferry.verify.diff import Comparison, diff
from ferry.verify.diff_report import comparison_text, difference_rows
from tasks.artifacts import show_markdown, show_table
from tasks.policy import progress, raise_failures, step, stop_with_the_flow
from tasks.runs import holder, run_id


@step("compare", "compare {first} with {second}")
def compare_sides(repository: str, first: str, second: str, out: str | None) -> Comparison:
    """Read both sides where their digests differ, and join their points on this worker's disk."""
    who, file = holder(f"compare {run_id()}"), None if out is None else Path(out)
    return diff(repository, (first, second), who, file, progress(f"compare {first} with {second}", 0))


def compare(repository: str, first: str, second: str, out: str | None) -> Comparison:
    """The same so that a cancelled flow stops it."""
    future = compare_sides.submit(repository, first, second, out)
    with stop_with_the_flow([future]):
        wait([future])
    raise_failures([future], "comparing")
    return future.result()


@step("report differences", "report {first} and {second}")
def report_differences(first: str, second: str, found: Comparison) -> int:
    """A table of the first points of each kind under a text with the numbers; how many points differ."""
    show_markdown(("compared", first, second), comparison_text(found), f"{first} compared with {second}")
    if rows := difference_rows(found):
        show_table(("differences", first, second), rows, "The first points that differ, of each kind")
    return found.points
