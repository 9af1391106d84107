"""How an archive is cut into the parts of a multipart upload."""

from dataclasses import dataclass, replace

from ferry.errors import RepositoryError

MIB = 1024 * 1024
MAX_PARTS = 10_000  # of one object, by S3's definition
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PART_BYTES = 5 * 1024**3
_SMALLER = (
    "Where the provider allows more, raise max_object_bytes or max_parts of the repository profile. Otherwise make the "
    "archives smaller: more shards, and kind shard instead of node."
)


@dataclass(frozen=True)
class PartPlan:
    """How an archive is cut: bytes of a part, how many may be in memory at a time, and how many there may be."""

    part_bytes: int
    parts_in_flight: int
    max_parts: int = MAX_PARTS


def plan_parts(where: str, limits: PartPlan, expected_bytes: int | None, max_object_bytes: int) -> PartPlan:
    """Grow the parts so that ``expected_bytes`` fit into the number of them that the provider allows.

    There are then no more bytes in flight than before, but two parts at least, so that one is filled while another is
    sent. Raises RepositoryError when the object ``where`` would be larger than the provider allows.
    """
    if expected_bytes is None:
        return limits
    if expected_bytes > max_object_bytes:
        msg = f"{where} would have {expected_bytes} bytes; this store allows {max_object_bytes}. Nothing was written."
        raise RepositoryError(msg, _SMALLER)
    needed = -(-expected_bytes // limits.max_parts)
    if needed <= limits.part_bytes:
        return limits
    grown = -(-needed // MIB) * MIB
    if grown > MAX_PART_BYTES:
        msg = (
            f"{where} would have {expected_bytes} bytes, in {limits.max_parts} parts of {grown} bytes each; "
            f"S3 allows {MAX_PART_BYTES} bytes a part. Nothing was written."
        )
        raise RepositoryError(msg, _SMALLER)
    in_flight = max(2, min(limits.parts_in_flight, limits.part_bytes * limits.parts_in_flight // grown))
    return replace(limits, part_bytes=grown, parts_in_flight=in_flight)
