"""The points path of a restore: points read out of archives and sent to the new collection."""

import time
from contextlib import closing

from ferry.archive.points import Selection
from ferry.archive.proof import Proof
from ferry.connections import Connections
from ferry.errors import NodeUnreachableError, RestoreError
from ferry.models import Finding, Progress, ShardId, Value, no_progress
from ferry.qdrant.rota import AWAY_SECONDS
from ferry.qdrant.writer import write_keyed_points
from ferry.restore.field_keys import by_field
from ferry.restore.passing import Passing
from ferry.restore.plan import RestorePlan
from ferry.restore.shape import PlannedStream
from ferry.verify.stored_points import stored_points

POLL_SECONDS = 0.5


class StreamedShard(Value):
    """How the points of one shard of the backup were sent; ``proof`` is the shard's as the target must show it."""

    source: ShardId
    path: str = "points"
    points: int
    bytes: int
    seconds: float
    proof: Proof
    findings: tuple[Finding, ...] = ()


def stream_shard(
    connections: Connections, plan: RestorePlan, stream: PlannedStream, progress: Progress = no_progress
) -> StreamedShard:
    """Send the points of one shard of the backup; ``progress`` gets those that the target has applied.

    The same call again is safe: an upsert replaces what an earlier one left. Raises what `stored_points` and
    `write_keyed_points` raise, and RestoreError for a point that cannot pass as it is (see `ferry.restore.passing`).
    """
    began, field = time.monotonic(), plan.request.shape.key_field
    passing = Passing(plan, dict(plan.manifest.proofs())[stream.source])
    selection = Selection(hashes=passing.hashes)
    stored = stored_points(connections, plan.manifest, stream.source, selection, lambda _read: progress(0))
    with closing(stored) as batches:
        seen = passing.watched(batches)
        keyed = ((stream.key, batch) for batch in seen) if field is None else by_field(seen, field)
        points = write_keyed_points(connections.cluster, plan.target, keyed, progress)
    await_applied(connections, plan, progress)
    return StreamedShard(
        source=stream.source,
        points=points,
        bytes=passing.bytes,
        seconds=time.monotonic() - began,
        proof=passing.proof(),
        findings=passing.findings(),
    )


def await_applied(connections: Connections, plan: RestorePlan, progress: Progress = no_progress) -> None:
    """Wait until no node has updates of the new collection left to apply, as they may have from 1.17 on.

    Raises RestoreError when a node shows it red, NodeUnreachableError when one stays away for ``AWAY_SECONDS``.
    """
    for node in connections.cluster.nodes:
        since = time.monotonic()
        while True:
            progress(0)
            try:
                info = node.collection(plan.target)
            except NodeUnreachableError:
                if time.monotonic() - since >= AWAY_SECONDS:
                    raise
            else:
                if info["status"] == "red":
                    msg = f"{plan.target} is red on {node.label}: {info.get('optimizer_status')}."
                    raise RestoreError(msg, f"See the log of {node.label}; the new collection will be dropped again.")
                if not (info.get("update_queue") or {}).get("length"):
                    break
            time.sleep(POLL_SECONDS)
