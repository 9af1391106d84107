"""A restore of many collections: what is chosen and refused before anything is touched, and what is left to do."""

import shlex
from datetime import timedelta
from typing import Any

import pytest

from ferry.__main__ import parser
from ferry.errors import ConfigurationError, FerryError, PreflightError, RestoreError
from ferry.models import BackupId, ClusterLayout
from ferry.repository.layout import is_backup_id
from ferry.repository.manifest import BackupRecord, CollectionEntry, CollectionManifest
from ferry.restore.cluster_run import require_all
from ferry.restore.plan import RestorePlan
from ferry.restore.whole_cluster import (
    AliasMove,
    ClusterRestorePlan,
    ClusterRestoreRequest,
    choose,
    cluster_findings,
    command,
    needs_of_all,
    plan_aliases,
    plan_each,
)
from tests.unit.builders import BACKUP_ID, NOON, archive, collection, layout, manifest, node, shard

HELD = ("docs-a", "docs-b", "users")
ALIASES = {"docs": "docs-a", "people": "users"}
TARGET = layout([node(1), node(2), node(3)], [])


def asked(**wishes: Any) -> ClusterRestoreRequest:
    base: dict[str, Any] = {"cluster": "test", "repository": "main", "source_cluster": "test"}
    return ClusterRestoreRequest(restore_id=BackupId("20261122T130000Z-123456"), **base | wishes)


def record(held: tuple[str, ...] = HELD) -> BackupRecord:
    entries = tuple(CollectionEntry(collection=name, manifest_sha256="0", points=1, bytes=1) for name in held)
    return BackupRecord(
        backup_id=BACKUP_ID,
        cluster="test",
        kind="shard",
        collections=entries,
        aliases=ALIASES,
        started_at=NOON,
        finished_at=NOON + timedelta(minutes=1),
        tool_versions={},
    )


def manifest_of(name: str, size: int = 1000) -> CollectionManifest:
    """One shard with one copy, of so many bytes."""
    return manifest(collection(name, [shard(0, [1])]), [archive(0, size=size)])


def names(request: ClusterRestoreRequest, held: tuple[str, ...] = HELD) -> dict[str, str | None]:
    """New name by old one."""
    return {restore.collection: restore.into for restore in choose(request, record(held))}


def planned(target: ClusterLayout = TARGET, sizes: dict[str, int] | None = None, **wishes: Any) -> list[RestorePlan]:
    """The plans of the collections, of so many bytes each."""
    sizes = sizes or dict.fromkeys(HELD, 1000)
    restores = choose(asked(**wishes), record(tuple(sizes)))
    return plan_each(
        restores, [manifest_of(restore.collection, sizes[restore.collection]) for restore in restores], target
    )


def test_patterns_choose_and_names_are_made_of_a_pattern_or_given() -> None:
    """As they were called; with something behind it; some by name."""
    assert names(asked()) == {name: name for name in HELD}
    assert names(asked(include=("docs-*",), exclude=("*-b",))) == {"docs-a": "docs-a"}
    assert names(asked(name="{collection}-{backup_id}", include=("users",))) == {"users": f"users-{BACKUP_ID}"}
    wishes = {"name": "old {collection}", "rename": {"users": "{collection}2", "docs-b": "b"}}
    assert names(asked(**wishes)) == {"docs-a": "old docs-a", "docs-b": "b", "users": "users2"}


def test_each_restore_is_of_the_same_backup_and_has_an_id_of_its_own() -> None:
    """latest is one backup for all of them; ids are the same when the plan is made again."""
    restores = choose(asked(replication_factor=2, path="points", verify="content"), record())
    assert {(each.backup, each.replication_factor, each.path, each.verify) for each in restores} == {
        (BACKUP_ID, 2, "points", "content")
    }
    assert len({each.restore_id for each in restores}) == 3
    assert all(is_backup_id(each.restore_id) for each in restores)
    assert restores == choose(asked(replication_factor=2, path="points", verify="content"), record())


@pytest.mark.parametrize(
    ("wishes", "kind", "said"),
    [
        ({"include": ("nothing-*",)}, ConfigurationError, "matches no collection"),
        ({"exclude": ("*",)}, PreflightError, "choose none of the 3 collections"),
        ({"rename": {"typo": "x"}}, ConfigurationError, "`rename` names typo"),
        ({"rename": {"users": "x"}, "exclude": ("users",)}, ConfigurationError, "`rename` names users"),
        ({"name": "same"}, PreflightError, "would both be called same"),
        ({"rename": {"users": "docs-a"}}, PreflightError, "docs-a and users would both be called docs-a"),
    ],
)
def test_names_that_cannot_be_are_refused(wishes: dict[str, Any], kind: type[FerryError], said: str) -> None:
    """Before any manifest is read, with what to correct."""
    with pytest.raises(kind, match=said) as refused:
        choose(asked(**wishes), record())
    assert refused.value.remedy


def moves(target: ClusterLayout = TARGET, **wishes: Any) -> list[AliasMove]:
    """The alias moves of a restore."""
    request = asked(**wishes)
    targets = {name: new or "" for name, new in names(request).items()}
    return plan_aliases(request, record(), targets, target)


def test_aliases_move_where_they_are_asked_to() -> None:
    """None, all of restored collections, some by pattern, some under another name; with where each is now."""
    assert moves() == []
    live = layout([node(1)], [collection("live", [shard(0, [1])])], {"docs": "live"})
    assert moves(live, aliases=("*",), name="{collection}2") == [
        AliasMove(alias="docs", collection="docs-a2", was="live"),
        AliasMove(alias="people", collection="users2", was=None),
    ]
    assert [move.alias for move in moves(aliases=("*",), exclude=("users",))] == ["docs"]
    assert moves(aliases=("pe*",), rename_aliases={"people": "folk"}) == [
        AliasMove(alias="folk", collection="users", was=None)
    ]


@pytest.mark.parametrize(
    ("wishes", "kind", "said"),
    [
        ({"aliases": ("typo",)}, ConfigurationError, "'typo' matches no alias"),
        ({"aliases": ("people",), "exclude": ("users",)}, PreflightError, "not restored .*: people → users"),
        ({"aliases": ("docs",), "rename_aliases": {"people": "x"}}, ConfigurationError, "names people"),
        ({"aliases": ("docs",), "rename": {"users": "docs"}}, PreflightError, "Alias docs cannot be made"),
        ({"aliases": ("*",), "rename_aliases": {"docs": "live"}}, PreflightError, "Alias live cannot be made"),
        ({"aliases": ("*",), "rename_aliases": {"docs": "people"}}, PreflightError, "would both be called people"),
    ],
)
def test_aliases_that_cannot_move_are_refused(wishes: dict[str, Any], kind: type[FerryError], said: str) -> None:
    """Those that nothing is restored for, and names that a collection has or will have."""
    live = TARGET.model_copy(update={"names": ("live",)})
    with pytest.raises(kind, match=said) as refused:
        moves(live, **wishes)
    assert refused.value.remedy


def test_the_largest_is_planned_first_and_all_refusals_are_told_at_once() -> None:
    """Who asks for three of the impossible learns it in one go."""
    plans = planned(sizes={"a": 10, "b": 1000, "c": 100, "d": 100})
    assert [plan.target for plan in plans] == ["b", "c", "d", "a"]
    with pytest.raises(PreflightError, match="3 collections cannot be restored as asked") as refused:
        planned(replication_factor=4)
    assert refused.value.message.count("needs as many nodes") == 3
    taken = layout([node(1)], [collection("live", [shard(0, [1])])], {"users": "live"})
    with pytest.raises(PreflightError, match="are aliases on cluster test: users → live"):
        planned(taken)


def test_what_is_there_is_planned_as_if_it_were_not() -> None:
    """So that it can be compared; whether it is refused is decided by what it holds."""
    there = TARGET.model_copy(update={"names": ("users",)})
    assert {plan.target for plan in planned(there)} == set(HELD)
    assert {plan.layout.names for plan in planned(there)} == {("users",)}


def test_needs_add_up_over_collections_but_only_one_at_a_time_is_unpacked() -> None:
    """Evenly: a third of each, and twice the largest shard beside; at most: one node gets every shard."""
    even, most = needs_of_all(planned(sizes={"a": 300, "b": 600, "c": 900}), TARGET)
    assert {need.disk_bytes for need in even.values()} == {100 + 200 + 300 + 2 * 900}
    assert {need.ram_bytes for need in even.values()} == {600}
    assert {need.disk_bytes for need in most.values()} == {1800 + 2 * 900}
    assert {need.ram_bytes for need in most.values()} == {1800}
    assert {need.disk_bytes for need in needs_of_all([], TARGET)[0].values()} == {0}


def test_what_is_left_out_is_told() -> None:
    """Collections that are not chosen, aliases that stay where they are, collections that are there already."""
    moved = [AliasMove(alias="people", collection="users", was=None)]
    found = [finding.message for finding in cluster_findings(record(), ["users"], moved, ["users"])]
    assert found == [
        "2 of 3 collections are left out: docs-a, docs-b.",
        "1 aliases of the backup are not moved: docs → docs-a.",
        "1 collections are there already and equal to their proofs: users.",
    ]
    all_moved = [*moved, AliasMove(alias="docs", collection="docs-a", was=None)]
    assert cluster_findings(record(), HELD, all_moved, []) == []


WISHES: dict[str, Any] = {
    "include": ("docs-*", "users"), "exclude": ("*-c",), "name": "{collection} 2",
    "rename": {"users": "u s", "docs-a": "a"}, "aliases": ("*",), "rename_aliases": {"docs": "d"},
    "keep_days": 3, "replication_factor": 2, "path": "points", "verify": "content",
}  # fmt: skip


def test_the_command_for_the_rest_asks_for_the_same() -> None:
    """With aliases all is named again, since they move only when everything is equal; without, only what is missing."""
    given = parser().parse_args(shlex.split(command(asked(**WISHES), BACKUP_ID, ["users"]))[3:])
    assert (given.command, given.backup, given.cluster, given.verify) == (
        "restore-cluster",
        BACKUP_ID,
        "test",
        "content",
    )
    assert (given.include, given.exclude, given.name) == (["docs-*", "users"], ["*-c"], "{collection} 2")
    assert (given.rename, given.alias, given.rename_alias) == (["users=u s", "docs-a=a"], ["*"], ["docs=d"])
    assert (given.keep_days, given.replication_factor, given.path) == (3, 2, "points")
    alone = asked(**WISHES | {"aliases": (), "rename_aliases": {}})
    given = parser().parse_args(shlex.split(command(alone, BACKUP_ID, ["users"]))[3:])
    assert (given.include, given.exclude, given.rename, given.alias) == (["users"], [], ["users=u s"], [])


def test_a_failure_says_what_is_done_what_failed_and_the_next_command() -> None:
    """In one error, after the others were restored."""
    plans = planned()
    even, _ = needs_of_all(plans, TARGET)
    moved = (AliasMove(alias="docs", collection="docs-a", was=None),)
    plan = ClusterRestorePlan(
        request=asked(), backup_id=BACKUP_ID, layout=TARGET, plans=tuple(plans), needs=even, aliases=moved
    )
    require_all(plan, {})
    with pytest.raises(RestoreError) as failed:
        require_all(plan, {"users": "It is damaged."})
    assert "1 of 3 collections" in failed.value.message
    assert "were not restored: users. There and equal: docs-a as docs-a, docs-b as docs-b. No alias was moved." in (
        failed.value.message
    )
    assert "- users: It is damaged." in failed.value.message
    assert "--include users --name" in (failed.value.remedy or "")
