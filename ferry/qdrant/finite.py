"""Whether a batch on the wire holds a NaN or an infinity, seen at a glance where its points are laid out alike."""

from collections.abc import Sequence

import numpy as np

from ferry.qdrant.messages import MESSAGES
from ferry.qdrant.vector_columns import named

_TAG = b"\x0d"  # before each float where they are not packed, as 1.16.3 sends them
_STEP = 5


def surely_finite(points: Sequence[bytes]) -> bool:
    """Whether all floats of these ``PointStruct`` messages are finite; False also where that takes a closer look.

    The vectors are the last field of a point. Where their bytes are the same in all points except for the floats, the
    first one says where the floats of all are, and none of the others needs to be read: 0.3 µs a point instead of 3.
    """
    if not points:
        return True
    first = bytes(MESSAGES["PointStruct"].FromString(points[0]).vectors)
    size = len(first) + 1 + (max(len(first).bit_length(), 1) + 6) // 7  # with its tag and its length
    joined = b"".join([point[-size:] for point in points])
    if len(joined) != size * len(points) or not joined[:size].endswith(first):
        return False
    table = np.frombuffer(joined, np.uint8).reshape(-1, size)
    if (places := _places(first)) is None:
        return False
    floats = np.zeros(size, bool)
    floats[[size - len(first) + place for place in places]] = True
    if (table[:, ~floats] != table[0, ~floats]).any():
        return False
    return bool(np.isfinite(np.frombuffer(table[:, floats].tobytes(), "<f4")).all())


def _places(vectors: bytes) -> list[int] | None:
    """Where the bytes of floats are in a ``Vectors`` message; None where it holds other than dense vectors."""
    places: list[int] = []
    end = 0
    for _, vector in named(vectors):
        start = vectors.index(vector, end)
        end = start + len(vector)
        message = MESSAGES["Vector"].FromString(vector)
        packed = bytes(message.dense.data)
        if packed and vector.endswith(packed):
            places += range(end - len(packed), end)
        elif vector and not vector[::_STEP].replace(_TAG, b"") and len(vector) % _STEP == 0:
            places += [place for place in range(start, end) if (place - start) % _STEP]
        else:
            return None
    return places
