"""Records of finished restores, and what they let a plan expect."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ferry.errors import RestoreError, StoreRefusedError
from ferry.models import BackupId, PeerId, ShardId
from ferry.repository.layout import Keys
from ferry.restore.plan import RestorePlan, RestoreRequest, plan_restore
from ferry.restore.rates import Load, Rates, expected_seconds, load_of, rates_of, with_expectation
from ferry.restore.records import KEPT, READ, Moved, RestoreRecord, last_records, note_failed, note_finished
from ferry.restore.shape import Shape
from ferry.restore.steps import RecoveredReplica
from ferry.restore.stream import StreamedShard
from ferry.verify.replica import ReplicaVerdict
from tests.unit.builders import NOON, archive, collection, layout, manifest, node, proof, shard
from tests.unit.fakes import MemoryStore, failing

KEYS = Keys("ferry")
FOLDER = "ferry/restores/test/"


def restore_id(number: int) -> BackupId:
    """Sorts by its number."""
    return BackupId(f"20261122T{number // 3600:02}{number // 60 % 60:02}{number % 60:02}Z-abcdef")


def connections(store: MemoryStore) -> Any:
    """All that records ask for; two archives may be open at a time."""
    return SimpleNamespace(store=store, keys=KEYS, worker=SimpleNamespace(parallel_proofs=2))


def plan(number: int = 0, **asked: Any) -> RestorePlan:
    """Three shards of 10 points and 1000, 2000 and 3000 bytes, twice on two nodes."""
    source = collection("docs", [shard(number, [1, 2]) for number in range(3)])
    archives = [archive(number, size=1000 * (number + 1)) for number in range(3)]
    request = RestoreRequest(
        **{
            "restore_id": restore_id(number),
            "cluster": "test",
            "repository": "main",
            "source_cluster": "other",
            "collection": "docs",
            **asked,
        }
    )
    return plan_restore(request, manifest(source, archives), layout([node(1), node(2)], []))


def recovered(shard_id: int, peer: int, seconds: float, path: str = "url") -> RecoveredReplica:
    return RecoveredReplica(
        shard_id=ShardId(shard_id), peer_id=PeerId(peer), path=path, bytes=1000 * (shard_id + 1), seconds=seconds
    )


def compared(shard_id: int, peer: int, seconds: float, points: int = 10) -> ReplicaVerdict:
    return ReplicaVerdict(
        collection="docs",
        shard_id=ShardId(shard_id),
        peer_id=PeerId(peer),
        level="count",
        points=points,
        compared=0,
        seconds=seconds,
    )


def record(number: int = 0, **values: Any) -> RestoreRecord:
    """A restore that took a minute."""
    usual = {
        "restore_id": restore_id(number),
        "cluster": "test",
        "source_cluster": "other",
        "backup_id": restore_id(0),
        "collection": "docs",
        "target": "docs-new",
        "path": "shards",
        "nodes": 2,
        "replication_factor": 2,
        "bytes": 12_000,
        "points": 30,
        "verify": "sample",
        "verdict": "equal",
        "started_at": NOON,
        "finished_at": NOON + timedelta(seconds=60),
    }
    return RestoreRecord.model_validate(usual | values)


def by_url(amount: int, seconds: float) -> Moved:
    return Moved(way="url", bytes=amount, points=0, seconds=seconds)


def test_a_finished_restore_is_written_down_once() -> None:
    """Bytes and seconds by their way, the longest node for each phase; the same again is the same object."""
    store, planned = MemoryStore(), plan(1, verify="count")
    filled = [recovered(0, 1, 2.0), recovered(1, 1, 3.0), recovered(2, 2, 4.0), recovered(0, 2, 0.5, path="upload")]
    verdicts = [compared(0, 1, 1.0), compared(1, 1, 0.5), compared(2, 2, 1.25)]
    for _ in range(2):
        note_finished(connections(store), planned, filled, verdicts)
    assert list(store.objects) == [f"{FOLDER}{restore_id(1)}.json"]
    [found] = last_records(store, KEYS, "test")
    assert (found.verdict, found.path, found.points, found.bytes) == ("equal", "shards", 30, 12_000)
    assert found.moved == (
        Moved(way="url", bytes=6000, points=0, seconds=9.0),
        Moved(way="upload", bytes=1000, points=0, seconds=0.5),
    )
    assert (found.recover_seconds, found.stream_seconds, found.verify_seconds) == (5.0, 0.0, 1.5)
    assert (found.compared_points, found.compare_seconds) == (30, 2.75)
    assert found.started_at == planned.layout.taken_at


def test_points_that_were_sent_are_written_down() -> None:
    """Three shards in two lanes: their seconds added up and halved are those of the whole."""
    store, planned = MemoryStore(), plan(path="points", shape=Shape(shard_number=5))
    filled = [
        StreamedShard(source=ShardId(n), points=10, bytes=1000 * (n + 1), seconds=4.0, proof=proof()) for n in range(3)
    ]
    note_finished(connections(store), planned, filled, [])
    [found] = last_records(store, KEYS, "test")
    assert found.moved == (Moved(way="points", bytes=6000, points=30, seconds=6.0),)
    assert (found.recover_seconds, found.stream_seconds) == (0.0, 6.0)


def test_a_failure_is_written_down_without_what_strangers_say() -> None:
    """An error of ours with its words; of others only the kind: they may hold a signed address."""
    store = MemoryStore()
    note_failed(connections(store), plan(1), RestoreError("docs-new is gone."))
    note_failed(connections(store), plan(2), ValueError("https://bucket/?X-Amz-Signature=abc"))
    found = last_records(store, KEYS, "test")
    assert [(each.verdict, each.why) for each in found] == [
        ("failed", "RestoreError: docs-new is gone."),
        ("failed", "ValueError"),
    ]


@pytest.mark.parametrize("operation", ["put", "list"])
def test_a_bucket_that_takes_no_record_fails_no_restore(operation: str, caplog: pytest.LogCaptureFixture) -> None:
    """Keys that may only read write none; it is said, and the plan then knows nothing of earlier ones."""
    store = MemoryStore()
    store.before = failing(StoreRefusedError("No right to do that."), operation)
    note_finished(connections(store), plan(), [], [])
    assert "has no record in the bucket: No right to do that." in caplog.text


def test_the_last_two_hundred_are_kept() -> None:
    """The oldest go first, of this cluster only; what no restore has written is left alone."""
    store = MemoryStore()
    others = [f"{FOLDER}notes.json", f"ferry/restores/tested/{restore_id(1)}.json"]
    for key in [f"{FOLDER}{restore_id(number)}.json" for number in range(1, KEPT + 3)] + others:
        store.put_document(key, record().to_bytes())
    note_finished(connections(store), plan(KEPT + 3), [], [])
    kept = [key for key in sorted(store.objects) if key not in others]
    assert kept == [f"{FOLDER}{restore_id(number)}.json" for number in range(4, KEPT + 4)]
    assert set(others) <= set(store.objects)
    store.can_delete = False
    note_finished(connections(store), plan(KEPT + 4), [], [])
    assert len(store.objects) == KEPT + 1 + len(others)


def test_the_last_records_are_read_and_the_unreadable_passed_over() -> None:
    """Other versions may write other fields; somebody may trim while we read."""
    store = MemoryStore()
    for number in range(READ + 5):
        store.put_document(KEYS.restore("test", restore_id(number)), record(number).to_bytes())
    store.put_document(KEYS.restore("test", restore_id(READ)), b'{"format_version": 2}')
    store.before = lambda operation, key: (
        store.delete([key]) if operation == "get" and restore_id(READ + 1) in key else None
    )
    numbers = [number for number in range(5, READ + 5) if number not in (READ, READ + 1)]
    assert [each.restore_id for each in last_records(store, KEYS, "test")] == [restore_id(n) for n in numbers]


def test_rates_are_the_middle_of_what_was_moved() -> None:
    """Each as heavy as its amount, so that restores of next to nothing say next to nothing; failed ones say nothing."""
    tiny = [record(moved=[by_url(10, 1.0)]) for _ in range(5)]
    large = [record(moved=[by_url(amount, 10.0)]) for amount in (900, 1000, 1100)]
    failed = record(moved=[by_url(10**9, 1.0)], verdict="failed")
    assert rates_of([*tiny, *large, failed]).bytes_per_second == {"url": 100.0}
    sent = [Moved(way="points", bytes=5, points=amount, seconds=2.0) for amount in (100, 200, 300)]
    found = rates_of([record(moved=[each], path="points") for each in sent])
    assert (found.sent_points_per_second, found.bytes_per_second) == (100.0, {})
    levels = [
        record(verify="content", compared_points=1000, compare_seconds=4.0, verify_seconds=3.0),
        record(verify="count", compared_points=30, compare_seconds=0.5),
    ]
    assert rates_of(levels).compared_points_per_second == {"content": 250.0, "count": 60.0}
    assert rates_of(levels).other_seconds == pytest.approx(58.5)
    assert rates_of([failed]) == rates_of([]) == Rates()


def test_the_fullest_node_decides() -> None:
    """Six replicas on two nodes are three for each, the largest at most; a restore by points sends each point once."""
    assert load_of(plan(verify="count")) == Load(
        ways=("url", "upload"), node_bytes=8000, verify="count", node_compared_points=30
    )
    assert load_of(plan(verify="sample")).node_compared_points == 0  # the proofs have no sample
    assert load_of(plan(verify="count", path="points")) == Load(sent_points=30, verify="count", node_compared_points=30)


LOAD = Load(ways=("url", "upload"), node_bytes=1000, verify="sample", node_compared_points=64)
POINTS = Load(sent_points=500, verify="sample")


@pytest.mark.parametrize(
    ("measured", "load", "expected"),
    [
        (Rates(), LOAD, None),
        (Rates(bytes_per_second={"url": 100, "upload": 10}, other_seconds=5), LOAD, 15),
        (Rates(bytes_per_second={"upload": 10}), LOAD, 100),
        (Rates(bytes_per_second={"url": 100}), LOAD.model_copy(update={"ways": ("upload",)}), None),
        (Rates(bytes_per_second={"url": 100}, compared_points_per_second={"sample": 32}), LOAD, 12),
        (Rates(bytes_per_second={"url": 100}), LOAD.model_copy(update={"verify": "content"}), None),
        (Rates(bytes_per_second={"url": 100}), POINTS, None),
        (Rates(sent_points_per_second=50), POINTS, 10),
    ],
)
def test_time_is_expected_of_what_was_measured(measured: Rates, load: Load, expected: float | None) -> None:
    """By the likelier way that was ever gone; nothing is said where moving was not measured."""
    assert expected_seconds(measured, load) == expected


def test_the_plan_says_whence_its_time_is_known() -> None:
    """From earlier restores into the cluster, else unknown, also when the bucket refuses to list them."""
    store = MemoryStore()
    unknown = with_expectation(connections(store), plan())
    assert unknown.expected_seconds is None
    assert unknown.reasons[-1] == "expected time unknown: no earlier restore into test of this kind"
    moved = {"moved": [by_url(1000, 10.0)], "recover_seconds": 50.0}
    store.put_document(KEYS.restore("test", restore_id(1)), record(1, **moved).to_bytes())
    known = with_expectation(connections(store), plan())
    assert known.expected_seconds == 90.0  # 8000 bytes at 100 a second, and 10 s for the rest
    assert known.reasons[-1] == "expected time 90 s, by the last 1 restores into test"
    store.before = failing(StoreRefusedError("No right to list."), "list")
    assert with_expectation(connections(store), plan()).expected_seconds is None
