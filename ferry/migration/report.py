"""What a migration has done, as its ranges tell it and as the comparison of both sides proves it."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from ferry import __version__
from ferry.migration.batch import PointId
from ferry.migration.plan import WriterKind
from ferry.migration.source import Cursor
from ferry.models import Finding, Value
from ferry.repository.records import Record


class RejectedPoint(Value):
    """One point that the target does not have, by the id it has in the source, and why."""

    id: PointId
    reason: str


class RangeState(Record):
    """How far one range is, and its checkpoint. ``stamp`` is of the plan that it belongs to.

    Everything before ``cursor`` (None: nothing yet) is applied by the target and counted here exactly once.
    ``read`` = ``written`` + rejected. ``seconds`` are those of all runs that worked on it.
    """

    format_version: Literal[1] = 1
    stamp: str
    number: int
    cursor: Cursor | None = None
    read: int = 0
    written: int = 0
    rejected: tuple[RejectedPoint, ...] = ()
    seconds: float = 0.0
    done: bool = False


class VectorCount(Value):
    """How many points have a vector of that name, exactly; None where a side cannot count it."""

    source: int | None = None
    target: int | None = None


class CompletenessReport(Record):
    """The end of a migration. The verdict is of verified data alone: the digests of both sides, after all changes.

    ``deduplicated`` points came more than once under one id and key, and the last counts. ``surplus_removed`` and
    ``repaired`` are what the passes after the copy deleted and wrote again. ``seconds`` are from the plan to this
    report, pauses between runs included; ``copy_seconds`` are those of all ranges together, in lanes.
    """

    format_version: Literal[1] = 1
    migration_id: str
    source: str
    cluster: str
    target: str
    writer: WriterKind
    verdict: Literal["equal", "different"]
    read: int
    written: int
    deduplicated: int
    rejected: tuple[RejectedPoint, ...] = ()
    repaired: int = 0
    surplus_removed: int = 0
    passes: int = 0
    source_points: int | None = None
    target_points: int | None = None
    source_digest: str | None = None
    target_digest: str | None = None
    vectors: dict[str, VectorCount] = Field(default_factory=dict)
    differences: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    alias: str | None = None
    started_at: datetime
    finished_at: datetime
    copy_seconds: float
    seconds: float
    ferry_version: str = __version__

    @property
    def points_per_second(self) -> float:
        """Points by the seconds from the plan to the end, comparing and indexing included."""
        return self.written / self.seconds if self.seconds else 0.0
