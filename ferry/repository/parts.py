"""How an archive is cut into the parts of a multipart upload."""

from dataclasses import dataclass

MIB = 1024 * 1024
MAX_PARTS = 10_000  # of one object, by S3's definition


@dataclass(frozen=True)
class PartPlan:
    """How an archive is cut: bytes of a part, and how many may be in memory at a time."""

    part_bytes: int
    parts_in_flight: int
    max_parts: int = MAX_PARTS


def plan_parts(part_bytes: int, parts_in_flight: int, expected_bytes: int | None) -> PartPlan:
    """Grow the parts so that ``expected_bytes`` fit into 10,000 of them, with no more bytes in flight than before.

    Two parts stay in flight at least, so that one is filled while another is sent.
    """
    needed = -(-(expected_bytes or 0) // MAX_PARTS)
    if needed <= part_bytes:
        return PartPlan(part_bytes, parts_in_flight)
    grown = -(-needed // MIB) * MIB
    return PartPlan(grown, max(2, min(parts_in_flight, part_bytes * parts_in_flight // grown)))
