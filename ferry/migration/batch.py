"""Points on their way, in columns: the one form that every source gives and every writer takes.

Vectors are numpy arrays and never lists of floats: that is what makes the difference between 240 and 15 µs a point
(sources.md §0). From one Qdrant to another nothing needs to be decoded: then a batch is `WireBatch`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferry.models import ShardKey

Floats: TypeAlias = NDArray[np.float32]
PointId: TypeAlias = int | str


@dataclass(frozen=True)
class Dense:
    """Dense vectors of one name: a row for each point that has one. ``rows`` are those points; None: all of them."""

    values: Floats
    rows: NDArray[np.intp] | None = None


@dataclass(frozen=True)
class Sparse:
    """Sparse vectors of one name: vector i is ``indices`` and ``values`` from ``starts[i]`` to ``starts[i + 1]``."""

    starts: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: Floats
    rows: NDArray[np.intp] | None = None


@dataclass(frozen=True)
class Multi:
    """Multivectors of one name: vector i is the rows of ``values`` from ``starts[i]`` to ``starts[i + 1]``."""

    starts: NDArray[np.int64]
    values: Floats
    rows: NDArray[np.intp] | None = None


Column: TypeAlias = Dense | Sparse | Multi


@dataclass(frozen=True)
class PointBatch:
    """Some points. ``ids`` as the source has them; ``vectors`` by name, the unnamed one as ``""``; ``key`` of all."""

    ids: Sequence[PointId]
    payloads: Sequence[dict[str, Any]]
    vectors: Mapping[str, Column]
    key: ShardKey | None = None


@dataclass(frozen=True)
class WireBatch:
    """Some points, each as the bytes of Qdrant's ``PointStruct`` message, ready to be sent.

    ``plain`` are further points that these messages cannot carry exactly, as Qdrant's REST API takes them; most batches
    have none (`ferry.qdrant.wire.encode`).
    """

    points: Sequence[bytes]
    key: ShardKey | None = None
    plain: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Refused:
    """A point that cannot be in the target, by the id it has in the source, and why."""

    id: PointId
    reason: str


AnyBatch: TypeAlias = PointBatch | WireBatch
