"""Whether anybody wrote to a collection between two moments, as far as Qdrant's counters show it.

Each node counts the requests that reached it, by endpoint and not by collection, and for each shard the updates that it
passed on to other nodes. So a write to a shard of two or more replicas is always seen, with its collection; a write to
the only replica of a shard is seen with its collection only when another node took it. Measured on 1.16.3, which counts
updates that were passed on as failed.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ferry.models import CollectionLayout, Finding, ShardLayout, Value
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.view import each

_REST = re.compile(
    r"PUT /collections/\{\w+\}/points"
    r"|(PUT|POST) /collections/\{\w+\}/points/(batch|delete|(payload|vectors)(/delete)?|payload/clear)"
)
_REFUSED = re.compile(r"4\d\d")
# The public service alone: what nodes pass on to each other is PointsInternal.
_GRPC = re.compile(r"/qdrant\.Points/(Upsert|Delete|Update|Set|Overwrite|Clear)\w*")


class NodeWrites(Value):
    """The counters of one node since it was started. ``process`` is another one after a restart."""

    label: str
    process: str
    requests: dict[str, int]
    passed_on: int


def read_writes(cluster: Cluster, collection: str) -> tuple[NodeWrites, ...]:
    """What every node has counted so far."""
    answers = each(cluster.nodes, lambda node: node.telemetry(3))
    return tuple(counted(node.label, collection, answer) for node, answer in zip(cluster.nodes, answers, strict=True))


def counted(label: str, collection: str, telemetry: Mapping[str, Any]) -> NodeWrites:
    """The write requests in a node's telemetry of level 3, and the updates of that collection that it passed on."""
    requests: dict[str, int] = {}
    for protocol, pattern in (("rest", _REST), ("grpc", _GRPC)):
        responses = (telemetry["requests"].get(protocol) or {}).get("responses") or {}
        requests |= {name: _total(counts) for name, counts in responses.items() if pattern.fullmatch(name)}
    shards = [shard for entry in of_collection(telemetry, collection) for shard in entry["shards"]]
    updates = [remote.get("updates") for shard in shards for remote in shard["remote"]]
    return NodeWrites(label=label, process=str(telemetry["id"]), requests=requests, passed_on=sum(map(_total, updates)))


def of_collection(telemetry: Mapping[str, Any], collection: str) -> list[dict[str, Any]]:
    """What a node's telemetry of level 3 has of a collection: its entry, or nothing."""
    told = (telemetry.get("collections") or {}).get("collections") or []
    return [entry for entry in told if entry["id"] == collection]


def _total(counts: Any) -> int:
    """All that were counted, whatever became of them, but for those refused with a 4xx; REST counts by status."""
    if not isinstance(counts, Mapping):
        return 0
    if "count" in counts or "fail_count" in counts:
        return int(counts.get("count") or 0) + int(counts.get("fail_count") or 0)
    return sum(_total(inner) for status, inner in counts.items() if not _REFUSED.fullmatch(str(status)))


def write_finding(live: CollectionLayout, before: Sequence[NodeWrites], after: Sequence[NodeWrites]) -> Finding | None:
    """What the counters say of writes to the collection between two moments; None when they rule them out. Pure."""
    earlier = {node.label: node for node in before}
    requests: Counter[str] = Counter()
    passed_on, restarted = 0, []
    for node in after:
        known = earlier.get(node.label)
        if known is None or known.process != node.process:
            restarted.append(node.label)
            known = NodeWrites(label=node.label, process=node.process, requests={}, passed_on=0)
        requests += Counter(node.requests) - Counter(known.requests)
        passed_on += node.passed_on - known.passed_on
    said = [f"nodes passed {passed_on} updates of it on to each other"] if passed_on else []
    if not passed_on and requests and any(_active(shard) < 2 for shard in live.shards):
        named = ", ".join(f"{count} × {name}" for name, count in sorted(requests.items()))
        said.append(f"write requests reached the cluster ({named}), and Qdrant does not tell for which collection")
    if restarted:
        said.append(f"{', '.join(restarted)} was restarted, and what it had counted is gone")
    if not said:
        return None
    certain = "were counted" if passed_on else "cannot be ruled out"
    return Finding(
        severity="warning",
        subject=writes_to(live.name),
        message=f"Writes to {live.name} while it was restored {certain}: {'; '.join(said)}.",
        remedy="Stop what writes to it. What was written before its shard was replaced is not in it any more.",
    )


def writes_to(collection: str) -> str:
    """The subject of findings that say that a collection was written to."""
    return f"writes to {collection}"


def _active(shard: ShardLayout) -> int:
    return sum(replica.state == "Active" for replica in shard.replicas)
