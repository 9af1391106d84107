"""What a backup at work holds: one archive to make, with all that its steps need, and the run that they are part of."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Self

import orjson

from ferry.archive.encryption import StoredForm
from ferry.backup.plan import BackupPlan, PlannedArchive
from ferry.models import BackupId, Finding, ProofLevel, ShardLayout, Value
from ferry.profiles import WorkerSettings
from ferry.repository.lease import Lease
from ferry.repository.manifest import ArchiveRecord, CollectionManifest
from ferry.settings import load_settings

# Archives below this go many to a task: 200 collections of 10 points must not become 600 tasks three times over.
SMALL_BYTES = 128 * 1024 * 1024
ARCHIVES_A_BUNDLE = 25
# A run of no more archives than this shows each step of each as a task of its own.
ARCHIVES_SHOWN = 40

Place = tuple[str, str]  # a collection, and what of it an archive holds (PlannedArchive.place)


class Half(Value):
    """An archive that a dead run has begun: its snapshot is still on the node, and perhaps some parts in the bucket."""

    snapshot: str
    noted: str  # the name of the dead run's journal entries
    started_at: datetime
    key: str | None = None  # of the unfinished upload
    upload_id: str | None = None


class Work(Value):
    """One archive to make, with all that its steps need to know apart from the connections."""

    backup_id: BackupId
    cluster: str
    repository: str
    proof: ProofLevel
    policy: str | None
    fencing: int
    fingerprint: str
    archive: PlannedArchive
    half: Half | None = None

    @property
    def label(self) -> str:
        """What an operator calls it."""
        return self.archive.label

    @property
    def noted(self) -> str:
        """The name of its journal entries; with the fencing number, so that no two holders write one."""
        archive = self.archive
        return f"{archive.collection}-{archive.place}-{archive.node.peer_id}-{self.fencing}"


class MadeSnapshot(Value):
    """A snapshot that lies on its node, as Qdrant described it."""

    name: str
    bytes: int
    sha256: str
    started_at: datetime
    finished_at: datetime
    findings: tuple[Finding, ...] = ()


class StoredArchive(Value):
    """An archive in the bucket, whose bytes on the wire were what Qdrant said they are."""

    key: str
    etag: str
    snapshot: MadeSnapshot
    form: StoredForm
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()

    @property
    def mb_per_second(self) -> float:
        """Megabytes (10^6) a second from node to bucket."""
        return self.snapshot.bytes / 1e6 / max(self.seconds, 1e-9)


class ProvenArchive(Value):
    """An archive that was read back, as its journal entry holds it: what lets a later run trust it without reading."""

    noted: str  # the name of its journal entries
    record: ArchiveRecord
    etag: str
    fingerprint: str
    place: str
    collection: str
    mb_per_second: float | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class BackupRun:
    """A backup at work: its lease, its plan, and what is there already where it continues a run that died.

    ``claims`` has the ETag of our fence at each commit point, ``committed`` the collections that need nothing more.
    """

    lease: Lease
    plan: BackupPlan
    claims: dict[str, str] = field(default_factory=dict)
    committed: frozenset[str] = frozenset()
    proven: dict[Place, ProvenArchive] = field(default_factory=dict)
    halves: dict[Place, Half] = field(default_factory=dict)

    def without(self, collections: Iterable[str]) -> Self:
        """The run without collections that were dropped while it was at work."""
        gone = set(collections)
        if not gone:
            return self
        layout = self.plan.layout
        kept = tuple(collection for collection in layout.collections if collection.name not in gone)
        archives = tuple(archive for archive in self.plan.archives if archive.collection not in gone)
        layout = layout.model_copy(update={"collections": kept})
        return replace(self, plan=self.plan.model_copy(update={"layout": layout, "archives": archives}))

    @property
    def to_commit(self) -> list[str]:
        """Collections that have no manifest yet, among them those without shards, whose schema is all there is."""
        return [layout.name for layout in self.plan.layout.collections if layout.name not in self.committed]

    def adopted(self, collection: str) -> list[ProvenArchive]:
        """The archives of a collection that the dead run has proven."""
        return [archive for (name, _), archive in self.proven.items() if name == collection]

    def lanes(self, at_a_time: int) -> list[list[Work]]:
        """One lane a node, of what is still to do; where nodes are more than ``at_a_time``, several share a lane."""
        lanes: list[list[Work]] = [[] for _ in range(min(at_a_time, len(self.plan.lanes())))]
        prints = {layout.name: fingerprint_of_plan(self.plan, layout.name) for layout in self.plan.layout.collections}
        for number, archives in enumerate(self.plan.lanes().values()):
            for archive in archives:
                place = (archive.collection, archive.place)
                if archive.collection not in self.committed and place not in self.proven:
                    lanes[number % at_a_time].append(self._work(archive, prints[archive.collection]))
        return lanes

    def _work(self, archive: PlannedArchive, fingerprint: str) -> Work:
        plan = self.plan
        return Work(
            backup_id=plan.backup_id,
            cluster=plan.cluster,
            repository=plan.repository,
            proof=plan.proof,
            policy=plan.policy,
            fencing=self.lease.fencing,
            fingerprint=fingerprint,
            archive=archive,
            half=self.halves.get((archive.collection, archive.place)),
        )


def lanes_at_a_time(worker: WorkerSettings, plan: BackupPlan) -> int:
    """Nodes that make snapshots at a time: what the worker allows, or the policy where that is less."""
    asked = load_settings().policy(plan.policy).nodes_at_a_time
    return min(worker.parallel_nodes, asked or worker.parallel_nodes)


def bundles(lane: Iterable[Work], archives_of_run: int) -> list[list[Work]]:
    """A lane cut into what one task does: small archives together where a run has many, each large one alone."""
    cut: list[list[Work]] = []
    for work in lane:
        small = archives_of_run > ARCHIVES_SHOWN and work.archive.estimated_bytes < SMALL_BYTES
        if small and cut and len(cut[-1]) < ARCHIVES_A_BUNDLE and cut[-1][-1].archive.estimated_bytes < SMALL_BYTES:
            cut[-1].append(work)
        else:
            cut.append([work])
    return cut


def by_collection(proven: Iterable[ProvenArchive]) -> dict[str, list[ProvenArchive]]:
    """Archives by the collection that they are of."""
    found: dict[str, list[ProvenArchive]] = defaultdict(list)
    for archive in proven:
        found[archive.collection].append(archive)
    return dict(found)


def fingerprint_of_plan(plan: BackupPlan, collection: str) -> str:
    """What must be the same for archives of two moments to stand in one manifest: schema, shards, keys, versions."""
    layout = plan.layout.collection(collection)
    if layout is None:
        raise KeyError(collection)
    versions = {node.version for node in plan.layout.nodes}
    return _fingerprint(layout.uuid, layout.config, layout.payload_schema, layout.shards, versions)


def fingerprint_of_manifest(manifest: CollectionManifest) -> str:
    """The same of a collection that is committed."""
    versions = {node.version for node in manifest.nodes}
    return _fingerprint(manifest.uuid, manifest.config, manifest.payload_schema, manifest.layout, versions)


def _fingerprint(
    uuid: str | None,
    config: dict[str, Any],
    payload_schema: dict[str, Any],
    shards: tuple[ShardLayout, ...],
    versions: set[str],
) -> str:
    # The number of points of each payload index changes with every write and says nothing about the schema.
    indexes = {
        name: {key: value for key, value in index.items() if key != "points"} if isinstance(index, dict) else index
        for name, index in payload_schema.items()
    }
    keys = sorted((shard.shard_id, str(shard.key)) for shard in shards)
    content = {"uuid": uuid, "config": config, "indexes": indexes, "shards": keys, "versions": sorted(versions)}
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
