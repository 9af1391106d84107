"""Opening archives with the engine, damaged ones too, and taking one shard out of a node's collection snapshot."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ferry.archive import reader, tar
from ferry.archive.digest import ContentDigest, ShardDigest, digest_of
from ferry.archive.node_archive import list_shards, split_shard
from ferry.archive.reader import id_order, open_archive, plain_id
from ferry.errors import ArchiveDamagedError, HeadroomError
from tests.unit.shard_archives import build_archive, points

POINTS = 600


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive(tmp_path_factory.mktemp("reader"), points(POINTS))


def test_an_archive_is_counted_read_and_cleared_away(archive: Path, tmp_path: Path) -> None:
    """Count, digest and sample are those of the points that went in, and the work directory is empty afterwards."""
    with open_archive(archive, tmp_path) as opened:
        assert opened.count() == POINTS
        assert _digest(opened) == digest_of(points(POINTS))
        sample = opened.sample(64)
        assert len({plain_id(record.id) for record in sample}) == 64
        assert all(record.payload and record.vector for record in sample)
        assert opened.sample(0) == []
    assert list(tmp_path.iterdir()) == []


def test_parts_by_id_cover_every_point_once(archive: Path, tmp_path: Path) -> None:
    """Batches between boundaries are in Qdrant's order of ids, of similar size, and together the whole shard."""
    with open_archive(archive, tmp_path) as opened:
        cuts = [None, *opened.boundaries(3), None]
        parts = [
            [plain_id(record.id) for batch in opened.batches(50, start, stop) for record in batch]
            for start, stop in pairwise(cuts)
        ]
    assert [len(part) for part in parts] == [POINTS // 3] * 3
    assert [point_id for part in parts for point_id in part] == sorted((p["id"] for p in points(POINTS)), key=id_order)


def test_the_work_directory_is_cleared_when_the_reader_fails(archive: Path, tmp_path: Path) -> None:
    """An error of the caller passes through and leaves nothing behind."""
    with pytest.raises(KeyError), open_archive(archive, tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def _cut(data: bytes, keep: int) -> bytes:
    return data[:keep]


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: bytes(4096),
        lambda data: b"<Error><Code>NoSuchKey</Code></Error>" * 99,
        lambda data: _cut(data, 300),
        lambda data: _cut(data, len(data) // 2),
        lambda data: _cut(data, _end(data) - 512),  # the last member only
        lambda data: _cut(data, _end(data)),  # no end mark
        lambda data: _cut(data, _end(data) + 512),  # half an end mark
        lambda data: _flip(data, 5),
        lambda data: data.replace(b"shard_config.json", b"shard_konfig.json", 1),
        lambda data: data.replace(b'"vector_data":', b'"vector_data"?'),
    ],
    ids=[
        "empty",
        "zeros",
        "text",
        "header",
        "half",
        "last",
        "no-end",
        "half-end",
        "flip-header",
        "renamed",
        "flip-data",
    ],
)
def test_a_damaged_archive_is_refused(archive: Path, tmp_path: Path, damage: Any) -> None:
    """Truncation at any place, wrong bytes and foreign files raise ArchiveDamagedError and leave nothing behind."""
    broken = tmp_path / "broken.snapshot"
    broken.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ArchiveDamagedError, match=r"broken\.snapshot"), open_archive(broken, tmp_path / "work"):
        pass
    assert list((tmp_path / "work").iterdir()) == []


def test_a_truncated_archive_names_the_member(archive: Path, tmp_path: Path) -> None:
    """The error says in which member the file ends."""
    broken = tmp_path / "broken.snapshot"
    broken.write_bytes(_cut(archive.read_bytes(), archive.stat().st_size // 2))
    with pytest.raises(ArchiveDamagedError, match=r"inside member segments/"):
        tar.require_complete(broken)


def test_a_header_is_believed_only_with_its_checksum(archive: Path, tmp_path: Path) -> None:
    """One wrong bit in a field that nobody reads is found, too."""
    broken = tmp_path / "broken.snapshot"
    broken.write_bytes(_flip(archive.read_bytes(), 110))
    with pytest.raises(ArchiveDamagedError, match="no valid tar header at byte 0"):
        tar.list_members(broken)


def test_long_maps_of_holes_are_passed_over(tmp_path: Path) -> None:
    """A member with more holes than its header has room for does not hide the one behind it."""
    with open(tmp_path / "holes", "wb") as file:
        for island in range(60):
            file.seek(island << 20)
            file.write(b"x" * 4096)
    (tmp_path / "after").write_text("here")
    path = tmp_path / "holes.tar"
    subprocess.run(["tar", "--format=gnu", "-S", "-cf", str(path), "holes", "after"], cwd=tmp_path, check=True)
    first, second = tar.list_members(path)
    assert (first.name, first.kind, second.name, second.stored) == ("holes", tar.SPARSE, "after", 4)
    assert first.data - first.header > 2 * tar.BLOCK
    assert path.read_bytes()[second.data : second.data + 4] == b"here"


def test_a_complete_tar_file_without_the_last_members_is_refused(tmp_path: Path) -> None:
    """An intact tar file of a snapshot that stopped early names what is missing."""
    path = tmp_path / "early.snapshot"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as out:
        out.addfile(tarfile.TarInfo("replica_state.json"), io.BytesIO())
    with pytest.raises(ArchiveDamagedError, match=r"no shard_config\.json"):
        tar.require_complete(path)


def test_a_panic_of_the_engine_is_an_error_of_ours() -> None:
    """pyo3's PanicException, which is no Exception, becomes ArchiveDamagedError; a KeyboardInterrupt stays itself."""
    panic = type("PanicException", (BaseException,), {})
    with (
        pytest.raises(ArchiveDamagedError, match=r"0\.snapshot.*index out of bounds"),
        reader.engine_errors("0.snapshot"),
    ):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), reader.engine_errors("0.snapshot"):
        raise KeyboardInterrupt


def test_too_little_room_is_told_before_unpacking(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A work directory without room for the archive is refused with both numbers."""
    needed = reader.workdir_bytes(archive)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed - 1))
    with (
        pytest.raises(HeadroomError, match=f"{needed} bytes.*{needed - 1} bytes are free"),
        open_archive(archive, tmp_path),
    ):
        pass


def test_unpacking_keeps_holes(archive: Path, tmp_path: Path) -> None:
    """The engine's preallocated pages take no disk: what is unpacked fits the promise of `workdir_bytes`."""
    with open_archive(archive, tmp_path) as opened:
        used = sum(file.stat().st_blocks * 512 for file in opened.folder.rglob("*"))
        apparent = sum(file.stat().st_size for file in opened.folder.rglob("*"))
    assert used <= reader.workdir_bytes(archive) < apparent


def test_one_shard_of_a_collection_snapshot_is_an_archive(archive: Path, tmp_path: Path) -> None:
    """The part of one shard, sparse members and long names and all, opens with the points of that shard."""
    node_archive = _collection_snapshot(tmp_path, archive)
    assert list_shards(node_archive) == [1, 12]
    size = split_shard(node_archive, 12, tmp_path / "12.snapshot")
    assert size == (tmp_path / "12.snapshot").stat().st_size < node_archive.stat().st_size
    assert max(len(member.name) for member in tar.list_members(tmp_path / "12.snapshot")) > 100
    inside = [name.removeprefix("12/") for name in _names(node_archive) if name.startswith("12/")]
    assert _names(tmp_path / "12.snapshot") == inside
    with open_archive(tmp_path / "12.snapshot", tmp_path / "work") as opened:
        assert _digest(opened) == digest_of(points(POINTS))


def test_a_shard_without_data_cannot_be_split_off(archive: Path, tmp_path: Path) -> None:
    """A shard that the node only knows by name is refused, with the shards that are there, and no file is made."""
    with pytest.raises(ArchiveDamagedError, match=r"no data of shard 2, only of \[1, 12\]"):
        split_shard(_collection_snapshot(tmp_path, archive), 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """A snapshot with a kind of member that Qdrant never writes is refused, and the begun file is removed."""
    path = tmp_path / "foreign.snapshot"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        out.addfile(tarfile.TarInfo("0/segments/a"), io.BytesIO())
        out.addfile(tarfile.TarInfo("0/segments/ü"), io.BytesIO())
    with pytest.raises(ArchiveDamagedError, match="does not write"):
        split_shard(path, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_of_8_gib_and_more_are_read() -> None:
    """Sizes beyond 11 octal digits are in base 256, as GNU tar writes them."""
    assert tar.number(b"\x80" + (9 << 30).to_bytes(11, "big")) == 9 << 30
    assert tar.number(b"00000001750\0") == 1000


def _collection_snapshot(folder: Path, archive: Path) -> Path:
    """Two shards with data and one by name only, laid out as Qdrant's collection snapshot."""
    for shard_id in ("1", "12"):
        (folder / shard_id).mkdir()
        subprocess.run(["tar", "-xf", str(archive), "-C", str(folder / shard_id)], check=True)
    [segment, *_] = (folder / "12" / "segments").iterdir()
    (segment / "payload_index" / ("a long name " * 8)).write_text("its member needs a long-name block")
    (folder / "2").mkdir()
    (folder / "2" / "shard_config.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    path = folder / "collection.snapshot"
    members = ["1", "2", "12", "config.json"]
    subprocess.run(["tar", "--format=gnu", "-S", "-cf", str(path), *members], cwd=folder, check=True)
    return path


def _names(path: Path) -> list[str]:
    with tarfile.open(path) as file:
        return [name for name in file.getnames() if name != "12"]


def _end(data: bytes) -> int:
    """Where the last member ends."""
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        last = file.getmembers()[-1]
    return last.offset_data + tar.padded(last.size)


def _digest(opened: reader.OpenArchive) -> ContentDigest:
    digest = ShardDigest()
    for batch in opened.batches():
        for record in batch:
            digest.add(record.id, record.payload, record.vector)
    return digest.value()
