"""A tar file as a row of members at block level: where each one lies, without unpacking or inflating anything.

Python's tarfile reads GNU sparse members but cannot write them, and it takes some truncated files for complete ones.
Snapshots are full of sparse members (Qdrant preallocates pages of 32 MiB), so Ferry moves members as
the blocks they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ferry.errors import ArchiveDamagedError

BLOCK = 512
NAME = slice(0, 100)
SIZE = slice(124, 136)
SUM = slice(148, 156)
TYPE = slice(156, 157)
SPARSE, LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"S", b"L", b"K", b"x", b"g"
LAST_MEMBERS = ("replica_state.json", "shard_config.json")  # written last by Qdrant 1.16-1.19, replica_set/snapshots.rs


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar file. All positions and sizes are bytes in that file; ``stored`` has no holes in it."""

    name: str
    kind: bytes
    start: int  # the first block, a long-name block if there is one
    header: int  # the header proper
    data: int  # after the header and its sparse map
    stored: int

    @property
    def end(self) -> int:
        return self.data + padded(self.stored)


def padded(size: int) -> int:
    """Round a size up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def checksum(header: bytes) -> int:
    """The sum of a header's bytes with its checksum field taken as spaces (POSIX.1-1988 ustar)."""
    return sum(header) - sum(header[SUM]) + 8 * ord(" ")


def number(field: bytes) -> int:
    """Read a numeric field: octal text, or base 256 when the highest bit is set (GNU, for 8 GiB and more)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def members(file: BinaryIO, path: Path) -> Iterator[Member]:
    """Walk the members of a tar file and insist on its end: two blocks of zeros.

    Raises `ArchiveDamagedError` for what is not a tar file, a header that fails its checksum, or a truncated file.
    """
    length = os.fstat(file.fileno()).st_size
    position, start, long_name = 0, 0, None
    while any(header := _block(file, position, path)):
        member = _member(file, header, position, path)
        if member.end > length:
            raise _damaged(path, f"ends at byte {length}, inside member {member.name}, which needs {member.end}")
        position = member.end
        if member.kind == LONG_NAME:
            file.seek(member.data)
            long_name = _text(file.read(member.stored))
            continue
        name = long_name or member.name
        yield Member(name, member.kind, start, member.header, member.data, member.stored)
        start, long_name = position, None
    if any(_block(file, position + BLOCK, path)):
        raise _damaged(path, f"has no end-of-archive mark at byte {position}")


def list_members(path: Path) -> list[Member]:
    """Return all members of a tar file; see `members`."""
    with open(path, "rb") as file:
        return list(members(file, path))


def require_complete(path: Path) -> list[Member]:
    """Return the members of a shard archive, and make sure that nothing is missing at its end.

    Qdrant ends a failed stream as if it were whole (facts: qdrant v1.16-1.19, shard_holder logs and closes), so the
    last members and the end mark are the only signs. Raises `ArchiveDamagedError`.
    """
    found = list_members(path)
    names = {member.name.removeprefix("./") for member in found}
    missing = [name for name in LAST_MEMBERS if name not in names]
    if missing:
        raise _damaged(path, f"has {len(found)} members but no {' and no '.join(missing)}, which Qdrant writes last")
    return found


def _block(file: BinaryIO, position: int, path: Path) -> bytes:
    file.seek(position)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise _damaged(path, f"ends at byte {position + len(block)} without an end-of-archive mark")
    return block


def _member(file: BinaryIO, header: bytes, position: int, path: Path) -> Member:
    try:
        if number(header[SUM]) != checksum(header):
            raise _damaged(path, f"has no valid tar header at byte {position}")
        stored = number(header[SIZE])
    except ValueError:
        raise _damaged(path, f"has no valid tar header at byte {position}") from None
    data = position + BLOCK
    kind = header[TYPE]
    more = kind == SPARSE and header[482]  # "isextended": blocks of the sparse map follow the header
    while more:
        more = _block(file, data, path)[504]
        data += BLOCK
    return Member(_text(header[NAME]), kind, position, position, data, stored)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="surrogateescape")


def _damaged(path: Path, fact: str) -> ArchiveDamagedError:
    return ArchiveDamagedError(f"{path.name} {fact}.", "Use another backup of this shard, or back it up again.")
