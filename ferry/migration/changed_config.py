"""What the changes of a migration mean for the new collection's configuration and payload indexes. Pure."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from ferry.errors import PreflightError
from ferry.migration.plan import Changes

NOTHING = "Nothing was changed."
_FIRST = re.compile(r'"([^"]+)"|([^.\[]+)')


def dense_vectors(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of a collection's dense and multivectors by name; the unnamed one is ``""``."""
    vectors = config["params"].get("vectors") or {}
    return {"": vectors} if "size" in vectors else dict(vectors)


def sparse_vectors(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of a collection's sparse vectors by name."""
    return dict(config["params"].get("sparse_vectors") or {})


def wanted_vectors(config: Mapping[str, Any], changes: Changes) -> tuple[str, ...] | None:
    """The names to ask a source for: None for all, else those that are not dropped."""
    dropped = {name for name, new in changes.vectors.items() if new is None}
    names = (*dense_vectors(config), *sparse_vectors(config))
    return tuple(name for name in names if name not in dropped) if dropped else None


def changed_config(config: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The source's configuration with vectors renamed or dropped, and their datatype.

    Raises PreflightError for a vector that the source has not, two of one name, an unnamed one beside others, another
    distance, and a datatype that would destroy the values.
    """
    dense, sparse = dense_vectors(config), sparse_vectors(config)
    _require_known(changes, dense, sparse)
    new: dict[str, Any] = deepcopy(dict(config))
    renamed = {name: vector for old, vector in deepcopy(dense).items() if (name := _new(changes, old)) is not None}
    for vector in renamed.values():
        if changes.datatype is not None:
            vector["datatype"] = changes.datatype
    new["params"]["vectors"] = renamed.get("", renamed)
    kept = {name: vector for old, vector in sparse.items() if (name := _new(changes, old)) is not None}
    if sparse:
        new["params"]["sparse_vectors"] = kept
    return new


def changed_schema(payload_schema: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The source's payload indexes, those of dropped fields left out, of renamed ones renamed, of typed ones typed."""
    found: dict[str, Any] = {}
    for path, index in payload_schema.items():
        top, rest = _split(path)
        if top in changes.drop_fields:
            continue
        new = changes.rename_fields.get(top)
        name = path if new is None else _quoted(new) + rest
        wanted = changes.field_types.get(name)
        same = wanted is None or index.get("data_type") == wanted
        found[name] = dict(index) if same else {"data_type": wanted}
    return found


def require_fields_apart(changes: Changes) -> None:
    """Raise PreflightError when the changes of payload fields contradict each other."""
    names = list(changes.rename_fields.values())
    twice = sorted({name for name in names if names.count(name) > 1})
    both = sorted(set(changes.drop_fields) & set(changes.rename_fields))
    if twice or both:
        said = (
            f"{', '.join(twice)} would be the new name of two fields" if twice else f"{', '.join(both)} is dropped too"
        )
        raise PreflightError(f"Payload fields cannot be changed like this: {said}. {NOTHING}", "Correct `changes`.")


def _require_known(changes: Changes, dense: Mapping[str, Any], sparse: Mapping[str, Any]) -> None:
    there = (*dense, *sparse)
    if unknown := sorted(set(changes.vectors) - set(there)):
        known = ", ".join(map(repr, there)) or "none"
        msg = f"The source has no vector {', '.join(map(repr, unknown))}; it has: {known}. {NOTHING}"
        raise PreflightError(msg, "Correct `changes.vectors`.")
    names = [name for old in there if (name := _new(changes, old)) is not None]
    if len(set(names)) < len(names) or any(_new(changes, old) == "" for old in sparse):
        raise PreflightError(
            f"Two vectors would have one name: {_listed(names)}. {NOTHING}", "Correct `changes.vectors`."
        )
    if "" in names and len([name for name in names if name not in sparse]) > 1:
        msg = f"An unnamed vector cannot be beside other dense ones: {_listed(names)}. {NOTHING}"
        raise PreflightError(msg, "Name it in `changes.vectors`.")
    _require_sense(changes, dense)


def _require_sense(changes: Changes, dense: Mapping[str, Any]) -> None:
    for old, vector in dense.items():
        if _new(changes, old) is None:
            continue
        distance = vector["distance"]
        if changes.distance is not None and changes.distance != distance:
            msg = f"Vector {old!r} is embedded for {distance}, not for {changes.distance}. {NOTHING}"
            raise PreflightError(msg, "Leave `changes.distance` out, or embed the texts anew with another model.")
        if changes.datatype == "uint8" and distance == "Cosine" and vector.get("datatype") != "uint8":
            msg = f"Vector {old!r} is of length 1 for Cosine: as uint8 all of its values would be 0. {NOTHING}"
            raise PreflightError(
                msg, "Take float16, or a quantization (`shape.quantization`), which keeps the originals."
            )


def _new(changes: Changes, old: str) -> str | None:
    return changes.vectors.get(old, old)


def _split(path: str) -> tuple[str, str]:
    """The payload field that an index's path begins with, and the rest: ``a`` of ``a.b``, ``a[].b`` and ``"a".b``."""
    found = _FIRST.match(path)
    if found is None:
        return path, ""
    return found.group(1) or found.group(2), path[found.end() :]


def _quoted(name: str) -> str:
    """A field's name as Qdrant's paths have it."""
    return f'"{name}"' if re.search(r"[.\[\]]", name) else name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
