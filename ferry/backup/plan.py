"""Which replica of each shard a backup reads, and why: a pure value, made before anything is touched."""

from collections import defaultdict

from ferry.models import (
    BackupId,
    ClusterLayout,
    CollectionLayout,
    Finding,
    NodeInfo,
    PeerId,
    ProofLevel,
    ShardId,
    ShardKey,
    ShardLayout,
    SnapshotKind,
    Value,
)
from ferry.repository.manifest import ReplicaCount

# A snapshot also holds indexes and deleted points, which Qdrant's size estimate leaves out (facts: telemetry counts
# vectors and payloads only). Doubling it covered every collection of the tests; 64 MiB covers the preallocated pages.
SIZE_FACTOR = 2
SIZE_FLOOR_BYTES = 64 * 1024 * 1024


class PlannedShard(Value):
    """One shard that an archive will hold, with what its replicas held when the plan was made."""

    shard_id: ShardId
    key: ShardKey | None
    replica_counts: tuple[ReplicaCount, ...]


class PlannedArchive(Value):
    """One snapshot to make and store: of one shard, or of everything one node has of a collection."""

    collection: str
    kind: SnapshotKind
    node: NodeInfo
    shards: tuple[PlannedShard, ...]
    estimated_bytes: int
    reason: str

    @property
    def place(self) -> str:
        """What of the collection it holds, whichever replica it is read from: ``shard-2``, or ``node-`` and a peer."""
        return f"shard-{self.shard_id}" if self.kind == "shard" else f"node-{self.node.peer_id}"

    @property
    def shard_id(self) -> ShardId | None:
        """The shard to snapshot, or None for a snapshot of the whole collection on that node."""
        return self.shards[0].shard_id if self.kind == "shard" else None

    @property
    def label(self) -> str:
        """What an operator calls it: ``docs/shard 2 from 10.0.0.1:6333``."""
        what = f"shard {self.shard_id}" if self.kind == "shard" else "all shards"
        return f"{self.collection}/{what} from {self.node.label}"


class BackupPlan(Value):
    """Everything that a backup will do."""

    backup_id: BackupId
    cluster: str
    repository: str
    kind: SnapshotKind
    proof: ProofLevel
    policy: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    fresh: bool = False
    layout: ClusterLayout
    archives: tuple[PlannedArchive, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def estimated_bytes(self) -> int:
        """Estimated bytes of all archives together."""
        return sum(archive.estimated_bytes for archive in self.archives)

    def lanes(self) -> dict[PeerId, list[PlannedArchive]]:
        """The archives of each node in order; a node makes one snapshot at a time."""
        lanes: dict[PeerId, list[PlannedArchive]] = defaultdict(list)
        for archive in self.archives:
            lanes[archive.node.peer_id].append(archive)
        return dict(lanes)

    def of_collection(self, name: str) -> list[PlannedArchive]:
        """The archives of one collection."""
        return [archive for archive in self.archives if archive.collection == name]


class BackupRequest(Value):
    """What the operator asked for, by the names of profiles."""

    backup_id: BackupId
    cluster: str
    repository: str
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    kind: SnapshotKind = "shard"
    proof: ProofLevel = "content"
    policy: str | None = None
    fresh: bool = False


class Measured(Value):
    """Facts about the source that only asking gives: exact points and estimated bytes of each replica."""

    points: dict[str, dict[ShardId, dict[PeerId, int]]]
    bytes: dict[str, dict[ShardId, dict[PeerId, int]]]


def plan_backup(request: BackupRequest, layout: ClusterLayout, measured: Measured) -> BackupPlan:
    """Choose the archives: every shard from one Active replica, the fuller one where replicas differ, else balanced.

    ``measured.points`` and ``measured.bytes`` give every replica of every collection in the layout.
    """
    findings: list[Finding] = []
    for collection in layout.collections:
        findings += _divergence(collection, measured) if collection.shards else [_no_shards(collection)]
    choose = _shard_archives if request.kind == "shard" else _node_archives
    return BackupPlan(
        backup_id=request.backup_id,
        cluster=request.cluster,
        repository=request.repository,
        kind=request.kind,
        proof=request.proof,
        policy=request.policy,
        include=request.include,
        exclude=request.exclude,
        fresh=request.fresh,
        layout=layout,
        archives=tuple(choose(layout, measured)),
        findings=tuple(findings),
    )


def _shard_archives(layout: ClusterLayout, measured: Measured) -> list[PlannedArchive]:
    load: dict[PeerId, int] = {node.peer_id: 0 for node in layout.nodes}
    archives = []
    shards = [(collection, shard) for collection in layout.collections for shard in collection.shards]
    # The largest first: what is left over then evens the lanes out.
    shards.sort(key=lambda pair: -max(_sizes(pair[0], pair[1], measured).values()))
    for collection, shard in shards:
        # A Listener takes writes and serves nobody; it is no source of truth.
        active = {replica.peer_id for replica in shard.replicas if replica.state == "Active"}
        points = {peer: n for peer, n in measured.points[collection.name][shard.shard_id].items() if peer in active}
        fullest = max(points.values())
        candidates = [peer for peer, count in points.items() if count == fullest]
        peer = min(candidates, key=lambda candidate: (load[candidate], candidate))
        size = _sizes(collection, shard, measured)[peer]
        load[peer] += size
        if len(candidates) < len(points):
            reason = f"the fuller replica: {fullest} points"
        elif len(candidates) == 1:
            reason = "the only replica"
        else:
            reason = f"all {len(candidates)} replicas hold {fullest} points; this node has the least to do"
        planned = (_planned_shard(shard, measured.points[collection.name]),)
        archives.append(_archive(collection, layout.node(peer), planned, size, reason))
    return archives


def _node_archives(layout: ClusterLayout, measured: Measured) -> list[PlannedArchive]:
    archives = []
    for collection in layout.collections:
        for node in layout.nodes:
            held = [s for s in collection.shards if any(r.peer_id == node.peer_id for r in s.replicas)]
            if not held:
                continue
            planned = tuple(_planned_shard(shard, measured.points[collection.name]) for shard in held)
            size = sum(_sizes(collection, shard, measured)[node.peer_id] for shard in held)
            reason = f"everything this node holds of the collection: {len(held)} shards"
            archives.append(_archive(collection, node, planned, size, reason).model_copy(update={"kind": "node"}))
    return archives


def _archive(
    collection: CollectionLayout, node: NodeInfo, shards: tuple[PlannedShard, ...], size: int, reason: str
) -> PlannedArchive:
    return PlannedArchive(
        collection=collection.name, kind="shard", node=node, shards=shards, estimated_bytes=size, reason=reason
    )


def _planned_shard(shard: ShardLayout, points: dict[ShardId, dict[PeerId, int]]) -> PlannedShard:
    counts = tuple(
        ReplicaCount(peer_id=replica.peer_id, points=points[shard.shard_id][replica.peer_id])
        for replica in shard.replicas
    )
    return PlannedShard(shard_id=shard.shard_id, key=shard.key, replica_counts=counts)


def _sizes(collection: CollectionLayout, shard: ShardLayout, measured: Measured) -> dict[PeerId, int]:
    told = measured.bytes.get(collection.name, {}).get(shard.shard_id, {})
    return {
        replica.peer_id: told.get(replica.peer_id, 0) * SIZE_FACTOR + SIZE_FLOOR_BYTES for replica in shard.replicas
    }


def _no_shards(collection: CollectionLayout) -> Finding:
    return Finding(
        severity="warning",
        subject=f"{collection.name}/shards",
        message=f"{collection.name} has no shards, like one sharded by keys before its first; its schema is all.",
    )


def _divergence(collection: CollectionLayout, measured: Measured) -> list[Finding]:
    findings = []
    for shard_id, points in measured.points[collection.name].items():
        if len(set(points.values())) > 1:
            counts = ", ".join(f"peer {peer}: {count}" for peer, count in sorted(points.items()))
            findings.append(
                Finding(
                    severity="warning",
                    subject=f"{collection.name}/shard {shard_id}",
                    message=f"Replicas differ in exact count ({counts}); the fuller one is kept.",
                    remedy="Writes during the count explain small differences. If they stay, see Qdrant issue 9579: "
                    "drop the poorer replica and replicate the shard anew.",
                )
            )
    return findings
