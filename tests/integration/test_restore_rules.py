"""Plans that change nothing, refusals before anything is changed, aliases that move last, and the upload fallback."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from ferry.errors import ConfigurationError, FerryError, HeadroomError, PreflightError, RestoreError, VersionError
from ferry.repository.manifest import BackupRecord
from ferry.restore.plan import RestorePlan
from ferry.restore.preflight import prepare as prepare_restore
from ferry.restore.run import run_restore
from sandbox.process import free_port
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import (
    HOLDER,
    SERVERS,
    Eavesdropper,
    back_up,
    changes_something,
    manifest_of,
    new_id,
    proven_everywhere,
    quick_job,
    restore,
    restore_request,
)
from tests.integration.samples import Api, everything, few
from tests.workshop import Workshop, drop_everything

pytestmark = SERVERS

DOCS, ALIAS = "docs", "docs-live"
ROOM = {"disk_free_bytes": 10**12, "ram_free_bytes": 10**12}


@dataclass(frozen=True)
class Stage:
    """A source with one small collection behind an alias, and a backup of it; the target is empty in each test."""

    shop: Workshop
    source: Api
    target: Api
    record: BackupRecord


@pytest.fixture(scope="module")
def stage(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Made once: no test here changes the source or its backup."""
    folder = tmp_path_factory.mktemp("topologies")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(folder, monkeypatch, shared_s3, {"source": three_nodes, "target": two_nodes}) as shop,
        Api(three_nodes.urls[0]) as source,
        Api(two_nodes.urls[1]) as target,
    ):
        sample = few(DOCS, 60)
        source.make(DOCS, replace(sample, body=sample.body | {"shard_number": 3, "replication_factor": 2}))
        source.alias(ALIAS, DOCS)
        yield Stage(shop, source, target, back_up(shop))


@pytest.fixture
def workshop(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """The usual settings before, an empty target afterwards."""
    monkeypatch.setenv("FERRY_CONFIG", str(stage.shop.config))
    stage.shop.configure()
    yield stage.shop
    drop_everything(stage.shop.clusters["target"])


@pytest.fixture
def target(stage: Stage) -> Api:
    """The target, as its second node answers."""
    return stage.target


@pytest.fixture
def record(stage: Stage) -> BackupRecord:
    """The backup of the source."""
    return stage.record


def refused(shop: Workshop, api: Api, expected: type[FerryError], record: BackupRecord, **asked: Any) -> FerryError:
    """The error of a restore that must be refused, after looking that it has sent no request that changes anything."""
    before = (api.collections(), api.aliases())
    with Eavesdropper(shop, "target") as heard, pytest.raises(expected) as caught:
        restore(shop, record, DOCS, **asked)
    assert [line for line in heard.of_nodes() if changes_something(line)] == []
    shop.configure()
    assert (api.collections(), api.aliases()) == before
    assert shop.leftovers() == []
    return caught.value


def test_the_alias_moves_last_and_at_once(workshop: Workshop, record: BackupRecord, target: Api) -> None:
    """The alias goes from the old collection to the new one in one request after all else; readers never see a gap."""
    target.make("old", few("old"))
    target.alias(ALIAS, "old")
    seen: list[Any] = []
    done = threading.Event()

    def read_on() -> None:
        with Api(workshop.clusters["target"].urls[0]) as reader:
            while not done.is_set():
                try:
                    seen.append(reader.count(ALIAS))
                except AssertionError as error:
                    seen.append(str(error))
                time.sleep(0.005)

    reading = threading.Thread(target=read_on)
    reading.start()
    try:
        with Eavesdropper(workshop, "target") as heard:
            restored = restore(workshop, record, DOCS, alias=ALIAS, into="new")
        time.sleep(0.1)
    finally:
        done.set()
        reading.join()
    workshop.configure()
    assert target.aliases() == {ALIAS: "new"}
    assert target.collections() == {"old", "new"}
    assert proven_everywhere(restored)
    assert sorted(set(seen)) == [12, 60]
    assert seen == sorted(seen)
    changing = [line for line in heard.nodes[0].requests if changes_something(line)]
    assert changing[-1].startswith("POST /collections/aliases")
    assert sum("aliases" in line for line in heard.of_nodes() if changes_something(line)) == 1
    assert workshop.leftovers() == []


def test_an_alias_that_somebody_moved_meanwhile_is_left_alone(
    workshop: Workshop, record: BackupRecord, target: Api
) -> None:
    """When the alias is not where the plan saw it, it stays there, and the finished collection is kept and named."""
    for name in ("old", "other"):
        target.make(name, few(name))
    target.alias(ALIAS, "old")

    def somebody_moves_it(_plan: RestorePlan) -> None:
        target.alias(ALIAS, "other")

    request = restore_request(record, DOCS, alias=ALIAS, into="new")
    with pytest.raises(RestoreError, match="pointed at old when planned and at other now") as caught:
        run_restore(workshop.connect("target"), request, HOLDER, quick_job(), announce=somebody_moves_it)
    assert "new is restored and verified" in (caught.value.remedy or "")
    assert target.aliases() == {ALIAS: "other"}
    assert target.count("new") == 60
    assert workshop.leftovers() == []


def test_names_that_are_taken_are_refused(workshop: Workshop, record: BackupRecord, target: Api) -> None:
    """A collection or alias in the way of the new name, or a collection in the way of the alias, changes nothing."""
    target.make("taken", few("taken"))
    target.alias("also-taken", "taken")
    error = refused(workshop, target, PreflightError, record, into="taken")
    assert "taken is already a collection on cluster target" in error.message
    error = refused(workshop, target, PreflightError, record, into="also-taken")
    assert "also-taken is already an alias of taken" in error.message
    error = refused(workshop, target, PreflightError, record, alias="taken")
    assert "taken is a collection on cluster target, so it cannot be an alias" in error.message
    assert target.count("taken") == 12


def test_a_restore_that_cannot_work_is_refused(workshop: Workshop, target: Api) -> None:
    """Too many copies, an older target, a missing archive: each is refused with its reason before anything is made."""
    record = back_up(workshop)
    error = refused(workshop, target, PreflightError, record, replication_factor=3)
    assert "replication factor 3 needs as many nodes; there are 2" in error.message

    connections = workshop.connect("target")
    manifest = manifest_of(connections, record, DOCS)
    newer = tuple(node.model_copy(update={"version": "1.17.1"}) for node in manifest.nodes)
    of_newer = manifest.model_copy(update={"backup_id": new_id(), "nodes": newer})
    connections.catalog.write_manifest(of_newer)
    error = refused(workshop, target, VersionError, record, backup=of_newer.backup_id, path="shards")
    assert "The target runs 1.16.3, older than the backup's 1.17.1" in error.message
    latest = refused(workshop, target, VersionError, record, backup="latest", path="shards")
    assert latest.message == error.message

    connections = workshop.connect("target")
    folder = connections.keys.collection_prefix("source", record.backup_id, DOCS)
    [file] = [archive.key for archive in manifest.archives if archive.key.startswith("shards/1.")]
    key = folder + file
    connections.store.delete([key])
    error = refused(workshop, target, PreflightError, record)
    assert f"{key} is missing" in error.message


def test_room_is_asked_for_before_anything_is_made(workshop: Workshop, record: BackupRecord, target: Api) -> None:
    """Too little disk or memory on one node refuses both jobs; unknown refuses or warns as the operator chose."""
    poor: dict[str, dict[str, Any]] = {
        "disk": {"kind": "static", "static": [ROOM, ROOM | {"disk_free_bytes": 10_000}]},
        "memory": {"kind": "static", "static": [ROOM, ROOM | {"ram_free_bytes": 10_000}]},
    }
    request = restore_request(record, DOCS)
    for what, headroom in poor.items():
        workshop.configure(clusters={"target": {"headroom": headroom}})
        with pytest.raises(HeadroomError, match=rf"of {what} and has 9\.8 KiB \(static\).*Nothing was changed"):
            run_restore(workshop.connect("target"), request, HOLDER, quick_job())
    workshop.configure(clusters={"target": {"headroom": {"kind": "unknown"}}})
    with pytest.raises(HeadroomError, match="nobody can tell what it has free"):
        run_restore(workshop.connect("target"), request, HOLDER, quick_job())
    assert target.collections() == set()

    workshop.configure(clusters={"target": {"headroom": {"kind": "unknown", "when_unknown": "warn"}}})
    plan = prepare_restore(workshop.connect("target"), request)
    assert {finding.severity for finding in plan.findings} == {"warning"}
    assert len([finding for finding in plan.findings if "of disk, and nobody can tell" in finding.message]) == 2

    poor_node = ROOM | {"disk_free_bytes": 10_000}
    static = [ROOM, poor_node, poor_node]  # wherever Qdrant put the replicas, the first cannot give all three shards
    workshop.configure(clusters={"source": {"headroom": {"kind": "static", "static": static}}})
    before = workshop.objects()
    with pytest.raises(HeadroomError, match="Nothing was changed"):
        back_up(workshop)
    assert workshop.objects() == before
    assert workshop.leftovers() == []


def test_every_restore_leaves_its_record(workshop: Workshop, target: Api) -> None:
    """The one that failed with its reason, the one that ended with its rates; the next plan expects by them."""
    record = back_up(workshop)
    request = restore_request(record, DOCS, into="failed")

    def somebody_deletes_an_archive(_plan: RestorePlan) -> None:
        folder = f"{workshop.folder.name}/backups/source/{record.backup_id}/{DOCS}/shards/"
        for info in workshop.bucket.list_objects_v2(Bucket="ferry", Prefix=folder)["Contents"]:
            workshop.bucket.delete_object(Bucket="ferry", Key=info["Key"])

    with pytest.raises(FerryError):
        run_restore(workshop.connect("target"), request, HOLDER, quick_job(), announce=somebody_deletes_an_archive)
    failed = workshop.read(f"restores/target/{request.restore_id}.json")
    assert (failed["verdict"], failed["target"], failed["moved"]) == ("failed", "failed", [])
    assert failed["why"]
    assert "Signature=" not in failed["why"]

    restored = restore(workshop, back_up(workshop), DOCS, into="new")
    noted = workshop.read(f"restores/target/{restored.plan.request.restore_id}.json")
    assert (noted["verdict"], noted["points"], noted["compared_points"]) == ("equal", 60, 120)
    assert noted["bytes"] == restored.plan.bytes_to_move == noted["moved"][0]["bytes"]
    assert noted["moved"][0]["way"] == "url"
    assert 0 < noted["recover_seconds"] <= noted["moved"][0]["seconds"]
    assert 0 < noted["verify_seconds"] <= noted["compare_seconds"]
    target.call("DELETE", target.of("new"))
    again = restore_request(back_up(workshop), DOCS)
    plan = prepare_restore(workshop.connect("target"), again)
    assert plan.expected_seconds is not None
    assert 0 < plan.expected_seconds < 60
    assert workshop.leftovers() == []


def test_nodes_that_cannot_reach_the_bucket_are_uploaded_to(
    workshop: Workshop, record: BackupRecord, target: Api
) -> None:
    """When the signed address leads nowhere all archives are uploaded, and a finding says why without secrets."""
    workshop.configure(repository={"node_endpoint_url": f"http://127.0.0.1:{free_port()}"})
    restored = restore(workshop, record, DOCS, alias=ALIAS)
    assert proven_everywhere(restored)
    assert everything(workshop.clusters["target"], restored.plan.target) == everything(
        workshop.clusters["source"], DOCS
    )
    assert {replica.path for replica in restored.recovered} == {"upload"}
    for replica in restored.recovered:
        (finding,) = replica.findings
        assert "could not fetch the archive itself" in finding.message
        assert "Signature=" not in finding.message
    assert workshop.leftovers() == []


def test_a_broken_collection_beside_it_is_no_obstacle(workshop: Workshop, record: BackupRecord, target: Api) -> None:
    """A restore works on a cluster where another collection, perhaps the one to be replaced, cannot be read at all."""
    sample = few("broken")
    body = {"vectors": {"other": {"size": 9, "distance": "Dot"}}, "shard_number": 1}
    target.make("broken", replace(sample, body=body, points=[{"id": 1, "vector": {"other": [0.5] * 9}}]))
    place = next(
        url
        for url in workshop.clusters["target"].urls
        if httpx.get(f"{url}/collections/broken/cluster", trust_env=False).json()["result"]["local_shards"]
    )
    [key] = [key for key in workshop.objects("backups/") if f"{record.backup_id}/{DOCS}/shards/0." in key]
    archive = workshop.bucket.get_object(Bucket="ferry", Key=f"{workshop.folder.name}/{key}")["Body"].read()
    path = "/collections/broken/shards/0/snapshots/upload?priority=no_sync"
    for data in (archive[: len(archive) // 2], archive):  # the second one loads late, into what the first one left
        httpx.post(place + path, files={"snapshot": data}, timeout=60, trust_env=False)
    assert not httpx.get(f"{place}/collections/broken", trust_env=False).is_success
    assert proven_everywhere(restore(workshop, record, DOCS, alias=ALIAS))
    assert target.count(ALIAS) == 60
    assert workshop.leftovers() == []


def test_patterns_that_find_nothing_are_refused(workshop: Workshop) -> None:
    """A misspelt pattern, or patterns that leave nothing over, make no empty backup."""
    before = workshop.objects()
    with pytest.raises(ConfigurationError, match="matches no collection"):
        back_up(workshop, include=("dosc",))
    with pytest.raises(PreflightError, match="no collection to back up"):
        back_up(workshop, exclude=(DOCS,))
    assert workshop.objects() == before
