"""A collection and Qdrant filters for it: every kind of condition, alone and in trees, on indexed fields and others."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.integration.samples import INDEXES, Point, Sample, floats, payload_of, point_id

POINTS = 150
BARE = "bare"  # the same fields once more under this name, without an index
Condition = dict[str, Any]


def vectors_of(rng: random.Random) -> dict[str, Any]:
    """One vector of each name."""
    return {
        "a": floats(rng, 4),
        "b": floats(rng, 2),
        "many": [floats(rng, 3) for _ in range(rng.randrange(1, 4))],
        "words": {"indices": rng.sample(range(30), 5), "values": floats(rng, 5)},
    }


def sample() -> Sample:
    """Payloads for every kind of condition; points lack vectors, fields, or all of it."""
    rng = random.Random("filters")
    body = {
        "vectors": {
            "a": {"size": 4, "distance": "Dot"},
            "b": {"size": 2, "distance": "Euclid"},
            "many": {"size": 3, "distance": "Cosine", "multivector_config": {"comparator": "max_sim"}},
        },
        "sparse_vectors": {"words": {}},
        "shard_number": 2,
    }
    points: list[Point] = []
    for n in range(POINTS):
        vectors = vectors_of(rng)
        kept = {name: vector for name, vector in vectors.items() if rng.random() < 0.7}
        values = {key: value for key, value in payload_of(n).items() if key in FIELDS and rng.random() < 0.9}
        odd = {key: value for key, value in payload_of(n).items() if key not in FIELDS and rng.random() < 0.8}
        points.append({"id": point_id(n), "vector": kept, "payload": None if n == 7 else values | odd | {BARE: values}})
    return Sample(body, points, INDEXES)


def _matches(*values: Any) -> Callable[[random.Random], Condition]:
    def make(rng: random.Random) -> Condition:
        kind = rng.choice(["value", "any", "except"])
        chosen = rng.sample(values, rng.randrange(1, len(values)))
        return {"match": {kind: chosen[0] if kind == "value" else chosen}}

    return make


def _bounds(*values: Any) -> Callable[[random.Random], Condition]:
    def make(rng: random.Random) -> Condition:
        low, high = sorted(rng.sample(values, 2))
        bounds = {rng.choice(["gt", "gte"]): low, rng.choice(["lt", "lte"]): high}
        return {"range": dict(rng.sample(list(bounds.items()), rng.choice([1, 2])))}

    return make


def _texts(kinds: list[str], *values: str) -> Callable[[random.Random], Condition]:
    return lambda rng: {"match": {rng.choice(kinds): rng.choice(values)}}


def _place(rng: random.Random) -> Condition:
    lon, lat, side = rng.uniform(8, 12), rng.uniform(44, 48), rng.uniform(0.5, 3)
    corners = [(lon - side, lat - side), (lon + side, lat - side), (lon + side, lat + side), (lon - side, lat + side)]
    hole = [(lon, lat), (lon + side / 3, lat), (lon + side / 3, lat + side / 3)]
    return rng.choice(
        [
            {"geo_radius": {"center": {"lon": lon, "lat": lat}, "radius": side * 100_000}},
            {"geo_bounding_box": {"top_left": _at(corners[3]), "bottom_right": _at(corners[1])}},
            {"geo_polygon": {"exterior": _line(corners)}},
            {"geo_polygon": {"exterior": _line(corners), "interiors": [_line(hole)]}},
        ]
    )


def _at(corner: tuple[float, float]) -> dict[str, float]:
    return {"lon": corner[0], "lat": corner[1]}


def _line(corners: list[tuple[float, float]]) -> dict[str, Any]:
    return {"points": [_at(corner) for corner in [*corners, corners[0]]]}


MONTHS = ["2026-02-01T00:00:00Z", "2026-03-15T12:30:00+02:00", "2026-04-15", "2026-05-15T10:30:00.5Z"]
FIELDS: dict[str, Callable[[random.Random], Condition]] = {
    "city": _matches("Zürich", "København", "東京"),
    "tenant": _matches("t0", "t1", "t2", "t3"),
    "rank": lambda rng: rng.choice([_matches(3, 30, 77), _bounds(10, 40.5, 100)])(rng),
    "year": _bounds(2001, 2003, 2005),
    "code": _matches(0, 1, 2, 101),
    "price": _bounds(1.5, 7.25, 13),
    "open": lambda rng: {"match": {"value": rng.random() < 0.5}},
    "place": _place,
    "when": _bounds(*MONTHS),
    "uuid": _matches(*(payload_of(n)["uuid"] for n in (3, 7, 11))),
    "title": _texts(["text", "text_any", "phrase"], "hello 42", "world 7", "Hello"),
    "note": _texts(["text", "phrase"], "running Café", "number 3", "nothing of"),
    "prefix": _texts(["text"], "abc", "xy"),
    "tags": lambda rng: {"values_count": {"gte": 1, rng.choice(["gt", "lt", "lte"]): rng.randrange(1, 3)}},
    "tags[].name": _matches("red", "blue", "green"),
}
TEXTS = ("title", "note", "prefix")  # without an index 1.16 looks for pieces of text, and the engine for words
ODD = ["null", "empty", "object", "deep.ü.z", "nowhere", "city", "tags", f"{BARE}.place", '"a.b[]"']


def leaf(rng: random.Random) -> Condition:
    """One condition of any kind."""
    return rng.choice([_of_a_field] * 5 + [_missing, _has, _nested])(rng)


def _of_a_field(rng: random.Random) -> Condition:
    name = rng.choice(list(FIELDS))
    bare = rng.random() < 0.5 and name not in TEXTS
    return {"key": f"{BARE}.{name}" if bare else name, **FIELDS[name](rng)}


def _missing(rng: random.Random) -> Condition:
    kind, key = rng.choice(["is_empty", "is_null"]), rng.choice(ODD)
    return rng.choice([{kind: {"key": key}}, {"key": key, kind: rng.random() < 0.5}])


def _has(rng: random.Random) -> Condition:
    ids = [point_id(rng.randrange(POINTS + 20)) for _ in range(rng.randrange(60))]
    return rng.choice([{"has_id": ids}, {"has_vector": rng.choice(["a", "b", "words"])}])


def _nested(rng: random.Random) -> Condition:
    inner = [{"key": "name", **_matches("red", "blue")(rng)}, {"key": "weight", **_bounds(10, 60, 120)(rng)}]
    return {"nested": {"key": rng.choice(["tags", f"{BARE}.tags"]), "filter": {rng.choice(["must", "should"]): inner}}}


def tree(rng: random.Random, depth: int = 2) -> Condition:
    """Conditions in clauses, which may be conditions again."""
    found: Condition = {}
    for clause in rng.sample(["must", "should", "must_not", "min_should"], rng.randrange(1, 4)):
        below = [
            tree(rng, depth - 1) if depth and rng.random() < 0.3 else leaf(rng) for _ in range(rng.randrange(1, 4))
        ]
        if clause == "min_should":
            found[clause] = {"conditions": below, "min_count": rng.randrange(1, len(below) + 1)}
        else:
            found[clause] = below[0] if len(below) == 1 and rng.random() < 0.3 else below
    return found


def kinds(condition: Any) -> Iterator[str]:
    """Every kind of condition in a filter, however deep."""
    if isinstance(condition, list):
        for each in condition:
            yield from kinds(each)
    elif isinstance(condition, dict):
        for name, value in condition.items():
            if name not in ("key", "value", "any", "except", "points") or "key" not in condition:
                yield name
            yield from kinds(value)


KINDS = {
    "must", "should", "must_not", "min_should", "match", "value", "any", "except", "text", "text_any", "phrase",
    "range", "gt", "gte", "lt", "lte", "geo_radius", "geo_bounding_box", "geo_polygon", "interiors", "values_count",
    "is_empty", "is_null", "has_id", "has_vector", "nested",
}  # fmt: skip
