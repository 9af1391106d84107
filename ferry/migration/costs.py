"""What a migration costs: bytes on the target's nodes, and the time of either writer. Estimates, and pure.

Times are those measured on two cores with 1.16.3 (sources.md §0.9, §1 and §2); another machine has others, but the
ratio between sending and indexing is much the same.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from ferry.migration.changed_config import dense_vectors
from ferry.migration.plan import Cost
from ferry.migration.source import SourceDescription
from ferry.models import ClusterLayout, PeerId
from ferry.qdrant.resources import Need

STREAMED_POINT_SECONDS = 30e-6  # from one Qdrant to another, undecoded
APPLIED_POINT_SECONDS = 25e-6  # of the target's processor, for each replica
INDEXED_POINT_SECONDS = 830e-6  # of a processor, for a vector of 384 numbers with m 16 and ef_construct 100
_MEASURED_NUMBERS = 384
PAYLOAD_BYTES = 500  # of a point, where nobody knows
GRAPH_BYTES = 140  # of a point, for each dense vector: 2 × m links of 4 bytes, and levels
_NUMBER_BYTES = {"float32": 4, "float16": 2, "uint8": 1}
# Points that are written fill the log and segments that optimizers rewrite: about the data twice, at most.
STREAM_DISK_FACTOR = 2


def vector_bytes(config: Mapping[str, Any], points: int) -> int:
    """Bytes of the dense vectors of so many points; a multivector counts as one."""
    each = [
        int(vector["size"]) * _NUMBER_BYTES[vector.get("datatype") or "float32"] + GRAPH_BYTES
        for vector in dense_vectors(config).values()
    ]
    return points * sum(each)


def data_bytes(source: SourceDescription, config: Mapping[str, Any]) -> int:
    """About how many bytes one copy of all points takes in the target; 0 where the source cannot tell how many."""
    if source.points is None:
        return source.bytes or 0
    return max(source.bytes or 0, vector_bytes(config, source.points) + source.points * PAYLOAD_BYTES)


def needs_of(
    source: SourceDescription, config: Mapping[str, Any], copies: int, layout: ClusterLayout
) -> dict[PeerId, Need]:
    """Disk and memory that each node needs, at most, in bytes; Qdrant spreads shards evenly."""
    share = copies / len(layout.nodes)
    held = ceil(data_bytes(source, config) * share)
    in_memory = [vector for vector in dense_vectors(config).values() if not vector.get("on_disk")]
    ram = ceil(vector_bytes(config, source.points or 0) * share) if in_memory else 0
    need = Need(disk_bytes=STREAM_DISK_FACTOR * held, ram_bytes=ram)
    return {node.peer_id: need for node in layout.nodes}


def stream_cost(source: SourceDescription, config: Mapping[str, Any], copies: int, nodes: int) -> Cost:
    """What streaming costs: every copy applies every point, and indexes it."""
    if source.points is None:
        return Cost(writer="stream")
    index = _index_seconds(config, source.points)
    cpu = copies * (source.points * APPLIED_POINT_SECONDS + index)
    seconds = source.points * STREAMED_POINT_SECONDS * copies + index * copies / (2 * nodes)
    return Cost(writer="stream", seconds=round(seconds, 1), target_cpu_seconds=round(cpu, 1))


def build_cost(source: SourceDescription, config: Mapping[str, Any], spool_bytes: int, obstacles: list[str]) -> Cost:
    """What building costs: the index is made once, by this worker; the target only loads files."""
    if obstacles:
        return Cost(writer="build", reason="; ".join(obstacles))
    if source.points is None:
        return Cost(writer="build", spool_bytes=spool_bytes)
    seconds = source.points * STREAMED_POINT_SECONDS + _index_seconds(config, source.points) / 2
    return Cost(writer="build", seconds=round(seconds, 1), target_cpu_seconds=0.0, spool_bytes=spool_bytes)


def _index_seconds(config: Mapping[str, Any], points: int) -> float:
    """Of one processor; vectors whose graph is switched off (m 0) cost nothing."""
    of_all = config.get("hnsw_config") or {}
    total = 0.0
    for vector in dense_vectors(config).values():
        own = (vector.get("hnsw_config") or {}).get("m")
        if (of_all.get("m") if own is None else own) != 0:
            total += points * INDEXED_POINT_SECONDS * int(vector["size"]) / _MEASURED_NUMBERS
    return total
