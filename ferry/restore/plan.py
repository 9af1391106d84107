"""What a restore will do and why: a pure value, made before anything is touched."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from pydantic import Field

from ferry.errors import PreflightError, RestoreError, VersionError
from ferry.models import (
    KEEP_DAYS,
    BackupId,
    ClusterLayout,
    CollectionLayout,
    Finding,
    PeerId,
    RestorePath,
    ShardId,
    ShardKey,
    Value,
    VerifyLevel,
)
from ferry.qdrant import versions
from ferry.qdrant.resources import Need
from ferry.qdrant.schema import creation_body, patch_body, payload_index_bodies
from ferry.qdrant.shard_keys import ShardKeyStep
from ferry.repository.manifest import CollectionManifest
from ferry.restore import explain
from ferry.restore.shape import (
    PlannedShard,
    PlannedStream,
    Ring,
    Shape,
    Topology,
    chosen_shards,
    rings_of,
    shaped_config,
    storage_changes,
    topology,
)

# Points that are written fill the log and segments that optimizers rewrite: about the data twice, at most.
POINTS_DISK_FACTOR = 2


class RestoreRequest(Value):
    """What the operator asked for, by the names of profiles."""

    restore_id: BackupId
    cluster: str
    repository: str
    source_cluster: str
    backup: str = "latest"
    collection: str
    into: str | None = None
    replication_factor: int | None = None
    shape: Shape = Field(default_factory=Shape)
    path: RestorePath | None = None
    alias: str | None = None
    keep_days: int = Field(default=KEEP_DAYS, ge=0)
    verify: VerifyLevel = "sample"
    keep_on_failure: bool = False


class RestorePlan(Value):
    """Everything that a restore will do. ``config`` is what the collection will have; ``losses`` what it will not."""

    request: RestoreRequest
    target: str
    manifest: CollectionManifest
    layout: ClusterLayout
    path: RestorePath
    config: dict[str, Any]
    replication_factor: int
    shards: tuple[PlannedShard, ...]
    streams: tuple[PlannedStream, ...] = ()
    key_steps: tuple[ShardKeyStep, ...] = ()
    creation_body: dict[str, Any]
    patch_body: dict[str, Any]
    payload_indexes: tuple[tuple[str, Any], ...]
    needs: dict[PeerId, Need]
    alias_from: str | None
    expected_seconds: float | None = None
    reasons: tuple[str, ...]
    losses: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    in_place: CollectionLayout | None = Field(default=None, description="The live collection, where it is overwritten.")

    @property
    def sources(self) -> set[ShardId]:
        """The shards of the backup that are read."""
        placed = {shard.source for shard in self.shards if shard.source is not None}
        return placed | {stream.source for stream in self.streams}

    @property
    def bytes_to_move(self) -> int:
        """Bytes of archives that are fetched: by every replica of a shard, or once by this worker to be sent on."""
        sizes = archive_bytes(self.manifest)
        placed = sum(sizes[shard.source] * shard.copies for shard in self.shards if shard.source is not None)
        return placed + sum(sizes[stream.source] for stream in self.streams)


def target_name(request: RestoreRequest, manifest: CollectionManifest) -> str:
    """The name of the new collection: the one asked for, else the old one with the backup's id behind it."""
    return request.into or f"{request.collection}-{manifest.backup_id}"


def plan_restore(
    request: RestoreRequest,
    manifest: CollectionManifest,
    layout: ClusterLayout,
    field_keys: Sequence[ShardKey] = (),
) -> RestorePlan:
    """Plan the restore of one collection onto that cluster under a new name.

    ``field_keys`` are the values that the points have in ``shape.key_field``. Raises PreflightError or VersionError
    with the reason why it would not work; nothing was asked to change.
    """
    target = target_name(request, manifest)
    _refuse(request, manifest, layout, target)
    chosen = chosen_shards(manifest.layout, request.shape)
    rings = rings_of(chosen, manifest.config, request.shape, field_keys)
    rings, lowered = _limited(rings, request, layout)
    config = shaped_config(manifest.config, request.shape, rings)
    path, shards, why = _choose(request, manifest, layout, rings, config)
    factor = max((ring.copies for ring in rings), default=1)
    findings = proof_findings(request, manifest) + version_findings(manifest, layout)
    plan = RestorePlan(
        request=request,
        target=target,
        manifest=manifest,
        layout=layout,
        path=path,
        config=config,
        replication_factor=factor,
        shards=shards.shards,
        streams=shards.streams,
        key_steps=shards.key_steps,
        creation_body=creation_body(config, replication_factor=factor, restore_id=request.restore_id),
        patch_body=patch_body(config),
        payload_indexes=tuple(payload_index_bodies(manifest.payload_schema)),
        needs={},
        alias_from=layout.aliases.get(request.alias) if request.alias else None,
        reasons=why,
        findings=tuple(finding for finding in findings if finding.severity != "error"),
    )
    changed = {
        "needs": needs_per_node(plan),
        "reasons": explain.reasons(plan, why, lowered),
        "losses": explain.losses(plan),
    }
    return plan.model_copy(update=changed)


def _limited(rings: list[Ring], request: RestoreRequest, layout: ClusterLayout) -> tuple[list[Ring], int | None]:
    """Rings with no more copies than there are nodes, and how many copies were wanted where that is fewer."""
    nodes = len(layout.nodes)
    wanted = [request.replication_factor or ring.copies for ring in rings]
    limited = [
        ring.model_copy(update={"copies": min(copies, nodes)}) for ring, copies in zip(rings, wanted, strict=True)
    ]
    return limited, max(wanted) if any(copies > nodes for copies in wanted) else None


def _choose(
    request: RestoreRequest,
    manifest: CollectionManifest,
    layout: ClusterLayout,
    rings: Sequence[Ring],
    config: dict[str, Any],
) -> tuple[RestorePath, Topology, tuple[str, ...]]:
    """The cheapest path that is legal, and why. Raises when the one that was asked for is not."""
    sources = [shard.shard_id for shard in chosen_shards(manifest.layout, request.shape)]
    placed, streamed = topology(rings, request.shape.key_field is not None, sources)
    errors = [finding for finding in version_findings(manifest, layout) if finding.severity == "error"]
    obstacles = (
        *placed.obstacles,
        *storage_changes(manifest.config, config),
        *(error.message for error in errors),
    )
    if request.path == "points" or (obstacles and request.path is None):
        return "points", streamed, obstacles or ("asked for",)
    if not obstacles:
        return "shards", placed, ()
    msg = f"Archives of {manifest.collection} do not fit: {'; '.join(obstacles)}. Nothing was changed."
    kind = VersionError if errors and len(errors) == len(obstacles) else PreflightError
    raise kind(msg, "Leave `path` out, or set it to points: then the points are read out of the archives and sent.")


def archive_bytes(manifest: CollectionManifest) -> dict[ShardId, int]:
    """Bytes of each shard as they will be fetched; a node archive's bytes are shared out by points."""
    sizes: dict[ShardId, int] = {}
    for shard, archive in manifest.best_shards():
        total = sum(other.proof.points or 0 for other in archive.shards) or len(archive.shards)
        share = (shard.proof.points or 0) / total if len(archive.shards) > 1 else 1.0
        sizes[shard.shard_id] = ceil(archive.bytes * share)
    return sizes


def needs_per_node(plan: RestorePlan) -> dict[PeerId, Need]:
    """Disk and memory that each node needs, at most, in bytes.

    Qdrant places replicas evenly, so no node gets more than its rounded-up share.
    """
    need = need_of([plan], most_held_bytes)
    return {node.peer_id: need for node in plan.layout.nodes}


def need_of(plans: Sequence[RestorePlan], held_bytes: Callable[[RestorePlan], int]) -> Need:
    """What one node needs that gets ``held_bytes`` of each of these restores, one after the other, in bytes.

    One recover at a time needs the archive as downloaded and once more unpacked before it is moved into place
    (qdrant.md §3.4: the collection's bytes plus twice the largest shard). Vectors kept in memory need about their
    archive's bytes.
    """
    held = [held_bytes(plan) for plan in plans]
    beside = [
        2 * max(copy_bytes(plan), default=0) if plan.path == "shards" else (POINTS_DISK_FACTOR - 1) * own
        for plan, own in zip(plans, held, strict=True)
    ]
    in_memory = [own for plan, own in zip(plans, held, strict=True) if not on_disk(plan.config)]
    return Need(disk_bytes=sum(held) + max(beside, default=0), ram_bytes=sum(in_memory))


def most_held_bytes(plan: RestorePlan) -> int:
    """What a node holds of a restore, at most: the largest copies, in a number that is its rounded-up share."""
    sizes = sorted(copy_bytes(plan), reverse=True)
    return sum(sizes[: ceil(len(sizes) / len(plan.layout.nodes))])


def copy_bytes(plan: RestorePlan) -> list[int]:
    """Bytes of every copy of every shard, as its node will hold it; points that are sent spread evenly."""
    by_source = archive_bytes(plan.manifest)
    share = ceil(sum(by_source[stream.source] for stream in plan.streams) / max(1, len(plan.shards)))
    return [
        share if shard.source is None else by_source[shard.source] for shard in plan.shards for _ in range(shard.copies)
    ]


def planned_points(plan: RestorePlan) -> int | None:
    """Exact number of points that the new collection will have; None where the backup did not count them."""
    counts = [proof.points for shard_id, proof in plan.manifest.proofs() if shard_id in plan.sources]
    return None if None in counts else sum(count or 0 for count in counts)


def on_disk(config: dict[str, Any]) -> bool:
    """Whether all dense vectors are kept on disk."""
    vectors = config["params"].get("vectors") or {}
    named = vectors.values() if "size" not in vectors else [vectors]
    return all(bool(vector.get("on_disk")) for vector in named)


def _refuse(request: RestoreRequest, manifest: CollectionManifest, layout: ClusterLayout, target: str) -> None:
    taken = {*layout.names, *(collection.name for collection in layout.collections)}
    if target in taken or target in layout.aliases:
        what = "a collection" if target in taken else f"an alias of {layout.aliases[target]}"
        msg = f"{target} is already {what} on cluster {layout.cluster}; nothing was changed."
        remedy = "Restore under another name: --into NAME (parameter `into`)."
        if request.alias:
            remedy += f" If a restore to it died before its alias moved: finish --cluster NAME --alias {request.alias}."
        raise PreflightError(msg, remedy)
    if request.alias and (request.alias in taken or request.alias == target):
        msg = f"{request.alias} is a collection on cluster {layout.cluster}, so it cannot be an alias."
        raise PreflightError(msg, "Name another alias, or leave `alias` out and move your clients yourself.")
    if request.replication_factor and request.replication_factor > len(layout.nodes):
        msg = f"replication factor {request.replication_factor} needs as many nodes; there are {len(layout.nodes)}."
        raise PreflightError(
            msg, "Ask for fewer copies, or leave it out: then there are as many as the nodes can hold."
        )
    require_whole(manifest)


def require_whole(manifest: CollectionManifest) -> None:
    """Raise RestoreError when a shard of the layout has no archive in the manifest."""
    shards = {shard.shard_id for shard in manifest.layout}
    proven = {shard.shard_id for shard, _ in manifest.best_shards()}
    if shards != proven:
        msg = f"The manifest of {manifest.collection} lacks archives of shards {sorted(shards - proven)}."
        raise RestoreError(msg)


def proof_findings(request: RestoreRequest, manifest: CollectionManifest) -> list[Finding]:
    """What the proof lacks for the comparison that was asked for: the digest refuses, for it would fail at the end."""
    proofs = manifest.proofs()
    without_digest = sorted(shard_id for shard_id, proof in proofs if proof.content is None)
    if request.verify == "content" and without_digest:
        msg = f"Shards {without_digest} of {manifest.collection} were proven without a content digest."
        raise PreflightError(msg, "Compare what there is: verify `sample` or `count`. Nothing was changed.")
    uncounted = sorted(shard_id for shard_id, proof in proofs if proof.points is None)
    if not uncounted:
        return []
    return [
        Finding(
            severity="warning",
            subject=manifest.collection,
            message=f"Shards {uncounted} were proven by their bytes only: there is nothing to compare the points with.",
            remedy="Count and look yourself, and make the next backup with proof `content`.",
        )
    ]


def version_findings(manifest: CollectionManifest, layout: ClusterLayout) -> list[Finding]:
    """Whether archives of the source's nodes may be recovered on these; an ``error`` forbids it."""
    findings: dict[tuple[str, str], Finding] = {}
    for source in manifest.nodes:
        for node in layout.nodes:
            for finding in versions.compare(source.version, node.version):
                findings[(source.version, node.version + finding.message)] = finding
    return list(findings.values())
