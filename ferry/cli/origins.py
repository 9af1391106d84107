"""Which source gave each setting: the environment, the secrets directory, the settings file, or nobody."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from ferry.models import Value
from ferry.settings import Settings, named_sources

HIDDEN = "*****"


class Origin(Value):
    """One setting as it stands, a secret never shown, and who gave it."""

    key: str
    value: str
    source: str


def read_origins(settings: Settings) -> list[Origin]:
    """Every setting with its value and its source, the sources asked in the order in which they win."""
    given = [(name, source()) for name, source in named_sources(Settings)]
    return [
        Origin(
            key=".".join(path),
            value=shown(value),
            source=next((name for name, document in given if _holds(document, path)), "default"),
        )
        for path, value in _leaves(settings, ())
    ]


def shown(value: Any) -> str:
    """A setting's value as text; a secret is hidden, nothing is empty."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{name} = {shown(found)}" for name, found in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(found) for found in value) + "]"
    return str(value)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, BaseModel):
        for name, found in value:
            yield from _leaves(found, (*path, name))
    elif isinstance(value, Mapping):
        for name, found in sorted(value.items()):
            yield from _leaves(found, (*path, name))
    else:
        yield path, value


def _holds(document: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(document, Mapping) or name not in document:
            return False
        document = document[name]
    return True
