"""What a restore over a live collection is refused for, what stays as it is live, and what each node needs."""

import shlex
from typing import Any

import pytest

from ferry.errors import FerryError, LayoutError, PreflightError, RestoreError, VersionError
from ferry.models import BackupId, ClusterLayout, CollectionLayout, PeerId, ShardLayout
from ferry.restore.in_place import InPlaceRequest, again, back_to, plan_in_place
from ferry.restore.plan import RestorePlan
from tests.unit.builders import BACKUP_ID, archive, collection, layout, manifest, node, shard

DOCS = collection("docs", [shard(0, [1, 2]), shard(1, [2, 3])])
BACKUP = manifest(DOCS, [archive(0, size=100), archive(1, size=300)])
NODES = [node(1), node(2), node(3)]
LATER = BackupId("20261123T120000Z-abcdef")


def request(**wishes: Any) -> InPlaceRequest:
    base: dict[str, Any] = {"cluster": "test", "repository": "main", "source_cluster": "old", "collection": "docs"}
    usual = {"restore_id": "20261122T130000Z-123456", "backup": BACKUP_ID, "confirm": "docs", "verify": "count"}
    return InPlaceRequest(**base | usual | wishes)


def planned(live: CollectionLayout = DOCS, **wishes: Any) -> RestorePlan:
    return plan_in_place(request(**wishes), BACKUP, layout(NODES, [live]))


def changed(live: CollectionLayout, **config: Any) -> CollectionLayout:
    return live.model_copy(update={"config": live.config | config})


def keyed(shard_id: int, key: str) -> ShardLayout:
    return shard(shard_id, [1]).model_copy(update={"key": key})


def test_every_live_replica_gets_the_archive_of_its_shard() -> None:
    """No collection is made, no alias is moved, and the settings are those that are live."""
    plan = planned()
    assert [(each.shard_id, each.source, each.copies) for each in plan.shards] == [(0, 0, 2), (1, 1, 2)]
    assert (plan.path, plan.target, plan.in_place) == ("shards", "docs", DOCS)
    assert (plan.creation_body, plan.patch_body, plan.payload_indexes) == ({}, {}, ())
    assert plan.findings == ()
    assert "backed up and proven first" in plan.reasons[0]
    assert "waived" in planned(waive_backup=True).reasons[0]
    assert "written since the backup was made (2026-11-22 12:00:00 UTC)" in plan.losses[0]


@pytest.mark.parametrize("typed", ["", "Docs", "docs ", "yes"])
def test_the_name_must_be_typed(typed: str) -> None:
    """Exactly the name of what is overwritten, and of nothing else."""
    with pytest.raises(PreflightError, match="must be typed as confirmation") as refused:
        planned(confirm=typed)
    assert "--confirm docs" in str(refused.value.remedy)


def test_the_name_is_that_of_the_live_collection() -> None:
    """Where it has another name than in the backup, that one must be typed."""
    live = DOCS.model_copy(update={"name": "docs-2"})
    assert planned(live, into="docs-2", confirm="docs-2").target == "docs-2"
    with pytest.raises(PreflightError, match="overwrites every point of docs-2"):
        planned(live, into="docs-2", confirm="docs")


def test_latest_is_refused() -> None:
    """After a first attempt the latest backup is of the state that was to be replaced."""
    with pytest.raises(PreflightError, match="second attempt would take that for latest"):
        planned(backup="latest")


def refusals() -> list[tuple[str, ClusterLayout, type[FerryError], str]]:
    two = collection("docs", [shard(0, [1]), shard(1, [1])])
    vectors, sparse = {"size": 8, "distance": "Cosine"}, {"words": {}}
    return [
        ("alias", layout(NODES, [], {"docs": "docs-7"}), PreflightError, "docs is an alias of docs-7"),
        ("missing", layout(NODES, []), PreflightError, "has no collection docs"),
        (
            "count",
            layout(NODES, [collection("docs", [shard(0, [1])])]),
            PreflightError,
            r"has the shards \[0, 1\], liv",
        ),
        ("numbers", layout(NODES, [collection("docs", [shard(0, [1]), shard(2, [1])])]), PreflightError, r"\[0, 2\]"),
        (
            "vectors",
            layout(NODES, [with_params(two, vectors=vectors)]),
            PreflightError,
            "params.vectors.size: 4 in the",
        ),
        ("sparse", layout(NODES, [with_params(two, sparse_vectors=sparse)]), PreflightError, "params.sparse_vectors"),
        ("payload", layout(NODES, [with_params(two, on_disk_payload=False)]), PreflightError, "params.on_disk_payload"),
        (
            "quantization",
            layout(NODES, [changed(two, quantization_config={"scalar": {"type": "int8"}})]),
            PreflightError,
            "quantization_config.scalar.type",
        ),
        ("version", layout([node(1, "1.15.5"), *NODES[1:]], [DOCS]), VersionError, "older than the backup's"),
        ("node", layout(NODES[:2], [DOCS]), LayoutError, "shard 1 on peer 3: no configured address"),
        ("state", layout(NODES, [in_state("Dead")]), LayoutError, "shard 1 on node-2:6333 is Dead"),
        ("listener", layout(NODES, [in_state("Listener")]), LayoutError, "is a Listener"),
    ]


def with_params(live: CollectionLayout, **params: Any) -> CollectionLayout:
    return changed(live, params=live.config["params"] | params)


def in_state(state: str) -> CollectionLayout:
    return collection("docs", [shard(0, [1, 2]), shard(1, [2, 3], state)])


@pytest.mark.parametrize(("name", "cluster", "kind", "said"), refusals(), ids=[name for name, *_ in refusals()])
def test_what_does_not_fit_is_refused(name: str, cluster: ClusterLayout, kind: type[FerryError], said: str) -> None:
    """Each with its reason, and with a command that works instead."""
    with pytest.raises(kind, match=said) as refused:
        plan_in_place(request(), BACKUP, cluster)
    remedy = str(refused.value.remedy)
    if name == "state":
        assert again(request()) in remedy
    elif name != "node":
        assert "python -m ferry restore docs --cluster test --repository main --source-cluster old" in remedy


def test_settings_that_differ_stay_as_they_are_live() -> None:
    """A finding for each: the optimizers or nothing at all go by them, and archives fit all the same."""
    index = {"city": {"data_type": "keyword", "points": 3}}
    vectors = DOCS.config["params"]["vectors"] | {"hnsw_config": {"m": 8}}
    live = with_params(changed(DOCS, strict_mode_config={"enabled": True}), vectors=vectors)
    plan = planned(live.model_copy(update={"payload_schema": index}))
    assert [finding.severity for finding in plan.findings] == ["warning"] * 3
    told = " ".join(finding.message for finding in plan.findings)
    for what in ("params.vectors.hnsw_config.m", "strict_mode_config.enabled", "payload index city.type"):
        assert what in told
    assert told.count("it stays as it is live") == 3


def test_an_index_that_only_the_backup_has_comes_back_with_it() -> None:
    """Nothing drops it from the archives' segments; the finding says how. Another type of a field stays as it is."""

    def indexed(**types: str) -> dict[str, Any]:
        return {field: {"data_type": kind, "points": 3} for field, kind in types.items()}

    backup = BACKUP.model_copy(update={"payload_schema": indexed(city="keyword", age="integer")})
    live = DOCS.model_copy(update={"payload_schema": indexed(age="float")})
    first, second = plan_in_place(request(), backup, layout(NODES, [live])).findings
    assert first.message == "payload index age.type: 'integer' in the backup, 'float' live: it stays as it is live."
    assert "payload index city is in the backup and not live: it comes back" in second.message
    assert "DELETE /collections/docs/index/city" in str(second.remedy)


def test_keys_with_one_shard_fit_whatever_its_number() -> None:
    """A key that was made anew takes all of its points again; one of several shards hashes over their numbers."""
    stored = collection("docs", [keyed(1, "a"), keyed(2, "b"), keyed(3, "b")], sharding_method="custom")
    backup = manifest(stored, [archive(1), archive(2), archive(3)])
    live = collection("docs", [keyed(2, "b"), keyed(3, "b"), keyed(7, "a")], sharding_method="custom")
    plan = plan_in_place(request(), backup, layout(NODES, [live]))
    assert {(each.key, each.shard_id, each.source) for each in plan.shards} == {("a", 7, 1), ("b", 2, 2), ("b", 3, 3)}
    moved = collection("docs", [keyed(2, "b"), keyed(4, "b"), keyed(1, "a")], sharding_method="custom")
    with pytest.raises(PreflightError, match=r"has the shards \[2, 3\] of key 'b', live are \[2, 4\]"):
        plan_in_place(request(), backup, layout(NODES, [moved]))


def test_a_replica_that_is_not_active_is_overwritten_once_a_backup_of_it_is_waived() -> None:
    """So that a restore which stopped half-way can go on; the plan says which replicas these are."""
    plan = planned(in_state("Dead"), waive_backup=True)
    assert [finding.subject for finding in plan.findings] == [
        "docs/shard 1 on node-2:6333",
        "docs/shard 1 on node-3:6333",
    ]


def test_a_node_needs_its_largest_archive_twice_and_what_the_backup_has_more() -> None:
    """The old shard is there until the new one is unpacked; then its place is free again."""
    held = {PeerId(1): 100, PeerId(2): 150}
    plan = plan_in_place(request(), BACKUP, layout(NODES, [DOCS]), held)
    assert {peer: need.disk_bytes for peer, need in plan.needs.items()} == {1: 200, 2: 250 + 600, 3: 300 + 600}
    assert {peer: need.ram_bytes for peer, need in plan.needs.items()} == {1: 0, 2: 250, 3: 300}


def test_a_manifest_that_lacks_a_shard_is_refused() -> None:
    """A smaller backup never overwrites anything."""
    with pytest.raises(RestoreError, match=r"lacks archives of shards \[1\]"):
        plan_in_place(request(), manifest(DOCS, [archive(0)]), layout(NODES, [DOCS]))


def test_commands_can_be_copied() -> None:
    """They name everything, quoted for a shell; the way back takes the backup of before from the live cluster."""
    asked = request(collection="my docs", into="the docs", confirm="the docs")
    words = shlex.split(again(asked))
    assert words[:5] == ["python", "-m", "ferry", "restore-in-place", "my docs"]
    assert words[5:] == shlex.split(
        f"--cluster test --repository main --source-cluster old --backup {BACKUP_ID} --into 'the docs' "
        "--confirm 'the docs' --waive-backup"
    )
    words = shlex.split(back_to(asked, LATER))
    assert words[4:] == shlex.split(
        f"'the docs' --cluster test --repository main --source-cluster test --backup {LATER} --confirm 'the docs' "
        "--waive-backup"
    )
