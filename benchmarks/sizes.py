"""How much is measured: in full for docs/numbers.md, quickly for a look, and tiny to see that the code still runs."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.data import Shape

MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """Points of each collection (768 dimensions; the proof's has 256), rounds, and the file that tries the disk."""

    rounds: int
    warm_rounds: int
    backup_points: int
    restore_points: int
    flow_points: int
    proof_points: int
    memory_shapes: tuple[Shape, ...]
    disk_bytes: int
    stall_points: int
    stall_rest_seconds: float
    many: tuple[int, int]  # small collections, and shards of one collection


# Archives of about 20 MB, and of 1.1 GB with 4 KiB of text each.
_SMALL, _LARGE = Shape("bench-small", 6_000), Shape("bench-large", 145_000, text_bytes=4096)

SIZES = {
    "full": Sizes(5, 1, 90_000, 60_000, 30_000, 200_000, (_SMALL, _LARGE), 256 * MIB, 150_000, 3.0, (200, 64)),
    "quick": Sizes(1, 1, 8_000, 6_000, 3_000, 20_000, (_SMALL,), 64 * MIB, 20_000, 1.0, (20, 16)),
    "tiny": Sizes(1, 0, 1_000, 900, 600, 1_000, (Shape("bench-small", 500),), 4 * MIB, 1_000, 0.2, (3, 4)),
}
