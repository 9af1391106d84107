"""What a restore will do and why: a pure value, made before anything is touched."""

from math import ceil
from typing import Any

from ferry.errors import PreflightError, RestoreError, VersionError
from ferry.models import (
    BackupId,
    ClusterLayout,
    Finding,
    NodeInfo,
    PeerId,
    ShardId,
    Value,
    VerifyLevel,
)
from ferry.qdrant import versions
from ferry.qdrant.resources import Need
from ferry.qdrant.schema import creation_body, patch_body, payload_index_bodies
from ferry.repository.manifest import CollectionManifest


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
    alias: str | None = None
    verify: VerifyLevel = "sample"
    keep_on_failure: bool = False


class RestorePlan(Value):
    """Everything that a restore will do."""

    request: RestoreRequest
    target: str
    manifest: CollectionManifest
    layout: ClusterLayout
    replication_factor: int
    creation_body: dict[str, Any]
    patch_body: dict[str, Any]
    payload_indexes: tuple[tuple[str, Any], ...]
    needs: dict[PeerId, Need]
    alias_from: str | None
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def bytes_to_move(self) -> int:
        """Bytes that the nodes will fetch: every replica of every shard."""
        return sum(archive_bytes(self.manifest).values()) * self.replication_factor


def target_name(request: RestoreRequest, manifest: CollectionManifest) -> str:
    """The name of the new collection: the one asked for, else the old one with the backup's id behind it."""
    return request.into or f"{request.collection}-{manifest.backup_id}"


def plan_restore(request: RestoreRequest, manifest: CollectionManifest, layout: ClusterLayout) -> RestorePlan:
    """Plan the restore of one collection onto that cluster under a new name.

    Raises PreflightError or VersionError with every reason why it would not work; nothing was asked to change.
    """
    target = target_name(request, manifest)
    findings = _refuse(request, manifest, layout, target)
    wanted = request.replication_factor or int(manifest.config["params"].get("replication_factor", 1))
    factor = min(wanted, len(layout.nodes))
    return RestorePlan(
        request=request,
        target=target,
        manifest=manifest,
        layout=layout,
        replication_factor=factor,
        creation_body=creation_body(manifest.config, replication_factor=factor, restore_id=request.restore_id),
        patch_body=patch_body(manifest.config),
        payload_indexes=tuple(payload_index_bodies(manifest.payload_schema)),
        needs=needs_per_node(manifest, layout, factor),
        alias_from=layout.aliases.get(request.alias) if request.alias else None,
        reasons=tuple(_reasons(request, manifest, layout, (wanted, factor))),
        findings=tuple(findings),
    )


def archive_bytes(manifest: CollectionManifest) -> dict[ShardId, int]:
    """Bytes of each shard as they will be fetched; a node archive's bytes are shared out by points."""
    sizes: dict[ShardId, int] = {}
    for shard, archive in manifest.best_shards():
        total = sum(other.proof.points or 0 for other in archive.shards) or len(archive.shards)
        share = (shard.proof.points or 0) / total if len(archive.shards) > 1 else 1.0
        sizes[shard.shard_id] = ceil(archive.bytes * share)
    return sizes


def needs_per_node(manifest: CollectionManifest, layout: ClusterLayout, factor: int) -> dict[PeerId, Need]:
    """Disk and memory that each node needs, at most, in bytes.

    Qdrant places replicas evenly, so no node gets more than its rounded-up share. One recover at a time needs the
    archive as downloaded and once more unpacked before it is moved into place (qdrant.md §3.4: the collection's bytes
    plus twice the largest shard). Vectors kept in memory need about their archive's bytes.
    """
    sizes = sorted(archive_bytes(manifest).values(), reverse=True)
    share = ceil(len(sizes) * factor / len(layout.nodes))
    held = sum(sorted(sizes * factor, reverse=True)[:share])
    disk = held + 2 * (sizes[0] if sizes else 0)
    ram = 0 if _on_disk(manifest.config) else held
    return {node.peer_id: Need(disk_bytes=disk, ram_bytes=ram) for node in layout.nodes}


def _on_disk(config: dict[str, Any]) -> bool:
    vectors = config["params"].get("vectors") or {}
    named = vectors.values() if "size" not in vectors else [vectors]
    return all(bool(vector.get("on_disk")) for vector in named)


def _refuse(request: RestoreRequest, manifest: CollectionManifest, layout: ClusterLayout, target: str) -> list[Finding]:
    taken = {*layout.names, *(collection.name for collection in layout.collections)}
    if target in taken or target in layout.aliases:
        what = "a collection" if target in taken else f"an alias of {layout.aliases[target]}"
        msg = f"{target} is already {what} on cluster {layout.cluster}; nothing was changed."
        raise PreflightError(msg, "Restore under another name: --into NAME (parameter `into`).")
    if request.alias and (request.alias in taken or request.alias == target):
        msg = f"{request.alias} is a collection on cluster {layout.cluster}, so it cannot be an alias."
        raise PreflightError(msg, "Name another alias, or leave `alias` out and move your clients yourself.")
    if manifest.config["params"].get("sharding_method") == "custom":
        msg = f"{manifest.collection} is sharded by keys; restoring such a collection is not possible yet."
        raise PreflightError(
            msg, "Its archives are proven and stay readable; see docs/repository.md for doing it by hand."
        )
    if request.replication_factor and request.replication_factor > len(layout.nodes):
        msg = f"replication factor {request.replication_factor} needs as many nodes; there are {len(layout.nodes)}."
        raise PreflightError(msg)
    shards = {shard.shard_id for shard in manifest.layout}
    proven = {shard.shard_id for shard, _ in manifest.best_shards()}
    if shards != proven:
        msg = f"The manifest of {manifest.collection} lacks archives of shards {sorted(shards - proven)}."
        raise RestoreError(msg)
    return _proof_findings(request, manifest) + _version_findings(manifest, layout)


def _proof_findings(request: RestoreRequest, manifest: CollectionManifest) -> list[Finding]:
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


def _version_findings(manifest: CollectionManifest, layout: ClusterLayout) -> list[Finding]:
    findings: dict[tuple[str, str], Finding] = {}
    for source in manifest.nodes:
        for node in layout.nodes:
            for finding in versions.compare(source.version, node.version):
                findings[(source.version, node.version + finding.message)] = finding
    errors = [finding for finding in findings.values() if finding.severity == "error"]
    if errors:
        raise VersionError("; ".join(error.message for error in errors), errors[0].remedy)
    return list(findings.values())


def _reasons(
    request: RestoreRequest, manifest: CollectionManifest, layout: ClusterLayout, factors: tuple[int, int]
) -> list[str]:
    wanted, factor = factors
    path = (
        "shard archives recovered on every replica: same shard count, so no re-indexing and no transfers"
        if manifest.kind == "shard"
        else "shards cut out of the nodes' collection snapshots and uploaded to every replica"
    )
    sealed = sorted({archive.key_id or "" for archive in manifest.archives if archive.encoding != "plain"})
    reasons = [
        f"{len(manifest.layout)} shards on {len(layout.nodes)} nodes: {path}",
        "created first with the source's configuration: a recover into a missing collection loses replicas "
        "(Qdrant 6575, 7851)",
        "priority no_sync on every replica from the same archive: no replica goes Dead, nothing is re-sent",
    ]
    if sealed:
        reasons.append(
            f"encrypted for {', '.join(sealed)}: nodes cannot read it from the bucket, so this worker decrypts each "
            "archive and uploads it"
        )
    if factor != wanted:
        reasons.append(f"replication factor {factor} instead of {wanted}: there are {len(layout.nodes)} nodes")
    if request.alias:
        before = layout.aliases.get(request.alias)
        reasons.append(f"alias {request.alias}: {before or 'new'} → the new collection, last, in one request")
    return reasons


def nodes_of(layout: ClusterLayout) -> dict[PeerId, NodeInfo]:
    """The nodes of a layout by peer id."""
    return {node.peer_id: node for node in layout.nodes}
