"""SIGKILL of the process after each step: the next run takes away what the dead one left."""

import pytest

from ferry.errors import PreflightError
from flows.back_up_cluster import back_up_cluster
from flows.finish_restore import finish_restore
from flows.restore_collection import restore_collection
from flows.roll_back_restore import roll_back_restore
from tests.faults.conftest import BACK_UP, RESTORE, SOURCE, TARGET, Runs
from tests.faults.scene import ALIAS, LIVE, Scene, fill, names_and_aliases

pytestmark = pytest.mark.usefixtures("quick")

BACKUP_STEPS = {
    "lease taken": ("ferry.backup.tidy:acquire", "after"),
    "snapshot made, its name not noted": ("ferry.qdrant.snapshots:create_snapshot", "after"),
    "snapshot made": ("ferry.backup.steps:create_snapshot", "after"),
    "uploaded, node's file not deleted": ("ferry.backup.steps:_release_snapshot", "before"),
    "proven": ("ferry.backup.steps:prove_upload", "after"),
    "manifest written, backup.json not": ("ferry.repository.catalog:Catalog.write_manifest", "after"),
    "backup.json written, lease held": ("ferry.repository.catalog:Catalog.write_backup", "after"),
    # The last one: a later killed run's snapshot would pass for the one that this note asks for.
    "journal noted, nothing asked": ("ferry.repository.journal:Journal.note", "after"),
}
RESTORE_STEPS = {
    "journal noted": ("ferry.repository.journal:Journal.note", "after"),
    "collection created": ("ferry.qdrant.node:Node.create_collection", "after"),
    "first replica recovered": ("ferry.qdrant.snapshots:recover_shard", "after"),
    "all recovered": ("ferry.restore.steps:settle_target", "before"),
    "verified": ("ferry.restore.steps:keep_target", "before"),
}
LATE_STEPS = {
    "kept": ("ferry.restore.steps:keep_target", "after"),
    "moved": ("ferry.restore.switch:move_alias", "after"),
}


def test_the_next_backup_tidies_after_a_killed_one(scene: Scene, runs: Runs) -> None:
    """Whatever step a backup dies after, it counts only when it was committed, and the next leaves nothing of it."""
    committed = 0
    for step, (at, when) in BACKUP_STEPS.items():
        runs.killed(BACK_UP, SOURCE, at, when)
        committed += at.endswith("write_backup")
        scene.require_honest()
        assert len(scene.complete()) == committed, step
    back_up_cluster(**SOURCE)
    assert len(scene.complete()) == 2
    scene.require_sound()


def test_a_backup_killed_in_mid_upload_leaves_no_parts(scene: Scene, runs: Runs) -> None:
    """Half of a multipart upload is aborted by the next run, and the snapshot that it came from is deleted."""
    fill(scene.shop.clusters["source"], "large", 1800, size=1024, shards=1, replicas=1)
    scene.remember("source", "large")
    scene.configure(repository={"part_bytes": 5 << 20})
    scene.mark_repository()
    runs.killed(BACK_UP, SOURCE, "ferry.repository.upload:ArchiveUpload._send_part")
    assert [found for found in scene.shop.leftovers() if found.startswith("upload")]
    back_up_cluster(**SOURCE)
    scene.require_sound()


def test_the_next_restore_tidies_after_a_killed_one(scene: Scene, runs: Runs) -> None:
    """A restore that dies before it kept its collection never touched the alias, and the next one begins anew."""
    scene.back_up()
    target = scene.shop.clusters["target"]
    for number, (step, (at, when)) in enumerate(RESTORE_STEPS.items()):
        runs.killed(RESTORE, TARGET | {"into": f"new-{number % 2}"}, at, when)
        assert names_and_aliases(target)[1] == {ALIAS: LIVE}, step
    restored = restore_collection(**TARGET, verify="content")
    assert names_and_aliases(target) == ({LIVE, restored}, {ALIAS: restored})
    scene.require_sound()


def test_a_restored_collection_outlives_its_killed_run(scene: Scene, runs: Runs) -> None:
    """Once it was found equal to its proof, a collection is the operator's: no later run drops or replaces it.

    What its alias was to do is known: a finish that names the alias does it, and a roll back goes back.
    """
    scene.back_up()
    target = scene.shop.clusters["target"]
    for into, (at, when) in LATE_STEPS.items():
        runs.killed(RESTORE, TARGET | {"into": into}, at, when)
        assert names_and_aliases(target)[1] == {ALIAS: LIVE if into == "kept" else into}
        scene.remember("target", into)
        with pytest.raises(PreflightError, match=f"{into} is already a collection"):
            restore_collection(**TARGET, into=into)
        if into == "kept":
            assert finish_restore("target", "main") == []
            assert names_and_aliases(target)[1] == {ALIAS: LIVE}
            finish_restore("target", "main", alias=ALIAS)
            assert names_and_aliases(target)[1] == {ALIAS: "kept"}
    assert roll_back_restore("target", "main", ALIAS) == "kept"
    assert names_and_aliases(target)[1] == {ALIAS: "kept"}
    scene.require_sound()


def test_what_was_uploaded_and_never_proven_is_not_left_beside_its_successor(scene: Scene, runs: Runs) -> None:
    """The next run uses the snapshot and makes the archive anew; the dead run's object goes (found by the soak)."""
    runs.killed(BACK_UP, SOURCE, "ferry.backup.steps:_release_snapshot", "before")
    back_up_cluster(**SOURCE)
    scene.require_sound()
