"""The steps of a recovery: compare the chosen points of one shard with the live ones, write, and read them back."""

import time
from collections.abc import Collection
from contextlib import closing
from glob import escape

import orjson

from ferry.archive.points import Batch, read_points
from ferry.archive.reader import PlainId
from ferry.connections import Connections
from ferry.errors import VerificationError
from ferry.models import CollectionLayout, Progress, ShardId, Value, no_progress
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.rounding import points_json
from ferry.qdrant.writer import write_points
from ferry.recovery.live import Hashes, LiveShards
from ferry.recovery.plan import NAMED_IDS, RecoveryPlan, live_shards
from ferry.verify import spool
from ferry.verify.cache import cached_shard
from ferry.verify.stored_points import archive_of

GROUP_BYTES = 8 << 20  # of points, written with several requests in flight and then read back together
SETTLE_SECONDS = 15.0  # a replica may apply a write a little later than the node that has acknowledged it
POLL_SECONDS = 0.5


class ShardWork(Value):
    """The points of one shard of the backup. ``ids`` are those still looked for; without ``write`` only compare."""

    plan: RecoveryPlan
    live: CollectionLayout | None
    shard_id: ShardId
    ids: tuple[PlainId, ...] | None = None
    write: bool = False

    @property
    def label(self) -> str:
        """What an operator calls it: ``shard 1 into docs-live``."""
        return f"shard {self.shard_id} into {self.plan.target}"


class RecoveredShard(Value):
    """What was found and done. Every one of the ``written`` points was read back from every replica.

    ``found`` are the ids that the shard holds, where ids were asked for. ``fetched_bytes`` came from the bucket just
    now, of an archive of ``archive_bytes``; ``live_bytes`` came from the nodes.
    """

    shard_id: ShardId
    missing: int = 0
    differing: int = 0
    equal: int = 0
    written: int = 0
    first_missing: tuple[PlainId, ...] = ()
    first_differing: tuple[PlainId, ...] = ()
    found: tuple[PlainId, ...] = ()
    fetched_bytes: int = 0
    archive_bytes: int = 0
    live_bytes: int = 0
    seconds: float = 0.0

    @property
    def selected(self) -> int:
        """How many points of the backup's shard were chosen."""
        return self.missing + self.differing + self.equal

    def with_batch(self, batch: Batch, live: Hashes, *, ids_asked: bool) -> "RecoveredShard":
        """The same and what a batch has shown."""
        missing, differing = compared(batch, live)
        return self.model_copy(
            update={
                "missing": self.missing + len(missing),
                "differing": self.differing + len(differing),
                "equal": self.equal + len(batch.ids) - len(missing) - len(differing),
                "first_missing": (*self.first_missing, *missing)[:NAMED_IDS],
                "first_differing": (*self.first_differing, *differing)[:NAMED_IDS],
                "found": (*self.found, *batch.ids) if ids_asked else (),
            }
        )


def compared(batch: Batch, live: Hashes) -> tuple[list[PlainId], list[PlainId]]:
    """The ids of a batch that are not among the live ones, and those that are there with another content."""
    missing = [point_id for point_id in batch.ids if point_id not in live]
    differing = [
        point_id
        for point_id, value in zip(batch.ids, batch.hashes, strict=True)
        if live.get(point_id, value) not in (value, batch.carried.get(point_id))
    ]
    return missing, differing


def recover_shard(connections: Connections, work: ShardWork, progress: Progress = no_progress) -> RecoveredShard:
    """Compare the chosen points of one shard of the backup with the live ones, and write what the mode says.

    ``progress`` gets the points that were compared. The same call again is safe, and finds equal what is there by then.
    Raises VerificationError when a point that was written is not there afterwards as it is in the backup.
    """
    began, plan, cluster = time.monotonic(), work.plan, connections.cluster
    before_bytes = _received_bytes(cluster)
    shards = LiveShards(cluster, plan.target, live_shards(plan, work.live, work.shard_id)) if work.live else None
    selection = plan.request.selection().model_copy(update={"ids": work.ids, "with_points": work.write})
    done = RecoveredShard(shard_id=work.shard_id)
    group = _Group(cluster, work, shards, progress) if work.write and shards else None
    with (
        cached_shard(connections, plan.manifest, work.shard_id, progress) as cached,
        spool.folder(connections.worker) as folder,
        closing(read_points(cached.folder, folder, selection, lambda _read: progress(0))) as batches,
    ):
        for batch in batches:
            live = shards.hashes(batch.ids) if shards else {}
            done = done.with_batch(batch, live, ids_asked=work.ids is not None)
            if group:
                group.put(batch, live)
            progress(len(batch.ids))
        if group:
            group.write()
    return done.model_copy(
        update={
            "written": group.written if group else 0,
            "fetched_bytes": cached.fetched_bytes,
            "archive_bytes": archive_of(plan.manifest, work.shard_id).bytes,
            "live_bytes": _received_bytes(cluster) - before_bytes,
            "seconds": round(time.monotonic() - began, 3),
        }
    )


def live_target(connections: Connections, plan: RecoveryPlan) -> CollectionLayout | None:
    """The collection that is compared with and written to, as it is now; None before a new one is made."""
    if plan.restore is None:
        return plan.layout.collection(plan.target)
    if plan.target not in connections.cluster.read_layout(()).names:
        return None
    return connections.cluster.read_layout([escape(plan.target)]).collection(plan.target)


class _Group:
    """Points to be written together and then read back, at most about ``GROUP_BYTES`` of them."""

    def __init__(self, cluster: Cluster, work: ShardWork, shards: LiveShards, progress: Progress) -> None:
        self.written = 0
        self._cluster, self._work, self._shards, self._progress = cluster, work, shards, progress
        self._batches: list[Batch] = []

    def put(self, batch: Batch, live: Hashes) -> None:
        """Take in what the mode says of a batch, and write when that is enough."""
        missing, differing = compared(batch, live)
        overwrite = self._work.plan.request.mode == "overwrite"
        if chosen := {*missing, *(differing if overwrite else ())}:
            self._batches.append(_only(batch, chosen))
        if sum(len(batch.body) for batch in self._batches) >= GROUP_BYTES:
            self.write()

    def write(self) -> None:
        """Write what was taken in, and read it back."""
        plan, batches = self._work.plan, self._batches
        expected = {
            point_id: batch.carried.get(point_id, value)
            for batch in batches
            for point_id, value in zip(batch.ids, batch.hashes, strict=True)
        }
        if not expected:
            return
        write_points(
            self._cluster,
            plan.target,
            batches,
            shard_key=plan.key_of(self._work.shard_id),
            insert_only=plan.request.mode != "overwrite",
            progress=lambda _written: self._progress(0),
        )
        self._require_there(expected)
        self.written += len(expected)
        self._batches = []

    def _require_there(self, expected: Hashes) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while problems := self._shards.problems(expected):
            self._progress(0)
            if time.monotonic() >= deadline:
                raise _not_there(self._work.plan, problems, len(expected))
            time.sleep(POLL_SECONDS)


def _not_there(plan: RecoveryPlan, problems: list[str], points: int) -> VerificationError:
    named = "; ".join(problems[:NAMED_IDS])
    msg = (
        f"{points} points were written to {plan.target}, and read back they are not as in the backup, "
        f"{len(problems)} times: {named}."
    )
    return VerificationError(
        msg,
        "Somebody may have written them meanwhile, or they hold integers above 2^63, which become floats between "
        "Qdrant's nodes (docs/recovery.md). Run it again with a dry run to see what differs now.",
    )


def _only(batch: Batch, chosen: Collection[PlainId]) -> Batch:
    """The chosen points of a batch."""
    if len(chosen) == len(batch.ids):
        return batch
    kept = [(point_id, value) for point_id, value in zip(batch.ids, batch.hashes, strict=True) if point_id in chosen]
    body = points_json(point for point in orjson.loads(batch.body) if point["id"] in chosen)
    return Batch([point_id for point_id, _ in kept], [value for _, value in kept], body, carried=batch.carried)


def _received_bytes(cluster: Cluster) -> int:
    return sum(node.received_bytes for node in cluster.nodes)
