"""``settings --markdown``: the reference of all settings, written from the model, so that it is never out of date."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from ferry.cli import terminal
from ferry.cli.origins import read_origins, shown
from ferry.settings import PREFIX, Settings, load_settings

INTRODUCTION = """\
# Settings

<!-- Written by `python -m ferry settings --markdown > docs/settings.md` (make docs). A test compares it. -->

Settings are what differs by environment; what differs by run is a parameter of a flow. They are read from, the
strongest first:

1. environment variables, `FERRY_…`, tables joined by two underscores: `FERRY_CLUSTERS__PROD__API_KEY`;
2. files of those same names in the folder that `FERRY_SECRETS_DIR` names (Docker and Kubernetes secrets);
3. `ferry.toml` in the current folder, or the file that `FERRY_CONFIG` names.

Single keys are merged over these places, so the nodes of a cluster may stand in the file and its key in a variable.
Lists and tables given in one variable or secret file are JSON: `FERRY_CLUSTERS__PROD__NODES='["http://10.0.0.1:6333"]'`.
Unknown keys and unknown `FERRY_…` variables are errors. `python -m ferry doctor` shows every value, where it came from,
and whether it works.

**Secrets** (type *secret* below) belong in variables or secret files. They are never parameters, and are shown nowhere.

**Names** of profiles are letters, digits, `_` and `-`. Variables reach only names in lower case without a dash: the
names of variables know no case, and shells allow no dash in them.

These variables steer Ferry and are no settings: `FERRY_CONFIG` (the settings file), `FERRY_SECRETS_DIR` (the folder of
secret files), `FERRY_HOME` (where downloaded servers of the sandbox are kept), `FERRY_QDRANT_BINARY` (a Qdrant for the
sandbox).
"""
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", SecretStr: "secret"}


def run(given: argparse.Namespace) -> int:
    """Print the reference, or the settings as they stand."""
    if given.markdown:
        terminal.print_raw(settings_markdown())
    else:
        terminal.print_rows(
            {"setting": origin.key, "value": origin.value, "from": origin.source}
            for origin in read_origins(load_settings())
        )
    return 0


def settings_markdown() -> str:
    """The whole of docs/settings.md."""
    return INTRODUCTION + "".join(_section(path, model) for path, model in _tables(Settings, ()))


def _tables(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    if path:
        yield path, model
    for name, field in model.model_fields.items():
        if (inner := _inner_model(field.annotation)) and get_origin(field.annotation) is not list:
            profile = ("NAME",) if get_origin(field.annotation) is dict else ()
            yield from _tables(inner, (*path, name, *profile))


def _section(path: tuple[str, ...], model: type[BaseModel]) -> str:
    lines = [
        f"\n## [{'.'.join(path)}]\n",
        f"{(model.__doc__ or '').strip().splitlines()[0]}\n",
        "| key | type | default | meaning | variable |",
        "|---|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner and get_origin(field.annotation) is not list:
            continue  # a table of its own
        meaning = field.description or ""
        if inner:
            meaning += " Keys: " + "; ".join(
                f"`{key}` ({_type_of(found)}{', required' if found.is_required() else ''}): {found.description}"
                for key, found in inner.model_fields.items()
            )
        variable = PREFIX + "__".join("<NAME>" if part == "NAME" else part.upper() for part in (*path, name))
        cells = (f"`{name}`", _type_of(field), _default_of(field), meaning, f"`{variable}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner_model(part))), None)


def _type_of(field: FieldInfo) -> str:
    text = _type_name(field.annotation)
    least = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), None)
    most = next((bound.le for bound in field.metadata if isinstance(bound, Le)), None)
    above = next((bound.gt for bound in field.metadata if isinstance(bound, Gt)), None)
    if least is not None and most is not None:
        return f"{text}, {least} to {most}"
    if least is not None:
        return f"{text}, at least {least}"
    return text if above is None else f"{text}, more than {above}"


def _type_name(annotation: Any) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:  # the only such kind inside a field is an address
        return "http(s) address"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return _type_name(next(part for part in arguments if part is not NoneType))
    if origin is list:
        return f"list: {_type_name(arguments[0])}"
    return _WORDS.get(annotation, "table")


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    return f"`{shown(value)}`" if value not in (None, []) else "none"
