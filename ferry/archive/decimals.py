"""Single-precision floats that came through JSON, as Qdrant meant them."""

from typing import Any

import numpy as np

# A double exactly halfway between two singles: the 29 bits that a single lacks are one and then zeros.
_LOW_BITS, _HALFWAY = np.uint64(0x1FFFFFFF), np.uint64(0x10000000)


def as_meant(vector: Any) -> Any:
    """A vector from Qdrant's JSON with every float the single that Qdrant stores.

    Qdrant writes the shortest decimal that names the single. Python reads it as a double, and where that lies exactly
    between two singles (7.038531e-26; about one float in 10⁹) rounding it again may give the other one.
    """
    if isinstance(vector, dict):
        return {name: _one(part) for name, part in vector.items()}
    return _one(vector)


def _one(vector: Any) -> Any:
    if isinstance(vector, dict):  # sparse: its indices are whole numbers, as large as u32, and stay what they are
        return {**vector, "values": _one(vector["values"])}
    if not isinstance(vector, list) or not vector:
        return vector
    if isinstance(vector[0], list):
        return [_one(row) for row in vector]
    doubles = np.array(vector, dtype=np.float64)  # None, which stands for what is not finite, becomes NaN
    halfway = np.flatnonzero((doubles.view(np.uint64) & _LOW_BITS) == _HALFWAY)
    if not halfway.size:
        return vector
    meant = list(vector)
    for place in halfway:
        meant[place] = _single(vector[place])
    return meant


def _single(value: float) -> float:
    nearest = np.float32(value)
    for candidate in (nearest, np.nextafter(nearest, np.float32(np.inf)), np.nextafter(nearest, np.float32(-np.inf))):
        if float(str(candidate)) == value:
            return float(candidate)
    return value
