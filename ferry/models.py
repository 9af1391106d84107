"""The values that travel between layers: the layout of a cluster, findings, and the names of things."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, NewType

from pydantic import BaseModel, ConfigDict

PeerId = NewType("PeerId", int)
ShardId = NewType("ShardId", int)
BackupId = NewType("BackupId", str)
ShardKey = str | int

SnapshotKind = Literal["shard", "node"]
ProofLevel = Literal["bytes", "count", "content"]
VerifyLevel = Literal["count", "sample", "content"]
# shards: archives recovered on every replica. points: read out of the archives by this worker and sent.
RestorePath = Literal["shards", "points"]
# missing: points whose ids the live collection lacks. overwrite: also those that differ. Nothing is ever deleted.
RecoveryMode = Literal["missing", "overwrite", "new collection"]
KEEP_DAYS = 7  # how long a collection that an alias has left is kept, unless somebody says otherwise

# Called at every part or batch with the bytes or points done since the last call; may raise StoppedError to stop.
Progress = Callable[[int], None]


def no_progress(_done: int) -> None:
    """Progress for callers that neither show nor stop anything."""


class Value(BaseModel):
    """A frozen record; unknown fields are errors, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(Value):
    """Something an operator should know; ``error`` refuses or fails the run, ``warning`` does not."""

    severity: Literal["info", "warning", "error"]
    subject: str
    message: str
    remedy: str | None = None


class NodeInfo(Value):
    """One reachable Qdrant process."""

    url: str
    peer_id: PeerId
    version: str
    commit: str | None = None

    @property
    def label(self) -> str:
        """Host and port: what an operator calls the node."""
        return self.url.split("://", 1)[-1]


class Replica(Value):
    """One copy of a shard on one peer, in the state that all nodes agree on."""

    peer_id: PeerId
    state: str


class ShardLayout(Value):
    """One shard and where its replicas are."""

    shard_id: ShardId
    key: ShardKey | None = None
    replicas: tuple[Replica, ...]


class CollectionLayout(Value):
    """One collection: Qdrant's own ``config`` and ``payload_schema`` documents, unchanged, and its shards.

    ``uuid`` is another one when the collection was dropped and made again; None where Qdrant does not tell it.
    """

    name: str
    uuid: str | None = None
    config: dict[str, Any]
    payload_schema: dict[str, Any]
    status: str
    shards: tuple[ShardLayout, ...]

    @property
    def replication_factor(self) -> int:
        """Copies wanted of each shard."""
        return int(self.config["params"].get("replication_factor", 1))

    @property
    def custom_sharding(self) -> bool:
        """Whether shards belong to shard keys that the operator made."""
        return bool(self.config["params"].get("sharding_method") == "custom")


class ClusterLayout(Value):
    """What every node of a cluster agreed on at one moment. ``names`` are all collections, looked at or not."""

    cluster: str
    taken_at: datetime
    nodes: tuple[NodeInfo, ...]
    collections: tuple[CollectionLayout, ...]
    aliases: dict[str, str]
    names: tuple[str, ...] = ()

    def node(self, peer_id: PeerId) -> NodeInfo:
        """The node with that peer id; KeyError when it is not in the layout."""
        for node in self.nodes:
            if node.peer_id == peer_id:
                return node
        raise KeyError(peer_id)

    def collection(self, name: str) -> CollectionLayout | None:
        """The collection of that name, or None."""
        return next((collection for collection in self.collections if collection.name == name), None)


class NodeHeadroom(Value):
    """Free disk and memory of one node, or None where nobody can tell; ``source`` says who told."""

    peer_id: PeerId
    disk_free_bytes: int | None
    ram_free_bytes: int | None
    source: str


def now() -> datetime:
    """The present moment, in UTC and to the millisecond, as every document holds it."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
