"""Which points a command is about: ``--filter`` and ``--ids``."""

import argparse
from pathlib import Path
from typing import Any

import orjson

from ferry.archive.filters import to_id
from ferry.errors import ConfigurationError


def given_filter(given: argparse.Namespace) -> dict[str, Any] | None:
    """The filter as a document, not yet looked into."""
    document = None if given.filter is None else json_of(_text(given.filter), "--filter")
    if document is not None and not isinstance(document, dict):
        raise ConfigurationError("--filter must be a JSON object.", "Correct the filter; see docs/recovery.md.")
    return document


def given_ids(given: argparse.Namespace) -> tuple[int | str, ...] | None:
    """The ids of ``--ids``. Raises ConfigurationError for what is none."""
    if given.ids is None:
        return None
    words = given.ids.split(",") if not given.ids.startswith("@") else _text(given.ids).splitlines()
    return tuple(one_id(word.strip()) for word in words if word.strip())


def one_id(word: str) -> int | str:
    """A point's id as it is typed, or as a line of JSON holds it under ``id``."""
    if word.startswith("{"):
        found = json_of(word, "--ids")
        return to_id(found.get("id"), "--ids")
    return to_id(int(word) if word.isdecimal() else word.strip("'\""), "--ids")


def json_of(text: str, option: str) -> Any:
    """What an option says in JSON. Raises ConfigurationError with the place where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        msg = f"{option} is no JSON: {error}."
        raise ConfigurationError(msg, "Put it in single quotes, so that the shell leaves it alone.") from error


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text()
    except OSError as error:
        msg = f"{given[1:]} cannot be read: {error.strerror}."
        raise ConfigurationError(msg, "Name a file that is there, after the @.") from error
