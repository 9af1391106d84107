"""Records of finished restores in the bucket: what was restored where and how fast, for people and for later plans.

A record is a courtesy: a bucket that does not take it fails no restore. The last 200 of each target cluster are kept;
whoever writes one deletes what is older, because nobody prunes by target cluster. With keys that may not delete they
stay, and prune and gc never look at them.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from ferry import __version__
from ferry.connections import Connections
from ferry.errors import BackupNotFoundError, FerryError
from ferry.models import BackupId, RestorePath, Value, VerifyLevel, now
from ferry.repository.layout import Keys, is_backup_id
from ferry.repository.records import Record
from ferry.repository.store import ObjectStore
from ferry.restore.plan import RestorePlan
from ferry.restore.steps import RecoveredReplica
from ferry.restore.stream import StreamedShard
from ferry.verify.replica import ReplicaVerdict

log = logging.getLogger(__name__)

KEPT = 200
READ = 20  # so many restores tell how fast a cluster is; older ones may be of other machines
_AT_A_TIME = 8

# url: the node fetched the archive; upload: we sent it; points: we sent what is in it.
Way = Literal["url", "upload", "points"]
WAYS: tuple[Way, ...] = ("url", "upload", "points")
Filled: TypeAlias = RecoveredReplica | StreamedShard


class Moved(Value):
    """All that went one way. ``seconds`` are those of each node added up; of points those of the whole, in lanes."""

    way: Way
    bytes: int
    points: int
    seconds: float


class RestoreRecord(Record):
    """One restore that has ended. ``compare_seconds`` are those of each node added up; failed ones have no numbers."""

    format_version: Literal[1] = 1
    restore_id: BackupId
    cluster: str
    source_cluster: str
    backup_id: BackupId
    collection: str
    target: str
    path: RestorePath
    nodes: int
    replication_factor: int
    bytes: int
    points: int | None
    moved: tuple[Moved, ...] = ()
    recover_seconds: float = 0.0
    stream_seconds: float = 0.0
    verify: VerifyLevel
    verify_seconds: float = 0.0
    compared_points: int = 0
    compare_seconds: float = 0.0
    verdict: Literal["equal", "failed"]
    in_place: bool = False
    before: BackupId | None = None  # in place: the backup of the state before; None where it was waived
    why: str | None = None
    findings: int = 0
    started_at: datetime
    finished_at: datetime
    ferry_version: str = __version__

    @property
    def other_seconds(self) -> float:
        """What was neither moving nor comparing: creating, settling, moving the alias."""
        whole = (self.finished_at - self.started_at).total_seconds()
        return max(0.0, whole - self.recover_seconds - self.stream_seconds - self.verify_seconds)


def note_finished(
    connections: Connections,
    plan: RestorePlan,
    filled: Sequence[Filled],
    verdicts: Sequence[ReplicaVerdict],
    before: BackupId | None = None,
) -> None:
    """Write the record of a restore that is equal to its proof. Again is fine; a store's refusal is only logged.

    ``before`` is the backup of what a live collection held that was overwritten.
    """
    by_way: dict[Way, list[Filled]] = {way: [part for part in filled if part.path == way] for way in WAYS}
    lanes = max(1, min(connections.worker.parallel_proofs, len(by_way["points"])))
    moved = tuple(_moved(way, parts, lanes if way == "points" else 1) for way, parts in by_way.items() if parts)
    recovered = [part for part in filled if isinstance(part, RecoveredReplica)]
    numbers = {
        "verdict": "equal",
        "before": before,
        "moved": moved,
        "recover_seconds": _longest_lane([(part.peer_id, part.seconds) for part in recovered]),
        "stream_seconds": sum(each.seconds for each in moved if each.way == "points"),
        "verify_seconds": _longest_lane([(verdict.peer_id, verdict.seconds) for verdict in verdicts]),
        "compared_points": sum(verdict.compared or verdict.points for verdict in verdicts),
        "compare_seconds": round(sum(verdict.seconds for verdict in verdicts), 3),
        "findings": len(plan.findings) + sum(len(part.findings) for part in filled),
    }
    _write(connections, plan, numbers)


def note_failed(connections: Connections, plan: RestorePlan, error: BaseException) -> None:
    """Write the record of a restore that failed or was stopped after its plan. A store's refusal is only logged."""
    said = f": {error.message}" if isinstance(error, FerryError) else ""  # others may hold anything, also an address
    _write(connections, plan, {"verdict": "failed", "why": type(error).__name__ + said, "findings": len(plan.findings)})


def _moved(way: Way, parts: Sequence[Filled], lanes: int) -> Moved:
    return Moved(
        way=way,
        bytes=sum(part.bytes for part in parts),
        points=sum(part.points for part in parts if isinstance(part, StreamedShard)),
        seconds=round(sum(part.seconds for part in parts) / lanes, 3),
    )


def _longest_lane(spent: Sequence[tuple[int, float]]) -> float:
    """From the first to the last: nodes work beside each other, one step at a time on each."""
    lanes: dict[int, float] = defaultdict(float)
    for node, seconds in spent:
        lanes[node] += seconds
    return round(max(lanes.values(), default=0.0), 3)


def _write(connections: Connections, plan: RestorePlan, numbers: dict[str, Any]) -> None:
    request, manifest, keys = plan.request, plan.manifest, connections.keys
    counts = [proof.points for shard_id, proof in manifest.proofs() if shard_id in plan.sources]
    record = RestoreRecord.model_validate(
        {
            "restore_id": request.restore_id,
            "cluster": request.cluster,
            "source_cluster": request.source_cluster,
            "backup_id": manifest.backup_id,
            "collection": manifest.collection,
            "target": plan.target,
            "path": plan.path,
            "in_place": plan.in_place is not None,
            "nodes": len(plan.layout.nodes),
            "replication_factor": plan.replication_factor,
            "bytes": plan.bytes_to_move,
            "points": None if None in counts else sum(count or 0 for count in counts),
            "verify": request.verify,
            "started_at": plan.layout.taken_at,
            "finished_at": now(),
        }
        | numbers
    )
    try:
        connections.store.put_document(keys.restore(request.cluster, request.restore_id), record.to_bytes())
        _trim(connections.store, keys, request.cluster)
    except FerryError as error:
        log.warning("restore %s has no record in the bucket: %s", request.restore_id, error.message)


def _trim(store: ObjectStore, keys: Keys, cluster: str) -> None:
    store.delete(_keys_of_records(store, keys, cluster)[:-KEPT])


def _keys_of_records(store: ObjectStore, keys: Keys, cluster: str) -> list[str]:
    """The oldest first; what is not named by a restore is nobody's business."""
    folder = keys.restores_prefix(cluster)
    listed = [info.key for info in store.list(folder)]
    return sorted(key for key in listed if is_backup_id(key.removeprefix(folder).removesuffix(".json")))


def last_records(store: ObjectStore, keys: Keys, cluster: str, most: int = READ) -> list[RestoreRecord]:
    """The last records of restores into a cluster, oldest first. What cannot be read, or is of another version, is
    passed over.
    """
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="ferry-records") as pool:
        found = pool.map(lambda key: _read(store, key), _keys_of_records(store, keys, cluster)[-most:])
        return [record for record in found if record is not None]


def _read(store: ObjectStore, key: str) -> RestoreRecord | None:
    try:
        return RestoreRecord.model_validate_json(store.get_document(key)[0])
    except BackupNotFoundError:  # trimmed meanwhile
        return None
    except ValidationError:
        log.info("%s cannot be read by this version; passed over", key)
        return None
