"""A backup as a source: every point as it is, in ranges planned once, from any cursor on, and nothing left behind."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ferry.archive.digest import digest_of
from ferry.archive.reader import id_order
from ferry.connections import Repository
from ferry.errors import ConfigurationError, FerryError, HeadroomError, StoppedError
from ferry.migration.batch import PointBatch
from ferry.migration.columns import each_point
from ferry.migration.plan import BackupSource
from ferry.migration.source import Ask, Cursor, SourceRange
from ferry.migration.sources import backup
from ferry.migration.sources.backup import QdrantBackup
from tests.unit.shard_archives import points
from tests.unit.stored_backups import stored_backup

NAME = BackupSource(cluster="test", collection="docs")
# In the second shard every other point has but one of the two vectors.
HALVES = [
    {**point, "id": 10_000 + n, "vector": point["vector"] if n % 2 else {"text": point["vector"]["text"]}}
    for n, point in enumerate(points(200))
]
SHARDS = [points(300), HALVES]
SMALL = Ask(batch_bytes=4096)  # some dozen points a batch


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return stored_backup(tmp_path_factory.mktemp("backup"), SHARDS)


@pytest.fixture(scope="module")
def source(repository: Repository) -> Iterator[QdrantBackup]:
    with QdrantBackup(repository, NAME) as opened:
        yield opened


def plain(batch: Any) -> list[dict[str, Any]]:
    """A batch as Qdrant's JSON has points."""
    assert isinstance(batch, PointBatch)
    rows = zip(batch.ids, batch.payloads, each_point(batch), strict=True)
    return [{"id": point_id, "payload": payload, "vector": vector} for point_id, payload, vector in rows]


def read(source: QdrantBackup, part: SourceRange, cursor: Cursor | None = None, ask: Ask = SMALL) -> list[Any]:
    """The points of a range, with the cursor after each batch."""
    return [(plain(each.batch), each.cursor) for each in source.read(part, cursor, ask)]


def all_points(source: QdrantBackup, ranges: list[SourceRange], ask: Ask = SMALL) -> list[dict[str, Any]]:
    return [point for part in ranges for batch, _ in read(source, part, ask=ask) for point in batch]


def test_it_says_what_it_is_without_reading_an_archive(repository: Repository) -> None:
    """Of the manifest alone; it names the backup itself, so that another one is another source."""
    with QdrantBackup(repository, NAME) as source:
        described = source.describe()
        assert len(source.plan_ranges(4)) == 2  # too few points for more
        assert not source._shards
    assert (described.kind, described.consistency, described.points) == ("backup", "frozen", 500)
    assert described.identity == f"backup:test/{source.manifest.backup_id}/docs"
    assert [shard.shard_id for shard in described.shards] == [0, 1]


def test_all_points_come_once_and_as_they_are(source: QdrantBackup, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of ids, whatever the number of ranges; one shard of many points is cut at ids."""
    monkeypatch.setattr(backup, "RANGE_POINTS", 50)
    for wanted in (1, 2, 7):
        ranges = source.plan_ranges(wanted)
        assert [part.number for part in ranges] == list(range(len(ranges)))
        found = all_points(source, ranges)
        assert digest_of(found) == digest_of([point for shard in SHARDS for point in shard])
        assert len(found) == 500
    assert len(ranges) > 4
    ids = [point["id"] for point in all_points(source, [part for part in ranges if part.shard_id == 0])]
    assert ids == sorted(ids, key=id_order)


def test_it_goes_on_from_any_cursor(source: QdrantBackup) -> None:
    """What comes after a batch's cursor is what came after it before, whatever the size of batches is now."""
    [part, _] = source.plan_ranges(1)
    whole = read(source, part)
    assert len(whole) > 3
    assert whole[-1][1] is None
    for place, (_, cursor) in enumerate(whole[:-1]):
        rest = [point for batch, _ in whole[place + 1 :] for point in batch]
        again = [point for batch, _ in read(source, part, cursor, Ask(batch_bytes=9000)) for point in batch]
        assert again == rest


def test_filter_chosen_vectors_and_points_by_id(source: QdrantBackup) -> None:
    """A filter as Qdrant takes it, also for points asked for by id; vectors by name; ids that are not there."""
    low = {"must": [{"key": "n", "range": {"lt": 10}}]}
    ranges = source.plan_ranges(1)
    assert len(all_points(source, ranges, Ask(filter=low))) == 20
    bare = all_points(source, ranges, Ask(filter=low, vectors=("text",), payload=False))
    assert {tuple(point["vector"]) for point in bare} == {("text",)}
    assert {len(point["payload"]) for point in bare} == {0}
    wanted = [1, 10_001, 999_999, SHARDS[0][3]["id"], SHARDS[0][20]["id"]]
    found = [point for batch in source.retrieve(wanted, None, Ask()) for point in plain(batch)]
    known = {point["id"]: point for shard in SHARDS for point in shard}
    assert digest_of(found) == digest_of([known[each] for each in wanted if each in known])
    filtered = [point["id"] for batch in source.retrieve(wanted, None, Ask(filter=low)) for point in plain(batch)]
    assert sorted(map(str, filtered)) == sorted(map(str, [1, 10_001, SHARDS[0][3]["id"]]))
    with pytest.raises(ConfigurationError, match="unknown"):
        list(source.read(ranges[0], None, Ask(filter={"nonsense": []})))


def test_ranges_of_a_shard_are_read_beside_each_other(source: QdrantBackup) -> None:
    """Each reading has a process of its own; one that is given up does not disturb the next."""
    [part, _] = source.plan_ranges(1)
    first, second = source.read(part, None, SMALL), source.read(part, None, SMALL)
    with closing(first), closing(second):  # type: ignore[type-var]
        assert plain(next(first).batch) == plain(next(second).batch)
    assert digest_of(all_points(source, [part])) == digest_of(SHARDS[0])


def test_nothing_stays_and_progress_stops_it(tmp_path: Path) -> None:
    """Neither after the end nor when it is stopped; a process that was killed is an error that says so."""
    repository = stored_backup(tmp_path, SHARDS[:1])

    def stop(_points: int) -> None:
        raise StoppedError("stop")

    with QdrantBackup(repository, NAME) as opened:
        [part] = opened.plan_ranges(1)
        with pytest.raises(StoppedError):
            list(opened.read(part, None, SMALL, stop))
        reading = opened.read(part, None, SMALL)
        found = [next(reading)]
        [shard] = opened._shards.values()
        for worker in shard._workers:
            worker._process.kill()
        try:
            found += reading
        except FerryError as error:
            said = str(error)
        else:  # all of it was on its way already: never a part
            assert sum(len(each.batch.ids) for each in found if isinstance(each.batch, PointBatch)) == 300
            said = "SIGKILL came late"
        assert "SIGKILL" in said
        assert len(all_points(opened, [part])) == 300  # by another process
    assert list(repository.worker.spool_dir.iterdir()) == []
    assert not [key for key in repository.store.objects if "readers" in key]  # type: ignore[attr-defined]


def test_shards_make_room_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that nobody reads goes when the next one would not fit; what never fits is refused."""
    repository = stored_backup(tmp_path, SHARDS)
    free = [1 << 40]
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": free[0]}))
    with QdrantBackup(repository, NAME) as opened:
        first, second = opened.plan_ranges(1)
        read(opened, first)
        free[0] = 1000
        with pytest.raises(HeadroomError, match="1000 bytes free"):
            read(opened, second)
        assert not opened._shards
        free[0] = 1 << 40
        assert len(all_points(opened, [first, second])) == 500
        assert len(opened._shards) == 2
