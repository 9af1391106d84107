"""Fences at commit points: how the store itself refuses the commit of a holder that was taken for dead.

A commit point (a manifest, the record of a run) is written by a conditional put. Whoever takes over from a holder puts
a small fence there first: ``claimed`` when it continues the backup, ``condemned`` before it deletes archives. The old
holder's put asks for what was there before, so the store refuses it, however late it comes and whatever its clock says.
A fence is no manifest: readers pass over it. Nobody ever commits where it says ``condemned``.
"""

from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from ferry.errors import BackupNotFoundError, ConflictError
from ferry.models import Value, now
from ferry.repository.records import Record
from ferry.repository.store import ObjectStore

_TURNS = 8  # in which others may be faster; each of them has changed the object once


class Fence(Record):
    """What lies at a commit point instead of a document: who stands there, by which fencing number, and why."""

    fence: Literal["claimed", "condemned"]
    fencing: int
    by: str
    at: datetime


class Place(Value):
    """What a commit point holds: nothing, a fence, or the bytes of a document, with its ETag."""

    etag: str | None = None
    fence: Fence | None = None
    document: bytes | None = None


def read_place(store: ObjectStore, key: str) -> Place:
    """Look at a commit point."""
    try:
        data, etag = store.get_document(key)
    except BackupNotFoundError:
        return Place()
    fence = as_fence(data)
    return Place(etag=etag, fence=fence, document=None if fence else data)


def as_fence(data: bytes) -> Fence | None:
    """The fence that these bytes are, or None."""
    try:
        return Fence.model_validate_json(data)
    except ValidationError:
        return None


def claim(store: ObjectStore, key: str, by: str, fencing: int) -> Place:
    """Fence off whoever else may commit here, to commit ourselves: the place as it is now.

    It is our ``claimed`` fence, whose ETag ``commit`` needs; or the document or ``condemned`` fence that stays there.
    """
    return _put(store, key, Fence(fence="claimed", fencing=fencing, by=by, at=now()))


def condemn(store: ObjectStore, key: str, by: str, fencing: int = 0) -> bool:
    """See to it that nobody ever commits here, so that archives may be deleted; False when a document is there."""
    return _put(store, key, Fence(fence="condemned", fencing=fencing, by=by, at=now())).document is None


def commit(store: ObjectStore, key: str, data: bytes, claim_etag: str | None) -> None:
    """Write a document where nothing is, or where our claim is; the same once more is fine.

    Raises ConflictError when the store refuses: another run has fenced this one off, or has committed other content.
    """
    try:
        store.put_document(key, data, if_absent=claim_etag is None, if_match=claim_etag, keep=True)
    except ConflictError:
        place = read_place(store, key)
        if place.document == data:
            return
        if place.fence is not None:
            msg = f"The store refused {key}: {place.fence.by} (fencing number {place.fence.fencing}) has taken over."
            raise ConflictError(msg, "That run goes on with this backup, or has given it up. Run it again.") from None
        msg = f"{key} exists already with other content; it was not changed."
        raise ConflictError(msg, "Another run has committed this backup; start a new one.") from None


def _put(store: ObjectStore, key: str, fence: Fence) -> Place:
    data = fence.to_bytes()
    for _ in range(_TURNS):
        place = read_place(store, key)
        if place.document is not None or (place.fence is not None and place.fence.fence == "condemned"):
            return place
        try:
            etag = store.put_document(key, data, if_absent=place.etag is None, if_match=place.etag)
        except ConflictError:
            continue
        return Place(etag=etag, fence=fence)
    msg = f"{key} was changed {_TURNS} times by others while this run tried to fence them off."
    raise ConflictError(msg, "Several runs work on one cluster: end all but one.")
