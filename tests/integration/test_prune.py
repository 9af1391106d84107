"""Pruning in real buckets: killed at any delete, raced by readers, under locks, by the store's clock, and timed."""

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ferry.__main__ import main
from ferry.connections import Repository, forget_connections
from ferry.errors import BackupNotFoundError, StoreUnavailableError
from ferry.models import BackupId
from ferry.profiles import PolicyProfile, RepositoryProfile, Retention, WorkerSettings
from ferry.prune import run, steps
from ferry.prune.gc import collect, look_for_garbage
from ferry.repository import fence
from ferry.repository.catalog import Catalog
from ferry.repository.layout import Keys
from ferry.repository.readers import reading
from ferry.repository.store import Store
from ferry.repository.upkeep import lock_of, store_time
from ferry.restore import steps as restore_steps
from sandbox.moto_s3 import MotoServer
from sandbox.prefect_server import PrefectServer
from sandbox.s3 import S3Server
from tests.fabricated import ARCHIVE, History
from tests.integration.crossings import SERVERS, back_up, proven_everywhere, restore
from tests.integration.samples import SAMPLES, Api
from tests.workshop import Workshop

pytestmark = SERVERS

TODAY = datetime.now(UTC).replace(hour=3, minute=0, second=0, microsecond=0)
DAY = timedelta(days=1)
KEEP_TWO = PolicyProfile(retention=Retention(keep_last=2, minimum_proven=1))


def repository_of(server: S3Server | MotoServer, prefix: str, **profile: Any) -> Repository:
    """A repository under that prefix."""
    usual = {
        "bucket": "ferry",
        "prefix": prefix,
        "endpoint_url": server.endpoint_url,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "addressing_style": "path",
        "lease_seconds": 1,
    }
    made = RepositoryProfile(**(usual | profile))
    store, keys = Store(made), Keys(made.prefix)
    return Repository(made, WorkerSettings(), store, keys, Catalog(store, keys))


@pytest.fixture(params=["seaweedfs", "moto"])
def repository(request: pytest.FixtureRequest, shared_s3: S3Server, tmp_path: Path) -> Repository:
    """An empty repository in each of the two kinds of store."""
    server = shared_s3 if request.param == "seaweedfs" else request.getfixturevalue("moto")
    return repository_of(server, tmp_path.name)


def there(repository: Repository, cluster: str) -> set[str]:
    """Keys of a cluster's backups, without fences."""
    store = repository.store
    found = [info.key for info in store.list(repository.keys.cluster_prefix(cluster))]
    return {key for key in found if not key.endswith(".json") or fence.read_place(store, key).document}


def ids(repository: Repository, cluster: str) -> set[str]:
    prefix = repository.keys.cluster_prefix(cluster)
    return {key.removeprefix(prefix).split("/")[0] for key in there(repository, cluster)}


def require_whole(repository: Repository, cluster: str) -> None:
    """Every manifest that is there reads back, and so does every archive that it names."""
    keys = there(repository, cluster)
    for key in (key for key in keys if key.endswith("/manifest.json")):
        backup_id, name = key.split("/")[-3:-1]
        manifest = repository.catalog.read_manifest(cluster, backup_id, name)
        for archive in manifest.archives:
            place = repository.keys.collection_prefix(cluster, BackupId(backup_id), name) + archive.key
            assert place in keys
            assert b"".join(repository.store.read(place, expected_bytes=archive.bytes)) == ARCHIVE


def dying_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From that change on the store answers nothing any more, as for a process that was killed."""
    changes = count()

    def mortal(original: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            if "/leases/" not in str(arguments[1]) and next(changes) >= number:
                raise StoreUnavailableError("killed")
            return original(*arguments, **named)

        return act

    for name in ("delete", "put_document"):
        monkeypatch.setattr(Store, name, mortal(getattr(Store, name)))


def test_killed_at_a_delete_the_next_prune_comes_to_the_same_end(
    shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every third change, in a real store; at every change in tests/unit/test_prune.py."""
    repository, killed = repository_of(shared_s3, tmp_path.name), 0
    for number in range(0, 40, 3):
        cluster = f"after-{number}"
        history = History(repository.store, repository.keys, cluster)
        made = [history.back_up(TODAY - age * DAY, "docs", "words") for age in (3, 2, 1)]
        with monkeypatch.context() as patched:
            dying_after(patched, number)
            try:
                run.prune(repository, cluster, KEEP_TWO, "a prune that is killed")
                alive = True
            except StoreUnavailableError:
                alive = False
                killed += 1
        require_whole(repository, cluster)
        assert set(made[1:]) <= ids(repository, cluster)
        if alive:
            break
        repository.store.delete([repository.keys.lease(cluster)])  # it would end by itself
        run.prune(repository, cluster, KEEP_TWO, "the next prune")
        assert ids(repository, cluster) == set(made[1:])
        require_whole(repository, cluster)
        assert list(repository.store.list(f"{repository.keys.prefix}/prunes/")) == []
    assert killed >= 4


def test_readers_race_a_prune(shared_s3: S3Server, tmp_path: Path) -> None:
    """A reader that was let in reads everything that its manifest names; one that came too late is told."""
    repository = repository_of(shared_s3, tmp_path.name)
    chance, read, told = random.Random(4711), [], []
    for turn in range(5):
        cluster = f"turn-{turn}"
        history = History(repository.store, repository.keys, cluster)
        target, *_ = (history.back_up(TODAY - age * DAY) for age in (3, 2, 1))
        manifest = repository.catalog.read_manifest(cluster, target, "docs")
        start, late = threading.Barrier(2), chance.uniform(0, 0.25)

        def restore_it() -> None:
            start.wait()  # noqa: B023 - joined within this turn
            time.sleep(late)  # noqa: B023
            point = history.folder(target) + "manifest.json"  # noqa: B023
            try:
                with reading(repository.store, repository.keys, cluster, target, [point], "a reader"):  # noqa: B023
                    time.sleep(0.3)
                    for archive in manifest.archives:  # noqa: B023
                        key = history.folder(target) + archive.key  # noqa: B023
                        assert b"".join(repository.store.read(key, expected_bytes=archive.bytes)) == ARCHIVE
                    read.append(turn)  # noqa: B023
            except BackupNotFoundError:
                told.append(turn)  # noqa: B023

        thread = threading.Thread(target=restore_it)
        thread.start()
        start.wait()
        run.prune(repository, cluster, KEEP_TWO, "a prune")
        thread.join()
        assert len(read) + len(told) == turn + 1
        run.prune(repository, cluster, KEEP_TWO, "the next prune")
        assert target not in ids(repository, cluster)
    assert read


def test_fifty_backups_of_eight_weeks(shared_s3: S3Server, tmp_path: Path) -> None:
    """The usual rules; with -s it prints how long it took, for docs/retention.md."""
    repository = repository_of(shared_s3, tmp_path.name)
    history = History(repository.store, repository.keys, archives=1)
    made = [history.back_up(TODAY - age * DAY) for age in range(50, 0, -1)]
    rules = PolicyProfile(retention=Retention(keep_last=2, keep_daily=7, keep_weekly=4, keep_monthly=6))
    began = time.monotonic()
    looked = run.look(repository, "test", rules)
    planned = time.monotonic()
    pruned = run.prune(repository, "test", rules, "a prune")
    took = time.monotonic() - planned
    print(f"plan of 50 backups {planned - began:.2f} s, prune of {len(pruned.outcomes)} {took:.2f} s")  # noqa: T201
    assert [v.backup_id for v in looked.plan.deletes] == [outcome.backup_id for outcome in pruned.outcomes]
    assert {outcome.state for outcome in pruned.outcomes} == {"deleted"}
    assert set(made[-7:]) <= ids(repository, "test")
    assert 9 <= len(ids(repository, "test")) <= 13
    require_whole(repository, "test")


def test_each_store_is_pruned_and_tells_its_own_time(repository: Repository) -> None:
    """The Date of an answer and the time of a fresh object are one clock, whether the object asked for is there."""
    history = History(repository.store, repository.keys)
    made = [history.back_up(TODAY - age * DAY) for age in (3, 2, 1)]
    assert [outcome.state for outcome in run.prune(repository, "test", KEEP_TWO, "a prune").outcomes] == ["deleted"]
    assert ids(repository, "test") == set(made[1:])
    key = f"{repository.keys.prefix}/clock"
    before = store_time(repository.store, key)
    repository.store.put_document(key, b"{}")
    written = repository.store.head(key)
    assert written is not None
    assert abs(store_time(repository.store, key) - written.modified) < timedelta(seconds=5)
    assert abs(before - written.modified) < timedelta(seconds=5)


def test_locked_backups_count_as_kept(moto: MotoServer, tmp_path: Path) -> None:
    """The lock is seen before anything is hidden behind a delete marker."""
    bucket = f"locked-{tmp_path.name[-20:].strip('-_').replace('_', '-')}".lower()
    moto.client().create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    locked = repository_of(moto, "ferry", bucket=bucket, lock_mode="GOVERNANCE", lock_days=9)
    history = History(locked.store, locked.keys)
    made = [history.back_up(TODAY - age * DAY) for age in (3, 2, 1)]
    assert lock_of(locked.store, locked.keys.backup("test", made[0])).until is not None
    before = there(locked, "test")
    pruned = run.prune(locked, "test", KEEP_TWO, "a prune")
    assert pruned.outcomes == ()
    assert pruned.plan.verdicts[-1].reasons[0].startswith("locked until 20")
    assert there(locked, "test") == before


def test_garbage_in_a_real_bucket(shared_s3: S3Server, tmp_path: Path) -> None:
    """An upload that nobody finished, an archive that nobody names; once more finds nothing."""
    repository = repository_of(shared_s3, tmp_path.name)  # moto begins every upload in 2010
    history = History(repository.store, repository.keys)
    good = history.back_up(TODAY - DAY)
    dead = history.back_up(TODAY - 2 * DAY, complete=False, proven=False)
    repository.store.put_document(history.folder(good) + "shards/0.7.snapshot", b"x")
    client = repository.store.client
    client.create_multipart_upload(Bucket=repository.store.bucket, Key=history.folder(dead) + "shards/9.snapshot")
    at_once = PolicyProfile(retention=Retention(grace_hours=0), resume_hours=0)
    time.sleep(1.1)  # times of objects are whole seconds
    assert look_for_garbage(repository, "test", PolicyProfile()).garbage == ()
    found = look_for_garbage(repository, "test", at_once).garbage
    assert sorted(item.kind for item in found) == ["archive", "archive", "archive", "upload"]
    collect(repository, "test", at_once, "gc")
    assert ids(repository, "test") == {good}
    require_whole(repository, "test")
    assert repository.store.uploads(repository.keys.clusters_prefix) == ()
    assert look_for_garbage(repository, "test", at_once).garbage == ()


POLICY = "[policies.two.retention]\nkeep_last = 1\nminimum_proven = 1\n"


@pytest.fixture
def two_backups(workshop: Workshop) -> tuple[Workshop, list[Any]]:
    """Two real backups of a real collection, and a policy that keeps one."""
    with Api(workshop.clusters["source"].urls[0]) as source:
        source.make("docs", SAMPLES["dense"]())
        records = [back_up(workshop), back_up(workshop)]
    workshop.config.write_text(workshop.config.read_text() + POLICY)
    forget_connections()
    return workshop, records


def test_a_restore_keeps_its_backup_from_a_prune(
    two_backups: tuple[Workshop, list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prune in the middle of a restore leaves the backup; afterwards it goes, and no mark is left."""
    shop, [old, _] = two_backups
    recover, pruned, once = restore_steps.recover_replica, [], threading.Lock()
    line = ["prune", "--cluster", "source", "--policy", "two"]

    def with_a_prune(*arguments: Any) -> Any:
        if once.acquire(blocking=False):
            pruned.append(main([*line, "--apply"]))
        return recover(*arguments)

    monkeypatch.setattr(restore_steps, "recover_replica", with_a_prune)
    assert proven_everywhere(restore(shop, old, "docs"))
    assert pruned == [0]
    assert "a reader is at work: restore" in capsys.readouterr().out
    assert shop.objects("readers/") == []
    assert main(["verify", "source", old.backup_id]) == 0
    assert shop.objects("readers/") == []
    assert main(["hold", "source", old.backup_id, "--reason", "audit", "--by", "ann"]) == 0
    assert main([*line, "--apply"]) == 0
    assert old.backup_id in capsys.readouterr().out
    assert main(["release", "source", old.backup_id]) == 0
    assert main(line) == 0
    assert [key for key in shop.objects("backups/") if old.backup_id in key and key.endswith(".snapshot")]
    assert main([*line, "--apply"]) == 0
    assert not [key for key in shop.objects("backups/") if old.backup_id in key and key.endswith(".snapshot")]
    assert shop.leftovers() == []


def test_the_flow_shows_first_and_deletes_when_told(
    two_backups: tuple[Workshop, list[Any]], prefect_server: PrefectServer
) -> None:
    """Dry run by default, with a table of every backup and its reason."""
    from prefect.client.orchestration import get_client

    from flows.hold_backup import hold_backup
    from flows.prune_backups import prune_backups
    from flows.verify_backup import verify_backup

    shop, [old, new] = two_backups
    wishes = {"repository": "main", "cluster": "source", "policy": "two"}
    before = shop.objects()
    assert prune_backups(**wishes) == [old.backup_id]
    assert shop.objects() == before
    named = {"repository": "main", "cluster": "source", "by": "ann", "reason": "audit", "backup": old.backup_id}
    assert hold_backup(**named) == old.backup_id
    assert prune_backups(**wishes, dry_run=False) == []
    assert hold_backup(**named, release=True) == old.backup_id
    assert prune_backups(**wishes, dry_run=False) == [old.backup_id]
    assert verify_backup(repository="main", cluster="source") == new.backup_id
    assert shop.objects("readers/") == []
    with get_client(sync_client=True) as client:
        [table] = [
            found
            for found in client.read_artifacts()
            if found.key == "prune-source" and "were deleted" in found.description
        ]
    assert "one of the last 1" in table.data
    assert '"verdict": "deleted"' in table.data


def test_archives_wait_for_a_late_reader(shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the manifests are gone; the finding says for whom they wait."""
    repository = repository_of(shared_s3, tmp_path.name)
    history = History(repository.store, repository.keys)
    target, *_ = (history.back_up(TODAY - age * DAY) for age in (3, 2, 1))
    uncommit, marks = steps._uncommit, []

    def then_a_reader(*arguments: Any) -> Any:
        done = uncommit(*arguments)
        mark = reading(repository.store, repository.keys, "test", target, [], "a late reader")
        mark.__enter__()
        marks.append(mark)
        return done

    monkeypatch.setattr(steps, "_uncommit", then_a_reader)
    pruned = run.prune(repository, "test", KEEP_TWO, "a prune")
    assert [outcome.state for outcome in pruned.outcomes] == ["waiting"]
    assert "a late reader" in pruned.findings[0].message
    assert [key for key in there(repository, "test") if target in key]
    marks[0].__exit__(None, None, None)
    monkeypatch.undo()
    assert [outcome.state for outcome in run.prune(repository, "test", KEEP_TWO, "a prune").outcomes] == ["deleted"]
