"""A restore of many collections as flow runs: killed, signalled, with one that fails; the next run does the rest."""

import signal
import time
from typing import Any

import pytest

from ferry.errors import RestoreError
from flows.restore_cluster import restore_cluster
from sandbox.prefect_server import PrefectServer
from tests.faults.conftest import Runs
from tests.faults.scene import ALIAS, COLLECTION, LIVE, Scene, fill, names_and_aliases
from tests.faults.test_cancelled_runs import GRACE_SECONDS, runs_of

pytestmark = pytest.mark.usefixtures("quick")

MANY = "flows.restore_cluster:restore_cluster"
ASKED: dict[str, Any] = {
    "cluster": "target",
    "repository": "main",
    "source_cluster": "source",
    "name": "{collection}-2",
    "aliases": ["*"],
}
SMALL = "small"
NEW = {f"{COLLECTION}-2", f"{SMALL}-2"}


@pytest.fixture
def many(scene: Scene) -> Scene:
    """Two collections on the source, of which ``docs`` is larger and so the first; both have aliases; backed up."""
    source = scene.shop.clusters["source"]
    fill(source, SMALL, 30, shards=1, replicas=1, alias="small-live")
    scene.back_up(include=(COLLECTION, SMALL))
    return scene


def uuid_of(scene: Scene, collection: str) -> str | None:
    """Which collection of that name it is: another one when it was dropped and made again."""
    found = scene.connections("target").cluster.read_layout([collection]).collection(collection)
    assert found is not None
    return found.uuid


def test_a_killed_restore_of_many_is_finished_by_the_next(
    many: Scene, runs: Runs, prefect_server: PrefectServer
) -> None:
    """What is there and equal is not restored again; aliases that moved in a run that died are not moved again."""
    target = many.shop.clusters["target"]
    runs.killed(MANY, ASKED, "ferry.restore.steps:keep_target", "before", nth=2)
    assert names_and_aliases(target) == ({LIVE, *NEW}, {ALIAS: LIVE})
    first, begun = uuid_of(many, f"{COLLECTION}-2"), uuid_of(many, f"{SMALL}-2")

    runs.killed(MANY, ASKED, "ferry.restore.cluster_aliases:point", "after")
    assert names_and_aliases(target) == ({LIVE, *NEW}, {ALIAS: LIVE, "small-live": f"{SMALL}-2"})
    assert first is not None
    assert uuid_of(many, f"{COLLECTION}-2") == first
    assert uuid_of(many, f"{SMALL}-2") != begun

    before = runs_of(prefect_server, "restore-collection")
    assert restore_cluster(**ASKED, verify="content") == {COLLECTION: f"{COLLECTION}-2", SMALL: f"{SMALL}-2"}
    after = runs_of(prefect_server, "restore-collection")
    assert [run["id"] for run in after] == [run["id"] for run in before]
    assert all(run["parent_task_run_id"] for run in after[:3])
    [switch] = [key for key in many.shop.objects("switches/") if "small-live" in key]
    assert many.shop.read(switch)["state"] == "moved"
    many.require_sound()


def test_a_signalled_restore_of_many_begins_no_other(many: Scene, runs: Runs) -> None:
    """The collection under way is dropped, the next one is not begun, what is finished stays, no alias moves."""
    began = time.monotonic()
    pid = runs.start(MANY, ASKED, at="ferry.restore.steps:settle_target", when="before", nth=1, signal=signal.SIGTERM)
    assert runs.wait(pid) == f"signal {int(signal.SIGTERM)}"
    assert time.monotonic() - began < GRACE_SECONDS
    assert names_and_aliases(many.shop.clusters["target"]) == ({LIVE}, {ALIAS: LIVE})
    many.require_sound()


def test_a_collection_that_fails_leaves_the_others_and_the_aliases(many: Scene) -> None:
    """Its own flow run fails, the others' do not; the error of the whole says which, and the command for the rest."""
    [key] = [key for key in many.shop.objects("backups/") if f"/{COLLECTION}/shards/0." in key]
    place = {"Bucket": "ferry", "Key": f"{many.shop.folder.name}/{key}"}
    archive = many.shop.bucket.get_object(**place)["Body"].read()
    many.shop.bucket.put_object(**place, Body=bytes(len(archive)))
    with pytest.raises(RestoreError, match=f"were not restored: {COLLECTION}. There and equal: {SMALL}") as failed:
        restore_cluster(**ASKED)
    assert "python -m ferry restore-cluster" in (failed.value.remedy or "")
    assert names_and_aliases(many.shop.clusters["target"]) == ({LIVE, f"{SMALL}-2"}, {ALIAS: LIVE})
    many.shop.bucket.put_object(**place, Body=archive)
    restore_cluster(**ASKED)
    assert names_and_aliases(many.shop.clusters["target"])[1] == {ALIAS: LIVE, "small-live": f"{SMALL}-2"}
    many.require_sound()
