"""What a run may leave behind, noted in the bucket before it is made, so that the next start can tidy after a kill.

An entry that is settled is deleted. With keys that may not delete it is overwritten by an empty object instead, which a
listing shows without reading it; the bucket's lifecycle takes those away (docs/stores.md).
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Literal

from pydantic import ValidationError

from ferry.errors import BackupNotFoundError, ConfigurationError
from ferry.models import BackupId, now
from ferry.repository.layout import Keys, decode_name, encode_name
from ferry.repository.records import Record
from ferry.repository.store import ObjectInfo, ObjectStore

_log = logging.getLogger(__name__)

# "run" is the request of a backup that can be resumed, "proof" the record of an archive that was proven.
EntryKind = Literal["node_snapshot", "archive", "collection", "run", "proof"]
_LONGEST_READABLE_BYTES = 200  # of a name in a key; some stores allow 255 for a part of a key


class _Note(Record):
    kind: EntryKind
    name: str
    detail: dict[str, Any]
    noted_at: datetime


@dataclass(frozen=True)
class Entry:
    """One thing that a run may have left: a snapshot on a node, an archive, or a collection. ``key`` is its object."""

    key: str
    run_id: BackupId
    kind: EntryKind
    name: str
    detail: dict[str, Any]
    noted_at: datetime
    journal: "Journal"


class Journal:
    """The entries of one run; each is an object of its own, so that any worker may write without the others."""

    def __init__(self, store: ObjectStore, keys: Keys, cluster: str, run_id: BackupId) -> None:
        self._store = store
        self._keys = keys
        self.cluster = cluster
        self.run_id = run_id

    def note(self, kind: EntryKind, name: str, detail: dict[str, Any]) -> Entry:
        """Note a thing before it is made. The name is its identity: noted again, the newer detail counts."""
        return self._write(_Note(kind=kind, name=name, detail=detail, noted_at=now()))

    def update(self, entry: Entry, **detail: Any) -> Entry:
        """Add to what is known of a thing, such as the name it got."""
        note = _Note(kind=entry.kind, name=entry.name, detail=entry.detail | detail, noted_at=entry.noted_at)
        return self._write(note)

    def find(self, kind: EntryKind, name: str) -> Entry | None:
        """The entry of that thing, or None when it was never noted or is settled."""
        try:
            return self._read(self._key(kind, name))
        except BackupNotFoundError:
            return None

    def settle(self, entry: Entry) -> None:
        """Forget a thing, after it is gone or counted. Twice is fine."""
        self._forget(entry.key)

    def drop(self, kind: EntryKind, name: str) -> None:
        """Forget a thing by its name, without reading what was noted. Twice is fine."""
        self._forget(self._key(kind, name))

    def entries(self) -> list[Entry]:
        """All that is not settled, in the order in which it was noted."""
        return _in_order(self.read_all(self._store.list(self._prefix)))

    def read_all(self, objects: Iterable[ObjectInfo]) -> Iterator[Entry]:
        """The entries that these objects of this run are, without what is settled or not understood."""
        for info in objects:
            if info.bytes == 0:
                continue
            try:
                entry = self._read(info.key)
            except BackupNotFoundError:
                continue  # settled meanwhile by another worker
            if entry is not None:
                yield entry

    def _forget(self, key: str) -> None:
        if self._store.can_delete:
            self._store.delete([key])
        elif self._store.head(key) is not None:
            self._store.put_document(key, b"")

    @property
    def _prefix(self) -> str:
        return self._keys.journal_prefix(self.cluster, self.run_id)

    def _key(self, kind: EntryKind, name: str) -> str:
        part = encode_name(name)
        if len(part) > _LONGEST_READABLE_BYTES:
            part = hashlib.sha256(name.encode()).hexdigest()
        return f"{self._prefix}{kind}/{part}.json"

    def _write(self, note: _Note) -> Entry:
        key = self._key(note.kind, note.name)
        self._store.put_document(key, note.to_bytes())
        return self._entry(key, note)

    def _read(self, key: str) -> Entry | None:
        data, _ = self._store.get_document(key)
        if not data:
            return None
        try:
            return self._entry(key, _Note.model_validate_json(data))
        except ValidationError:
            _log.warning("%s is no journal entry that this Ferry understands; it is left alone.", key)
            return None

    def _entry(self, key: str, note: _Note) -> Entry:
        return Entry(key, self.run_id, note.kind, note.name, note.detail, note.noted_at, self)


def unsettled(store: ObjectStore, keys: Keys, cluster: str) -> list[Entry]:
    """All that runs on a cluster may have left behind, in the order in which it was noted.

    A run that is still at work is among them: only the holder of its lease may act on what it finds. One listing in
    all, however many runs have left settled entries that nobody could delete.
    """
    prefix = keys.runs_prefix(cluster)
    found: list[Entry] = []
    for folder, objects in groupby(store.list(prefix), lambda info: info.key.removeprefix(prefix).split("/")[0]):
        try:
            run_id = BackupId(decode_name(folder))
        except ConfigurationError:
            continue
        found += Journal(store, keys, cluster, run_id).read_all(objects)
    return _in_order(found)


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.noted_at, entry.key))
