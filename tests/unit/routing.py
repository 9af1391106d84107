"""Which shard Qdrant looks for a point in, written from the facts (seen on 1.16.3) and not from Ferry's code."""

from bisect import bisect_left
from functools import cache
from struct import pack
from uuid import UUID

VIRTUAL_NODES = 100  # of each shard on the ring
_WORD = 2**64 - 1


def shard_of(point: int | str, shards: tuple[int, ...]) -> int:
    """The shard of a ring of these numbers that holds the point: the one whose entry follows the id's hash."""
    entries = _ring(tuple(sorted(shards)))
    place = bisect_left(entries, (_hash_of(point), -1))
    return entries[place % len(entries)][1]


@cache
def _ring(shards: tuple[int, ...]) -> list[tuple[int, int]]:
    return sorted((siphash(pack("<II", shard, entry)), shard) for shard in shards for entry in range(VIRTUAL_NODES))


@cache
def _hash_of(point: int | str) -> int:
    if isinstance(point, int):
        return siphash(pack("<QQ", 0, point))
    return siphash(pack("<QQ", 1, 16) + UUID(point).bytes)


def siphash(data: bytes) -> int:
    """SipHash-2-4 with a key of zeros (Aumasson and Bernstein, 2012)."""
    state = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    for start in range(0, len(padded), 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        state[3] ^= word
        _rounds(state, 2)
        state[0] ^= word
    state[2] ^= 0xFF
    _rounds(state, 4)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def _rounds(state: list[int], times: int) -> None:
    a, b, c, d = state
    for _ in range(times):
        a, c = (a + b) & _WORD, (c + d) & _WORD
        b, d = _turned(b, 13) ^ a, _turned(d, 16) ^ c
        a, c = (_turned(a, 32) + d) & _WORD, (c + b) & _WORD
        b, d = _turned(b, 17) ^ c, _turned(d, 21) ^ a
        c = _turned(c, 32)
    state[:] = [a, b, c, d]


def _turned(word: int, bits: int) -> int:
    return (word << bits | word >> 64 - bits) & _WORD
