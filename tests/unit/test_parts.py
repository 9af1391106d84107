"""Archives of any size fit into the parts that a provider allows, or are refused before a byte is sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.errors import RepositoryError
from ferry.repository.parts import MAX_PART_BYTES, MIB, PartPlan, plan_parts

TIB = 1024**4
LIMITS = st.builds(
    PartPlan,
    part_bytes=st.integers(5 * MIB, 512 * MIB),
    parts_in_flight=st.integers(1, 32),
    max_parts=st.integers(2, 10_000),
)


@given(LIMITS, st.integers(0, 6 * TIB), st.integers(5 * MIB, 50 * TIB))
def test_what_is_planned_fits(limits: PartPlan, size: int, max_object_bytes: int) -> None:
    """Into the parts, into the provider's limits, and into the memory that the settings allow."""
    if size > max_object_bytes or size > MAX_PART_BYTES * limits.max_parts:
        with pytest.raises(RepositoryError, match=f"s3://b/k would have {size} bytes") as caught:
            plan_parts("s3://b/k", limits, size, max_object_bytes)
        assert caught.value.remedy
        return
    plan = plan_parts("s3://b/k", limits, size, max_object_bytes)
    assert -(-size // plan.part_bytes) <= limits.max_parts == plan.max_parts
    assert limits.part_bytes <= plan.part_bytes <= MAX_PART_BYTES
    assert 1 <= plan.parts_in_flight <= max(2, limits.parts_in_flight)
    allowed = max(limits.part_bytes * limits.parts_in_flight, 2 * plan.part_bytes)
    assert plan.part_bytes * plan.parts_in_flight <= allowed
    # Never larger than needed: S3 sends a broken part again as a whole.
    assert plan.part_bytes == limits.part_bytes or (plan.part_bytes - MIB) * limits.max_parts < size


@given(LIMITS)
def test_an_archive_of_unknown_size_has_the_parts_of_the_settings(limits: PartPlan) -> None:
    """The upload itself then refuses one part too many."""
    assert plan_parts("s3://b/k", limits, None, 5 * MIB) == limits


@pytest.mark.parametrize(
    ("size", "part_bytes", "in_flight"),
    [(0, 16 * MIB, 4), (156 * 1024**3, 16 * MIB, 4), (160 * 1024**3, 17 * MIB, 3), (5 * TIB, 525 * MIB, 2)],
)
def test_parts_of_some_sizes(size: int, part_bytes: int, in_flight: int) -> None:
    """With the default settings: up to 156 GiB nothing changes, and 5 TiB need 1 GiB of memory."""
    plan = plan_parts("s3://b/k", PartPlan(16 * MIB, 4), size, 5 * TIB)
    assert (plan.part_bytes, plan.parts_in_flight) == (part_bytes, in_flight)


def test_a_provider_with_fewer_parts_gets_larger_ones() -> None:
    """Some allow 1,000."""
    assert plan_parts("s3://b/k", PartPlan(16 * MIB, 4, 1_000), 100 * 1024**3, 5 * TIB).part_bytes == 103 * MIB
