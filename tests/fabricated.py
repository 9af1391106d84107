"""Backups made of nothing: tiny archives under true manifests, for tests of what happens to whole histories."""

import hashlib
from datetime import datetime

from ferry.models import BackupId
from ferry.repository.catalog import Catalog
from ferry.repository.layout import Keys, new_backup_id
from ferry.repository.manifest import BackupRecord, CollectionEntry, CollectionManifest
from ferry.repository.store import ObjectStore
from tests.unit import builders

ARCHIVE = b"tiny!"


class History:
    """The backups of one cluster in a bucket, real or in memory."""

    def __init__(self, store: ObjectStore, keys: Keys, cluster: str = "test", archives: int = 2) -> None:
        self.store, self.keys, self.cluster, self.archives = store, keys, cluster, archives
        self.catalog = Catalog(store, keys)

    def back_up(self, moment: datetime, *names: str, complete: bool = True, proven: bool = True) -> BackupId:
        """One backup of that moment (docs alone): archives, then manifests, then the record of the run."""
        backup_id, entries = new_backup_id(moment, "seed"), []
        for name in names or ("docs",):
            made = self.manifest(backup_id, name)
            for archive in made.archives:
                self.store.put_document(self.folder(backup_id, name) + archive.key, ARCHIVE)
            if proven:
                self.catalog.write_manifest(made)
            sha256 = hashlib.sha256(made.to_bytes()).hexdigest()
            entry = {"collection": name, "manifest_sha256": sha256, "points": made.points, "bytes": made.bytes}
            entries.append(CollectionEntry(**entry))
        if complete:
            self.catalog.write_backup(self._record(backup_id, moment, entries))
        return backup_id

    def folder(self, backup_id: BackupId, name: str = "docs") -> str:
        """Where a collection lies."""
        return self.keys.collection_prefix(self.cluster, backup_id, name)

    def manifest(self, backup_id: BackupId, name: str = "docs") -> CollectionManifest:
        """The manifest of a collection, committed or not."""
        source = builders.collection(name, [builders.shard(number, [1]) for number in range(self.archives)])
        records = [builders.archive(number, size=len(ARCHIVE)) for number in range(self.archives)]
        made = builders.manifest(source, records)
        return made.model_copy(update={"backup_id": backup_id, "cluster": self.cluster})

    def _record(self, backup_id: BackupId, moment: datetime, entries: list[CollectionEntry]) -> BackupRecord:
        return BackupRecord(
            backup_id=backup_id,
            cluster=self.cluster,
            kind="shard",
            collections=tuple(entries),
            aliases={},
            started_at=moment,
            finished_at=moment,
            tool_versions={},
        )
