"""The plan of a restore over the live collection itself, and when it is refused. Pure.

It keeps the collection's name, aliases, shards, replicas and settings, and replaces the points of every replica. There
is no way back but another restore, so whoever can afford the room restores under a new name and moves an alias.
"""

import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ferry.errors import LayoutError, PreflightError, VersionError
from ferry.models import BackupId, ClusterLayout, CollectionLayout, Finding, PeerId, ShardKey, ShardLayout, VerifyLevel
from ferry.qdrant.resources import Need
from ferry.qdrant.schema import schema_differences
from ferry.repository.catalog import LATEST
from ferry.repository.manifest import CollectionManifest
from ferry.restore import explain
from ferry.restore.plan import (
    RestorePlan,
    RestoreRequest,
    archive_bytes,
    on_disk,
    proof_findings,
    require_whole,
    version_findings,
)
from ferry.restore.shape import PlannedShard

# Files of an archive that Qdrant would have to make anew, or cannot read, where the collection has them otherwise.
_STORED = (
    "params.vectors",
    "params.sparse_vectors",
    "params.on_disk_payload",
    "quantization_config",
)
# Part of a vector's settings, and made anew by the optimizers whenever it differs.
_INDEXED = ".hnsw_config"


class InPlaceRequest(RestoreRequest):
    """What the operator asked for. ``confirm`` is the live collection's name as it was typed, ``backup`` no "latest".

    ``waive_backup`` goes without a backup of the present state, as where it cannot be read any more.
    """

    backup: str
    confirm: str
    waive_backup: bool = False
    verify: VerifyLevel = "content"

    @property
    def target(self) -> str:
        """The live collection that is overwritten."""
        return self.into or self.collection


def require_meant(request: InPlaceRequest) -> None:
    """Raise PreflightError unless the name was typed and the backup is named, before anything is asked.

    ``latest`` would be the broken state at the second attempt: the first one has backed that up.
    """
    if request.confirm != request.target:
        msg = (
            f"This overwrites every point of {request.target} on {request.cluster}, so its name must be typed as "
            f"confirmation; {request.confirm!r} was. Nothing was changed."
        )
        raise PreflightError(msg, f"Type it: --confirm {shlex.quote(request.target)} (parameter `confirm`).")
    if request.backup == LATEST:
        msg = "A restore in place backs up the present state first, and a second attempt would take that for latest."
        raise PreflightError(msg, "Name the backup by its id: python -m ferry list. Nothing was changed.")


def plan_in_place(
    request: InPlaceRequest,
    manifest: CollectionManifest,
    layout: ClusterLayout,
    held_bytes: Mapping[PeerId, int] = MappingProxyType({}),
) -> RestorePlan:
    """Plan to overwrite every replica of the live collection, which ``layout`` shows, with its shard's archive.

    ``held_bytes`` is what each node holds of it now, at least; it frees that when it has unpacked the archives. Raises
    PreflightError, LayoutError or VersionError with the reason why it would not work; nothing was asked to change.
    """
    require_meant(request)
    require_whole(manifest)
    live = _live(request, layout)
    shards, obstacles = _fitting(manifest.layout, live.shards)
    stored, settings = _differences(manifest, live)
    errors = [finding.message for finding in version_findings(manifest, layout) if finding.severity == "error"]
    _require_fit(request, (*obstacles, *stored), errors)
    findings = proof_findings(request, manifest) + version_findings(manifest, layout)
    findings += _replica_findings(request, layout, live)
    findings += [_finding(request.target, f"{difference}: it stays as it is live.") for difference in settings]
    findings += [_comes_back(request, field) for field in _returning(manifest, live)]
    plan = RestorePlan(
        request=request,
        target=request.target,
        manifest=manifest,
        layout=layout,
        path="shards",
        config=live.config,
        replication_factor=max((len(shard.replicas) for shard in live.shards), default=0),
        shards=shards,
        creation_body={},
        patch_body={},
        payload_indexes=(),
        needs={},
        alias_from=None,
        reasons=(),
        findings=tuple(findings),
        in_place=live,
    )
    told = {"needs": _needs(plan, live, held_bytes), "reasons": _reasons(plan, request), "losses": _losses(plan)}
    return plan.model_copy(update=told)


def command(request: InPlaceRequest, verb: str, *more: str) -> str:
    """The command line that restores what this request names, to be copied."""
    words = ["python", "-m", "ferry", verb, request.collection, "--cluster", request.cluster]
    words += ["--repository", request.repository, "--source-cluster", request.source_cluster]
    return shlex.join([*words, "--backup", request.backup, *more])


def again(request: InPlaceRequest) -> str:
    """The command line that does this restore once more, without a backup of what may not be readable any more."""
    into = ("--into", request.into) if request.into else ()
    return command(request, "restore-in-place", *into, "--confirm", request.target, "--waive-backup")


def back_to(request: InPlaceRequest, before: BackupId) -> str:
    """The command line that brings the state of before back, from its backup of that id."""
    source = {"source_cluster": request.cluster, "collection": request.target, "backup": before, "into": None}
    return again(request.model_copy(update=source))


def _beside(request: InPlaceRequest) -> str:
    return f"Restore under a new name and move an alias: {command(request, 'restore', '--alias', 'ALIAS')}"


def _live(request: InPlaceRequest, layout: ClusterLayout) -> CollectionLayout:
    if actual := layout.aliases.get(request.target):
        msg = f"{request.target} is an alias of {actual} on {layout.cluster}, not a collection; nothing was changed."
        remedy = f"{_beside(request)}. Or overwrite {actual} itself: --into {shlex.quote(actual)}, confirmed so."
        raise PreflightError(msg, remedy)
    live = layout.collection(request.target)
    if live is None:
        msg = f"Cluster {layout.cluster} has no collection {request.target} to overwrite; nothing was changed."
        raise PreflightError(msg, f"Restore it as a new one: {command(request, 'restore', '--into', request.target)}")
    return live


def _fitting(
    stored: Sequence[ShardLayout], live: Sequence[ShardLayout]
) -> tuple[tuple[PlannedShard, ...], tuple[str, ...]]:
    """The archive of each live shard, and why there is none.

    Qdrant routes by the numbers of a key's shards (of all shards, without keys), so they must be the same; the one
    shard of a key takes all of it whatever its number (see ferry.restore.shape).
    """
    had, has = _by_key(stored), _by_key(live)
    planned, obstacles = [], []
    for key in sorted(had.keys() | has.keys(), key=str):
        sources, shards = had.get(key, []), has.get(key, [])
        numbers, held = [shard.shard_id for shard in shards], [shard.shard_id for shard in sources]
        if numbers != held and (len(numbers), len(held)) != (1, 1):
            of_key = "" if key is None else f" of key {key!r}"
            obstacles.append(f"the backup has the shards {held or 'none'}{of_key}, live are {numbers or 'none'}")
            continue
        for source, shard in zip(held, shards, strict=True):
            planned.append(
                PlannedShard(shard_id=shard.shard_id, key=shard.key, copies=len(shard.replicas), source=source)
            )
    return tuple(planned), tuple(obstacles)


def _by_key(shards: Sequence[ShardLayout]) -> dict[ShardKey | None, list[ShardLayout]]:
    found: dict[ShardKey | None, list[ShardLayout]] = {}
    for shard in sorted(shards, key=lambda shard: shard.shard_id):
        found.setdefault(shard.key, []).append(shard)
    return found


def _differences(manifest: CollectionManifest, live: CollectionLayout) -> tuple[list[str], list[str]]:
    """What archives do not fit into, and settings that simply stay as they are live."""
    schema, called = manifest.payload_schema, ("in the backup", "live")
    back = tuple(f"payload index {field}." for field in _returning(manifest, live))
    stored: list[str] = []
    settings: list[str] = []
    for difference in schema_differences(manifest.config, schema, live.config, live.payload_schema, called):
        path = difference.partition(": ")[0]
        if path.startswith(_STORED) and _INDEXED not in path:
            stored.append(difference)
        elif not back or not path.startswith(back):
            settings.append(difference)
    return stored, settings


def _returning(manifest: CollectionManifest, live: CollectionLayout) -> list[str]:
    """Payload indexes that archives bring along: loading makes those that lack, and drops none (seen on 1.16.3)."""
    return sorted(manifest.payload_schema.keys() - live.payload_schema.keys())


def _require_fit(request: InPlaceRequest, obstacles: Sequence[str], versions: Sequence[str]) -> None:
    if obstacles or versions:
        kind = PreflightError if obstacles else VersionError
        msg = f"The archives of {request.backup} do not fit into the live {request.target}: "
        raise kind(f"{msg}{'; '.join((*obstacles, *versions))}. Nothing was changed.", _beside(request))


def _replica_findings(request: InPlaceRequest, layout: ClusterLayout, live: CollectionLayout) -> list[Finding]:
    """Replicas that are not as they should be. Raises LayoutError where they cannot be overwritten, or not yet."""
    names = {node.peer_id: node.label for node in layout.nodes}
    findings = []
    for shard in live.shards:
        for replica in shard.replicas:
            what = f"{live.name}/shard {shard.shard_id} on {names.get(replica.peer_id, f'peer {replica.peer_id}')}"
            if replica.peer_id not in names:
                msg = f"{what}: no configured address is that peer. Every replica must be overwritten; none was."
                raise LayoutError(msg, f"Start the node, and add its address to clusters.{layout.cluster}.nodes.")
            if replica.state == "Listener":
                msg = f"{what} is a Listener, which recovering would make Active. Nothing was changed."
                raise LayoutError(msg, _beside(request))
            if replica.state != "Active" and not request.waive_backup:
                msg = f"{what} is {replica.state}, so its present state cannot be backed up. Nothing was changed."
                raise LayoutError(msg, unreadable_remedy(request))
            if replica.state != "Active":
                findings.append(_finding(what, f"{what} is {replica.state}; it is overwritten like the others."))
    return findings


def unreadable_remedy(request: InPlaceRequest) -> str:
    """What to do where the present state cannot be backed up."""
    return (
        "Wait until the cluster is at rest, or repair it, and run this again. Where an earlier restore in place has "
        f"left it so, there is nothing to save: {again(request)}"
    )


def _comes_back(request: InPlaceRequest, field: str) -> Finding:
    msg = f"The payload index {field} is in the backup and not live: it comes back with the archives."
    return _finding(
        request.target, msg, f"Drop it where it is not wanted: DELETE /collections/{request.target}/index/{field}"
    )


def _finding(subject: str, message: str, remedy: str | None = None) -> Finding:
    return Finding(severity="warning", subject=subject, message=message, remedy=remedy)


def _needs(plan: RestorePlan, live: CollectionLayout, held_bytes: Mapping[PeerId, int]) -> dict[PeerId, Need]:
    """What each node needs, at most: twice its largest archive while that is unpacked beside the old shard
    (qdrant.md §3.4), and what the archives have more than it holds now. One shard at a time is replaced."""
    stored = archive_bytes(plan.manifest)
    sizes = {shard.shard_id: stored[shard.source] for shard in plan.shards if shard.source is not None}
    on_node: dict[PeerId, list[int]] = {node.peer_id: [] for node in plan.layout.nodes}
    for shard in live.shards:
        for replica in shard.replicas:
            on_node[replica.peer_id].append(sizes[shard.shard_id])
    needs = {}
    for peer_id, archives in on_node.items():
        more = max(0, sum(archives) - held_bytes.get(peer_id, 0))
        beside = 2 * max(archives, default=0)
        needs[peer_id] = Need(disk_bytes=more + beside, ram_bytes=0 if on_disk(plan.config) else more)
    return needs


def _reasons(plan: RestorePlan, request: InPlaceRequest) -> tuple[str, ...]:
    first = (
        "the present state is not backed up first, because that was waived: there is no way back to it"
        if request.waive_backup
        else f"the present state of {plan.target} is backed up and proven first, which is the only way back to it"
    )
    return (first, *explain.reasons(plan, (), None))


def _losses(plan: RestorePlan) -> tuple[str, ...]:
    made = f"{plan.manifest.created_at:%Y-%m-%d %H:%M:%S} UTC"
    return (f"every point of {plan.target} that was written since the backup was made ({made})", *explain.losses(plan))
