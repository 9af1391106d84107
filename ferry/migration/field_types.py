"""Values of payload fields turned into the type that a migration wants them to have, or refused."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from ferry.migration.plan import PayloadType

_MOST, _LEAST = (1 << 63) - 1, -(1 << 63)  # Qdrant's integers
# As Qdrant reads it without loss: RFC 3339 with any number of digits of a second, which Python would cut to six.
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def typed(value: Any, kind: PayloadType, field: str) -> Any:
    """A value, or each value of a list, as that type; null stays. Raises ValueError where that would lose something."""
    if value is None:
        return None
    if isinstance(value, list):
        return [typed(each, kind, field) for each in value]
    try:
        return _TYPES[kind](value)
    except (ValueError, TypeError, OverflowError):
        shown = orjson.dumps(value)[:40].decode(errors="replace")
        msg = f"{shown} in its field {field} is no {kind}"
        raise ValueError(msg) from None


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = int(value)
    if (isinstance(value, float) and number != value) or not _LEAST <= number <= _MOST:
        raise ValueError
    return number


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(value)
    if number - number != 0 or (isinstance(value, int) and int(number) != value):  # JSON has no infinity and no NaN
        raise ValueError
    return number


def _keyword(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        raise TypeError
    return orjson.dumps(value).decode()


def _bool(value: Any) -> bool:
    found = {True: True, False: False, "true": True, "false": False}.get(
        value if not isinstance(value, float) else None
    )
    if found is None:
        raise ValueError
    return found


def _datetime(value: Any) -> str:
    """RFC 3339; numbers are seconds since 1970, times without a zone are UTC, as they are for Qdrant."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC).isoformat()
    moment = datetime.fromisoformat(value)
    if _RFC_3339.fullmatch(value):
        return str(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


_TYPES: dict[PayloadType, Callable[[Any], Any]] = {
    "integer": _integer,
    "float": _float,
    "keyword": _keyword,
    "bool": _bool,
    "datetime": _datetime,
}
