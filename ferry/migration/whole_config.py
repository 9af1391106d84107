"""A collection's configuration made whole, for sources that know no more than their vectors."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

# What Qdrant 1.16.3 shows of a collection that was made with vectors alone (GET /collections/{name}, seen). Written
# out, because a migration compares the collection that it has made with what it has planned.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "params": {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True},
    "hnsw_config": {
        "m": 16,
        "ef_construct": 100,
        "full_scan_threshold": 10_000,
        "max_indexing_threads": 0,
        "on_disk": False,
    },
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "indexing_threshold": 10_000,
        "flush_interval_sec": 5,
    },
    "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1},
}


def whole_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with Qdrant's own defaults where a section or a setting is missing."""
    whole = deepcopy(dict(config))
    for section, defaults in _DEFAULTS.items():
        whole[section] = {**defaults, **(whole.get(section) or {})}
    return whole
