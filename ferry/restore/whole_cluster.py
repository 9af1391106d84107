"""Many collections of one backup: which, under which names, in which order, and which aliases move at the end. Pure.

Everything is decided, and refused, for all of them together before the first one is touched.
"""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import ceil

from pydantic import Field

from ferry.errors import ConfigurationError, FerryError, PreflightError
from ferry.models import KEEP_DAYS, BackupId, ClusterLayout, Finding, PeerId, RestorePath, Value, VerifyLevel
from ferry.qdrant.cluster import is_chosen, select_collections
from ferry.qdrant.resources import Need
from ferry.repository.layout import new_backup_id, parse_backup_id
from ferry.repository.manifest import BackupRecord, CollectionManifest
from ferry.restore.plan import RestorePlan, RestoreRequest, copy_bytes, most_held_bytes, need_of, plan_restore

_NOTHING = "Nothing was changed."


class ClusterRestoreRequest(Value):
    """What the operator asked for, by the names of profiles.

    ``name`` is what new collections are called: ``{collection}`` and ``{backup_id}`` stand for both; ``rename`` names
    single ones. ``aliases`` are patterns of the backup's aliases, ``rename_aliases`` gives one another name here;
    collections that they leave are kept for ``keep_days``.
    """

    restore_id: BackupId
    cluster: str
    repository: str
    source_cluster: str
    backup: str = "latest"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    name: str = "{collection}"
    rename: dict[str, str] = Field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    rename_aliases: dict[str, str] = Field(default_factory=dict)
    keep_days: int = Field(default=KEEP_DAYS, ge=0)
    replication_factor: int | None = None
    path: RestorePath | None = None
    verify: VerifyLevel = "sample"


class AliasMove(Value):
    """An alias and the new collection that it will point at; ``was`` is what it points at now, if there is one."""

    alias: str
    collection: str
    was: str | None


class ClusterRestorePlan(Value):
    """Everything that a restore of many collections will do.

    ``there`` are collections that need no restore: the target of each is there and equal to its proof. ``needs`` is
    what each node needs for the others, with Qdrant placing shards as evenly as it can.
    """

    request: ClusterRestoreRequest
    backup_id: BackupId
    layout: ClusterLayout
    plans: tuple[RestorePlan, ...]
    there: tuple[str, ...] = ()
    aliases: tuple[AliasMove, ...] = ()
    needs: dict[PeerId, Need]
    findings: tuple[Finding, ...] = ()

    @property
    def missing(self) -> tuple[RestorePlan, ...]:
        """The restores to do, in their order."""
        return tuple(plan for plan in self.plans if plan.manifest.collection not in self.there)

    @property
    def targets(self) -> dict[str, str]:
        """New collection by old one, of all that were asked for."""
        return {plan.manifest.collection: plan.target for plan in self.plans}


def choose(request: ClusterRestoreRequest, record: BackupRecord) -> list[RestoreRequest]:
    """One request for each chosen collection of the backup, each with an id of its own.

    Raises ConfigurationError or PreflightError for wishes that match nothing, and for two that would get one name.
    """
    held = [entry.collection for entry in record.collections]
    chosen = select_collections(held, request.include, request.exclude)
    if not chosen:
        msg = f"The patterns choose none of the {len(held)} collections of backup {record.backup_id}. {_NOTHING}"
        raise PreflightError(msg, f"It holds: {', '.join(held) or 'none'}.")
    _require_known(request.rename, chosen, "rename", "no collection that is restored")
    names = {name: _new_name(request, record, name) for name in chosen}
    for name, new in names.items():
        if same := [other for other, its in names.items() if its == new and other != name]:
            msg = f"{name} and {same[0]} would both be called {new}. {_NOTHING}"
            raise PreflightError(msg, "Put {collection} into `name`, or correct `rename`.")
    moment = parse_backup_id(request.restore_id)
    return [
        RestoreRequest(
            restore_id=new_backup_id(moment, f"{request.restore_id}/{name}"),
            cluster=request.cluster,
            repository=request.repository,
            source_cluster=request.source_cluster,
            backup=record.backup_id,
            collection=name,
            into=new,
            replication_factor=request.replication_factor,
            path=request.path,
            verify=request.verify,
        )
        for name, new in names.items()
    ]


def _new_name(request: ClusterRestoreRequest, record: BackupRecord, name: str) -> str:
    pattern = request.rename.get(name, request.name)
    return pattern.replace("{backup_id}", record.backup_id).replace("{collection}", name)


def _require_known(given: Collection[str], known: Collection[str], wish: str, what: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        msg = f"`{wish}` names {', '.join(unknown)}, which is {what}. {_NOTHING}"
        raise ConfigurationError(msg, f"Correct it; there are: {', '.join(sorted(known)) or 'none'}.")


def plan_aliases(
    request: ClusterRestoreRequest, record: BackupRecord, targets: Mapping[str, str], layout: ClusterLayout
) -> list[AliasMove]:
    """Which aliases of the backup will point at which new collection.

    ``*`` is every alias of a restored collection. Raises ConfigurationError for a pattern that matches nothing, and
    PreflightError for an alias whose collection is not restored, or whose name is or will be a collection's.
    """
    of_chosen = {alias for alias, collection in record.aliases.items() if collection in targets}
    chosen: set[str] = set()
    for pattern in request.aliases:
        found = of_chosen if pattern == "*" else {alias for alias in record.aliases if is_chosen(alias, [pattern], ())}
        if pattern != "*" and not found:
            msg = f"The pattern {pattern!r} matches no alias of backup {record.backup_id}. {_NOTHING}"
            raise ConfigurationError(msg, f"There are: {', '.join(sorted(record.aliases)) or 'none'}.")
        chosen |= found
    _require_known(request.rename_aliases, chosen, "rename_aliases", "no alias that is to be moved")
    if away := sorted(chosen - of_chosen):
        told = ", ".join(f"{alias} → {record.aliases[alias]}" for alias in away)
        msg = f"Aliases of collections that are not restored cannot be moved: {told}. {_NOTHING}"
        raise PreflightError(msg, "Restore these collections too, or leave the aliases out.")
    names = {alias: request.rename_aliases.get(alias, alias) for alias in sorted(chosen)}
    _require_free(names, {*targets.values(), *layout.names})
    return [
        AliasMove(alias=new, collection=targets[record.aliases[alias]], was=layout.aliases.get(new))
        for alias, new in names.items()
    ]


def _require_free(names: Mapping[str, str], collections: Collection[str]) -> None:
    for alias, new in names.items():
        if new in collections:
            msg = f"Alias {new} cannot be made: a collection is, or will be, called so. {_NOTHING}"
            raise PreflightError(msg, "Give the alias another name (rename_aliases), or leave it out.")
        if same := [other for other, its in names.items() if its == new and other != alias]:
            msg = f"Aliases {alias} and {same[0]} would both be called {new}. {_NOTHING}"
            raise PreflightError(msg, "Correct `rename_aliases`.")


def plan_each(
    restores: Sequence[RestoreRequest], manifests: Sequence[CollectionManifest], layout: ClusterLayout
) -> list[RestorePlan]:
    """The plan of each restore, the largest first: it needs the most room beside what it leaves, and finds the most.

    A target that is there already is planned as if it were not, so that it can be compared. Raises the one error there
    is, or a PreflightError that lists them all.
    """
    names = {restore.into for restore in restores}
    if aliases := sorted(name for name in layout.aliases if name in names):
        told = ", ".join(f"{alias} → {layout.aliases[alias]}" for alias in aliases)
        msg = f"Names of new collections are aliases on cluster {layout.cluster}: {told}. {_NOTHING}"
        raise PreflightError(msg, "Name them otherwise: `name` (such as '{collection}-{backup_id}') or `rename`.")
    free = layout.model_copy(update={"names": tuple(name for name in layout.names if name not in names)})
    plans, errors = [], []
    for restore, manifest in zip(restores, manifests, strict=True):
        try:
            plans.append(plan_restore(restore, manifest, free))
        except FerryError as error:
            errors.append(error)
    raise_refusals(errors)
    plans = [plan.model_copy(update={"layout": layout}) for plan in plans]
    return sorted(plans, key=lambda plan: (-sum(copy_bytes(plan)), plan.manifest.collection))


def raise_refusals(errors: Sequence[FerryError]) -> None:
    """Raise the one error there is, or one that lists them all, with the remedy of the first."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "\n".join(f"- {error}" for error in errors)
        msg = f"{len(errors)} collections cannot be restored as asked. {_NOTHING}\n{lines}"
        raise PreflightError(msg, errors[0].remedy)


def needs_of_all(plans: Sequence[RestorePlan], layout: ClusterLayout) -> tuple[dict[PeerId, Need], dict[PeerId, Need]]:
    """What each node needs for all these restores: spread evenly, and at most.

    Qdrant spreads the shards of each collection by themselves and begins anywhere, so one node may get the larger
    share of every collection; the more collections there are, the less likely that is.
    """
    nodes = len(layout.nodes)
    even = need_of(plans, lambda plan: ceil(sum(copy_bytes(plan)) / nodes))
    most = need_of(plans, most_held_bytes)
    return ({node.peer_id: even for node in layout.nodes}, {node.peer_id: most for node in layout.nodes})


def cluster_findings(
    record: BackupRecord, chosen: Collection[str], moves: Sequence[AliasMove], there: Collection[str]
) -> list[Finding]:
    """What of the backup's cluster will not be as it was, and what is there already."""
    findings = []
    if left := [entry.collection for entry in record.collections if entry.collection not in chosen]:
        findings.append(_told(record, f"{len(left)} of {len(record.collections)} collections are left out", left))
    moved = {move.alias for move in moves}
    if staying := [f"{alias} → {name}" for alias, name in sorted(record.aliases.items()) if alias not in moved]:
        findings.append(_told(record, f"{len(staying)} aliases of the backup are not moved", staying))
    if there:
        findings.append(_told(record, f"{len(there)} collections are there already and equal to their proofs", there))
    return findings


def _told(record: BackupRecord, what: str, names: Collection[str]) -> Finding:
    subject = f"backup {record.backup_id}"
    return Finding(severity="info", subject=subject, message=f"{what}: {', '.join(sorted(names))}.")


def command(request: ClusterRestoreRequest, backup_id: BackupId, missing: Collection[str]) -> str:
    """The command line that does the rest of a restore: the same wishes, for that very backup.

    Where aliases are to move it names what is restored already, too, for they move only when all is there and equal;
    otherwise only what is missing.
    """
    everything = bool(request.aliases)
    options: list[tuple[str, Iterable[object]]] = [
        ("--cluster", [request.cluster]),
        ("--repository", [request.repository]),
        ("--source-cluster", [request.source_cluster]),
        ("--backup", [backup_id]),
        ("--include", request.include if everything else sorted(missing)),
        ("--exclude", request.exclude if everything else ()),
        ("--name", [request.name]),
        ("--rename", [f"{old}={new}" for old, new in request.rename.items() if everything or old in missing]),
        ("--alias", request.aliases),
        ("--rename-alias", [f"{old}={new}" for old, new in request.rename_aliases.items()]),
        ("--keep-days", [request.keep_days]),
        ("--replication-factor", [] if request.replication_factor is None else [request.replication_factor]),
        ("--path", [] if request.path is None else [request.path]),
        ("--verify", [request.verify]),
    ]
    words = [word for option, values in options for value in values for word in (option, str(value))]
    return shlex.join(["python", "-m", "ferry", "restore-cluster", *words])
