"""Points out as Parquet and in again: nothing is lost or changed, from any row on, and odd folders are refused."""

import random
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferry.archive.digest import digest_of
from ferry.connections import Repository
from ferry.errors import ArchiveDamagedError, ConfigurationError, FerryError, PreflightError
from ferry.lanes import Job
from ferry.migration import export
from ferry.migration.batch import PointBatch
from ferry.migration.columns import columns_of, each_point
from ferry.migration.export import ExportRequest, export_points
from ferry.migration.parquet_folder import open_folder
from ferry.migration.parquet_format import SCHEMA, point_id
from ferry.migration.plan import ParquetSource
from ferry.migration.source import Ask, Cursor, Read, Source, SourceDescription, SourceRange
from ferry.migration.sources.parquet import ParquetFolder
from ferry.models import Progress, no_progress
from ferry.profiles import RepositoryProfile, WorkerSettings

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "params": {
        "vectors": {
            "image": {"size": 3, "distance": "Dot"},
            "rows": {"size": 2, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
        },
        "sparse_vectors": {"words": {}},
    }
}
IDS: list[int | str] = [0, 2**64 - 1, "6ba7b810-9dad-11d1-80b4-00c04fd430c8", *range(100, 597)]
ODD = {"large": 2**64 - 1, "tiny": 1e-7, "minus": -0.0, "null": None, "ключ": "日本\u2028😀", "a.b": [[{}]], "": 1}


def _vector(n: int) -> dict[str, Any]:
    """Some points lack each vector; sparse ones may be empty, multivectors have some rows."""
    found: dict[str, Any] = {} if n % 5 == 0 else {"image": [n / 3, -0.0, 1e-40]}
    if n % 3:
        found["rows"] = [[n + 0.5, 1.0]] * (1 + n % 4)
    if n % 4:
        found["words"] = {"indices": list(range(n % 7)), "values": [0.25 * k for k in range(n % 7)]}
    return found


POINTS = [{"id": each, "payload": ODD | {"n": n} if n % 9 else {}, "vector": _vector(n)} for n, each in enumerate(IDS)]


class Made:
    """A source of these points in ranges of 200, in batches of 30 and an empty one; two have a shard key. May fail."""

    fails = False

    def __enter__(self) -> "Made":
        return self

    def __exit__(self, *_: object) -> None: ...

    def describe(self) -> SourceDescription:
        return SourceDescription(
            kind="made", name="docs", identity="made:1", config=CONFIG, payload_schema={"n": {"data_type": "integer"}},
            consistency="live", points=len(POINTS),
        )  # fmt: skip

    def plan_ranges(self, wanted: int) -> list[SourceRange]:
        del wanted
        keys = [None, "two", 7]
        return [
            SourceRange(number=n, label=f"range {n}", key=keys[n], start=200 * n, end=200 * n + 200) for n in range(3)
        ]

    def read(
        self, part: SourceRange, cursor: Cursor | None, ask: Ask, progress: Progress = no_progress
    ) -> Iterator[Read]:
        assert cursor is None
        for first in range(int(part.start or 0), min(int(part.end or 0), len(POINTS)), 30):
            if self.fails and part.number == 2:
                raise FerryError("away")
            some = POINTS[first : min(first + 30, int(part.end or 0))]
            wanted = [
                {name: vector for name, vector in point["vector"].items() if ask.vectors is None or name in ask.vectors}
                for point in some
            ]
            payloads = [cast("dict[str, Any]", point["payload"]) for point in some]
            batch = PointBatch([point["id"] for point in some], payloads, columns_of(wanted), part.key)
            yield Read(batch, first + 30)
            progress(0)
        yield Read(PointBatch([], [], {}, part.key), None)

    def retrieve(self, *_: object) -> Iterator[PointBatch]:
        raise NotImplementedError


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    worker = WorkerSettings(spool_dir=tmp_path / "spool")
    nobody = cast("Any", None)
    return Repository(RepositoryProfile(bucket="ferry"), worker, nobody, nobody, nobody)


def write(repository: Repository, folder: Path, source: Any = None, **asked: Any) -> None:
    request = ExportRequest(location=str(folder), **asked)
    export_points(repository, cast("Source", source or Made()), request, Job(retry_delays_seconds=()))


def plain(batch: Any) -> list[dict[str, Any]]:
    assert isinstance(batch, PointBatch)
    rows = zip(batch.ids, batch.payloads, each_point(batch), strict=True)
    return [{"id": each, "payload": payload, "vector": vectors} for each, payload, vectors in rows]


def read(repository: Repository, folder: Path, wanted: int = 1, ask: Ask | None = None) -> list[dict[str, Any]]:
    with ParquetFolder(repository, ParquetSource(location=str(folder))) as source:
        return [
            point
            for part in source.plan_ranges(wanted)
            for each in source.read(part, None, ask or Ask())
            for point in plain(each.batch)
        ]


def test_points_come_back_as_they_went(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, payloads, vectors of every kind and those that are missing; by key; whatever the number of ranges."""
    monkeypatch.setattr(export, "GROUP_POINTS", 60)
    write(repository, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"part-0000{number}.parquet" for number in range(3)), SCHEMA,
    ]  # fmt: skip
    for wanted in (1, 9):
        found = read(repository, tmp_path / "out", wanted)
        assert [point["id"] for point in found] == IDS
        assert digest_of(found) == digest_of(POINTS)
    with ParquetFolder(repository, ParquetSource(location=str(tmp_path / "out"))) as source:
        described = source.describe()
        assert (described.points, described.consistency) == (500, "frozen")
        assert described.config["params"].items() >= CONFIG["params"].items()
        assert described.config["hnsw_config"]["m"] == 16  # what was not told is Qdrant's own default
        assert described.payload_schema == {"n": {"data_type": "integer"}}
        assert [part.key for part in source.plan_ranges(1)] == [None, "two", 7]
        assert len(source.plan_ranges(9)) == 4 + 4 + 2  # row groups of 60 points
        wanted = [IDS[1], IDS[2], 450, 9999]
        found = [
            point for key in (None, "two", 7) for batch in source.retrieve(wanted, key, Ask()) for point in plain(batch)
        ]
        assert [point["id"] for point in found] == wanted[:3]
        with pytest.raises(PreflightError, match="cannot be filtered"):
            list(source.read(source.plan_ranges(1)[0], None, Ask(filter={"must": []})))
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_reading_goes_on_from_any_row(repository: Repository, tmp_path: Path) -> None:
    """After any batch, with batches of another size."""
    write(repository, tmp_path / "out")
    with ParquetFolder(repository, ParquetSource(location=str(tmp_path / "out"))) as source:
        part = source.plan_ranges(1)[1]
        small = list(source.read(part, None, Ask(batch_bytes=4000)))
        assert len(small) > 3
        assert small[-1].cursor is None
        for place, each in enumerate(small[:-1]):
            rest = [point for later in small[place + 1 :] for point in plain(later.batch)]
            assert [point for later in source.read(part, each.cursor, Ask()) for point in plain(later.batch)] == rest


def test_kills_at_any_batch_lose_no_point(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges as they were planned once, cursors that may be older than what was written, batches of any size."""
    monkeypatch.setattr(export, "GROUP_POINTS", 60)
    write(repository, tmp_path / "out")
    with ParquetFolder(repository, ParquetSource(location=str(tmp_path / "out"))) as source:
        saved = source.plan_ranges(9)
        for seed in range(20):
            chance, cursors, target = random.Random(seed), dict[int, Cursor | None](), dict[int | str, dict[str, Any]]()
            left = {part.number: part for part in saved}
            while left:
                part = chance.choice(list(left.values()))
                reads = source.read(part, cursors.get(part.number), Ask(batch_bytes=chance.randrange(500, 9000)))
                for each in islice(reads, chance.randrange(1, 4)):
                    target |= {point["id"]: point for point in plain(each.batch)}
                    if chance.random() < 0.7:  # else it was killed before its checkpoint
                        cursors[part.number] = each.cursor
                        if each.cursor is None:
                            del left[part.number]
            assert digest_of(list(target.values())) == digest_of(POINTS), seed


def test_what_was_interrupted_goes_on(repository: Repository, tmp_path: Path) -> None:
    """Finished files stay as they are; until all are there it is no source; another request is refused."""
    out, broken = tmp_path / "out", Made()
    broken.fails = True
    with pytest.raises(FerryError, match="away"):
        write(repository, out, broken)
    first = (out / "part-00000.parquet").stat()
    with pytest.raises(ConfigurationError, match=r"schema\.json is not there"):
        read(repository, out)
    with pytest.raises(ConfigurationError, match="begun export with another vectors"):
        write(repository, out, vectors=("image",))
    write(repository, out, readers=1)
    assert (out / "part-00000.parquet").stat().st_mtime_ns == first.st_mtime_ns
    assert digest_of(read(repository, out)) == digest_of(POINTS)
    with pytest.raises(ConfigurationError, match="holds a finished export already"):
        write(repository, out)


def test_chosen_vectors_alone(repository: Repository, tmp_path: Path) -> None:
    """The configuration is that of a collection with these vectors; unknown names are refused before."""
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match="has no vector 'none', but: 'image', 'rows', 'words'"):
        write(repository, out, vectors=("none",))
    assert not out.exists()
    write(repository, out, vectors=("rows",))
    found = read(repository, out)
    assert {name for point in found for name in point["vector"]} == {"rows"}
    schema = orjson.loads((out / SCHEMA).read_bytes())
    assert schema["config"]["params"] == {
        "vectors": {"rows": CONFIG["params"]["vectors"]["rows"]},
        "sparse_vectors": {},
    }
    bare = read(repository, out, ask=Ask(payload=False, vectors=()))
    assert {(*point["payload"], *point["vector"]) for point in bare} == {()}


def test_any_parquet_reader_reads_it(repository: Repository, tmp_path: Path) -> None:
    """Plain columns: text, JSON, lists of floats, lists of lists, a struct of indices and values."""
    write(repository, tmp_path / "out")
    row = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()[1]
    assert row["id"] == "18446744073709551615"
    assert orjson.loads(row["payload"]) == ODD | {"n": 1}
    assert row["vector:rows"] == [[1.5, 1.0]] * 2
    assert row["vector:words"] == {"indices": [0], "values": [0.0]}
    assert len(row["vector:image"]) == 3


def test_files_of_another_tool_are_a_source(repository: Repository, tmp_path: Path) -> None:
    """With the least schema document, as docs/parquet.md has it: other types of lists, no payloads, ids of text."""
    [_, given, _] = re.split("```(?:json)?\n", (ROOT / "docs" / "parquet.md").read_text().split("The least", 1)[1])
    vectors = pa.array([[3, 4, 0], [0, 0, 1]], pa.list_(pa.float64(), 3))
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"id": pa.array(["7", "doc-8"], pa.large_string()), "vector": vectors}), path)
    schema = orjson.loads(given)
    schema["files"][0]["bytes"] = path.stat().st_size
    (tmp_path / SCHEMA).write_bytes(orjson.dumps(schema))
    found = read(repository, tmp_path)
    assert [(point["id"], point["payload"], point["vector"][""]) for point in found] == [
        (7, {}, [3.0, 4.0, 0.0]),
        ("doc-8", {}, [0.0, 0.0, 1.0]),
    ]


def test_damage_and_odd_folders_are_told(repository: Repository, tmp_path: Path) -> None:
    """By the file and what is wrong with it, never as points that are wrong."""
    out = tmp_path / "out"
    write(repository, out)
    file, schema = out / "part-00001.parquet", out / SCHEMA
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ArchiveDamagedError, match=r"part-00001\.parquet cannot be read as points"):
        read(repository, out)
    file.write_bytes(whole[:-10])
    with pytest.raises(ConfigurationError, match="bytes instead of"):
        read(repository, out)
    file.unlink()
    with pytest.raises(ConfigurationError, match="is missing"):
        read(repository, out)
    schema.write_bytes(schema.read_bytes().replace(b'"ferry-parquet"', b'"other"'))
    with pytest.raises(ConfigurationError, match="is not a schema of Parquet files"):
        read(repository, out)
    schema.rename(out / "else")
    with pytest.raises(ConfigurationError, match="holds other files already"):
        write(repository, out)


def test_without_the_library_it_says_what_to_install(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigurationError, match="not installed") as error:
        write(repository, tmp_path / "out")
    assert error.value.remedy == 'Install it: pip install "ferry[parquet]"'
    with pytest.raises(ConfigurationError, match="not installed"):
        ParquetFolder(repository, ParquetSource(location=str(tmp_path)))


@pytest.mark.parametrize("location", ["s3://other/docs", "s3://ferry/", "http://ferry/docs"])
def test_only_folders_and_the_repositorys_own_bucket(repository: Repository, location: str) -> None:
    """Ferry has no keys for other buckets."""
    with pytest.raises(ConfigurationError, match="s3://ferry/exports/docs"):
        open_folder(location, repository)


@pytest.mark.parametrize("text", ["5", "0", str(2**64 - 1), str(2**64), "05", "-5", "٣", "", "5 ", "1e3", "9" * 30])
def test_numbers_are_told_from_texts(text: str) -> None:
    """Digits as Qdrant writes a number; all else stays text."""
    assert point_id(text) == (int(text) if text in ("5", "0", str(2**64 - 1)) else text)
