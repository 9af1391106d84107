"""What was asked of a migration, and the plan: pure values, kept in the repository and never made twice."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from ferry.migration.source import SourceDescription, SourceRange
from ferry.models import KEEP_DAYS, Finding, Value
from ferry.qdrant.shard_keys import ShardKeyStep
from ferry.restore.shape import PlannedShard, Shape

WriterKind = Literal["stream", "build"]
PayloadType = Literal["integer", "float", "keyword", "bool", "datetime"]


class QdrantSource(Value):
    """A live collection of a cluster in the settings."""

    kind: Literal["qdrant"] = "qdrant"
    cluster: str = Field(description="The cluster to read from, by the name it has in the settings.")
    collection: str = Field(description="The collection, or an alias of it.")


class BackupSource(Value):
    """A collection in a backup; its cluster may be gone."""

    kind: Literal["backup"] = "backup"
    cluster: str = Field(description="The cluster that the backup was made of.")
    collection: str = Field(description="The collection's name in the backup.")
    backup: str = Field(default="latest", description="The id of the backup, or latest.")


class ParquetSource(Value):
    """A folder of Parquet files as Ferry writes them."""

    kind: Literal["parquet"] = "parquet"
    location: str = Field(description="A folder on the worker, or s3://bucket/prefix in the repository's store.")


SourceName = Annotated[QdrantSource | BackupSource | ParquetSource, Field(discriminator="kind")]


class Changes(Value):
    """What is otherwise in the target than in the source; what is left out stays as it was."""

    vectors: dict[str, str | None] = Field(
        default_factory=dict, description="New name of a vector by its old one (the unnamed one is ''); null drops it."
    )
    drop_fields: tuple[str, ...] = Field(default=(), description="Payload fields (top level) that are left out.")
    rename_fields: dict[str, str] = Field(default_factory=dict, description="New name of a payload field by old one.")
    field_types: dict[str, PayloadType] = Field(
        default_factory=dict, description="Type that the values of a payload field (by its new name) are turned into."
    )
    datatype: Literal["float32", "float16", "uint8"] | None = Field(
        default=None, description="How the target stores all dense vectors."
    )
    distance: str | None = Field(
        default=None, description="Refused unless it is the source's: another distance needs other embeddings."
    )


class MigrationRequest(Value):
    """What was asked. Two requests with the same source, target cluster and ``into`` are the same migration."""

    cluster: str
    repository: str
    source: SourceName
    into: str
    filter: dict[str, Any] | None = None
    replication_factor: int | None = None
    shape: Shape = Shape()
    changes: Changes = Changes()
    writer: WriterKind | None = None
    readers: int = Field(default=4, ge=1, le=64)
    batch_bytes: int = Field(default=1 << 20, ge=1 << 10, le=16 << 20)
    leave_out_refused: bool = False
    deletes: bool = True
    alias: str | None = None
    keep_days: int = KEEP_DAYS
    restart: bool = False


class Cost(Value):
    """What one writer would cost, as far as it is known; ``reason`` why it cannot be used, None where it can."""

    writer: WriterKind
    seconds: float | None = None
    target_cpu_seconds: float | None = None
    spool_bytes: int = 0
    reason: str | None = None


class MigrationPlan(Value):
    """A planned migration. ``fingerprint`` is of everything that must not change between its runs.

    ``config`` and ``payload_schema`` are those of the new collection, with its final optimizer settings.
    """

    migration_id: str
    created_at: datetime
    request: MigrationRequest
    source: SourceDescription
    fingerprint: dict[str, str]
    config: dict[str, Any]
    payload_schema: dict[str, Any]
    shards: tuple[PlannedShard, ...]
    key_steps: tuple[ShardKeyStep, ...] = ()
    ranges: tuple[SourceRange, ...]
    writer: WriterKind
    costs: tuple[Cost, ...] = ()
    reasons: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def target(self) -> str:
        """The name of the new collection."""
        return self.request.into
