"""Shard keys out of the points themselves: the values of a payload field, and the points put together by them."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import closing
from typing import Any

import orjson

from ferry.archive.points import Batch, Selection
from ferry.connections import Repository
from ferry.errors import PreflightError, RestoreError
from ferry.models import Progress, ShardId, ShardKey, no_progress
from ferry.qdrant.rounding import points_json
from ferry.qdrant.writer import KeyedBatch
from ferry.repository.manifest import CollectionManifest
from ferry.verify.stored_points import stored_points

MOST_KEYS = 1000  # each is a shard with files, memory and threads of its own on every node that holds a copy
HELD_BYTES = 16 << 20  # of points whose key has not enough of them yet for a request of its own
REQUEST_BYTES = 1 << 20
NAMED_POINTS = 5


def keys_by_field(
    repository: Repository,
    manifest: CollectionManifest,
    field: str,
    progress: Progress = no_progress,
    shards: Collection[ShardId] | None = None,
) -> list[ShardKey]:
    """The values of a payload field in the points of a backup, or of these shards of it, sorted: the keys-to-be.

    Every archive is read once. Raises PreflightError, naming points, when a value is no shard key or a point has none,
    and for more than ``MOST_KEYS`` values; nothing was changed.
    """
    found: set[ShardKey] = set()
    wrong = 0
    named: list[str] = []
    for shard, _ in manifest.best_shards():
        if shards is not None and shard.shard_id not in shards:
            continue
        with closing(stored_points(repository, manifest, shard.shard_id, Selection(), progress)) as batches:
            for point in (point for batch in batches for point in orjson.loads(batch.body)):
                key = key_of(point, field)
                if key is None:
                    wrong += 1
                    named += [] if len(named) >= NAMED_POINTS else [f"{point['id']} ({shown_value(point, field)})"]
                    continue
                found.add(key)
                if len(found) > MOST_KEYS:
                    msg = (
                        f"{field!r} has more than {MOST_KEYS} values in {manifest.collection}, each to be a shard key."
                    )
                    raise PreflightError(msg, "Choose a field with fewer values, or one key for all: `into_key`.")
    if wrong:
        msg = (
            f"{wrong} points of {manifest.collection} have no value of {field!r} that can be a shard key (a string or "
            f"an unsigned number): {', '.join(named)}{', …' if wrong > len(named) else ''}. Nothing was changed."
        )
        raise PreflightError(msg, "Set the field in the source and back up again, or choose another field or into_key.")
    return sorted(found, key=lambda key: (isinstance(key, str), key))


def by_field(batches: Iterator[Batch], field: str) -> Iterator[KeyedBatch]:
    """The points put together by the value of a payload field, at most ``HELD_BYTES`` of them waiting for more.

    Raises RestoreError for a point without a usable value; `keys_by_field` has looked for those before.
    """
    held: dict[ShardKey, _Held] = defaultdict(_Held)
    total_bytes = 0
    for batch in batches:
        point_bytes = len(batch.body) // len(batch.ids)  # about: those of a batch lie beside each other
        for point in orjson.loads(batch.body):
            key = key_of(point, field)
            if key is None:
                msg = f"Point {point['id']} has {shown_value(point, field)} in {field!r}, which can be no shard key."
                raise RestoreError(msg)
            held[key].put(point, point_bytes)
            total_bytes += point_bytes
            if held[key].bytes >= REQUEST_BYTES:
                total_bytes -= held[key].bytes
                yield key, held.pop(key).batch()
        while total_bytes > HELD_BYTES:
            key = max(held, key=lambda known: held[known].bytes)
            total_bytes -= held[key].bytes
            yield key, held.pop(key).batch()
    for key, points in held.items():
        yield key, points.batch()


class _Held:
    """Points of one key that wait for more."""

    def __init__(self) -> None:
        self._points: list[dict[str, Any]] = []
        self.bytes = 0

    def put(self, point: dict[str, Any], point_bytes: int) -> None:
        self._points.append(point)
        self.bytes += point_bytes

    def batch(self) -> Batch:
        return Batch([point["id"] for point in self._points], [], points_json(self._points))


def key_of(point: dict[str, Any], field: str) -> ShardKey | None:
    """The shard key that a point's payload names, or None where that is no string or unsigned number."""
    value = _value_of(point, field)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    return None


def _value_of(point: dict[str, Any], field: str) -> Any:
    payload = point.get("payload") or {}
    if field in payload:
        return payload[field]
    for name in field.split("."):  # as Qdrant names fields of nested objects
        payload = payload.get(name) if isinstance(payload, dict) else None
    return payload


def shown_value(point: dict[str, Any], field: str) -> str:
    value = _value_of(point, field)
    return "nothing" if value is None else f"a {type(value).__name__}"
