"""How much is measured: in full for docs/numbers.md, quickly for a look, and tiny to see that the code still runs."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.bench_migration import Moved
from benchmarks.data import Shape
from sandbox.binaries import WORDS_COUNT

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
    migration: tuple[Moved, ...]


# Archives of about 20 MB, and of 1.1 GB with 4 KiB of text each.
_SMALL, _LARGE = Shape("bench-small", 6_000), Shape("bench-large", 145_000, text_bytes=4096)

SIZES = {
    "full": Sizes(
        rounds=5,
        warm_rounds=1,
        backup_points=90_000,
        restore_points=60_000,
        flow_points=30_000,
        proof_points=200_000,
        memory_shapes=(_SMALL, _LARGE),
        disk_bytes=256 * MIB,
        stall_points=150_000,
        stall_rest_seconds=3.0,
        many=(200, 64),
        migration=(Moved(True, WORDS_COUNT, 3, 10_000), Moved(False, 200_000, 1, 10_000)),
    ),
    "quick": Sizes(
        rounds=1,
        warm_rounds=1,
        backup_points=8_000,
        restore_points=6_000,
        flow_points=3_000,
        proof_points=20_000,
        memory_shapes=(_SMALL,),
        disk_bytes=64 * MIB,
        stall_points=20_000,
        stall_rest_seconds=1.0,
        many=(20, 16),
        migration=(Moved(True, 10_000, 1, 100),),
    ),
    "tiny": Sizes(
        rounds=1,
        warm_rounds=0,
        backup_points=1_000,
        restore_points=900,
        flow_points=600,
        proof_points=1_000,
        memory_shapes=(Shape("bench-small", 500),),
        disk_bytes=4 * MIB,
        stall_points=1_000,
        stall_rest_seconds=0.2,
        many=(3, 4),
        migration=(Moved(False, 600, 1, 100),),
    ),
}
