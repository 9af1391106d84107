"""Qdrant's filters, as its REST API takes them in JSON, for archives (qdrant.tech/documentation/concepts/filtering).

What is not known here is an error, never left out: a filter that selects more than it says would be worse than none.
The engine checks values (JSON paths, dates, coordinates) while the filter is built, so nothing has been read by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import qdrant_edge as edge

from ferry.errors import ConfigurationError

Document = dict[str, Any]
T = TypeVar("T")

_CLAUSES = ("must", "should", "must_not", "min_should")


def to_filter(document: Any, where: str = "filter") -> edge.Filter:
    """Translate a filter. Raises ConfigurationError that names the place in the filter and what is wrong there."""
    given = _object(document, where, _CLAUSES)
    clauses = {
        name: _conditions(given[name], f"{where}.{name}")
        for name in ("must", "should", "must_not")
        if given.get(name) is not None
    }
    least = given.get("min_should")
    return edge.Filter(**clauses, min_should=None if least is None else _min_should(least, f"{where}.min_should"))


def to_id(value: Any, where: str) -> int | str:
    """An id as Qdrant writes it: a number from 0 to 2^64-1, or a hyphenated UUID. Raises ConfigurationError."""
    if type(value) is int and 0 <= value < 1 << 64:
        return value
    try:
        return str(UUID(value))
    except (ValueError, AttributeError, TypeError):
        _refuse(where, f"{value!r} is no point id: a number from 0 to 2^64-1, or a UUID")


def _conditions(given: Any, where: str) -> list[Any]:
    if isinstance(given, dict):  # Qdrant takes a single condition for a list of one
        return [_condition(given, where)]
    return [_condition(each, f"{where}[{index}]") for index, each in enumerate(_list(given, where))]


def _min_should(given: Any, where: str) -> edge.MinShould:
    least = _object(given, where, ("conditions", "min_count"), needed=2)
    return _built(where, edge.MinShould, _conditions(least["conditions"], f"{where}.conditions"), least["min_count"])


def _condition(given: Any, where: str) -> Any:
    if not isinstance(given, dict):
        _refuse(where, f"a condition is an object, not {given!r}")
    if "key" in given:
        return _field(given, where)
    if not given or set(given) <= set(_CLAUSES):
        return to_filter(given, where)
    [name, *others] = given
    if name not in _OTHERS or others:
        _refuse(where, f"unknown condition {', '.join(map(repr, given))}; {_known(('key', *_OTHERS, *_CLAUSES))}")
    return _OTHERS[name](given[name], f"{where}.{name}")


def _field(given: Document, where: str) -> edge.FieldCondition:
    _object(given, where, ("key", *_OF_A_FIELD))
    asked = {name: value for name, value in given.items() if name != "key" and value is not None}
    if not asked:
        _refuse(where, f"nothing is asked of the field {given['key']!r}; {_known(_OF_A_FIELD)}")
    tests = {name: _OF_A_FIELD[name](value, f"{where}.{name}") for name, value in asked.items()}
    return _built(where, edge.FieldCondition, given["key"], **tests)


def _match(given: Any, where: str) -> Any:
    match = _object(given, where, tuple(_MATCHES))
    if len(match) != 1:
        _refuse(where, f"one kind of match, not {len(match)}; {_known(_MATCHES)}")
    [(name, value)] = match.items()
    return _MATCHES[name](value, f"{where}.{name}")


def _match_value(value: Any, where: str) -> edge.MatchValue:
    # The engine's binding takes Python's True for the number 1 (qdrant-edge-py 0.9.0), but not numpy's.
    return _built(where, edge.MatchValue, _numpy_bool(value) if isinstance(value, bool) else value)


def _numpy_bool(value: bool) -> Any:
    from numpy import bool_  # takes longer to import than all else that a worker process needs

    return bool_(value)


def _match_many(kind: Callable[[list[Any]], Any]) -> Callable[[Any, str], Any]:
    def match(value: Any, where: str) -> Any:
        values = _list(value, where)
        if any(isinstance(each, bool) for each in values):
            _refuse(where, "true and false are matched by value, not in a list")
        return _built(where, kind, values)

    return match


def _range(given: Any, where: str) -> Any:
    bounds = {name: value for name, value in _bounds(given, where).items() if value is not None}
    kind = edge.RangeDateTime if any(isinstance(value, str) for value in bounds.values()) else edge.RangeFloat
    return _built(where, kind, **bounds)


def _values_count(given: Any, where: str) -> edge.ValuesCount:
    return _built(where, edge.ValuesCount, **_bounds(given, where))


def _bounds(given: Any, where: str) -> Document:
    bounds = _object(given, where, ("gt", "gte", "lt", "lte"))
    for name, value in bounds.items():
        if isinstance(value, bool):
            _refuse(f"{where}.{name}", f"{value!r} is no bound")
    return bounds


def _bounding_box(given: Any, where: str) -> edge.GeoBoundingBox:
    box = _object(given, where, ("top_left", "bottom_right"), needed=2)
    return edge.GeoBoundingBox(*(_point(box[name], f"{where}.{name}") for name in ("top_left", "bottom_right")))


def _radius(given: Any, where: str) -> edge.GeoRadius:
    circle = _object(given, where, ("center", "radius"), needed=2)
    return _built(where, edge.GeoRadius, _point(circle["center"], f"{where}.center"), circle["radius"])


def _polygon(given: Any, where: str) -> edge.GeoPolygon:
    polygon = _object(given, where, ("exterior", "interiors"), needed=1)
    holes = [
        _line(line, f"{where}.interiors[{index}]")
        for index, line in enumerate(_list(polygon.get("interiors") or [], f"{where}.interiors"))
    ]
    return _built(where, edge.GeoPolygon, _line(polygon["exterior"], f"{where}.exterior"), holes or None)


def _line(given: Any, where: str) -> list[edge.GeoPoint]:
    points = _list(_object(given, where, ("points",), needed=1)["points"], f"{where}.points")
    return [_point(point, f"{where}.points[{index}]") for index, point in enumerate(points)]


def _point(given: Any, where: str) -> edge.GeoPoint:
    point = _object(given, where, ("lon", "lat"), needed=2)
    return _built(where, edge.GeoPoint, point["lon"], point["lat"])


def _flag(given: Any, where: str) -> bool:
    return given if isinstance(given, bool) else _refuse(where, f"true or false, not {given!r}")


def _key_of(kind: Callable[[str], Any]) -> Callable[[Any, str], Any]:
    def condition(given: Any, where: str) -> Any:
        return _built(where, kind, _object(given, where, ("key",), needed=1)["key"])

    return condition


def _has_id(given: Any, where: str) -> edge.HasIdCondition:
    ids: Any = {to_id(each, f"{where}[{index}]") for index, each in enumerate(_list(given, where))}
    return _built(where, edge.HasIdCondition, ids)


def _nested(given: Any, where: str) -> edge.NestedCondition:
    nested = _object(given, where, ("key", "filter"), needed=2)
    return _built(where, edge.NestedCondition, nested["key"], to_filter(nested["filter"], f"{where}.filter"))


def _plain(kind: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    return lambda given, where: _built(where, kind, given)


_MATCHES: dict[str, Callable[[Any, str], Any]] = {
    "value": _match_value,
    "text": _plain(edge.MatchText),
    "text_any": _plain(edge.MatchTextAny),
    "phrase": _plain(edge.MatchPhrase),
    "any": _match_many(edge.MatchAny),
    "except": _match_many(edge.MatchExcept),
}
_OF_A_FIELD: dict[str, Callable[[Any, str], Any]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": _bounding_box,
    "geo_radius": _radius,
    "geo_polygon": _polygon,
    "values_count": _values_count,
    "is_empty": _flag,
    "is_null": _flag,
}
_OTHERS: dict[str, Callable[[Any, str], Any]] = {
    "is_empty": _key_of(edge.IsEmptyCondition),
    "is_null": _key_of(edge.IsNullCondition),
    "has_id": _has_id,
    "has_vector": _plain(edge.HasVectorCondition),
    "nested": _nested,
}


def _object(given: Any, where: str, known: Iterable[str], needed: int = 0) -> Document:
    """An object with known names only, the first ``needed`` of which must be there."""
    names = tuple(known)
    if not isinstance(given, dict):
        _refuse(where, f"an object, not {given!r}; {_known(names)}")
    if unknown := [name for name in given if name not in names]:
        _refuse(where, f"unknown {', '.join(map(repr, unknown))}; {_known(names)}")
    if missing := [name for name in names[:needed] if given.get(name) is None]:
        _refuse(where, f"{' and '.join(missing)} is missing")
    return given


def _list(given: Any, where: str) -> list[Any]:
    return given if isinstance(given, list) else _refuse(where, f"a list, not {given!r}")


def _built(where: str, kind: Callable[..., T], *values: Any, **named: Any) -> T:
    try:
        return kind(*values, **named)
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error).split("\n", 1)[0]
        if reason.startswith("failed to extract"):  # the binding's inner types say nothing to a reader
            reason = f"{', '.join(map(repr, values))} is of the wrong type"
        _refuse(where, reason)


def _known(names: Iterable[str]) -> str:
    return f"known: {', '.join(names)}"


def _refuse(where: str, reason: str) -> NoReturn:
    raise ConfigurationError(f"{where}: {reason}. Nothing was read.", "Correct the filter; see docs/recovery.md.")
