"""The build writer: points become finished shards on this worker, indexed, which the target only has to load.

Every point is routed to its shard by Qdrant's own ring (`ferry.archive.routing`, tried on the target first); each shard
is built by a process of its own kind (`ferry.archive.builder`), packed as Qdrant packs snapshots, and given to every
replica of the shard. The target indexes nothing.

What is done is noted shard by shard. A run that goes on reads the source again from its beginning, for the shards that
are not finished; so does each group of shards where the disk does not hold all of them at once.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from glob import escape
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal

import numpy as np

from ferry.archive.builder import LEAST_FREE_BYTES, FinishedShard, ShardBuilders, unfit
from ferry.archive.builder_schema import obstacles
from ferry.archive.routing import Router
from ferry.connections import Connections
from ferry.errors import HeadroomError, MigrationError, NodeError
from ferry.lanes import Job, raise_failures
from ferry.migration import records
from ferry.migration.batch import PointBatch, Refused
from ferry.migration.changed_config import dense_vectors, sparse_vectors, wanted_vectors
from ferry.migration.changes import Changing
from ferry.migration.columns import take
from ferry.migration.copy import MOST_REJECTED
from ferry.migration.ids import source_id_of
from ferry.migration.plan import MigrationPlan
from ferry.migration.report import RangeState, RejectedPoint
from ferry.migration.ring import require_empty, require_ring, rings
from ferry.migration.source import Ask, Source, SourceRange
from ferry.models import CollectionLayout, PeerId, Progress, ShardId, ShardLayout
from ferry.qdrant import points, snapshots
from ferry.qdrant.cluster import Cluster
from ferry.repository.records import Record
from ferry.verify import spool

# Of the source's bytes: the points as they came, once more in their index, and the archive (measured: 2.2 with graphs).
SPOOL_FACTOR = 2.5
SHARD_BYTES = 64 << 20  # of disk that an open shard takes however small it is, pages of 32 MiB that are begun
MOST_OPEN = 64  # shards at a time: each is some hundred open files
BLOCK_BYTES = 1 << 20


class BuiltShard(Record):
    """A shard that every replica holds. ``stamp`` is of the plan that it belongs to.

    ``points`` are distinct ids and ``vectors`` those that have a vector of the name; ``indexed_vectors`` are in a graph
    or an inverted index. ``bytes`` and ``sha256`` are the archive's.
    """

    format_version: Literal[1] = 1
    stamp: str
    shard_id: ShardId
    points: int
    vectors: dict[str, int]
    indexed_vectors: int
    bytes: int
    sha256: str
    build_seconds: float
    upload_seconds: float


def build_obstacles(config: dict[str, Any], payload_schema: dict[str, Any], versions: tuple[str, ...]) -> list[str]:
    """Why finished shards of such a collection cannot be built for nodes of these versions; empty when they can."""
    return obstacles(config, payload_schema, versions)


def build_spool_bytes(source_bytes: int, shards: int) -> int:
    """About how many bytes of the worker's disk building takes at once, where it need not be done in groups."""
    return int(source_bytes * SPOOL_FACTOR) + shards * SHARD_BYTES + LEAST_FREE_BYTES


def build_shards(connections: Connections, plan: MigrationPlan, source: Source, job: Job) -> list[BuiltShard]:
    """Build every shard of the target that is not finished yet, and give it to all of its replicas.

    The collection exists already with its keys and payload indexes, and holds nothing but shards of an earlier run.
    Ranges are counted in their records as the stream writer does. The same call again goes on. Raises HeadroomError
    when the worker's disk is too small or full, MigrationError for a ring that is not Qdrant's and for points that
    cannot be in the target (see ``leave_out_refused``), and what reading and uploading raise. Nothing stays on
    the disk.
    """
    layout = _layout(connections.cluster, plan)
    finished = {shard.shard_id: shard for shard in built(connections, plan)}
    left = [shard for shard in layout.shards if shard.shard_id not in finished]
    begun = {shard.key for shard in layout.shards if shard.shard_id in finished}
    untried = {key: shards for key, shards in rings(layout.shards).items() if key not in begun}
    if left:
        require_ring(connections.cluster, layout, untried)
    for group in _groups(connections, plan, left):
        with spool.folder(connections.worker) as folder:
            building = _Building(connections, plan, layout, group)
            finished |= {shard.shard_id: shard for shard in building.run(folder, source, job)}
    for part in plan.ranges:
        state = records.range_state(connections, plan, part.number)
        records.keep_range_state(connections, plan, state.model_copy(update={"done": True}))
    return [finished[shard.shard_id] for shard in layout.shards]


def built(connections: Connections, plan: MigrationPlan) -> list[BuiltShard]:
    """The shards of this plan that are finished."""
    found = []
    for shard in plan.shards:
        key = connections.keys.migration_built(plan.migration_id, shard.shard_id)
        record = records.read_record(connections, key, BuiltShard)
        if record is not None and record.stamp == records.stamp_of(plan):
            found.append(record)
    return found


def _layout(cluster: Cluster, plan: MigrationPlan) -> CollectionLayout:
    found = cluster.read_layout([escape(plan.target)]).collection(plan.target)
    wanted = {shard.shard_id: shard.key for shard in plan.shards}
    if found is None or {shard.shard_id: shard.key for shard in found.shards} != wanted:
        msg = f"{plan.target} has not the shards that were planned: {wanted}."
        raise MigrationError(msg, "Begin anew: restart.")
    return found


def _groups(connections: Connections, plan: MigrationPlan, left: Sequence[ShardLayout]) -> list[list[ShardLayout]]:
    """The shards that are left in groups that the worker's disk can hold. Raises HeadroomError when it holds none."""
    if not left:
        return []
    worker = connections.worker
    worker.spool_dir.mkdir(parents=True, exist_ok=True)
    free = disk_usage(worker.spool_dir).free - LEAST_FREE_BYTES
    each = int((plan.source.bytes or 0) * SPOOL_FACTOR / len(plan.shards)) + SHARD_BYTES
    if each > free:
        msg = f"Building one shard of {plan.target} needs about {each} bytes in {worker.spool_dir}; {free} may be used."
        raise HeadroomError(f"{msg} No shard was built.", "Point worker.spool_dir at a larger disk, or use stream.")
    size = min(free // each, MOST_OPEN)
    return [list(left[start : start + size]) for start in range(0, len(left), size)]


class _Building:
    """Some shards of the target while they are built."""

    def __init__(
        self, connections: Connections, plan: MigrationPlan, layout: CollectionLayout, group: Sequence[ShardLayout]
    ) -> None:
        self._connections, self._plan = connections, plan
        self._group = {shard.shard_id: shard for shard in group}
        self._routers = {key: Router(shards) for key, shards in rings(layout.shards).items()}
        self._changing = Changing.of(plan)
        self._sizes: dict[str, int | None] = {
            name: int(each["size"]) for name, each in dense_vectors(plan.config).items()
        }
        self._sizes |= dict.fromkeys(sparse_vectors(plan.config))
        self._uploading: dict[PeerId, threading.Lock] = defaultdict(threading.Lock)

    def run(self, folder: Path, source: Source, job: Job) -> list[BuiltShard]:
        """Read all of the source into the shards, and finish them one by one."""
        plan = self._plan
        with ShardBuilders(folder, plan.config, plan.payload_schema) as builders:
            lanes = builders.create(list(self._group))
            parts = [part for part in plan.ranges if self._concerns(part)]
            reading = [parts[lane :: plan.request.readers] for lane in range(min(plan.request.readers, len(parts)))]
            _raise_failures(
                job.run(reading, lambda part: self._fill(builders, source, part, job)), "reading the source"
            )

            def finish(shard_id: ShardId) -> BuiltShard:
                archive = folder / f"{shard_id}.snapshot"
                label = f"build shard {shard_id} of {plan.target}"
                made = job.step(label, None, lambda tell: builders.finish(shard_id, archive, tell))
                try:
                    return self._deliver(shard_id, archive, made, job)
                finally:
                    archive.unlink()

            futures = job.run(lanes, finish)
            _raise_failures(futures, "building shards")
            return [future.result() for future in futures]

    def _concerns(self, part: SourceRange) -> bool:
        """Whether a range may hold points of these shards; where a payload field decides, any may."""
        if self._plan.request.shape.key_field is not None:
            return True
        return self._changing.key(part.key) in {shard.key for shard in self._group.values()}

    def _fill(self, builders: ShardBuilders, source: Source, part: SourceRange, job: Job) -> None:
        """Give the points of a range to the shards; after an error that may pass, from its start again."""
        plan = self._plan
        ask = Ask(
            filter=plan.request.filter,
            vectors=wanted_vectors(plan.source.config, plan.request.changes),
            batch_bytes=plan.request.batch_bytes,
        )

        def fill(progress: Progress) -> RangeState:
            began, read, rejected = time.monotonic(), 0, list[RejectedPoint]()
            for each in source.read(part, None, ask, progress):
                if not isinstance(each.batch, PointBatch):
                    msg = f"{plan.source.name} gave points that it was not asked for: as messages, and not in columns."
                    raise MigrationError(msg, "Tell Ferry's maintainers.")
                changed = self._changing.sent(each.batch)
                refused = list(changed.refused)
                read += len(each.batch.ids)
                for batch in changed.batches:
                    fit, wrong = self._fitting(batch)
                    refused += wrong
                    for shard_id, points_of_it in self._routed(fit):
                        builders.add(shard_id, points_of_it)
                rejected += [RejectedPoint(id=point.id, reason=point.reason) for point in refused]
                _require_few(plan, rejected)
                progress(len(each.batch.ids))
            return RangeState(
                stamp=records.stamp_of(plan),
                number=part.number,
                read=read,
                written=read - len(rejected),
                rejected=tuple(rejected),
                seconds=round(time.monotonic() - began, 3),
            )

        state = job.step(f"read {part.label} of {plan.source.name}", part.points, fill)
        records.keep_range_state(self._connections, plan, state)

    def _fitting(self, batch: PointBatch) -> tuple[PointBatch, list[Refused]]:
        wrong = unfit(batch, self._sizes)
        if not wrong:
            return batch, []
        refused = [Refused(source_id_of(batch.ids[row], batch.payloads[row]), reason) for row, reason in wrong.items()]
        return take(batch, np.array([row for row in range(len(batch.ids)) if row not in wrong], dtype=np.intp)), refused

    def _routed(self, batch: PointBatch) -> Iterator[tuple[ShardId, PointBatch]]:
        """The points of a batch by the shards that are built now."""
        if batch.key not in self._routers:
            msg = f"Points have the shard key {batch.key!r}, which {self._plan.target} was not planned to have."
            raise MigrationError(msg, "The source has changed since it was planned: begin anew: restart.")
        places = self._routers[batch.key].shards_of(batch.ids)
        for shard in np.unique(places).tolist():
            if shard in self._group:
                yield ShardId(shard), take(batch, np.flatnonzero(places == shard))

    def _deliver(self, shard_id: ShardId, archive: Path, made: FinishedShard, job: Job) -> BuiltShard:
        """Give the archive to every replica of its shard, and note that it is finished; an empty shard is there."""
        began, shard = time.monotonic(), self._group[shard_id]
        if not made.points:
            require_empty(self._connections.cluster, self._plan.target, shard)
        for replica in shard.replicas if made.points else ():
            sent = _Sent(self._connections.cluster, self._plan.target, shard_id, replica.peer_id)
            label = f"upload shard {shard_id} of {self._plan.target} to peer {replica.peer_id}"
            with self._uploading[replica.peer_id]:  # one recovery at a time on a node (qdrant.md §7)
                job.step(label, made.bytes, partial(sent.send, archive, made))
        record = BuiltShard(
            stamp=records.stamp_of(self._plan),
            shard_id=shard_id,
            build_seconds=made.seconds,
            upload_seconds=round(time.monotonic() - began, 3),
            **made.model_dump(exclude={"seconds"}),
        )
        key = self._connections.keys.migration_built(self._plan.migration_id, shard_id)
        self._connections.store.put_document(key, record.to_bytes())
        return record


class _Sent:
    """One archive on its way to one replica, as often as it takes."""

    def __init__(self, cluster: Cluster, collection: str, shard_id: ShardId, peer_id: PeerId) -> None:
        self._node, self._collection, self._shard_id = cluster.node(peer_id), collection, shard_id
        self._tried = False

    def send(self, archive: Path, made: FinishedShard, progress: Progress) -> None:
        """Upload it and look whether it arrived. Raises NodeError, which may pass; then this may be called again.

        An earlier attempt may have been obeyed although its answer was lost: counting waits while the node loads it.
        """
        self._node.require_identity()
        if self._tried and self._count() == made.points:
            return
        self._tried = True
        with archive.open("rb") as file:
            blocks = _told(iter(lambda: file.read(BLOCK_BYTES), b""), progress)
            snapshots.upload_shard(self._node, self._collection, self._shard_id, blocks, made.bytes, made.sha256)
        self._node.require_identity()
        if (found := self._count()) != made.points:
            msg = f"{self._node.label} shows {found} points in shard {self._shard_id} of {self._collection}, "
            raise NodeError(f"{msg}and was given {made.points}.", "Run the migration again; see the node's log.")

    def _count(self) -> int:
        return points.count(self._node, self._collection, self._shard_id)


def _raise_failures(futures: Sequence[Future[Any]], what: str) -> None:
    """Raise what failed. All lanes stop at a disk that is full, and then only that is worth saying."""
    for future in futures:
        if isinstance(error := future.exception(), HeadroomError):
            raise error
    raise_failures(futures, what)


def _told(blocks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for block in blocks:
        progress(len(block))
        yield block


def _require_few(plan: MigrationPlan, rejected: Sequence[RejectedPoint]) -> None:
    if rejected and not plan.request.leave_out_refused:
        first = rejected[0]
        msg = f"Point {first.id} of {plan.source.name} cannot be in {plan.target}: {first.reason}."
        raise MigrationError(msg, "Correct it in the source, or leave such points out: leave_out_refused.")
    if len(rejected) > MOST_REJECTED:
        msg = f"More than {MOST_REJECTED} points cannot be in {plan.target}; {rejected[-1].id}: {rejected[-1].reason}."
        raise MigrationError(msg, "See whether the changes and the new collection's vectors are what you want.")
