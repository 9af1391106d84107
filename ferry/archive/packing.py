"""A finished shard of the engine as an archive that Qdrant 1.16 and later recovers: its files put right, then packed.

Three things are not as the engine (qdrant-edge 0.9.0) leaves them, all seen on 1.16.3:

- Vectors in memory lie in one file, ``InRamMmap``; before 1.18.3 they lie in chunks, ``InRamChunkedMmap``.
- Points bear the number of the operation that wrote them, and a shard passes over operations whose number is not
  larger: without a log it begins at 0, and would say ``completed`` of writes that it drops. So an empty log that begins
  after the largest number goes with it, as in Qdrant's own snapshots.
- The empty segment that takes writes is left out; the target makes one with its own settings.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ferry.archive.tar import BLOCK, SPARSE, SUM, TYPE, checksum, padded

CHUNK_BYTES = 32 << 20  # of vectors in chunks (vector_storage/common.rs)
LOG_BYTES = 32 << 20  # of a segment of the write-ahead log; a hole but for its beginning
LOG_HEADER = b"wal\0" + bytes(4)  # and the seed of its checksums
FLAGS_BYTES = 1 << 20  # the least that a file of flags has; larger ones are powers of two
_HEADER_ENTRIES, _BLOCK_ENTRIES = 4, 21  # of a sparse file's map, in its header and in each block after it (GNU tar)
_COPY_BYTES = 1 << 20
_ITEM_BYTES = {"float32": 4, "float16": 2, "uint8": 1}

# Which peer it was is of no matter: the one that recovers the shard puts itself there (replica_set/snapshots.rs).
_LAST = {
    "replica_state.json": {"is_local": True, "this_peer_id": 1, "peers": {"1": "Active"}},
    "shard_config.json": {"type": "ReplicaSet"},
}

Span = tuple[int, int]  # where in a file, and how many bytes


def put_right(folder: Path, operations: int) -> None:
    """Make the files of a closed shard, made by so many operations, what Qdrant 1.16.3 reads; see above."""
    for segment in sorted((folder / "segments").iterdir()):
        if not any(segment.glob("*id_tracker.mappings")):
            shutil.rmtree(segment)
            continue
        document = orjson.loads((segment / "segment.json").read_bytes())
        for name, vector in document["config"]["vector_data"].items():
            if vector["storage_type"] == "InRamMmap":
                vector["storage_type"] = "InRamChunkedMmap"
                if not vector.get("multivector_config"):
                    _chunk(segment / f"vector_storage{'-' if name else ''}{name}", vector)
        (segment / "segment.json").write_bytes(orjson.dumps(document))
    log = folder / "wal"
    log.mkdir()
    with (log / f"closed-{operations + 1}").open("wb") as file:
        file.write(LOG_HEADER)
        file.truncate(LOG_BYTES)


def pack(folder: Path, archive: Path, progress: Callable[[int], None]) -> str:
    """Pack a shard that was put right; the sha256 of the archive in hex. Holes of files stay holes.

    ``progress`` gets bytes that were written.
    """
    digest = hashlib.sha256()
    with archive.open("xb") as file:

        def write(data: bytes) -> None:
            file.write(data)
            digest.update(data)
            progress(len(data))

        for segment in sorted((folder / "segments").iterdir()):
            for path in sorted(path for path in segment.rglob("*") if path.is_file()):
                name = f"segments/{segment.name}/files/{path.relative_to(segment)}"
                _write_file(path, name, write)
        write(_header("wal/", 0, tarfile.DIRTYPE))
        for path in (folder / "wal").iterdir():
            _write_file(path, f"wal/{path.name}", write)
        for name, document in _LAST.items():
            content = orjson.dumps(document)
            write(_header(name, len(content)) + content.ljust(BLOCK, b"\0"))
        write(bytes(2 * BLOCK))
    return digest.hexdigest()


def _chunk(folder: Path, vector: dict[str, Any]) -> None:
    """Turn vectors in one file into vectors in chunks, and their deleted flags into flags of the other form."""
    vector_bytes = vector["size"] * _ITEM_BYTES[vector.get("datatype") or "float32"]
    each = max(1, CHUNK_BYTES // vector_bytes)
    chunks, flags = folder / "vectors", folder / "deleted"
    chunks.mkdir()
    flags.mkdir()
    with (folder / "matrix.dat").open("rb") as matrix:
        matrix.seek(4)  # b"data"
        count = (os.fstat(matrix.fileno()).st_size - 4) // vector_bytes
        for number in range(-(-count // each)):
            with (chunks / f"chunk_{number}.mmap").open("wb") as chunk:
                left = min(each, count - number * each) * vector_bytes
                while left:
                    left -= chunk.write(matrix.read(min(_COPY_BYTES, left)))
                chunk.truncate(each * vector_bytes)
    (chunks / "status.dat").write_bytes(count.to_bytes(8, "little"))
    sizes = {"chunk_size_bytes": each * vector_bytes, "chunk_size_vectors": each, "dim": vector["size"]}
    (chunks / "config.json").write_bytes(orjson.dumps(sizes))
    deleted = (folder / "deleted.dat").read_bytes()[8:]  # b"drop" and padding
    with (flags / "flags_a.dat").open("wb") as file:
        file.write(deleted)
        file.truncate(max(FLAGS_BYTES, 1 << (len(deleted) - 1).bit_length()))
    (flags / "status.dat").write_bytes(count.to_bytes(16, "little"))  # how many, and that file a is the one in use
    (folder / "matrix.dat").unlink()
    (folder / "deleted.dat").unlink()


def _write_file(path: Path, name: str, write: Callable[[bytes], None]) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        spans = list(_data_spans(file, size))
        stored = sum(length for _, length in spans)
        if stored == size:
            write(_header(name, size))
        else:
            write(_sparse_header(name, size, spans))
        for start, length in spans:
            file.seek(start)
            left = length
            while left:
                data = file.read(min(_COPY_BYTES, left))
                left -= len(data)
                write(data)
        write(bytes(padded(stored) - stored))


def _data_spans(file: BinaryIO, size: int) -> Iterator[Span]:
    """Where a file has data; the rest is holes."""
    position = 0
    while position < size:
        try:
            start = os.lseek(file.fileno(), position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        position = min(size, os.lseek(file.fileno(), start, os.SEEK_HOLE))
        yield start, position - start


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _sparse_header(name: str, size: int, spans: list[Span]) -> bytes:
    """The header of a file with holes as GNU tar writes it: type S, and a map of what is stored."""
    entries = [*spans, (size, 0)]
    whole = _header(name, sum(length for _, length in spans))
    before, header = whole[:-BLOCK], bytearray(whole[-BLOCK:])  # a block with a long name may come first
    header[TYPE] = SPARSE
    header[386:482] = _entries(entries[:_HEADER_ENTRIES], _HEADER_ENTRIES)
    rest = entries[_HEADER_ENTRIES:]
    header[482] = 1 if rest else 0
    header[483:495] = _number(size)
    header[SUM] = b"%06o\0 " % checksum(bytes(header))
    blocks = []
    for start in range(0, len(rest), _BLOCK_ENTRIES):
        more = len(rest) > start + _BLOCK_ENTRIES
        block = _entries(rest[start : start + _BLOCK_ENTRIES], _BLOCK_ENTRIES)
        blocks.append((block + bytes([more])).ljust(BLOCK, b"\0"))
    return before + bytes(header) + b"".join(blocks)


def _entries(spans: list[Span], room: int) -> bytes:
    return b"".join(_number(start) + _number(length) for start, length in spans).ljust(24 * room, b"\0")


def _number(value: int) -> bytes:
    """A number of a header, which is octal up to 8 GiB and binary beyond."""
    return b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")
