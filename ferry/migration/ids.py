"""Ids of any source as ids that Qdrant takes: numbers and UUIDs stay, all others become UUIDs that can be made again.

Kept are unsigned 64-bit numbers, and UUIDs in the one form that Qdrant shows them in (lower case, hyphens). A UUID that
is written otherwise is an id of its own: in a source of texts ``A…`` and ``a…`` are two rows, and one form for both
would make one point of them (sources.md §3 tells of a tool that does).
"""

from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from ferry.migration.batch import PointId

ORIGINAL = "__id__"  # the payload field that keeps a source's own id where the point has another one
_MOST = 1 << 64
_NAMESPACE = uuid5(NAMESPACE_URL, "ferry:migration")


def namespace_of(identity: str) -> UUID:
    """The namespace of a source's ids, by `SourceDescription.identity`: equal ids of two sources are two points."""
    return uuid5(_NAMESPACE, identity)


def is_kept(source_id: object) -> bool:
    """Whether an id of a source is one of Qdrant's as it is."""
    if type(source_id) is int:
        return 0 <= source_id < _MOST
    if not isinstance(source_id, str) or len(source_id) != 36:
        return False
    try:
        return str(UUID(source_id)) == source_id
    except ValueError:
        return False


def point_id(source_id: PointId, namespace: UUID) -> PointId:
    """The id of a point in the target: the same one, or a UUIDv5 that every run makes again.

    The number -1 and the text "-1" are two ids.
    """
    if is_kept(source_id):
        return source_id
    kind = "number" if isinstance(source_id, int) else "text"
    return str(uuid5(namespace, f"{kind}:{source_id}"))


def with_original(payload: Mapping[str, Any], source_id: PointId) -> dict[str, Any]:
    """The payload of a point whose id had to change, with the source's own id under ``__id__``.

    Raises ValueError where the payload holds something else under that name: neither may be lost.
    """
    if payload.get(ORIGINAL, source_id) != source_id:
        msg = f"its payload has a field {ORIGINAL} already, where its own id would be kept"
        raise ValueError(msg)
    return {**payload, ORIGINAL: source_id}


def source_id_of(target_id: PointId, payload: Mapping[str, Any]) -> PointId:
    """The source's own id of a point of the target, by its payload."""
    original = payload.get(ORIGINAL, target_id)
    return original if isinstance(original, int | str) else target_id
