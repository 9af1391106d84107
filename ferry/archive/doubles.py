"""Doubles in payloads, written so that Qdrant shows them afterwards as an archive shows them now.

Qdrant keeps payloads as JSON text, and reads them each time with serde_json's quick way with numbers: it rounds the
digits to a double and multiplies it with, or divides it by, a power of ten. With 16 digits and more that may be off by
one in the last place (seen on 1.16.3; serde-rs/json#1336). So what is shown is not always what the stored text says,
and what is sent is read so, too, before it is stored. Of doubles from 1e-4 to 1e16 what is shown is read as itself; of
those around 1e-9 a quarter is not. For these the text is sought that ends as what is shown: there is one for whatever
was written over REST, and none for one in two thousand that were written over gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import inf, nextafter
from typing import Any

import orjson

_POWERS = [float(f"1e{exponent}") for exponent in range(309)]  # serde_json's own table
# Up to 15 digits and 22 powers of ten are exact in doubles, so what they make is rounded once: rightly.
_UNCERTAIN = re.compile(rb"[0-9.]{17}|[0-9]e")


def payload_json(payload: Mapping[str, Any]) -> bytes:
    """A payload as JSON of which Qdrant shows the same again, but for what `as_read` tells."""
    text = orjson.dumps(payload)
    return text if _UNCERTAIN.search(text) is None else orjson.dumps(_mapped(payload, _fragment))


def as_read(payload: Mapping[str, Any]) -> Any:
    """The payload as Qdrant shows `payload_json`: equal to it unless it holds a double without a right text."""
    return payload if _UNCERTAIN.search(orjson.dumps(payload)) is None else _mapped(payload, _shown_again)


def read_by_qdrant(text: str) -> float:
    """The double that Qdrant 1.16 reads from a decimal with up to 19 digits."""
    digits, _, exponent = text.lstrip("-").partition("e")
    whole, _, fraction = digits.partition(".")
    power = int(exponent or 0) - len(fraction)
    value = float(int(whole + fraction))
    while power < -308:
        value, power = value / 1e308, power + 308
    value = value / _POWERS[-power] if power < 0 else value * _POWERS[power]
    return -value if text.startswith("-") else value


def _mapped(value: Any, change: Callable[[float], Any]) -> Any:
    if type(value) is float:
        return change(value)
    if type(value) is dict:
        return {key: _mapped(each, change) for key, each in value.items()}
    return [_mapped(each, change) for each in value] if type(value) is list else value


def _stored(value: float) -> float:
    """What is shown of a double that Qdrant holds: it is stored as its shortest decimal, as Python's repr is."""
    return read_by_qdrant(repr(value))


def _right_text(shown: float) -> str | None:
    """A decimal that ends as ``shown`` when Qdrant has read it, stored it, and read it again."""
    for near in (shown, *_around(shown)):
        for text in (repr(near), f"{near:.16e}", f"{near:.17e}", f"{near:.18e}"):
            if _stored(read_by_qdrant(text)) == shown:
                return text
    return None


def _around(value: float) -> Iterator[float]:
    """The doubles next to a double: its reading was off by no more."""
    for direction in (inf, -inf):
        following = nextafter(value, direction)
        yield following
        yield nextafter(following, direction)


def _fragment(shown: float) -> Any:
    text = _right_text(shown)
    return shown if text is None else orjson.Fragment(text)


def _shown_again(shown: float) -> float:
    return shown if _right_text(shown) else _stored(_stored(shown))
