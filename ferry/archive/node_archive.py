"""One shard out of a node's collection snapshot, as a shard archive of its own.

The ``{shard_id}/`` part of a collection snapshot is what Qdrant writes for a shard snapshot (v1.16-1.19:
collection/snapshots.rs and shard_holder share the writer), plus the write-ahead log's pending operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ferry.archive import tar
from ferry.archive.tar import BLOCK, Member
from ferry.errors import ArchiveDamagedError

COPY_BYTES = 1 << 20


def list_shards(path: Path) -> list[int]:
    """Return the ids of the shards whose data is in a collection snapshot, in rising order.

    A shard that lives only on other nodes is named in the snapshot but has no segments; it is left out.
    Raises `ArchiveDamagedError` if the file is no complete tar file.
    """
    parts = (member.name.split("/") for member in tar.list_members(path))
    return sorted({int(part[0]) for part in parts if part[0].isdigit() and part[1:2] == ["segments"]})


def split_shard(node_archive_path: Path, shard_id: int, out_path: Path) -> int:
    """Write the archive of one shard of a collection snapshot to ``out_path`` and return its size in bytes.

    Headers get the name without ``{shard_id}/`` and a new checksum; data and sparse maps are copied as they are, at
    most 1 MiB in memory. The result can be opened by `ferry.archive.reader` and recovered by a node at shard level.
    Raises `ArchiveDamagedError` if the file is no complete tar file or holds no data of the shard; then nothing is
    left at ``out_path``.
    """
    held = list_shards(node_archive_path)
    if shard_id not in held:
        raise ArchiveDamagedError(f"{node_archive_path.name} holds no data of shard {shard_id}, only of {held}.")
    try:
        with open(node_archive_path, "rb") as source, open(out_path, "xb") as target:
            for member in _of_shard(source, node_archive_path, shard_id):
                _copy_member(source, target, member, f"{shard_id}/")
            target.write(bytes(2 * BLOCK))
            return target.tell()
    except FileExistsError:
        raise
    except BaseException:
        out_path.unlink(missing_ok=True)
        raise


def _of_shard(source: BinaryIO, path: Path, shard_id: int) -> Iterator[Member]:
    prefix = f"{shard_id}/"
    for member in tar.members(source, path):
        if member.kind in (tar.PAX, tar.PAX_GLOBAL, tar.LONG_LINK):
            # Qdrant never writes them; passing one on could give a member a name that we did not see.
            raise ArchiveDamagedError(f"{path.name} has a member of kind {member.kind!r}, which Qdrant does not write.")
        if member.name.startswith(prefix) and member.name != prefix:
            yield member


def _copy_member(source: BinaryIO, target: BinaryIO, member: Member, prefix: str) -> None:
    name = member.name.removeprefix(prefix).encode(errors="surrogateescape")
    source.seek(member.header)
    header = source.read(BLOCK)
    if len(name) > 100:
        source.seek(member.start)
        long_header = source.read(BLOCK)
        target.write(_with_checksum(long_header[:124] + b"%011o\0" % (len(name) + 1) + long_header[136:]))
        target.write(name.ljust(tar.padded(len(name) + 1), b"\0"))
    target.write(_with_checksum(name[:100].ljust(100, b"\0") + header[100:]))
    _copy(source, target, member.header + BLOCK, member.end)


def _with_checksum(header: bytes) -> bytes:
    return header[:148] + b"%06o\0 " % tar.checksum(header) + header[156:]


def _copy(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    while start < end:
        data = source.read(min(COPY_BYTES, end - start))
        if not data:
            raise ArchiveDamagedError(f"The snapshot became shorter while it was read, at byte {start}.")
        target.write(data)
        start += len(data)
