"""What every command needs of the terminal: consoles, tables, progress, and the choice of a repository."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ferry.errors import ConfigurationError, FerryError
from ferry.lanes import Tell
from ferry.models import Progress as Told
from ferry.settings import load_settings

# A file or a pipe gets lines of any length; a terminal gets its own width.
_PIPE_COLUMNS = 240


def out() -> Console:
    """Where results go. Made when it is needed, so that it writes to the stdout of that moment."""
    return _console(stderr=False)


def err() -> Console:
    """Where errors and progress go, so that results can be piped."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
    return Console(stderr=stderr, highlight=False, width=width)


def print_error(error: FerryError) -> None:
    """The message in red and the next step under it; never a traceback."""
    err().print(Text(error.message, style="red"))
    if error.remedy:
        err().print(Text(f"→ {error.remedy}"))


def print_text(markdown: str) -> None:
    """A report of ferry.report's."""
    out().print(Markdown(markdown))


def print_raw(text: str) -> None:
    """Text for a file or another program: not wrapped, not coloured."""
    out().print(text, markup=False, soft_wrap=True, end="" if text.endswith("\n") else "\n")


def print_json(document: Any) -> None:
    """One JSON document, indented."""
    print_raw(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode())


def print_rows(rows: Iterable[Mapping[str, Any]], title: str | None = None) -> None:
    """Rows as a table whose columns are the keys of the first row; nothing when there is none."""
    rows = list(rows)
    if not rows:
        return
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold", justify="right" if isinstance(rows[0][name], int) else "left")
    for row in rows:
        table.add_row(*(value if isinstance(value, Text) else Text(str(value)) for value in row.values()))
    out().print(table)


@contextmanager
def progress_bars() -> Iterator[Tell]:
    """A bar for each step under way, on stderr; the returned function begins one. Finished ones disappear."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err(), transient=True, redirect_stdout=False) as bars:

        @contextmanager
        def tell(label: str, total: int | None) -> Iterator[Told]:
            task = bars.add_task(label, total=total or None)
            try:
                yield lambda done: bars.advance(task, done)
            finally:
                bars.remove_task(task)

        yield tell


def chosen_repository(name: str | None) -> str:
    """The repository named, or the only one there is. Raises ConfigurationError when that is not clear."""
    repositories = load_settings().repositories
    if name is None and len(repositories) == 1:
        return next(iter(repositories))
    if name is None:
        known = ", ".join(sorted(repositories)) or "none is configured"
        msg = f"Which repository? Known: {known}."
        raise ConfigurationError(msg, "Name one with --repository, or configure [repositories.NAME] in ferry.toml.")
    load_settings().repository(name)
    return name
