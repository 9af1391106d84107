"""Which shard Qdrant looks for a point in: its ring, reproduced, so that finished shards can be made elsewhere.

SipHash-2-4 with a key of zeros; each shard stands a hundred times on a ring of 64-bit hashes, and a point belongs to
the first entry whose hash is not smaller than its own (qdrant.md §10: 3000 of 3000 ids of a real 1.16.3 shard agreed).
Within a shard key the ring has that key's shards only. `ferry.migration.ring` asks the target before it is trusted.
"""

from collections.abc import Iterable, Sequence
from struct import Struct

import numpy as np
from numpy.typing import NDArray
from siphash24 import siphash24

from ferry.models import ShardId

VIRTUAL_NODES = 100  # of each shard on the ring (Qdrant 1.16, hash_ring.rs)
_ENTRY = Struct("<II")
_NUMBER = Struct("<QQ")
_UUID_PREFIX = Struct("<QQ").pack(1, 16)


class Router:
    """The ring of some shards: of a collection, or of one shard key."""

    def __init__(self, shards: Iterable[ShardId]) -> None:
        entries = [(shard, entry) for shard in sorted(set(shards)) for entry in range(VIRTUAL_NODES)]
        hashes = _hashes([_ENTRY.pack(*entry) for entry in entries])
        order = np.argsort(hashes, kind="stable")  # of two equal hashes the smaller shard comes first
        self._hashes = hashes[order]
        self._shards = np.array([shard for shard, _ in entries], dtype=np.int64)[order]

    @property
    def arcs(self) -> int:
        """How many arcs the ring is cut into by its entries."""
        return len(self._shards)

    def shards_of(self, ids: Sequence[int | str]) -> NDArray[np.int64]:
        """The shard of each id: unsigned 64-bit numbers, and UUIDs as text."""
        places = np.searchsorted(self._hashes, _hashes([_key_of(point_id) for point_id in ids]))
        found: NDArray[np.int64] = self._shards[places % len(self._shards)]
        return found

    def first_of_arcs(self, ids: Sequence[int | str]) -> list[int | str]:
        """Of these ids the one that comes first in each arc: an entry more or less there would change its shard."""
        hashes = _hashes([_key_of(point_id) for point_id in ids])
        order = np.argsort(hashes)
        _, first = np.unique(np.searchsorted(self._hashes, hashes[order]), return_index=True)
        return [ids[place] for place in order[first]]


def _key_of(point_id: int | str) -> bytes:
    if isinstance(point_id, int):
        return _NUMBER.pack(0, point_id)
    return _UUID_PREFIX + bytes.fromhex(point_id.replace("-", ""))


def _hashes(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join([siphash24(key).digest() for key in keys]), dtype="<u8")
