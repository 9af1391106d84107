"""The collection that a migration makes: created first, its indexing held back while points stream in, then settled.

Until it is settled it bears a mark in its metadata (Qdrant keeps metadata from 1.16 on), by which every run knows
whose it is. That its indexing is held back is noted in the repository before, so that the next migration into the same
cluster puts it back after a kill.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from glob import escape
from typing import Any

from pydantic import ValidationError

from ferry.connections import Connections
from ferry.errors import (
    BackupNotFoundError,
    FerryError,
    LeaseHeldError,
    NodeUnreachableError,
    PreflightError,
    VerificationError,
)
from ferry.migration.plan import MigrationPlan
from ferry.migration.records import forget_progress
from ferry.models import CollectionLayout, Progress, no_progress
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import NotFoundError
from ferry.qdrant.node import Node
from ferry.qdrant.schema import (
    creation_body,
    migration_mark,
    patch_body,
    payload_index_bodies,
    schema_differences,
    unmark_migration,
)
from ferry.repository.lease import Lease, acquire
from ferry.repository.records import Record

log = logging.getLogger(__name__)
HELD_BACK = 0  # `indexing_threshold`: no segment is ever large enough to be indexed
# What a collection gets that never said any (Qdrant's own default, in KiB); a PATCH cannot say "none" again.
DEFAULT_THRESHOLD = 10_000
ACTIVE_SECONDS = 300.0
PLACED_SECONDS = 60.0
SCHEMA_SECONDS = 15.0  # a node may answer from another one that is behind, for seconds after a change (1.16.3)
POLL_SECONDS = 0.5
_THRESHOLD = "optimizer_config.indexing_threshold"


class Load(Record):
    """The note of a collection whose indexing is held back, with the ``indexing_threshold`` to put back, in KiB."""

    migration_id: str
    collection: str
    indexing_threshold: int


def lease_on(connections: Connections, target: str, holder: str) -> Lease:
    """The lease on a new collection's name: the one that restores take, so that neither disturbs the other.

    Raises LeaseHeldError.
    """
    key = connections.keys.lease(f"{connections.cluster.name}.restore.{target}")
    return acquire(connections.store, key, holder, connections.profile.lease_seconds)


def config_there(node: Node, name: str) -> dict[str, Any] | None:
    """The configuration and payload indexes of a collection as a node shows them; None when there is none."""
    try:
        return node.collection(name)
    except NotFoundError:
        return None


def require_ours(connections: Connections, plan: MigrationPlan, found: dict[str, Any]) -> None:
    """Raise PreflightError unless a collection that is there was begun by this migration, and nobody uses it yet."""
    if in_service(connections, plan):
        msg = f"An alias points at {plan.target}, so somebody may write to it. Nothing was changed."
        raise PreflightError(msg, "Finish the cut-over, or roll it back; or name another new collection (`into`).")
    mark = migration_mark(found["config"])
    if mark != plan.migration_id:
        whose = f"belongs to migration {mark}" if mark else "was not made by this migration"
        differences = _differences(plan, found)
        other = f", and has another schema: {'; '.join(differences)}" if differences else ""
        msg = f"{plan.target} is already a collection on cluster {plan.request.cluster}; it {whose}{other}. "
        remedy = "Name another new collection (`into`), or drop that one if nobody needs it."
        raise PreflightError(msg + "Nothing was changed.", remedy)


def in_service(connections: Connections, plan: MigrationPlan) -> bool:
    """Whether an alias points at the new collection: then it may have points that no source has."""
    return plan.target in connections.cluster.nodes[0].aliases().values()


def open_target(connections: Connections, plan: MigrationPlan) -> None:
    """Make the new collection, or find the one that was begun, and hold its indexing back for the stream writer.

    To be called by the holder of its lease, as often as one likes. Where the collection is not there (any more)
    nothing that was counted as done counts. Raises PreflightError for a collection that is not ours or was changed.
    """
    first = connections.cluster.nodes[0]
    first.require_identity()
    found = config_there(first, plan.target)
    if found is None:
        forget_progress(connections, plan)
    else:
        require_ours(connections, plan, found)
    if plan.writer == "stream":
        _note_load(connections, plan)
    if found is None:
        body = creation_body(_loading(plan), replication_factor=_copies(plan), migration_id=plan.migration_id)
        first.create_collection(plan.target, body)
    elif plan.writer == "stream":
        _set_threshold(first, plan.target, HELD_BACK)
    _make_keys(connections, first, plan)
    if patch := patch_body(plan.config):
        first.patch_collection(plan.target, patch)
    for field, schema in payload_index_bodies(plan.payload_schema):
        if found is None or field not in found["payload_schema"]:
            first.create_payload_index(plan.target, field, schema)
    _await_placed(connections, plan)
    if different := _await_schema(connections, plan):
        msg = f"{plan.target} is not as migration {plan.migration_id} has made it: {'; '.join(different)}."
        raise PreflightError(msg, "Undo what was changed there, or begin anew: restart. No point was written.")


def clear_target(connections: Connections, plan: MigrationPlan) -> None:
    """Drop what another plan of this migration has begun, where it is to begin anew; nothing there is fine.

    Raises PreflightError for a collection that is not ours, and for one that was begun and is not to begin anew: its
    plan may be in another repository, and a run at work on it.
    """
    first = connections.cluster.nodes[0]
    if (found := config_there(first, plan.target)) is None:
        return
    require_ours(connections, plan, found)
    if not plan.request.restart:
        msg = f"{plan.target} was begun by this migration, and this repository does not know its plan."
        raise PreflightError(
            f"{msg} Nothing was changed.", "Go on with the repository that it was begun with, or begin anew: restart."
        )
    log.warning("dropping %s: migration %s is begun anew", plan.target, plan.migration_id)
    first.delete_collection(plan.target)


def put_back(connections: Connections, migration_id: str) -> None:
    """Let the collection of a migration index its points as planned, and forget the note. Again is fine."""
    load = _read_load(connections, connections.keys.load(connections.cluster.name, migration_id))
    if load is not None:
        _end_load(connections, load)


@contextmanager
def put_back_afterwards(connections: Connections, migration_id: str) -> Iterator[None]:
    """Let it index again however the body ends; what cannot be put back then is by the next migration."""
    try:
        yield
    finally:
        try:
            put_back(connections, migration_id)
        except FerryError as error:
            log.warning("What migration %s holds back is put back by the next one: %s", migration_id, error.message)


def put_back_dead(connections: Connections, own: str, holder: str) -> None:
    """Put back what dead migrations hold back on this cluster; ``own`` is the name whose lease we hold already.

    A dead migration is one whose lease can be had. What cannot be put back is left for the next one.
    """
    for info in connections.store.list(connections.keys.loads_prefix(connections.cluster.name)):
        load = _read_load(connections, info.key) if info.bytes else None
        if load is None:
            continue
        try:
            with nullcontext() if load.collection == own else lease_on(connections, load.collection, holder):
                if _read_load(connections, info.key) is not None:  # it may have ended by itself meanwhile
                    _end_load(connections, load)
        except LeaseHeldError:
            continue
        except FerryError as error:
            log.warning("Indexing of %s is put back by the next migration: %s", load.collection, error.message)


def settle_target(connections: Connections, plan: MigrationPlan, progress: Progress = no_progress) -> None:
    """Wait until every replica is Active and the collection is green: all that shall be indexed is.

    ``progress`` gets 0 and may raise. Raises LayoutError for replicas that are not Active in time, VerificationError
    where the collection is red or has another schema than planned.
    """
    cluster = connections.cluster
    cluster.wait_until_active(plan.target, None, ACTIVE_SECONDS, progress)
    # Shards that were recovered do not wake the optimizers; an empty patch does (qdrant.md §3.3).
    cluster.nodes[0].patch_collection(plan.target, {"optimizers_config": {}})
    _await_green(connections, plan, progress)
    if different := _await_schema(connections, plan, progress):
        msg = f"{plan.target} has another schema than planned: {'; '.join(different)}."
        raise VerificationError(msg, "Its points are compared nevertheless: undo the change, then run this again.")


def hand_over(connections: Connections, plan: MigrationPlan) -> None:
    """Take the mark away: from here on the collection is the operator's, and no run of this migration writes to it."""
    first = connections.cluster.nodes[0]
    if migration_mark(first.collection(plan.target)["config"]) == plan.migration_id:
        unmark_migration(first, plan.target, plan.config.get("metadata"))


def _loading(plan: MigrationPlan) -> dict[str, Any]:
    if plan.writer != "stream":
        return plan.config
    return {**plan.config, "optimizer_config": {**_optimizers(plan), "indexing_threshold": HELD_BACK}}


def _optimizers(plan: MigrationPlan) -> dict[str, Any]:
    return dict(plan.config.get("optimizer_config") or {})


def _copies(plan: MigrationPlan) -> int:
    return max((shard.copies for shard in plan.shards), default=1)


def _make_keys(connections: Connections, node: Node, plan: MigrationPlan) -> None:
    """Make the shard keys that are missing, in the planned order; nothing else makes or drops any meanwhile."""
    if not plan.key_steps:
        return
    there = {shard["key"] for shard in _shards_of(node, plan.target)}
    copies = {shard.key: shard.copies for shard in plan.shards}
    for step in plan.key_steps:
        if step.action == "drop" and step.key in there:
            node.drop_shard_key(plan.target, step.key)
        if step.action == "create" and step.key not in there:
            factor = copies.get(step.key, 1)
            body = {"shard_key": step.key, "shards_number": step.shards, "replication_factor": factor}
            node.create_shard_key(plan.target, body)


def _shards_of(node: Node, name: str) -> list[dict[str, Any]]:
    told = node.collection_cluster(name)
    found = [*told.get("local_shards", ()), *told.get("remote_shards", ())]
    return [{"key": shard.get("shard_key")} for shard in found]


def _await_placed(connections: Connections, plan: MigrationPlan) -> None:
    """Wait until every node shows every copy of every planned shard Active, under its number and key."""
    cluster, wanted = connections.cluster, {shard.shard_id: (shard.key, shard.copies) for shard in plan.shards}

    def placed() -> bool:
        cluster.wait_until_active(plan.target, None, ACTIVE_SECONDS)
        layout = cluster.read_layout([escape(plan.target)]).collection(plan.target)
        return layout is not None and _held(layout) == wanted

    if not _eventually(placed, PLACED_SECONDS):
        msg = f"{plan.target} has other shards than planned {PLACED_SECONDS:.0f} s after it was made: {wanted}."
        raise PreflightError(msg, "See GET /collections/NAME/cluster; begin anew with restart. No point was written.")


def _held(layout: CollectionLayout) -> dict[int, tuple[str | int | None, int]]:
    return {shard.shard_id: (shard.key, len(shard.replicas)) for shard in layout.shards}


def _await_green(connections: Connections, plan: MigrationPlan, progress: Progress) -> None:
    """Wait, without a limit, while nodes optimize; a cancel comes by ``progress``."""
    for node in connections.cluster.nodes:
        while True:
            progress(0)
            info = node.collection(plan.target)
            if info["status"] == "red":
                msg = f"{plan.target} is red on {node.label}: {info.get('optimizer_status')}."
                raise VerificationError(msg, f"See the log of {node.label}; then run the migration again.")
            if info["status"] == "green" and not (info.get("update_queue") or {}).get("length"):
                break
            time.sleep(POLL_SECONDS)


def _await_schema(connections: Connections, plan: MigrationPlan, progress: Progress = no_progress) -> list[str]:
    """What the collection has otherwise than planned, indexing held back left out, once nodes had time to agree."""
    node, different = connections.cluster.nodes[0], list[str]()

    def same() -> bool:
        progress(0)
        different[:] = _differences(plan, node.collection(plan.target))
        return not different

    _eventually(same, SCHEMA_SECONDS)
    return different


def _differences(plan: MigrationPlan, found: dict[str, Any]) -> list[str]:
    told = schema_differences(
        plan.config, plan.payload_schema, found["config"], found["payload_schema"], ("as planned", "there")
    )
    return [difference for difference in told if not difference.startswith(_THRESHOLD)]


def _eventually(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return held


def _note_load(connections: Connections, plan: MigrationPlan) -> None:
    wanted = _optimizers(plan).get("indexing_threshold")
    load = Load(
        migration_id=plan.migration_id,
        collection=plan.target,
        indexing_threshold=DEFAULT_THRESHOLD if wanted is None else int(wanted),
    )
    connections.store.put_document(connections.keys.load(plan.request.cluster, plan.migration_id), load.to_bytes())


def _read_load(connections: Connections, key: str) -> Load | None:
    try:
        data, _ = connections.store.get_document(key)
        return Load.model_validate_json(data) if data else None
    except BackupNotFoundError:
        return None
    except ValidationError:
        log.warning("%s is no note that this Ferry understands; it is left alone.", key)
        return None


def _end_load(connections: Connections, load: Load) -> None:
    """Put the threshold back, where the collection is still that migration's, and forget the note."""
    node, store = _answering(connections.cluster), connections.store
    found = config_there(node, load.collection)
    if found is not None and migration_mark(found["config"]) == load.migration_id:
        _set_threshold(node, load.collection, load.indexing_threshold)
    key = connections.keys.load(connections.cluster.name, load.migration_id)
    if store.can_delete:
        store.delete([key])
    else:  # as the journal does: the bucket's lifecycle takes empty objects away
        store.put_document(key, b"")


def _answering(cluster: Cluster) -> Node:
    """The first node that answers, for any takes a change of the collection; the last one if none does."""
    for node in cluster.nodes[:-1]:
        try:
            node.require_identity()
        except NodeUnreachableError:
            continue
        return node
    return cluster.nodes[-1]


def _set_threshold(node: Node, name: str, kibibytes: int) -> None:
    node.patch_collection(name, {"optimizers_config": {"indexing_threshold": kibibytes}})
