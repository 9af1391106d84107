"""Planning a migration: the source as it is, the new collection's shape, fixed ranges, what both writers cost.

Reads only. A migration that was begun keeps its plan: what may have changed since is compared with it and refused by
name, for ranges and cursors of one plan mean nothing under another.
"""

import shutil
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

from ferry.connections import Connections, connect_repository
from ferry.errors import ConfigurationError, NodeRefusedError, PreflightError
from ferry.migration.batch import PointBatch
from ferry.migration.build import build_obstacles, build_spool_bytes
from ferry.migration.changed_config import changed_config, changed_schema, require_fields_apart
from ferry.migration.copy import ask_of
from ferry.migration.costs import build_cost, data_bytes, needs_of, stream_cost
from ferry.migration.fingerprint import fingerprint_of, require_unchanged
from ferry.migration.plan import BackupSource, Cost, MigrationPlan, MigrationRequest, QdrantSource, WriterKind
from ferry.migration.records import migration_id_of, saved_plan
from ferry.migration.source import Ask, Source, SourceDescription, SourceRange
from ferry.migration.sources.backup import QdrantBackup
from ferry.migration.sources.parquet import ParquetFolder
from ferry.migration.sources.qdrant import QdrantLive
from ferry.migration.target import config_there, require_ours
from ferry.models import ClusterLayout, Finding, ShardId, ShardKey, ShardLayout, now
from ferry.profiles import WorkerSettings
from ferry.qdrant.grpc import require_answers
from ferry.qdrant.resources import read_headroom, readable_bytes, require_headroom
from ferry.qdrant.rights import MANAGE, require_right
from ferry.repository.catalog import LATEST
from ferry.restore.field_keys import MOST_KEYS, key_of, shown_value
from ferry.restore.shape import Ring, chosen_shards, rings_of, shaped_config, topology

RANGE_POINTS = 50_000  # a few seconds of work, so that a lane that ends early finds another
MOST_RANGES = 256
WORTH_BUILDING_SECONDS = 60.0  # of the target's processors: less is over before shards are built and sent
_NOTHING = "Nothing was changed."


def open_source(request: MigrationRequest) -> Source:
    """The source that a request names; to be used as a context manager, by one process.

    Raises ConfigurationError for profiles that are not there, or a library that is not installed.
    """
    asked = request.source
    if isinstance(asked, QdrantSource):
        return QdrantLive(asked)
    repository = connect_repository(request.repository)
    if isinstance(asked, BackupSource):
        return QdrantBackup(repository, asked)
    return ParquetFolder(repository, asked)


def prepare_migration(connections: Connections, request: MigrationRequest) -> MigrationPlan:
    """The plan of a migration: that of its first run, with this run's wishes that may change, or a new one.

    ``connections`` are of the target cluster and the repository. Changes nothing; ``run.begin`` keeps a new plan.
    Raises a PreflightError that says what would not work, or what has changed since the migration was begun.
    """
    _require_sense(connections, request)
    saved = None if request.restart else saved_plan(connections, migration_id_of(request))
    request = _pinned(connections, request, saved)
    with open_source(request) as source:
        description = source.describe()
        if saved is None:
            return _new_plan(connections, request, source, description)
    require_unchanged(saved, request, description)
    return saved.model_copy(update={"request": request})


def _require_sense(connections: Connections, request: MigrationRequest) -> None:
    """Raise what shows without the source: wishes that contradict each other, and names that cannot be."""
    require_fields_apart(request.changes)
    if request.cluster != connections.cluster.name:
        msg = f"The migration is into {request.cluster}, and the connections are of {connections.cluster.name}."
        raise ConfigurationError(msg)
    source = request.source
    if isinstance(source, QdrantSource) and (source.cluster, source.collection) == (request.cluster, request.into):
        msg = f"{request.into} on {request.cluster} is the source itself. {_NOTHING}"
        raise PreflightError(msg, "Name another new collection: `into`.")
    if request.alias == request.into:
        msg = f"{request.alias} cannot be the new collection and its alias. {_NOTHING}"
        raise PreflightError(msg, "Name one of them otherwise.")


def _pinned(connections: Connections, request: MigrationRequest, saved: MigrationPlan | None) -> MigrationRequest:
    """The request with the very backup that ``latest`` means: in a migration that was begun, the one it began with."""
    source = request.source
    if not isinstance(source, BackupSource) or source.backup != LATEST:
        return request
    if saved is not None and isinstance(saved.request.source, BackupSource):
        found = saved.request.source.backup
    else:
        found = connections.catalog.latest_with(source.cluster, source.collection).backup_id
    return request.model_copy(update={"source": source.model_copy(update={"backup": found})})


def _new_plan(
    connections: Connections, request: MigrationRequest, source: Source, description: SourceDescription
) -> MigrationPlan:
    layout = connections.cluster.read_layout(include=())
    _require_names(request, layout)
    ranges = _ranges(source, description, request)
    changed = changed_config(description.config, request.changes)
    keys = _field_keys(source, ranges, request)
    rings, lowered = _limited(_rings(description, changed, request, keys), request, layout)
    _, streamed = topology(rings, request.shape.key_field is not None, ())
    config = shaped_config(changed, request.shape, rings)
    copies = max((ring.copies for ring in rings), default=1)
    config["params"]["replication_factor"] = copies
    schema = changed_schema(description.payload_schema, request.changes)
    costs = _costs(description, config, schema, copies, layout, len(streamed.shards))
    writer, why = _choose(request, costs, connections.worker)
    plan = MigrationPlan(
        migration_id=migration_id_of(request),
        created_at=now(),
        request=request,
        source=description,
        fingerprint=fingerprint_of(request, description),
        config=config,
        payload_schema=schema,
        shards=streamed.shards,
        key_steps=streamed.key_steps,
        ranges=tuple(ranges),
        writer=writer,
        costs=costs,
        reasons=(*why, *lowered),
        findings=description.findings,
    )
    found = _require_target(connections, plan, layout, copies)
    _require_readable(source, plan)
    return plan.model_copy(update={"findings": (*plan.findings, *found)})


def _require_names(request: MigrationRequest, layout: ClusterLayout) -> None:
    if request.into in layout.aliases:
        msg = f"{request.into} is an alias of {layout.aliases[request.into]} on cluster {layout.cluster}. {_NOTHING}"
        raise PreflightError(msg, "Name another new collection (`into`); the alias itself can be moved: `alias`.")
    if request.alias in layout.names:
        msg = f"{request.alias} is a collection on cluster {layout.cluster}, so it cannot be an alias. {_NOTHING}"
        raise PreflightError(msg, "Name another alias, or leave `alias` out and move your clients yourself.")
    nodes = len(layout.nodes)
    if request.replication_factor and request.replication_factor > nodes:
        msg = f"Replication factor {request.replication_factor} needs as many nodes; there are {nodes}. {_NOTHING}"
        raise PreflightError(msg, "Ask for fewer copies, or leave it out.")


def _ranges(source: Source, description: SourceDescription, request: MigrationRequest) -> list[SourceRange]:
    """The ranges of the shard keys that are wanted; about a multiple of the readers, so that all work until the end."""
    readers, pieces = request.readers, ceil((description.points or 0) / RANGE_POINTS)
    wanted = readers * max(1, min(MOST_RANGES // readers, ceil(pieces / readers)))
    keys = {shard.key for shard in chosen_shards(description.shards, request.shape)}
    return [part for part in source.plan_ranges(wanted) if not request.shape.only_keys or part.key in keys]


def _rings(
    description: SourceDescription, config: dict[str, Any], request: MigrationRequest, field_keys: Sequence[ShardKey]
) -> list[Ring]:
    """The shards of the new collection by key. A source without shards counts as one of a single shard."""
    alone = ShardLayout(shard_id=ShardId(0), replicas=())
    chosen = chosen_shards(description.shards, request.shape) or [alone]
    return rings_of(chosen, config, request.shape, field_keys)


def _limited(rings: list[Ring], request: MigrationRequest, layout: ClusterLayout) -> tuple[list[Ring], tuple[str, ...]]:
    """Rings with no more copies than there are nodes, and the sentence that says so where that is fewer."""
    nodes = len(layout.nodes)
    wanted = [max(1, request.replication_factor or ring.copies) for ring in rings]
    limited = [ring.model_copy(update={"copies": min(each, nodes)}) for ring, each in zip(rings, wanted, strict=True)]
    if all(each <= nodes for each in wanted):
        return limited, ()
    return limited, (f"replication factor {nodes} instead of {max(wanted)}: there are {nodes} nodes",)


def _field_keys(source: Source, ranges: Sequence[SourceRange], request: MigrationRequest) -> list[ShardKey]:
    """The values of ``shape.key_field`` in the points, sorted: the keys-to-be. Reads all payloads once.

    Raises PreflightError, naming the point, for a value that is no shard key unless such points are left out, and for
    too many values.
    """
    field = request.shape.key_field
    if field is None:
        return []
    found: set[ShardKey] = set()
    for point in _payloads(source, ranges, request):
        key = key_of(point, field)
        if key is not None:
            found.add(key)
        elif not request.leave_out_refused:
            shown = shown_value(point, field)
            msg = f"Point {point['id']} has {shown} in {field!r}, which can be no shard key. {_NOTHING}"
            raise PreflightError(msg, "Set the field, name another one or `into_key`, or set leave_out_refused.")
        if len(found) > MOST_KEYS:
            msg = f"{field!r} has more than {MOST_KEYS} values, each to be a shard key. {_NOTHING}"
            raise PreflightError(msg, "Choose a field with fewer values, or one key for all: `into_key`.")
    return sorted(found, key=lambda key: (isinstance(key, str), key))


def _payloads(source: Source, ranges: Sequence[SourceRange], request: MigrationRequest) -> Iterator[dict[str, Any]]:
    ask = Ask(filter=request.filter, vectors=(), batch_bytes=request.batch_bytes)
    for part in ranges:
        for read in source.read(part, None, ask):
            if isinstance(read.batch, PointBatch):
                for point_id, payload in zip(read.batch.ids, read.batch.payloads, strict=True):
                    yield {"id": point_id, "payload": payload}


def _costs(
    description: SourceDescription,
    config: dict[str, Any],
    schema: dict[str, Any],
    copies: int,
    layout: ClusterLayout,
    shards: int,
) -> tuple[Cost, Cost]:
    versions = tuple(sorted({node.version for node in layout.nodes}))
    obstacles = build_obstacles(config, schema, versions)
    spool_bytes = build_spool_bytes(data_bytes(description, config), max(1, shards))
    return (
        stream_cost(description, config, copies, len(layout.nodes)),
        build_cost(description, config, spool_bytes, obstacles),
    )


def _choose(
    request: MigrationRequest, costs: tuple[Cost, Cost], worker: WorkerSettings
) -> tuple[WriterKind, tuple[str, ...]]:
    """The writer that was asked for, else the one that is worth it. Raises PreflightError for one that cannot be."""
    stream, build = costs
    if request.writer == "build" and build.reason is not None:
        msg = f"Finished shards of {request.into} cannot be built: {build.reason}. {_NOTHING}"
        raise PreflightError(msg, "Leave `writer` out, or set it to stream.")
    if request.writer is not None:
        return request.writer, (f"writer {request.writer}: asked for",)
    if build.reason is not None:
        return "stream", (f"writer stream: build cannot be used: {build.reason}",)
    spared, room = stream.target_cpu_seconds or 0.0, _spool_room_bytes(worker)
    if spared < WORTH_BUILDING_SECONDS:
        return "stream", (f"writer stream: to index them takes the target's processors about {spared:.0f} s only",)
    needed, has = readable_bytes(build.spool_bytes), readable_bytes(room)
    if build.spool_bytes > room:
        return "stream", (f"writer stream: build needs {needed} of this worker's disk, which has {has} free",)
    return "build", (f"writer build: it spares the target's processors about {spared:.0f} s, and needs {needed} here",)


def _spool_room_bytes(worker: WorkerSettings) -> int:
    """What the disk of the spool has free; the folder itself may not be there yet."""
    there = next(path for path in (worker.spool_dir, *worker.spool_dir.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _require_target(connections: Connections, plan: MigrationPlan, layout: ClusterLayout, copies: int) -> list[Finding]:
    """What is worth knowing of the target. Raises a PreflightError where key, nodes or room do not allow it."""
    cluster = connections.cluster
    require_right(cluster, MANAGE)
    require_answers(cluster.profile)
    if (there := config_there(cluster.nodes[0], plan.target)) is not None:
        require_ours(connections, plan, there)
    findings = cluster.require_quiet(layout)
    needs = needs_of(plan.source, plan.config, copies, layout)
    names = {node.peer_id: node.label for node in layout.nodes}
    headrooms = read_headroom(cluster, layout)
    return findings + require_headroom(headrooms, needs, cluster.profile.headroom.when_unknown, names)


def _require_readable(source: Source, plan: MigrationPlan) -> None:
    """Read a first batch as it will be read: a filter or a vector that the source refuses shows now.

    Nothing of a backup without a filter: there is nothing to refuse, and its archives may be large. Raises
    PreflightError where the source refuses it for good.
    """
    if plan.source.kind == "backup" and plan.request.filter is None:
        return
    for part in plan.ranges[:1]:
        try:
            next(iter(source.read(part, None, ask_of(plan))), None)
        except NodeRefusedError as error:
            msg = f"{plan.source.name} cannot be read as asked: {error.message} {_NOTHING}"
            raise PreflightError(msg, error.remedy) from error
