"""Reports in the Prefect UI. One place for the casts that Prefect's sync/async functions need."""

import re
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact


def artifact_key(*names: str) -> str:
    """Prefect allows lower-case letters, digits and dashes only; other names are folded."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(names).lower()).strip("-") or "ferry"


def show_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """A table on the run's page; same key, same history."""
    create_table_artifact(table=rows, key=key, description=description)


def show_markdown(key: str, text: str, description: str) -> None:
    """A text on the run's page."""
    create_markdown_artifact(markdown=text, key=key, description=description)
