"""Points as Parquet: the neutral form that other tools read and write, and its schema document (docs/parquet.md).

Columns: ``id`` and ``payload`` (JSON) as text, and one for each vector: ``vector`` for the unnamed one, ``vector:NAME``
for the others. Dense vectors are lists of float32, multivectors lists of those, sparse ones a struct of ``indices``
(uint32) and ``values``. Null: the point has no such vector. ``schema.json`` beside the files is written last.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from ferry.errors import ConfigurationError
from ferry.migration.batch import Column, Dense, Multi, PointBatch, PointId, Sparse
from ferry.migration.changed_config import dense_vectors, sparse_vectors
from ferry.models import ShardKey, ShardLayout, Value

SCHEMA = "schema.json"
Kind = Literal["dense", "multi", "sparse"]


class VectorColumn(Value):
    """The column that holds the vectors of one name."""

    column: str
    kind: Kind


class PartFile(Value):
    """One Parquet file. All of its points have the shard key ``key``."""

    name: str
    key: ShardKey | None = None
    points: int
    bytes: int


class ParquetSchema(Value):
    """What ``schema.json`` holds: all that makes a collection of the files again.

    ``config`` and ``payload_schema`` are documents as Qdrant's ``GET /collections/{name}`` gives them.
    """

    format: Literal["ferry-parquet"] = "ferry-parquet"
    format_version: Literal[1] = 1
    export_id: str
    source: str
    created_at: datetime
    config: dict[str, Any]
    payload_schema: dict[str, Any] = Field(default_factory=dict)
    shards: tuple[ShardLayout, ...] = ()
    vectors: dict[str, VectorColumn]
    files: tuple[PartFile, ...]
    points: int
    unique_ids: bool = True


def arrow() -> Any:
    """The library pyarrow with its Parquet part. Raises ConfigurationError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        msg = "Parquet needs the library pyarrow, which is not installed. Nothing was changed."
        raise ConfigurationError(msg, 'Install it: pip install "ferry[parquet]"') from None
    return pyarrow


def read_schema(data: bytes | None, where: str) -> ParquetSchema:
    """The schema document. Raises ConfigurationError when it is missing or is none."""
    if data is None:
        msg = f"{where} is not there, so this is no folder of finished Parquet files of Ferry's."
        raise ConfigurationError(msg, "See docs/parquet.md; an export that was interrupted is run again.")
    try:
        return ParquetSchema.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        msg = f"{where} is not a schema of Parquet files as Ferry knows it: {place}: {first['msg']}."
        raise ConfigurationError(msg, "See docs/parquet.md.") from None


def vector_columns(config: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, VectorColumn]:
    """The columns for the vectors of a collection, or for those of these names."""
    kinds: dict[str, Kind] = {
        name: "multi" if vector.get("multivector_config") else "dense" for name, vector in dense_vectors(config).items()
    }
    kinds |= dict.fromkeys(sparse_vectors(config), "sparse")
    return {
        name: VectorColumn(column=f"vector:{name}" if name else "vector", kind=kind)
        for name, kind in kinds.items()
        if names is None or name in names
    }


def arrow_schema(vectors: Mapping[str, VectorColumn]) -> Any:
    """The columns of a file."""
    pa = arrow()
    floats = pa.list_(pa.float32())
    types = {
        "dense": floats,
        "multi": pa.list_(floats),
        "sparse": pa.struct([("indices", pa.list_(pa.uint32())), ("values", floats)]),
    }
    fields = [(column.column, types[column.kind]) for column in vectors.values()]
    return pa.schema([pa.field("id", pa.string(), nullable=False), ("payload", pa.string()), *fields])


def open_writer(path: Path, vectors: Mapping[str, VectorColumn]) -> Any:
    """A writer of one file; to be used as a context manager. Pages bear checksums; floats are not compressed."""
    return arrow().parquet.ParquetWriter(
        path,
        arrow_schema(vectors),
        compression={"id": "ZSTD", "payload": "ZSTD"},
        use_dictionary=False,
        write_statistics=["id"],
        write_page_checksum=True,
    )


def open_file(path: Path) -> Any:
    """An open file, whose pages are compared with their checksums."""
    return arrow().parquet.ParquetFile(path, page_checksum_verification=True)


def table_of(batch: PointBatch, vectors: Mapping[str, VectorColumn]) -> Any:
    """Points as an Arrow table."""
    pa, points = arrow(), len(batch.ids)
    arrays = [
        pa.array(list(map(str, batch.ids)), pa.string()),
        pa.array([orjson.dumps(payload) for payload in batch.payloads], pa.string()),
    ]
    arrays += [_array(batch.vectors.get(name), column.kind, points) for name, column in vectors.items()]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(vectors))


def batch_of(table: Any, vectors: Mapping[str, VectorColumn], key: ShardKey | None) -> PointBatch:
    """The points of an Arrow table. Raises ValueError for what is no point."""
    ids = [point_id(text) for text in table["id"].to_pylist()]
    if "payload" in table.column_names:
        payloads = [orjson.loads(text) if text else {} for text in table["payload"].to_pylist()]
    else:
        payloads = [{} for _ in ids]
    columns = {}
    for name, column in vectors.items():
        if column.column in table.column_names:
            found = _column(table[column.column].combine_chunks(), column.kind)
            if found is not None:
                columns[name] = found
    return PointBatch(ids, payloads, columns, key)


def point_id(text: str) -> PointId:
    """An id out of its text: digits without a leading zero are the number, as Qdrant has no such text as an id."""
    if text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 1 << 64 and str(int(text)) == text:
        return int(text)
    return text


def _array(column: Column | None, kind: Kind, points: int) -> Any:
    """A column of vectors with null where a point has none."""
    pa = arrow()
    if column is None:
        return pa.nulls(points, arrow_schema({"": VectorColumn(column="v", kind=kind)}).field("v").type)
    present = np.ones(points, dtype=bool)
    if column.rows is not None:
        present[:] = False
        present[column.rows] = True
    mask = pa.array(~present)
    if isinstance(column, Dense):
        return _lists(pa.array(column.values.reshape(-1)), _spread(present, column.values.shape[1]), mask)
    offsets = _spread(present, np.diff(column.starts))
    if isinstance(column, Multi):
        width = column.values.shape[1] if column.values.ndim > 1 else 0
        rows = _lists(pa.array(column.values.reshape(-1)), _spread(np.ones(len(column.values), dtype=bool), width))
        return _lists(rows, offsets, mask)
    parts = [_lists(pa.array(column.indices), offsets), _lists(pa.array(column.values), offsets)]
    return pa.StructArray.from_arrays(parts, ["indices", "values"], mask=mask)


def _spread(present: NDArray[np.bool_], lengths: Any) -> NDArray[np.int32]:
    """Where the list of each point starts, when only those that are present have a length."""
    each = np.zeros(len(present), dtype=np.int64)
    each[present] = lengths
    return np.concatenate([[0], np.cumsum(each)]).astype(np.int32)


def _lists(values: Any, offsets: NDArray[np.int32], mask: Any = None) -> Any:
    pa = arrow()
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)


def _column(array: Any, kind: Kind) -> Column | None:
    """The vectors of a column, or None where no point has one."""
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if not valid.any():
        return None
    rows = None if valid.all() else np.flatnonzero(valid)
    if kind == "sparse":
        indices, values = array.drop_null().flatten()
        starts = _starts(indices)
        if not np.array_equal(starts, _starts(values)):
            raise ValueError("a sparse vector has not as many values as indices")
        return Sparse(starts, _numbers(indices, np.uint32), _numbers(values, np.float32), rows)
    if kind == "multi":
        inner = array.flatten()
        return Multi(_starts(array.drop_null()), _matrix(inner), rows)
    return Dense(_matrix(array.drop_null()), rows)


def _matrix(lists: Any) -> NDArray[np.float32]:
    lengths = np.diff(_starts(lists))
    if len(lengths) and (lengths != lengths[0]).any():
        raise ValueError("its vectors differ in length")
    return _numbers(lists, np.float32).reshape(len(lengths), -1 if len(lengths) and lengths[0] else 0)


def _numbers(lists: Any, kind: Any) -> NDArray[Any]:
    flat = lists.flatten()
    if flat.null_count:
        raise ValueError("a vector holds null")
    return np.asarray(flat.to_numpy(zero_copy_only=False), dtype=kind)


def _starts(lists: Any) -> NDArray[np.int64]:
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
