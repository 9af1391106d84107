"""Pruning in a bucket in memory: the order of deletes; kills, readers and holds that come at any moment."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import pytest

from ferry.connections import Connections, Repository
from ferry.errors import (
    BackupNotFoundError,
    ConfigurationError,
    ConflictError,
    FerryError,
    LeaseHeldError,
    StoreRefusedError,
    StoreUnavailableError,
)
from ferry.models import BackupId
from ferry.profiles import PolicyProfile, RepositoryProfile, Retention, WorkerSettings
from ferry.prune import gc, plan, run
from ferry.prune.run import Pruned
from ferry.repository import fence
from ferry.repository.catalog import Catalog
from ferry.repository.holds import put_hold, release_hold
from ferry.repository.journal import Journal
from ferry.repository.layout import Keys, new_backup_id
from ferry.repository.lease import acquire
from ferry.repository.manifest import BackupRecord, CollectionManifest
from ferry.repository.readers import reading
from ferry.repository.store import Store, UnfinishedUpload
from ferry.repository.upkeep import ObjectLock
from tests.fabricated import History
from tests.unit import builders
from tests.unit.fakes import MemoryStore

KEYS = Keys("ferry")
START = builders.NOON
DAY = timedelta(days=1)
KEEP_TWO = PolicyProfile(retention=Retention(keep_last=2, minimum_proven=1))


class ClockedStore(MemoryStore):
    """A store whose clock the test sets, with locks and unfinished uploads; ``before`` hears every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = START
        self.locks: dict[str, ObjectLock] = {}
        self.unfinished: list[UnfinishedUpload] = []
        self.deleted: list[str] = []

    def delete(self, keys: Any) -> None:
        for key in keys:
            super().delete([key])
            self.deleted.append(key)

    def uploads(self, prefix: str) -> tuple[UnfinishedUpload, ...]:
        return tuple(upload for upload in self.unfinished if upload.key.startswith(prefix))

    def _keep(self, key: str, data: bytes, metadata: dict[str, str]) -> str:
        etag = super()._keep(key, data, metadata)
        self.objects[key] = (data, self.objects[key][1].model_copy(update={"modified": self.clock}))
        return etag


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ClockedStore:
    """An empty bucket, whose clock and locks the prune asks."""
    store = ClockedStore()
    monkeypatch.setattr(plan, "lock_of", lambda _store, key: store.locks.get(key, ObjectLock()))
    for module in (run, gc):
        monkeypatch.setattr(module, "store_time", lambda _store, _key: store.clock)
    monkeypatch.setattr(gc, "abort_upload", lambda _store, upload: store.unfinished.remove(upload))
    return store


def repository_of(store: MemoryStore, **profile: Any) -> Repository:
    return Repository(
        RepositoryProfile(bucket="bucket", **profile),
        WorkerSettings(),
        cast("Store", store),
        KEYS,
        Catalog(store, KEYS),
    )


def back_up(store: ClockedStore, day: float, *names: str, complete: bool = True, proven: bool = True) -> BackupId:
    """A backup of that day; the store's clock goes on to that day."""
    store.clock = max(store.clock, START + day * DAY)
    return History(store, KEYS).back_up(START + day * DAY, *names, complete=complete, proven=proven)


def prune(store: ClockedStore, policy: PolicyProfile = KEEP_TWO, **profile: Any) -> Pruned:
    return run.prune(repository_of(store, **profile), "test", policy, "a prune")


def folders(store: ClockedStore) -> set[str]:
    """Ids of backups of which anything but a condemned place is there."""
    prefix = KEYS.cluster_prefix("test")
    return {
        key.removeprefix(prefix).split("/")[0]
        for key, (data, _) in store.objects.items()
        if key.startswith(prefix) and not fence.as_fence(data)
    }


def require_whole(store: ClockedStore) -> None:
    """Every document that is there reads back: a record's manifests, a manifest's archives."""
    for key, (data, _) in list(store.objects.items()):
        if fence.as_fence(data) or not key.startswith(KEYS.clusters_prefix):
            continue
        folder = key.rsplit("/", 1)[0]
        if key.endswith("/backup.json"):
            for entry in BackupRecord.from_bytes(data, key).collections:
                assert CollectionManifest.from_bytes(store.objects[f"{folder}/{entry.collection}/manifest.json"][0], "")
        if key.endswith("/manifest.json"):
            for archive in CollectionManifest.from_bytes(data, key).archives:
                assert f"{folder}/{archive.key}" in store.objects


def test_what_no_rule_keeps_is_deleted_with_its_reason(store: ClockedStore) -> None:
    """And nothing else: not the others, not the repository's own documents."""
    ids = [back_up(store, day) for day in range(5)]
    pruned = prune(store)
    assert folders(store) == set(ids[3:])
    assert [(outcome.backup_id, outcome.state) for outcome in pruned.outcomes] == [(i, "deleted") for i in ids[:3]]
    assert pruned.freed_bytes == sum(pruned.plan.facts[i].bytes for i in ids[:3])
    assert pruned.findings == ()
    assert [verdict.reasons for verdict in pruned.plan.deletes] == [("no rule keeps it",)] * 3
    assert not [key for key in store.objects if "/prunes/" in key]
    assert prune(store).outcomes == ()


def test_what_is_no_part_of_a_backup_stays(store: ClockedStore) -> None:
    """Records of restores into a cluster of that name are not its backups; nor is what others put there."""
    backup_id = back_up(store, 0)
    others = [KEYS.restore("test", backup_id), "ferry/notes.txt", f"{KEYS.restores_prefix('test')}notes.txt"]
    for key in others:
        store.put_document(key, b"{}")
    back_up(store, 8)
    back_up(store, 9)
    store.clock += 365 * DAY
    assert [outcome.backup_id for outcome in prune(store).outcomes] == [backup_id]
    gc.collect(repository_of(store), "test", KEEP_TWO, "gc", every=True)
    assert set(others) <= set(store.objects)


def test_a_dry_run_writes_nothing(store: ClockedStore) -> None:
    """It shows what would be deleted."""
    ids = [back_up(store, day) for day in range(3)]
    before = dict(store.objects)
    looked = run.look(repository_of(store), "test", KEEP_TWO)
    assert [verdict.backup_id for verdict in looked.plan.deletes] == ids[:1]
    assert store.objects == before


def test_manifests_go_before_archives(store: ClockedStore) -> None:
    """The run's record first, then every manifest, then the archives."""
    back_up(store, 0, "docs", "words")
    [back_up(store, day, "docs", "words") for day in (1, 2)]
    prune(store)
    kinds = [key.rsplit("/", 1)[-1].split(".")[-1] for key in store.deleted if "/backups/" in key]
    assert kinds[:7] == ["json"] * 3 + ["snapshot"] * 4
    assert store.deleted[0].endswith("backup.json")


def test_fences_stay_for_a_week_and_are_not_seen(store: ClockedStore) -> None:
    """Nobody commits where a backup was deleted; a young one leaves its fences to gc."""
    old, young = back_up(store, 0), back_up(store, 8)
    [back_up(store, day) for day in (9, 10)]
    prune(store)
    fenced = {key.split("/")[3] for key, (data, _) in store.objects.items() if fence.as_fence(data)}
    assert fenced == {young}
    assert old not in {summary.backup_id for summary in Catalog(store, KEYS).backups("test")}
    with pytest.raises(ConflictError):
        Catalog(store, KEYS).write_manifest(History(store, KEYS).manifest(young))


def dying_after(number: int) -> Callable[[str, str], None]:
    """For ``before``: from that change on nothing is answered any more, as for a process that was killed."""
    left = [number]

    def act(operation: str, key: str) -> None:
        if operation in ("put", "delete") and "/leases/" not in key:
            left[0] -= 1
        if left[0] < 0:
            raise StoreUnavailableError("killed")

    return act


def remains(store: ClockedStore) -> set[str]:
    """All but leases, and fences: these are for gc."""
    return {key for key, (data, _) in store.objects.items() if "/leases/" not in key and not fence.as_fence(data)}


def test_killed_at_any_change_the_next_prune_comes_to_the_same_end(store: ClockedStore) -> None:
    """And at no moment is there a manifest that does not read back, or the newest proven backup gone."""

    def history() -> set[str]:
        store.objects.clear()
        store.clock = START
        back_up(store, 0, "docs", "words")
        back_up(store, 1, "docs", complete=False)
        stay = {back_up(store, day, "docs", "words") for day in (8, 9)}
        store.clock += DAY  # fences are younger than any backup, and tell nothing of one
        return stay

    stay = history()
    prune(store)
    end, changes = remains(store), 0
    assert folders(store) == stay
    for number in range(200):
        history()
        store.before = dying_after(number)
        try:
            prune(store)
        except StoreUnavailableError:
            changes += 1
        store.before = lambda _operation, _key: None
        require_whole(store)
        assert stay <= folders(store)
        store.objects.pop(KEYS.lease("test"), None)  # it would end by itself
        prune(store)
        assert remains(store) == end
        if changes <= number:
            break
    assert changes > 15


def test_a_reader_that_comes_at_any_moment_is_told_or_keeps_its_archives(store: ClockedStore) -> None:
    """Whoever comes second sees the other."""
    told, kept = 0, 0
    for number in range(1, 60):
        backup_id = one_to_prune(store)
        archives = {key for key in store.objects if backup_id in key and key.endswith(".snapshot")}
        point = KEYS.manifest("test", backup_id, "docs")
        with ExitStack() as reader:
            answers = at_operation(
                store,
                number,
                partial(reader.enter_context, reading(store, KEYS, "test", backup_id, [point], "a restore")),
            )
            prune(store)
            store.before = lambda _operation, _key: None
            if answers == [None]:
                kept += 1
                assert archives <= set(store.objects), number
            told += len(answers) if answers != [None] else 0
        prune(store)
        assert backup_id not in folders(store)
        assert not [key for key in store.objects if "/prunes/" in key or "/readers/" in key]
        if not answers:
            break
    assert told > 2
    assert kept > 5


def one_to_prune(store: ClockedStore) -> BackupId:
    """A new history of three backups, of which the oldest is to be deleted."""
    store.objects.clear()
    store.clock = START
    backup_id = back_up(store, 0)
    for day in (8, 9):
        back_up(store, day)
    return backup_id


def at_operation(store: ClockedStore, number: int, act: Callable[[], object]) -> list[FerryError | None]:
    """Do something right before the operation of that number; filled with its error, or None when it went well."""
    seen, busy, answers = [0], [False], cast("list[FerryError | None]", [])

    def before(_operation: str, key: str) -> None:
        if busy[0] or "/leases/" in key:
            return
        seen[0] += 1
        if seen[0] != number:
            return
        busy[0] = True
        try:
            act()
            answers.append(None)
        except FerryError as error:
            answers.append(error)
        busy[0] = False

    store.before = before
    return answers


def test_a_mark_counts_while_it_is_young_by_the_stores_clock(store: ClockedStore) -> None:
    """Whatever clock the reader has. Killed readers hold nothing up for longer than the grace."""
    backup_id = back_up(store, 0)
    for day in (8, 9):
        back_up(store, day)
    with reading(store, KEYS, "test", backup_id, [], "a restore"):
        [mark] = [key for key in store.objects if "/readers/" in key]
        data = store.objects[mark][0].replace(b'"since": "2', b'"since": "1')  # a reader of the year 1026
        store.put_document(mark, data)
        store.clock += 0.9 * DAY
        pruned = prune(store)
        assert pruned.plan.verdicts[-1].reasons[0].startswith("a reader is at work: a restore (process")
        store.clock += 0.2 * DAY
        assert [outcome.backup_id for outcome in prune(store).outcomes] == [backup_id]


def test_a_reader_without_the_right_to_write_reads_all_the_same(
    store: ClockedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """And one without the right to delete says in its mark that it has ended."""
    backup_id = one_to_prune(store)

    def refuse(refused: str) -> Callable[[str, str], None]:
        def act(operation: str, _key: str) -> None:
            if operation == refused:
                raise StoreRefusedError("no right")

        return act

    store.before = refuse("put")
    with caplog.at_level(logging.WARNING), reading(store, KEYS, "test", backup_id, [], "a verify"):
        assert "no mark" in caplog.text
    store.before = refuse("delete")
    with reading(store, KEYS, "test", backup_id, [], "a verify"):
        pass
    store.before = lambda _operation, _key: None
    assert [outcome.state for outcome in prune(store).outcomes] == ["deleted"]


def test_a_hold_keeps_a_backup_until_it_is_released(store: ClockedStore) -> None:
    """Whatever the policy says; who and why are told."""
    backup_id = back_up(store, 0)
    for day in (8, 9):
        back_up(store, day)
    put_hold(store, KEYS, "test", backup_id, "ann", "audit 2026")
    again = put_hold(store, KEYS, "test", backup_id, "bob", "me too")
    assert (again.by, again.reason) == ("ann", "audit 2026")
    pruned = prune(store)
    assert pruned.outcomes == ()
    assert pruned.plan.verdicts[-1].reasons[0].startswith("held by ann: audit 2026, since ")
    assert release_hold(store, KEYS, "test", backup_id).by == "ann"
    with pytest.raises(BackupNotFoundError):
        release_hold(store, KEYS, "test", backup_id)
    assert [outcome.state for outcome in prune(store).outcomes] == ["deleted"]


def test_a_hold_needs_a_backup_and_a_reason(store: ClockedStore) -> None:
    """A hold on nothing would promise what nobody can keep."""
    newest = back_up(store, 0)
    assert put_hold(store, KEYS, "test", "latest", "ann", "audit").backup_id == newest
    with pytest.raises(ConfigurationError, match="who and why"):
        put_hold(store, KEYS, "test", newest, "ann", " ")
    with pytest.raises(BackupNotFoundError):
        put_hold(store, KEYS, "test", new_backup_id(START + DAY, "other"), "ann", "audit")
    with pytest.raises(ConfigurationError):
        put_hold(store, KEYS, "test", "../other", "ann", "audit")


def test_a_hold_that_comes_at_any_moment_keeps_the_backup_or_is_told(store: ClockedStore) -> None:
    """It is never put on a backup that goes all the same without a word."""
    kept, told = 0, 0
    for number in range(1, 60):
        backup_id = one_to_prune(store)
        answers = at_operation(store, number, partial(put_hold, store, KEYS, "test", backup_id, "ann", "audit"))
        prune(store)
        store.before = lambda _operation, _key: None
        if not answers:
            break
        if answers == [None]:
            kept += 1
            require_whole(store)
            assert Catalog(store, KEYS).read_backup("test", backup_id), number
        else:
            told += 1
    assert kept > 3
    assert told > 3


def test_locked_backups_count_as_kept(store: ClockedStore) -> None:
    """Known before anything is deleted; afterwards they go."""
    backup_id = back_up(store, 0)
    for day in (8, 9):
        back_up(store, day)
    store.locks[KEYS.manifest("test", backup_id, "docs")] = ObjectLock(until=store.clock + DAY)
    pruned = prune(store)
    assert pruned.outcomes == ()
    assert pruned.plan.verdicts[-1].reasons == (f"locked until {store.clock + DAY:%Y-%m-%d %H:%M} UTC",)
    store.clock += 2 * DAY
    assert [outcome.state for outcome in prune(store).outcomes] == ["deleted"]


@pytest.mark.parametrize(
    ("what", "state"), [("backup.json", "whole"), ("manifest.json", "part"), (".snapshot", "part")]
)
def test_what_the_store_refuses_to_delete_is_kept_and_told(store: ClockedStore, what: str, state: str) -> None:
    """No failure, no manifest without its archives; when the store allows it, the next prune finishes."""
    backup_id = back_up(store, 0)
    for day in (8, 9):
        back_up(store, day)

    def refuse(operation: str, key: str) -> None:
        if operation == "delete" and backup_id in key and key.endswith(what) and "/backups/" in key:
            raise StoreRefusedError(f"{key} is locked")

    store.before = refuse
    [outcome] = prune(store).outcomes
    store.before = lambda _operation, _key: None
    assert outcome.state == "kept"
    assert "is locked" in outcome.reason
    require_whole(store)
    assert (KEYS.backup("test", backup_id) in store.objects) or state == "part"
    assert [outcome.state for outcome in prune(store).outcomes] == ["deleted"]
    assert backup_id not in folders(store)


def test_keys_that_may_not_delete_are_refused_before_anything(store: ClockedStore) -> None:
    """With what to do instead; after a backup it is simply left out."""
    for day in range(4):
        back_up(store, day)
    before = dict(store.objects)
    with pytest.raises(ConfigurationError, match="can_delete"):
        prune(store, can_delete=False)
    connections = cast("Connections", repository_of(store, can_delete=False))
    with acquire(store, KEYS.lease("test"), "a backup", 60) as lease:
        assert run.prune_after_backup(connections, KEEP_TWO, lease) == []
    assert {key for key in store.objects if "/leases/" not in key} == set(before)


def test_a_run_at_work_is_not_disturbed(store: ClockedStore) -> None:
    """Nothing is deleted while another holds the lease, and nothing more once it is lost."""
    ids = [back_up(store, day) for day in range(4)]
    with acquire(store, KEYS.lease("test"), "a backup", 1) as lease:

        def renew(operation: str, _key: str) -> None:
            if operation == "head":
                store.before = lambda _operation, _key: None
                lease.confirm()

        store.before = renew
        with pytest.raises(LeaseHeldError, match="a backup"):
            prune(store, lease_seconds=1)
        lease.confirm()
    assert folders(store) == set(ids)


def test_the_last_step_of_a_backup_never_fails_it(store: ClockedStore) -> None:
    """A store that fails meanwhile is a warning."""
    for day in range(4):
        back_up(store, day)

    class Named:
        name = "test"

    repository = repository_of(store)
    connections = Connections(**vars(repository), cluster=cast("Any", Named()))
    with acquire(store, KEYS.lease("test"), "a backup", 60) as lease:

        def fail(operation: str, _key: str) -> None:
            if operation == "delete":
                raise StoreUnavailableError("the store is busy")

        store.before = fail
        [finding] = run.prune_after_backup(connections, KEEP_TWO, lease)
        assert (finding.severity, finding.subject) == ("warning", "prune")
        assert "the store is busy" in finding.message
        store.before = lambda _operation, _key: None
        off = KEEP_TWO.model_copy(update={"prune_after_backup": False})
        assert run.prune_after_backup(connections, off, lease) == []
        assert len(folders(store)) == 4
        assert run.prune_after_backup(connections, KEEP_TWO, lease) == []
        assert len(folders(store)) == 2


@pytest.mark.parametrize("how", ["archive gone", "archive short", "manifest edited"])
def test_a_backup_that_lost_something_does_not_stand_for_the_one_before(store: ClockedStore, how: str) -> None:
    """What the plan rests on is read back before anything is deleted."""
    old, newest = back_up(store, 0), back_up(store, 9)
    folder = KEYS.collection_prefix("test", newest, "docs")
    if how == "archive gone":
        store.objects.pop(folder + "shards/1.snapshot")
    elif how == "archive short":
        store.put_document(folder + "shards/1.snapshot", b"xx")
    else:
        store.put_document(
            folder + "manifest.json", store.objects[folder + "manifest.json"][0].replace(b"docs", b"dogs")
        )
    pruned = prune(store, PolicyProfile(retention=Retention(keep_last=1, minimum_proven=1)))
    assert old in folders(store)
    assert pruned.plan.findings[0].subject == f"{newest}/docs"


def test_a_document_that_is_not_understood_keeps_its_backup(store: ClockedStore) -> None:
    """A newer release may have written it."""
    odd = back_up(store, 0)
    for day in (8, 9):
        back_up(store, day)
    store.put_document(KEYS.backup("test", odd), b'{"format_version": 2}')
    assert prune(store).outcomes == ()
    assert odd in folders(store)


def test_a_cluster_that_is_backed_up_no_more_loses_nothing_with_time(store: ClockedStore) -> None:
    """Its schedule was deleted, its backups were not: periods are counted where there are backups."""
    ids = [back_up(store, day) for day in range(10)]
    rules = PolicyProfile(retention=Retention(keep_daily=7, minimum_proven=1))
    prune(store, rules)
    assert folders(store) == set(ids[3:])
    store.clock += 3650 * DAY
    assert prune(store, rules).outcomes == ()
    last = PolicyProfile(retention=Retention(keep_within_days=30, minimum_proven=3))
    prune(store, last)
    assert folders(store) == set(ids[7:])


@pytest.fixture
def rubbish(store: ClockedStore) -> list[str]:
    """A bucket with one of each kind of garbage, and with what only looks like it; the keys of the garbage."""
    good = back_up(store, 0)
    extra = KEYS.collection_prefix("test", good, "docs") + "shards/0.7.snapshot"
    store.put_document(extra, b"x")
    dead = back_up(store, 1, complete=False, proven=False)
    journal = Journal(store, KEYS, "test", dead)
    entries = [journal.note("archive", "a", {"key": "a"}), Journal(store, KEYS, "test", good).note("proof", "p", {})]
    journal.note("node_snapshot", "on a node", {})
    mark = KEYS.readers_prefix("test", good) + "dead.json"
    store.put_document(mark, b"{}")
    gone = new_backup_id(START, "gone")
    fence.condemn(store, KEYS.manifest("test", gone, "docs"), "a prune")
    upload = UnfinishedUpload(
        key=KEYS.collection_prefix("test", dead, "docs") + "half", upload_id="1", begun=store.clock
    )
    store.unfinished.append(upload)
    store.clock = START + 10 * DAY
    store.unfinished.append(upload.model_copy(update={"upload_id": "2", "begun": store.clock}))
    back_up(store, 10, complete=False, proven=False)
    store.put_document(KEYS.collection_prefix("test", good, "docs") + "shards/0.8.snapshot", b"young")
    fence.condemn(store, KEYS.manifest("test", new_backup_id(START, "young"), "docs"), "a prune")
    return [
        extra,
        *(key for key in store.objects if dead in key and key.endswith(".snapshot")),
        entries[1].key,
        mark,
        KEYS.manifest("test", gone, "docs"),
        upload.key,
    ]


def test_garbage_is_found_and_taken_away(store: ClockedStore, rubbish: list[str]) -> None:
    """All of it, and nothing that counts, is young, or is somewhere else than in the bucket."""
    before = dict(store.objects)
    looked = gc.look_for_garbage(repository_of(store), "test", KEEP_TWO)
    assert sorted(item.key for item in looked.garbage) == sorted(rubbish)
    assert store.objects == before
    collected = gc.collect(repository_of(store), "test", KEEP_TWO, "gc")
    assert collected.findings == ()
    new = {key for key in store.objects.keys() - before.keys() if "/leases/" not in key}
    assert all(fence.as_fence(store.objects[key][0]) for key in new)
    assert before.keys() - store.objects.keys() == set(rubbish) - {store.unfinished[0].key}
    assert [upload.upload_id for upload in store.unfinished] == ["2"]
    require_whole(store)
    # Now that its archives are gone, what the dead run noted of them is garbage, too.
    assert [item.kind for item in gc.look_for_garbage(repository_of(store), "test", KEEP_TWO).garbage] == ["journal"]
    every = gc.collect(repository_of(store), "test", KEEP_TWO, "gc", every=True)
    assert {item.kind for item in every.garbage} == {"journal", "fence"}


def test_an_archive_that_is_committed_after_the_look_is_not_garbage(store: ClockedStore) -> None:
    """Condemning its place comes before deleting it, and fails when a manifest is there."""
    dead = back_up(store, 0, complete=False, proven=False)
    store.clock += 10 * DAY
    place = KEYS.manifest("test", dead, "docs")

    def commit(operation: str, key: str) -> None:
        if operation == "put" and key == place:
            store.before = lambda _operation, _key: None
            Catalog(store, KEYS).write_manifest(History(store, KEYS).manifest(dead))

    store.before = commit
    gc.collect(repository_of(store), "test", KEEP_TWO, "gc")
    require_whole(store)
    assert Catalog(store, KEYS).read_manifest("test", dead, "docs")


def test_a_hold_on_nothing_is_told(store: ClockedStore) -> None:
    """Somebody may rely on it."""
    backup_id = back_up(store, 0)
    put_hold(store, KEYS, "test", backup_id, "ann", "audit")
    assert gc.look_for_garbage(repository_of(store), "test", KEEP_TWO).findings == ()
    for key in [key for key in store.objects if "/backups/" in key]:
        del store.objects[key]
    [finding] = gc.look_for_garbage(repository_of(store), "test", KEEP_TWO).findings
    assert finding.subject == backup_id
    assert "ann: audit" in finding.message


def test_times_of_the_store_tell_the_worker_nothing(store: ClockedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the machine that prunes is not asked: ten years ahead it deletes the same."""
    ids = [back_up(store, day) for day in range(5)]
    far: datetime = START + 3650 * DAY
    for module in ("ferry.prune.steps", "ferry.repository.lease", "ferry.repository.fence"):
        monkeypatch.setattr(f"{module}.now", lambda: far)
    prune(store, PolicyProfile(retention=Retention(keep_within_days=2.5, minimum_proven=1)))
    assert folders(store) == set(ids[2:])
