"""The documents of a backup: what one collection's manifest and the run's record hold, and their self-hash."""

import hashlib
from datetime import datetime
from typing import Any, Literal, Self

import orjson
from pydantic import Field, ValidationError

from ferry.archive.proof import Proof
from ferry.errors import ArchiveDamagedError
from ferry.models import BackupId, Finding, PeerId, ShardId, ShardKey, ShardLayout, SnapshotKind, Value

FORMAT_VERSION: Literal[1] = 1
HASH_FIELD = "self_sha256"


class NodeRecord(Value):
    """One node of the source as it was: who it is and what it ran."""

    peer_id: PeerId
    url: str
    version: str
    commit: str | None = None


class ReplicaCount(Value):
    """Exact number of points that one replica held just before its shard's snapshot."""

    peer_id: PeerId
    points: int


class ArchiveRecord(Value):
    """One archive: where its bytes are, what they are, and the proof of each shard in it.

    A ``shard`` archive holds one shard, a ``node`` archive every shard that the node held.
    """

    key: str = Field(description="Object key relative to the folder of the collection in this backup.")
    kind: SnapshotKind
    encoding: Literal["plain", "age"] = Field(
        default="plain", description="plain: exactly Qdrant's bytes. age: the same, encrypted (age-encryption.org)."
    )
    key_id: str | None = Field(default=None, description="First recipient of an encrypted archive: which key it needs.")
    snapshot: str = Field(description="Name that Qdrant gave the snapshot.")
    bytes: int = Field(description="Of the snapshot, whatever the encoding.")
    sha256: str = Field(description="Of the snapshot, whatever the encoding: Qdrant's own checksum.")
    stored_bytes: int | None = Field(default=None, description="Of the object, where the encoding is not plain.")
    stored_sha256: str | None = Field(default=None, description="Of the object, where the encoding is not plain.")
    source_peer: PeerId
    started_at: datetime
    finished_at: datetime
    shards: tuple["ShardRecord", ...]

    @property
    def held(self) -> tuple[int, str]:
        """Bytes and sha256 of the object in the bucket."""
        return self.stored_bytes or self.bytes, self.stored_sha256 or self.sha256


class ShardRecord(Value):
    """One shard inside an archive, with its proof."""

    shard_id: ShardId
    shard_key: ShardKey | None = None
    replica_counts: tuple[ReplicaCount, ...] = ()
    proof: Proof


class Document(Value):
    """A JSON document that holds the hash of its own canonical form, so that damage and edits show."""

    format_version: Literal[1] = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Canonical JSON (sorted keys, UTF-8) with ``self_sha256`` over everything else."""
        content = self.model_dump(mode="json")
        return _canonical(content | {HASH_FIELD: _digest(content)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Read a document back; raises ArchiveDamagedError when it is damaged, edited or of an unknown format."""
        try:
            content = orjson.loads(data)
            claimed = content.pop(HASH_FIELD)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            msg = f"{where} is not a document of Ferry's: {error!r}"
            raise ArchiveDamagedError(msg) from error
        if content.get("format_version") != FORMAT_VERSION:
            msg = f"{where} has format version {content.get('format_version')}; this Ferry reads {FORMAT_VERSION}."
            raise ArchiveDamagedError(msg, "Use the release of Ferry that wrote it, or a newer one.")
        if _digest(content) != claimed:
            msg = f"{where} does not match its own hash: it was damaged or edited after it was written."
            raise ArchiveDamagedError(msg, "Use another backup, or an earlier version of the object if the bucket has.")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            msg = f"{where} lacks what a manifest must hold: {error.error_count()} fields are wrong."
            raise ArchiveDamagedError(msg) from error


class CollectionManifest(Document):
    """Commit point of one collection's backup. Written last, with If-None-Match, and never rewritten."""

    backup_id: BackupId
    cluster: str
    collection: str
    uuid: str | None = Field(default=None, description="Qdrant's own id of the collection, where telemetry tells it.")
    kind: SnapshotKind
    nodes: tuple[NodeRecord, ...]
    config: dict[str, Any]
    payload_schema: dict[str, Any]
    layout: tuple[ShardLayout, ...]
    archives: tuple[ArchiveRecord, ...]
    skew_seconds: float = Field(
        description="From the first snapshot's start to the last one's end: Qdrant has no "
        "cluster-wide point in time, so writes in between may be in one shard and not another."
    )
    findings: tuple[Finding, ...] = ()
    created_at: datetime
    ferry_version: str

    @property
    def points(self) -> int | None:
        """Exact number of points, each shard once, or None when the proof level was ``bytes``."""
        counts = [proof.points for _, proof in self.proofs()]
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    @property
    def bytes(self) -> int:
        """Bytes of all archives together."""
        return sum(archive.bytes for archive in self.archives)

    def proofs(self) -> list[tuple[ShardId, Proof]]:
        """One proof for each shard, in order: the fuller one where several archives hold the same shard."""
        return [(shard.shard_id, shard.proof) for shard, _ in self.best_shards()]

    def best_shards(self) -> list[tuple[ShardRecord, ArchiveRecord]]:
        """For each shard the record with the most points, and the archive that holds it, ordered by shard id."""
        best: dict[ShardId, tuple[ShardRecord, ArchiveRecord]] = {}
        for archive in self.archives:
            for shard in archive.shards:
                known = best.get(shard.shard_id)
                if known is None or (shard.proof.points or 0) > (known[0].proof.points or 0):
                    best[shard.shard_id] = (shard, archive)
        return [best[shard_id] for shard_id in sorted(best)]


class CollectionEntry(Value):
    """One collection in the record of a run."""

    collection: str
    manifest_sha256: str
    points: int | None
    bytes: int


class BackupRecord(Document):
    """Commit point of a run: which collections it holds, and the aliases of the whole cluster."""

    backup_id: BackupId
    cluster: str
    kind: SnapshotKind
    policy: str | None = None
    collections: tuple[CollectionEntry, ...]
    aliases: dict[str, str]
    findings: tuple[Finding, ...] = ()
    started_at: datetime
    finished_at: datetime
    tool_versions: dict[str, str]


def _canonical(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()
