"""What a recovery of points will do, and why it may not: pure values, made before anything is touched."""

from typing import Any

from ferry.archive.points import Selection
from ferry.errors import ConfigurationError, PreflightError
from ferry.models import (
    BackupId,
    ClusterLayout,
    CollectionLayout,
    Finding,
    RecoveryMode,
    ShardId,
    ShardKey,
    ShardLayout,
    Value,
)
from ferry.qdrant.vectors import vectors_of
from ferry.repository.manifest import CollectionManifest
from ferry.restore.plan import RestorePlan, RestoreRequest, plan_restore
from ferry.restore.shape import is_custom

NAMED_IDS = 10  # of each kind, in reports


class RecoveryRequest(Value):
    """What the operator asked for, by the names of profiles. ``into`` may be an alias, but not of a new collection."""

    recovery_id: BackupId
    cluster: str
    repository: str
    source_cluster: str
    backup: str = "latest"
    collection: str
    filter: dict[str, Any] | None = None
    ids: tuple[int | str, ...] | None = None
    into: str | None = None
    mode: RecoveryMode = "missing"

    def selection(self) -> Selection:
        """The points that are wanted. Raises ConfigurationError when a filter or an id is wrong, or nothing is said."""
        if self.filter is None and self.ids is None:
            msg = "Which points? Neither a filter nor ids were given. Nothing was read."
            raise ConfigurationError(msg, "Give a filter or ids; the filter {} selects every point of the backup.")
        return Selection(filter=self.filter, ids=self.ids, hashes=True)


class RecoveryPlan(Value):
    """A recovery that may begin. ``restore`` is how the new collection is made; None where there is one already."""

    request: RecoveryRequest
    manifest: CollectionManifest
    layout: ClusterLayout
    target: str
    alias: str | None = None
    restore: RestorePlan | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def by_key(self) -> bool:
        """Whether the backup places points by shard keys; then one id may be there under several."""
        return is_custom(self.manifest.config)

    def key_of(self, shard_id: ShardId) -> ShardKey | None:
        """The shard key that the points of a shard of the backup have."""
        return next(shard.key for shard in self.manifest.layout if shard.shard_id == shard_id)


def target_of(request: RecoveryRequest, manifest: CollectionManifest, layout: ClusterLayout) -> str:
    """The collection that is written to: what an alias points at, and for a new one the backup's id behind the name."""
    if request.mode == "new collection":
        return request.into or f"{request.collection}-points-{manifest.backup_id}"
    return layout.aliases.get(request.into or request.collection, request.into or request.collection)


def plan_recovery(request: RecoveryRequest, manifest: CollectionManifest, layout: ClusterLayout) -> RecoveryPlan:
    """Plan it. ``layout`` holds the live collection where there is one.

    Raises ConfigurationError for a wrong selection, and PreflightError when the points do not fit the live collection:
    other vectors, sizes, distances or datatypes, other sharding, or a shard key that is gone. Nothing was changed.
    """
    request.selection()
    target = target_of(request, manifest, layout)
    if request.mode == "new collection":
        restore = plan_restore(_restore_request(request, manifest, target), manifest, layout)
        return RecoveryPlan(
            request=request, manifest=manifest, layout=layout, target=target, restore=restore, findings=restore.findings
        )
    live = layout.collection(target)
    if live is None:
        known = ", ".join(sorted({*layout.names, *layout.aliases})) or "none"
        msg = f"Cluster {request.cluster} has no collection and no alias {target}, but: {known}. Nothing was changed."
        raise PreflightError(msg, "Name one with `into`, or recover into a new one: mode `new collection`.")
    findings = _require_fitting(manifest, live)
    alias = request.into or request.collection
    return RecoveryPlan(
        request=request,
        manifest=manifest,
        layout=layout,
        target=target,
        alias=alias if alias != target else None,
        findings=tuple(findings),
    )


def live_shards(plan: RecoveryPlan, live: CollectionLayout, shard_id: ShardId) -> tuple[ShardLayout, ...]:
    """The shards of the live collection in which points of a shard of the backup belong: those of its key, or all."""
    key = plan.key_of(shard_id)
    return tuple(shard for shard in live.shards if shard.key == key)


def _restore_request(request: RecoveryRequest, manifest: CollectionManifest, target: str) -> RestoreRequest:
    """The new collection as the restore of its backup would make it."""
    return RestoreRequest(
        restore_id=request.recovery_id,
        cluster=request.cluster,
        repository=request.repository,
        source_cluster=request.source_cluster,
        backup=manifest.backup_id,
        collection=request.collection,
        into=target,
        path="points",
        verify="count",
    )


def _require_fitting(manifest: CollectionManifest, live: CollectionLayout) -> list[Finding]:
    problems = _vector_problems(manifest, live) + _sharding_problems(manifest, live)
    if problems:
        msg = f"Points of {manifest.collection} do not fit {live.name}: {'; '.join(problems)}. Nothing was changed."
        raise PreflightError(msg, "Recover them into a new collection: mode `new collection`.")
    more = sorted(vectors_of(live.config).keys() - vectors_of(manifest.config).keys())
    if not more:
        return []
    message = f"It has vectors that the backup has not: {', '.join(map(repr, more))}. Recovered points will lack them."
    return [Finding(severity="warning", subject=live.name, message=message)]


def _vector_problems(manifest: CollectionManifest, live: CollectionLayout) -> list[str]:
    found = vectors_of(live.config)
    problems = []
    for name, shape in vectors_of(manifest.config).items():
        if name not in found:
            problems.append(f"vector {name!r} ({shape.words}) is not there")
        elif found[name] != shape:
            problems.append(f"vector {name!r} is {shape.words} in the backup and {found[name].words} there")
    return problems


def _sharding_problems(manifest: CollectionManifest, live: CollectionLayout) -> list[str]:
    by = {True: "shard keys", False: "their ids"}
    custom = is_custom(manifest.config)
    if custom != live.custom_sharding:
        return [f"the backup places points by {by[custom]}, and it by {by[live.custom_sharding]}"]
    gone = sorted({str(shard.key) for shard in manifest.layout} - {str(shard.key) for shard in live.shards})
    return [f"it has no shard key {', '.join(gone)} any more"] if gone else []
