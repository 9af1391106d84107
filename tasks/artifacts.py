"""Reports in the Prefect UI, under keys that Prefect allows."""

import hashlib
import re
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact


def show_table(name: tuple[str, ...], rows: list[dict[str, Any]], description: str) -> None:
    """A table on the run's page; the same name makes a history."""
    create_table_artifact(table=rows, key=artifact_key(*name), description=description)


def show_markdown(name: tuple[str, ...], text: str, description: str) -> None:
    """A text on the run's page; the same name makes a history."""
    create_markdown_artifact(markdown=text, key=artifact_key(*name), description=description)


def artifact_key(*names: str) -> str:
    """Prefect allows lower-case letters, digits and dashes only; what was folded away is told apart by a hash."""
    wanted = "-".join(names)
    folded = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if folded == wanted.lower().replace("_", "-"):
        return folded
    return f"{folded}-{hashlib.sha256(wanted.encode()).hexdigest()[:6]}".strip("-")
