"""What must be sent so that a node stores, bit for bit, what an archive shows.

Qdrant makes vectors of distance Cosine as long as 1 before it stores them, and leaves alone what is (the sum of squares
within 1e-6 of 1). What it has stored as float32 or uint8 is left alone when it is sent again. As float16 it was rounded
after that, is no longer as long as 1, and is made so and rounded once more: of 4000 vectors that were read and written
again 58 had changed with 4 dimensions, 89 with 16, 17 with 100, and none with 768 (1.16.3; the other distances and
datatypes, sparse and multivectors among them, came back equal, indexed or not). So something else is sent in their
place: values that round to the same halves and are as long as 1. The original was such a vector, so there is one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ferry.archive.doubles import payload_json

_LEFT_ALONE = 1e-7  # Qdrant's own bound is 1e-6, over sums in single precision
_WITHIN = 0.49  # of the way to the next half: up to 0.5 it is rounded back
_HALVINGS = 40

Vectors = npt.NDArray[np.float64]


def half_cosine_vectors(config: Mapping[str, Any]) -> list[str]:
    """Names of the vectors, by a collection's configuration, that a node would round once more; "" is the unnamed."""
    vectors = config["params"].get("vectors") or {}
    named = {"": vectors} if "size" in vectors else vectors
    return [
        name
        for name, vector in named.items()
        if vector.get("datatype") == "float16" and vector.get("distance") == "Cosine"
    ]


def points_json(points: Iterable[dict[str, Any]]) -> bytes:
    """Points that were decoded from a batch as the JSON array again, doubles as `ferry.archive.doubles` writes them."""
    found = (point | {"payload": orjson.Fragment(payload_json(point.get("payload") or {}))} for point in points)
    return b"[" + b",".join(map(orjson.dumps, found)) + b"]"


def sent_exactly(body: bytes, names: Sequence[str]) -> bytes:
    """The same JSON array of points with vectors that are stored as those given; ``names`` as above."""
    points = orjson.loads(body)
    for point in points:
        vectors = point["vector"] if isinstance(point["vector"], dict) else {"": point["vector"]}
        found = {name: before_rounding(vectors[name]) for name in names if vectors.get(name)}
        point["vector"] = found.get("", point["vector"]) if "" in vectors else vectors | found
    return points_json(points)


def before_rounding(vector: list[Any]) -> list[Any]:
    """A vector, or the rows of a multivector, as long as 1 and with the given values when rounded to float16.

    Rows of which that cannot be had, as they never were as long as 1, come as near to it as rounding allows.
    """
    rows = np.atleast_2d(np.array(vector, dtype=np.float64))
    squares = (rows**2).sum(axis=1)
    off = np.abs(squares - 1) > _LEFT_ALONE
    rows[off] = _stretched(rows[off])
    found: list[Any] = rows.tolist()
    return found if isinstance(vector[0], list) else found[0]


def _stretched(rows: Vectors) -> Vectors:
    """Scale each row by one factor, no value beyond what rounds to it; longer factors make longer rows, so bisect."""
    halves = rows.astype(np.float16)
    above = np.nextafter(halves, np.float16(np.inf)).astype(np.float64)
    below = np.nextafter(halves, np.float16(-np.inf)).astype(np.float64)
    most, least = rows + (above - rows) * _WITHIN, rows - (rows - below) * _WITHIN
    low, high = np.full(len(rows), 0.99), np.full(len(rows), 1.01)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = (np.clip(rows * middle[:, None], least, most) ** 2).sum(axis=1) < 1
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    stretched: Vectors = np.clip(rows * low[:, None], least, most)
    return stretched
