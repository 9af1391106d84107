"""What a source is: it describes itself, plans ranges once, and reads each from any cursor on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias

from ferry.migration.batch import AnyBatch, PointBatch, PointId
from ferry.models import Finding, Progress, ShardId, ShardKey, ShardLayout, Value, no_progress

# Opaque to all but its source; kept in the checkpoint as JSON.
Cursor: TypeAlias = int | str


class SourceDescription(Value):
    """A source as it was found.

    ``identity`` names the thing itself and must not change between the runs of a migration. ``config`` and
    ``payload_schema`` are documents as Qdrant's ``GET /collections/{name}`` gives them (made for other sources).
    ``consistency``: a frozen source cannot change; a live one may while it is read. ``unique_ids``: no id comes twice
    under one shard key. ``wire``: it can give points as Qdrant's own messages. ``points`` and ``bytes`` may be guesses.
    """

    kind: str
    name: str
    identity: str
    config: dict[str, Any]
    payload_schema: dict[str, Any]
    consistency: Literal["frozen", "live"]
    points: int | None = None
    bytes: int | None = None
    shards: tuple[ShardLayout, ...] = ()
    versions: tuple[str, ...] = ()
    unique_ids: bool = True
    wire: bool = False
    findings: tuple[Finding, ...] = ()


class SourceRange(Value):
    """A fixed part of a source, planned once: from ``start`` (included) to ``end`` (not included; None: to the end).

    ``part`` says which piece it lies in: a shard, a file. All points of a range have the shard key ``key``.
    """

    number: int
    label: str
    key: ShardKey | None = None
    part: str | None = None
    shard_id: ShardId | None = None
    start: Cursor | None = None
    end: Cursor | None = None
    points: int | None = None


class Ask(Value):
    """What is wanted of the points that are read.

    ``filter`` is Qdrant's; sources that cannot apply it say so when they are described. ``vectors`` are the names
    wanted, None all. ``wire``: give `WireBatch`, where the source can. ``batch_bytes`` is about the size of a batch.
    """

    filter: dict[str, Any] | None = None
    vectors: tuple[str, ...] | None = None
    payload: bool = True
    wire: bool = False
    batch_bytes: int = 1 << 20


@dataclass(frozen=True)
class Read:
    """A batch, and where to go on after it; None: the range ends here."""

    batch: AnyBatch
    cursor: Cursor | None


class Source(Protocol):
    """An open source; safe to read several ranges of at once, from several threads."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def describe(self) -> SourceDescription:
        """What it is now; changes nothing."""

    def plan_ranges(self, wanted: int) -> list[SourceRange]:
        """About so many ranges that together hold every point once, now and after any change of the source."""

    def read(
        self, part: SourceRange, cursor: Cursor | None, ask: Ask, progress: Progress = no_progress
    ) -> Iterator[Read]:
        """The points of a range from a cursor on (None: its start). ``progress`` gets 0 now and then and may raise."""

    def retrieve(self, ids: Sequence[PointId], key: ShardKey | None, ask: Ask) -> Iterator[PointBatch]:
        """These points, of those that are there, with all that ``read`` would give of them."""
