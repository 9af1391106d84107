"""Points on their way, changed as a migration's request says, with the ids and the shard keys of the target.

`Changing.apply` gives points as the target shall show them, which is what is compared; `Changing.sent` gives them as
they must be sent for that. Both give the same points: what one refuses, the other refuses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ferry.migration.batch import Column, Dense, Floats, Multi, PointBatch, Refused
from ferry.migration.changed_config import changed_config, dense_vectors
from ferry.migration.columns import take
from ferry.migration.field_types import typed
from ferry.migration.ids import is_kept, namespace_of, point_id, with_original
from ferry.migration.plan import MigrationPlan, MigrationRequest
from ferry.migration.source import SourceDescription
from ferry.models import ShardKey
from ferry.qdrant.rounding import before_rounding, half_cosine_vectors
from ferry.restore.field_keys import key_of, shown_value
from ferry.restore.shape import is_custom, key_named

LEFT_ALONE = 1e-6  # Qdrant's own bound for the sum of squares of a vector that counts as of length 1
MOST_HALF = 65504.0  # the largest float16
OWN = ("qdrant", "backup")  # sources whose vectors a Qdrant has stored already


@dataclass(frozen=True)
class Changed:
    """Some points after all changes, a batch for each shard key they go to, and those that cannot go."""

    batches: tuple[PointBatch, ...]
    refused: tuple[Refused, ...] = ()


class Changing:
    """The changes of one migration; safe to use from several threads."""

    def __init__(self, request: MigrationRequest, source: SourceDescription) -> None:
        """Raises PreflightError for changes that the source does not allow; see `changed_config`."""
        self._changes, self._shape = request.changes, request.shape
        self._namespace = namespace_of(source.identity)
        before, after = source.config, changed_config(source.config, request.changes)
        custom = is_custom(before) if self._shape.sharding is None else self._shape.sharding == "custom"
        self._custom = custom
        self._renamed: dict[ShardKey, ShardKey] = {}
        if custom and self._shape.rename_keys:
            self._renamed = {key_named(old, source.shards): new for old, new in self._shape.rename_keys.items()}
        self._work = _vector_work(before, after, self._changes.vectors, source.kind in OWN)
        self._sent = set(half_cosine_vectors(after))
        self._fields = bool(self._changes.drop_fields or self._changes.rename_fields or self._changes.field_types)

    @classmethod
    def of(cls, plan: MigrationPlan) -> Changing:
        """The changes of a plan."""
        return cls(plan.request, plan.source)

    @property
    def undecoded(self) -> bool:
        """Whether points of a Qdrant can pass as they are, but for vectors that are left out and the key of a range."""
        renames = any(new is not None for new in self._changes.vectors.values())
        return not (self._fields or renames or self._work or self._sent or self._keyed_by_field)

    @property
    def _keyed_by_field(self) -> bool:
        return self._custom and self._shape.key_field is not None

    def key(self, key: ShardKey | None) -> ShardKey | None:
        """The target's shard key of points that have ``key`` in the source, where no payload field decides."""
        if not self._custom:
            return None
        if self._shape.into_key is not None:
            return self._shape.into_key
        return key if key is None else self._renamed.get(key, key)

    def apply(self, batch: PointBatch) -> Changed:
        """The points as the target shall show them."""
        return self._changed(batch, sent=False)

    def sent(self, batch: PointBatch) -> Changed:
        """The points as they must be sent, so that the target shows what `apply` gives.

        Only float16 vectors with distance Cosine are others: see `ferry.qdrant.rounding`.
        """
        return self._changed(batch, sent=True)

    def _changed(self, batch: PointBatch, sent: bool) -> Changed:
        work = _Work(batch)
        vectors = self._vectors(work, sent)
        ids = [point_id(each, self._namespace) for each in batch.ids]
        payloads = [self._payload(work, row, payload) for row, payload in enumerate(batch.payloads)]
        keys = [self._key_of(work, row, batch) for row in range(len(ids))] if self._keyed_by_field else None
        new = PointBatch(ids, payloads, vectors, self.key(batch.key))
        return Changed(tuple(_split(new, keys, work.refused)), work.named())

    def _vectors(self, work: _Work, sent: bool) -> dict[str, Column]:
        found: dict[str, Column] = {}
        for old, column in work.batch.vectors.items():
            name = self._changes.vectors.get(old, old)
            if name is None:
                continue
            change = self._work.get(old)
            if change is not None and isinstance(column, Dense | Multi):
                column = change(work, old, column, sent)  # noqa: PLW2901  # the same column, changed
            if sent and name in self._sent and isinstance(column, Dense | Multi):
                column = replace(column, values=_exact_halves(column.values))  # noqa: PLW2901
            found[name] = column
        return found

    def _payload(self, work: _Work, row: int, payload: dict[str, Any]) -> dict[str, Any]:
        source_id = work.batch.ids[row]
        try:
            new = self._with_fields(payload) if self._fields else payload
            return new if is_kept(source_id) else with_original(new, source_id)
        except ValueError as error:
            work.refuse(row, str(error))
            return payload

    def _with_fields(self, payload: dict[str, Any]) -> dict[str, Any]:
        renamed, dropped = self._changes.rename_fields, self._changes.drop_fields
        new: dict[str, Any] = {}
        for old, value in payload.items():
            if old in dropped:
                continue
            name = renamed.get(old, old)
            if name in new:
                msg = f"its payload would have {name} twice, as {old} is renamed to a field that it has"
                raise ValueError(msg)
            new[name] = value
        for name, kind in self._changes.field_types.items():
            if name in new:
                new[name] = typed(new[name], kind, name)
        return new

    def _key_of(self, work: _Work, row: int, batch: PointBatch) -> ShardKey | None:
        field, point = str(self._shape.key_field), {"id": batch.ids[row], "payload": batch.payloads[row]}
        key = key_of(point, field)
        if key is None:
            work.refuse(row, f"it has {shown_value(point, field)} in {field}, which can be no shard key")
        return key


class _Work:
    """A batch under work, and which of its points are refused; the first reason counts."""

    def __init__(self, batch: PointBatch) -> None:
        self.batch = batch
        self.refused: dict[int, str] = {}

    def refuse(self, row: int, reason: str) -> None:
        self.refused.setdefault(row, reason)

    def named(self) -> tuple[Refused, ...]:
        return tuple(Refused(self.batch.ids[row], reason) for row, reason in sorted(self.refused.items()))


VectorChange = Callable[[_Work, str, "Dense | Multi", bool], "Dense | Multi"]


def _vector_work(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Mapping[str, str | None], own: bool
) -> dict[str, VectorChange]:
    """What has to be done to the values of each vector, by its old name; nothing where a Qdrant has stored the same."""
    work: dict[str, VectorChange] = {}
    new = dense_vectors(after)
    for old, vector in dense_vectors(before).items():
        name = names.get(old, old)
        if name is None:
            continue
        was, will = vector.get("datatype") or "float32", new[name].get("datatype") or "float32"
        unit = new[name]["distance"] == "Cosine" and will != "uint8" and (was, will) != ("float16", "float16")
        if not own or was != will:
            work[old] = _Values(will, unit).change
    return work


@dataclass(frozen=True)
class _Values:
    """What Qdrant does with the values of a vector when it stores them as another datatype, done before."""

    datatype: str
    unit: bool

    def change(self, work: _Work, name: str, column: Dense | Multi, sent: bool) -> Dense | Multi:
        values = _unit(column.values) if self.unit else column.values
        if self.datatype == "uint8":
            self._refuse(work, name, column, (values < 0) | (values >= 256), "is not from 0 to 255, as uint8 must be")
            values = np.trunc(np.clip(values, 0, 255)).astype(np.float32)
        if self.datatype == "float16":
            self._refuse(work, name, column, np.abs(values) > MOST_HALF, f"is beyond {MOST_HALF:g}, float16's largest")
            if not (sent and self.unit):  # before_rounding makes halves of the whole values
                values = np.clip(values, -MOST_HALF, MOST_HALF).astype(np.float16).astype(np.float32)
        return replace(column, values=values)

    def _refuse(self, work: _Work, name: str, column: Dense | Multi, wrong: Any, why: str) -> None:
        if not wrong.any():
            return
        for line in np.flatnonzero(wrong.any(axis=1)).tolist():
            inner = line if isinstance(column, Dense) else int(np.searchsorted(column.starts, line, "right")) - 1
            row = inner if column.rows is None else int(column.rows[inner])
            work.refuse(row, f"a value of its vector {name!r} {why}")


def _unit(values: Floats) -> Floats:
    """The rows as long as 1, as Qdrant makes them for Cosine; it leaves these alone then.

    Worked out in doubles: the node's own sum depends on its processor's instructions in the last bit.
    """
    squares = np.einsum("ij,ij->i", values, values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        off = (np.abs(squares - 1) > LEFT_ALONE) & (squares > np.finfo(np.float32).eps) & np.isfinite(squares)
    if not off.any():
        return values
    new = values.copy()
    new[off] = (values[off].astype(np.float64) / np.sqrt(squares[off])[:, None]).astype(np.float32)
    return new


def _exact_halves(values: Floats) -> Floats:
    """What is stored as these halves although Qdrant makes it as long as 1 first (`ferry.qdrant.rounding`)."""
    finite = np.isfinite(values).all(axis=1) & (values != 0).any(axis=1)
    new = values.copy()
    if finite.any():
        new[finite] = np.array(before_rounding(values[finite].tolist()), dtype=np.float32)
    return new


def _split(batch: PointBatch, keys: Sequence[ShardKey | None] | None, refused: Mapping[int, str]) -> list[PointBatch]:
    """The points that are not refused, by the shard key of each where ``keys`` are given."""
    if keys is None and not refused:
        return [batch] if batch.ids else []
    rows: dict[ShardKey | None, list[int]] = defaultdict(list)
    for row in range(len(batch.ids)):
        if row not in refused:
            rows[batch.key if keys is None else keys[row]].append(row)
    return [replace(take(batch, np.array(chosen, dtype=np.intp)), key=key) for key, chosen in rows.items()]
