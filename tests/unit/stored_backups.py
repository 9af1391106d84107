"""Backups in memory whose archives can be opened: shards built with qdrant-edge under true manifests."""

import hashlib
from pathlib import Path
from typing import Any, cast

from ferry.archive.proof import prove_archive
from ferry.connections import Repository
from ferry.models import ShardId
from ferry.profiles import RepositoryProfile, WorkerSettings
from ferry.repository.catalog import Catalog
from ferry.repository.layout import Keys
from ferry.repository.manifest import ShardRecord
from tests.unit import builders
from tests.unit.fakes import MemoryStore
from tests.unit.shard_archives import build_archive

CONFIG = {"image": {"size": 4, "distance": "Dot"}, "text": {"size": 2, "distance": "Euclid"}}


class ReadableStore(MemoryStore):
    """Says where its objects are, as errors do."""

    def where(self, key: str) -> str:
        return f"s3://memory/{key}"


def stored_backup(folder: Path, shards: list[list[dict[str, Any]]], **worker: Any) -> Repository:
    """A repository with a backup of the collection docs of cluster test, a shard for each list of points."""
    store, keys = ReadableStore(), Keys("")
    layout = [builders.shard(number, [1]) for number in range(len(shards))]
    source = builders.collection("docs", layout, vectors=CONFIG)
    records = []
    prefix = keys.collection_prefix("test", builders.BACKUP_ID, "docs")
    for number, content in enumerate(shards):
        path = build_archive(folder, content, f"{number}.snapshot")
        proof = prove_archive(path, folder / "proof", "content", processes=0)
        data = path.read_bytes()
        made = builders.archive(number, size=len(data))
        changes = {"sha256": hashlib.sha256(data).hexdigest()}
        record = ShardRecord(shard_id=ShardId(number), proof=proof)
        made = made.model_copy(update={**changes, "shards": (record,)})
        store.put_document(prefix + made.key, data)
        records.append(made)
    catalog = Catalog(cast("Any", store), keys)
    catalog.write_manifest(builders.manifest(source, records))
    settings = WorkerSettings(spool_dir=folder / "spool", **worker)
    return Repository(RepositoryProfile(bucket="memory"), settings, cast("Any", store), keys, catalog)
