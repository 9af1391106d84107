"""The archives of a restore: whether they can be had and opened, and their way to a node that does not fetch them."""

import hashlib
from collections.abc import Iterator

from ferry.archive.encryption import opens, public_keys, require_identity, wrong_key
from ferry.archive.node_archive import split_shard
from ferry.connections import Connections
from ferry.errors import PreflightError, RestoreError
from ferry.models import Progress, ShardId
from ferry.qdrant import snapshots
from ferry.qdrant.node import Node
from ferry.repository.kms import find_identity
from ferry.repository.manifest import ArchiveRecord, ShardRecord
from ferry.restore.plan import RestorePlan
from ferry.verify.archive import form_of, snapshot_blocks, spooled


def by_url(archive: ArchiveRecord) -> bool:
    """Whether a node can use the object as it lies in the bucket: one shard in Qdrant's own bytes."""
    return archive.kind == "shard" and archive.encoding == "plain"


def require_archives(connections: Connections, plan: RestorePlan) -> None:
    """Raise PreflightError when an object is missing or of another size, before anything is created.

    Raises WrongKeyError when they are encrypted and the identity does not open them.
    """
    for archive in archives_of(plan):
        key, held_bytes = object_key(connections, plan, archive), archive.held[0]
        found = connections.store.head(key)
        if found is None or found.bytes != held_bytes:
            what = "is missing" if found is None else f"has {found.bytes} bytes instead of {held_bytes}"
            msg = f"{key} {what}, so {plan.manifest.collection} cannot be restored from {plan.manifest.backup_id}."
            raise PreflightError(msg, "Choose another backup: python -m ferry list")
    _require_key(connections, plan)


def archives_of(plan: RestorePlan) -> list[ArchiveRecord]:
    """The archives that the plan reads, each once."""
    read = plan.sources
    found = {archive.key: archive for shard, archive in plan.manifest.best_shards() if shard.shard_id in read}
    return list(found.values())


def _require_key(connections: Connections, plan: RestorePlan) -> None:
    """One archive of each key: the identity is of the first recipient, or it opens what is in the bucket."""
    sealed = {archive.key_id: archive for archive in archives_of(plan) if archive.encoding != "plain"}
    for key_id, archive in sealed.items():
        key = object_key(connections, plan, archive)
        where = connections.store.where(key)
        identity = require_identity(find_identity(connections.profile), key_id, where)
        have = public_keys(identity)
        if key_id in have:
            continue
        blocks = connections.store.read(key, expected_bytes=archive.held[0])
        if not opens(identity, next(blocks, b"")):
            raise wrong_key(key_id, where, have)


def object_key(connections: Connections, plan: RestorePlan, archive: ArchiveRecord) -> str:
    """Where an archive of the plan's backup lies in the bucket."""
    manifest = plan.manifest
    return connections.keys.collection_prefix(manifest.cluster, manifest.backup_id, manifest.collection) + archive.key


def source_of(plan: RestorePlan, shard_id: ShardId) -> tuple[ShardRecord, ArchiveRecord]:
    """The shard of the backup that a shard of the target equals, and the archive that holds it."""
    planned = {shard.shard_id: shard.source for shard in plan.shards}
    for shard, archive in plan.manifest.best_shards():
        if shard.shard_id == planned.get(shard_id):
            return shard, archive
    msg = f"{plan.target}/shard {shard_id}: the manifest has no archive of that shard."
    raise RestoreError(msg)


def upload_replica(
    connections: Connections, node: Node, plan: RestorePlan, shard_id: ShardId, progress: Progress
) -> None:
    """Send a shard to a node, out of the bucket and decrypted where need be; from a node's archive by the spool disk.

    Raises ArchiveDamagedError or WrongKeyError; the node drops then what it had of it.
    """
    source, archive = source_of(plan, shard_id)
    key, form = object_key(connections, plan, archive), form_of(archive)
    if archive.kind == "shard":
        told = _told(snapshot_blocks(connections, key, form, progress), progress)
        snapshots.upload_shard(node, plan.target, shard_id, told, archive.bytes, archive.sha256)
        return
    with spooled(connections, key, form, progress) as path:
        part = path.with_name("shard.snapshot")
        split_shard(path, source.shard_id, part)
        with part.open("rb") as file:
            blocks = iter(lambda: file.read(1 << 20), b"")
            size, sha256 = part.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            snapshots.upload_shard(node, plan.target, shard_id, _told(blocks, progress), size, sha256)


def _told(blocks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for block in blocks:
        progress(len(block))
        yield block
