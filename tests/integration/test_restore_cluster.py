"""Many collections: planned together, restored one by one, put into service in one request when all are equal."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ferry.__main__ import main
from ferry.connections import Connections
from ferry.errors import HeadroomError, PreflightError, RestoreError
from ferry.repository.manifest import BackupRecord
from ferry.restore.cluster_run import ClusterRestored, prepare_cluster, run_cluster
from ferry.restore.whole_cluster import ClusterRestorePlan, ClusterRestoreRequest
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import (
    HOLDER,
    SERVERS,
    Eavesdropper,
    back_up,
    changes_something,
    new_id,
    proven_everywhere,
    quick_job,
)
from tests.integration.samples import Api, everything, few
from tests.workshop import Workshop, drop_everything, eventually

pytestmark = SERVERS

DOCS, USERS, NOTES = "docs", "users", "notes ü"
LIVE = {"docs-live": DOCS, "people": USERS}


@dataclass(frozen=True)
class Stage:
    """A source with three collections and two aliases, and a backup of it; the target is empty in each test."""

    shop: Workshop
    record: BackupRecord


@pytest.fixture(scope="module")
def stage(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Made once: no test here changes the source, and what one changes of the backup it puts back."""
    folder = tmp_path_factory.mktemp("many")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(folder, monkeypatch, shared_s3, {"source": three_nodes, "target": two_nodes}) as shop,
        Api(three_nodes.urls[0]) as source,
    ):
        sample = few(DOCS, 60)
        source.make(DOCS, replace(sample, body=sample.body | {"shard_number": 2, "replication_factor": 2}))
        source.make(USERS, few(USERS))
        source.make(NOTES, few(NOTES))
        for alias, collection in LIVE.items():
            source.alias(alias, collection)
        yield Stage(shop, back_up(shop))


@pytest.fixture
def workshop(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """The usual settings before, an empty target afterwards."""
    monkeypatch.setenv("FERRY_CONFIG", str(stage.shop.config))
    stage.shop.configure()
    yield stage.shop
    drop_everything(stage.shop.clusters["target"])


@pytest.fixture
def target(workshop: Workshop) -> Iterator[Api]:
    """The target, as its second node answers."""
    with Api(workshop.clusters["target"].urls[1]) as api:
        yield api


def request(**wishes: Any) -> ClusterRestoreRequest:
    """Everything, called as it was with a 2 behind it, compared point by point."""
    usual: dict[str, Any] = {"cluster": "target", "repository": "main", "source_cluster": "source", "verify": "content"}
    return ClusterRestoreRequest(restore_id=new_id(), **usual | {"name": "{collection}2"} | wishes)


def restore_all(connections: Connections, wishes: ClusterRestoreRequest, **asked: Any) -> ClusterRestored:
    return run_cluster(connections, wishes, HOLDER, quick_job, **asked)


def test_a_whole_cluster_comes_back_and_goes_into_service_at_once(
    stage: Stage, workshop: Workshop, target: Api
) -> None:
    """First without aliases; then, when all is there, nothing is restored again and the aliases move, all or none."""
    target.make("old", few("old"))
    target.alias("docs-live", "old")
    with Eavesdropper(workshop, "target") as heard:
        plan = prepare_cluster(workshop.connect("target"), request(aliases=("*",)), quick_job())
        assert heard.changes() == []
    assert [each.target for each in plan.plans] == [f"{DOCS}2", f"{NOTES}2", f"{USERS}2"]
    workshop.configure()

    done = restore_all(workshop.connect("target"), request())
    assert all(proven_everywhere(restored) for restored in done.restored)
    for name, new in done.plan.targets.items():
        found = everything(workshop.clusters["target"], new)
        assert found == everything(workshop.clusters["source"], name)
    assert target.aliases() == {"docs-live": "old"}
    told = [finding.message for finding in done.plan.findings]
    assert "2 aliases of the backup are not moved: docs-live → docs, people → users." in told

    def somebody_moves_it(_plan: ClusterRestorePlan) -> None:
        target.alias("docs-live", f"{USERS}2")

    with pytest.raises(RestoreError, match=r"docs-live \(at old when planned, at users2 now\)"):
        restore_all(workshop.connect("target"), request(aliases=("*",)), announce=somebody_moves_it)
    assert target.aliases() == {"docs-live": f"{USERS}2"}

    with Eavesdropper(workshop, "target") as heard:
        again = restore_all(workshop.connect("target"), request(aliases=("*",), rename_aliases={"people": "folk"}))
        changing = [line for line in heard.of_nodes() if changes_something(line)]
    workshop.configure()
    assert (len(again.restored), set(again.plan.there)) == (0, {DOCS, USERS, NOTES})
    assert len(changing) == 1
    assert changing[0].startswith("POST /collections/aliases")
    assert target.aliases() == {"docs-live": f"{DOCS}2", "folk": f"{USERS}2"}
    assert len([key for key in workshop.objects("switches/") if key.endswith(".json")]) == 2
    assert workshop.leftovers() == []


def test_one_that_fails_stops_no_other_and_the_command_that_is_told_does_the_rest(
    stage: Stage, workshop: Workshop, target: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """No alias moves; the next command restores only what is missing; what was changed since is never overwritten."""
    [key] = [key for key in workshop.objects("backups/") if f"/{USERS}/shards/" in key]
    place = {"Bucket": "ferry", "Key": f"{workshop.folder.name}/{key}"}
    archive = workshop.bucket.get_object(**place)["Body"].read()
    workshop.bucket.put_object(**place, Body=bytes(len(archive)))
    with pytest.raises(RestoreError, match="1 of 3 collections of backup") as failed:
        restore_all(workshop.connect("target"), request(aliases=("*",)))
    assert (
        f"were not restored: {USERS}. There and equal: {DOCS} as {DOCS}2, {NOTES} as {NOTES}2." in failed.value.message
    )
    # It was dropped by the first node; the second, which is asked here, may learn of it a moment later.
    assert eventually(lambda: target.collections() == {f"{DOCS}2", f"{NOTES}2"})
    assert target.aliases() == {}
    assert workshop.leftovers() == []

    workshop.bucket.put_object(**place, Body=archive)
    words = shlex.split((failed.value.remedy or "").partition(": ")[2])
    assert words[:3] == ["python", "-m", "ferry"]
    with Eavesdropper(workshop, "target") as heard:
        assert main(words[3:]) == 0
        made = [line for line in heard.of_nodes() if line.startswith("PUT /collections/") and line.count("/") == 3]
    workshop.configure()
    assert [line.split(" ")[1].partition("?")[0] for line in made] == [f"/collections/{USERS}2"]
    assert "is there, equal" in capsys.readouterr().out
    assert target.aliases() == {"docs-live": f"{DOCS}2", "people": f"{USERS}2"}

    target.call("PUT", target.of(f"{USERS}2") + "/points?wait=true", {"points": [{"id": 10**6, "vector": [1.0] * 4}]})
    with Eavesdropper(workshop, "target") as heard:
        with pytest.raises(PreflightError, match=r"users2 is already a collection .* not what backup .* 13 points"):
            prepare_cluster(workshop.connect("target"), request(), quick_job())
        assert heard.changes() == []
    workshop.configure()
    assert target.count(f"{USERS}2") == 13
    assert workshop.leftovers() == []


def test_room_is_asked_for_all_of_them_together(stage: Stage, workshop: Workshop, target: Api) -> None:
    """Each fits by itself and all of them do not; where only an unlucky placement would not fit, that is told."""
    ample = prepare_cluster(workshop.connect("target"), request(), quick_job())
    single = max(need.disk_bytes for plan in ample.plans for need in plan.needs.values())
    together = max(need.disk_bytes for need in ample.needs.values())
    assert single < together
    for free, refused in ((together - 1, True), (together, False)):
        room = {"disk_free_bytes": free, "ram_free_bytes": 10**12}
        headroom = {"kind": "static", "static": [room, room]}
        workshop.configure(clusters={"target": {"headroom": headroom}})
        if refused:
            with pytest.raises(HeadroomError, match="Not enough room"):
                restore_all(workshop.connect("target"), request())
        else:
            plan = prepare_cluster(workshop.connect("target"), request(), quick_job())
            assert ["Spread evenly it fits" in finding.message for finding in plan.findings] == [False, True]
    assert target.collections() == set()
    assert workshop.leftovers() == []
