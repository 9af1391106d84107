"""Points out of an archive: which ones, as what JSON, in what batches, and how the process that reads them ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from ferry.archive import crew
from ferry.archive.digest import digest_of, point_fields, range_of
from ferry.archive.points import Batch, Selection, read_points
from ferry.archive.reader import OpenArchive, id_order, open_archive
from ferry.archive.selected import batches
from ferry.errors import ArchiveDamagedError, ConfigurationError, FerryError, StoppedError
from tests.unit.shard_archives import build_archive, points

POINTS = 900
CONTENT = points(POINTS)
IDS = sorted((point["id"] for point in CONTENT), key=id_order)
LOW = {"must": [{"key": "n", "range": {"lt": 50}}]}
BY_ID = {point["id"]: point for point in CONTENT}
LOWEST = {point["id"] for point in CONTENT if point["payload"]["n"] < 50}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive(tmp_path_factory.mktemp("points"), CONTENT)


@pytest.fixture(scope="module")
def opened(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenArchive]:
    with open_archive(archive, tmp_path_factory.mktemp("opened")) as found:
        yield found


def read(archive: Path, folder: Path, **asked: Any) -> list[Batch]:
    """All batches; nothing stays in the work directory."""
    found = list(read_points(archive, folder / "work", Selection(**asked)))
    assert list((folder / "work").iterdir()) == []
    return found


def ids_of(batches: list[Batch]) -> list[int | str]:
    return [point_id for batch in batches for point_id in batch.ids]


def test_every_point_comes_as_it_is(archive: Path, tmp_path: Path) -> None:
    """In the order of ids, as JSON that holds the same payload and vectors, with its content hash and fields."""
    found = read(archive, tmp_path, hashes=True, fields=True)
    decoded = [point for batch in found for point in orjson.loads(batch.body)]
    assert ids_of(found) == [point["id"] for point in decoded] == IDS
    assert digest_of(decoded) == digest_of(CONTENT)
    hashes = [value for batch in found for value in batch.hashes]
    assert hashes == [digest_of([point]).digest for point in decoded]
    fields = [value for batch in found for value in batch.fields]
    assert fields == [point_fields(point["id"], point["payload"], point["vector"]) for point in decoded]
    assert not any(batch.carried for batch in found)


def in_ranges(*names: str) -> set[int | str]:
    return {point_id for point_id in IDS if range_of(point_id) in names}


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, set(IDS)),
        ({"filter": LOW}, LOWEST),
        ({"ids": (5, 4, 5, IDS[-1], 10**9)}, {4, 5, IDS[-1]}),
        ({"ids": (5, 400), "filter": LOW}, {5}),
        ({"ranges": ("00", "7f")}, in_ranges("00", "7f")),
        ({"ranges": ()}, set()),
        ({"ranges": ("00", range_of(5)), "filter": LOW}, in_ranges("00", range_of(5)) & LOWEST),
        ({"ids": (4, 5, 400), "ranges": (range_of(4),)}, in_ranges(range_of(4)) & {4, 5, 400}),
        ({"start": IDS[700]}, set(IDS[700:])),
        ({"start": IDS[3], "ids": (IDS[2], IDS[3])}, {IDS[3]}),
        ({"start": IDS[700], "ranges": ("00", "01")}, in_ranges("00", "01") & set(IDS[700:])),
    ],
)
@pytest.mark.parametrize("with_points", [True, False])
def test_a_selection_is_what_meets_all_of_it(
    opened: OpenArchive, asked: dict[str, Any], wanted: set[int | str], with_points: bool
) -> None:
    """Ids, filter, ranges and a first id, alone and together; without points there are only ids."""
    found = list(batches(opened, Selection(**asked, with_points=with_points)))
    assert ids_of(found) == [point_id for point_id in IDS if point_id in wanted]
    decoded = [point["id"] for batch in found for point in orjson.loads(batch.body)]
    assert decoded == (ids_of(found) if with_points else [])
    limited = batches(opened, Selection(**asked, with_points=with_points, limit=3))
    assert ids_of(list(limited)) == ids_of(found)[:3]


def test_batches_are_bounded_by_bytes(tmp_path: Path) -> None:
    """Points of 300 kB come four at a time, and those that are small again by the hundred; also their hashes alone."""
    sizes = [300_000] * 9 + [10] * 400 + [3_000_000] + [10] * 5
    content = [
        {"id": number, "payload": {"text": "x" * size}, "vector": {"image": [1.0] * 4, "text": [1.0, 2.0]}}
        for number, size in enumerate(sizes)
    ]
    for asked in ({}, {"hashes": True, "with_points": False}):
        with open_archive(build_archive(tmp_path, content, f"{len(asked)}.snapshot"), tmp_path) as opened:
            found = list(batches(opened, Selection(**asked)))
        assert ids_of(found) == list(range(len(sizes)))
        assert [len(batch.ids) for batch in found] == [4, 4, 402, 5]
        assert max(len(batch.body) for batch in found if 409 not in batch.ids) < 1_300_000


def test_the_reader_waits_for_who_takes_its_batches(tmp_path: Path) -> None:
    """While nobody takes a batch it is no further than the pipe holds, and has read no more of the archive."""
    content = [
        {"id": number, "payload": {"text": "x" * 500_000}, "vector": {"image": [1.0] * 4, "text": [1.0, 2.0]}}
        for number in range(120)
    ]
    found = read_points(build_archive(tmp_path, content), tmp_path / "work", Selection())
    first = next(found)
    [pid] = _children()
    ticks = -1
    while ticks != (ticks := _cpu_ticks(pid)):
        time.sleep(0.2)
    assert _memory_bytes(pid) < 50_000_000
    assert len(first.ids) + sum(len(batch.ids) for batch in found) == 120


@pytest.mark.parametrize("vector", [{"image": [1.0, float("nan"), 0, 0]}, {"text": [float("inf"), 1.0]}])
def test_what_json_cannot_carry_is_named(tmp_path: Path, vector: dict[str, Any]) -> None:
    """NaN and infinities would arrive as null: the id and the vector are named, unless only hashes are wanted."""
    content = [CONTENT[1], {"id": 77, "payload": {}, "vector": vector}]
    archive = build_archive(tmp_path, content)
    with pytest.raises(FerryError, match=f"Vector '{next(iter(vector))}' of point 77 holds NaN or an infinity"):
        read(archive, tmp_path)
    assert ids_of(read(archive, tmp_path, hashes=True, with_points=False)) == [1, 77]


@pytest.mark.parametrize("silent", [True, False])
def test_it_can_be_stopped_and_left(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """What progress raises comes out, with a batch or while there is none; who takes no more closes it: either way the
    process and the folder are gone."""
    monkeypatch.setattr(crew, "HEARTBEAT_SECONDS", 0.01)

    def stop(done: int) -> None:
        if silent is (done == 0):
            raise StoppedError("stop")

    with pytest.raises(StoppedError):
        list(read_points(archive, tmp_path / "work", Selection(), stop))
    found = read_points(archive, tmp_path / "work", Selection())
    next(found)
    assert _children()
    found.close()
    assert _children() == []
    assert list((tmp_path / "work").iterdir()) == []


def test_a_killed_reader_and_a_damaged_archive_are_clear_errors(archive: Path, tmp_path: Path) -> None:
    """The signal is named; what is damaged is an ArchiveDamagedError; nothing stays."""
    with pytest.raises(FerryError, match=r"signal 9 \(SIGKILL\)"):
        list(read_points(archive, tmp_path / "work", Selection(), lambda _done: _kill()))
    broken = tmp_path / "broken.snapshot"
    broken.write_bytes(archive.read_bytes()[:-20000])
    with pytest.raises(ArchiveDamagedError, match=r"broken\.snapshot ends at byte"):
        read(broken, tmp_path)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("wrong", [-1, 1 << 64, 1.5, "5", "no-uuid"])
def test_an_id_that_is_none_is_refused(wrong: Any) -> None:
    """When the selection is made, before anything is read."""
    for asked in ({"ids": (1, wrong)}, {"start": wrong}, {"filter": {"must": [{"has_id": [wrong]}]}}):
        with pytest.raises((ConfigurationError, ValueError), match=r"no point id|valid integer|valid string"):
            Selection(**asked)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


def _kill() -> None:
    for pid in _children():
        os.kill(pid, signal.SIGKILL)


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _memory_bytes(pid: int) -> int:
    """Anonymous memory: the pages of a mapped archive do not count."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024
