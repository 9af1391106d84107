"""Points of a live collection or of a backup as Parquet files (docs/parquet.md), in ranges that are planned once.

A range becomes one file. An export that was interrupted is run again and keeps the files that are finished: of a live
source they are then of another moment than the rest, as every scroll of a live collection is of no single one.
"""

from collections.abc import Iterator
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import orjson

from ferry.connections import Repository
from ferry.errors import ConfigurationError, FerryError
from ferry.lanes import Job, raise_failures
from ferry.migration import parquet_format
from ferry.migration.batch import PointBatch
from ferry.migration.parquet_folder import Folder, open_folder
from ferry.migration.parquet_format import SCHEMA, ParquetSchema, PartFile, VectorColumn, arrow
from ferry.migration.source import Ask, Source, SourceDescription, SourceRange
from ferry.models import Progress, Value, now
from ferry.verify import spool

PLAN = "export.json"  # there while an export is not finished
FILE_POINTS = 250_000
GROUP_BYTES = 8 << 20  # of a row group: what a reader holds in memory at once
GROUP_POINTS = 65_536
Columns: TypeAlias = dict[str, VectorColumn]


class ExportRequest(Value):
    """What was asked: ``location`` is a folder or ``s3://bucket/prefix``, ``vectors`` the names wanted (None: all)."""

    location: str
    filter: dict[str, Any] | None = None
    vectors: tuple[str, ...] | None = None
    readers: int = 4


class ExportPlan(Value):
    """What an interrupted export goes on with."""

    export_id: str
    created_at: datetime
    request: ExportRequest
    source: SourceDescription
    ranges: tuple[SourceRange, ...]


def export_points(repository: Repository, source: Source, request: ExportRequest, job: Job) -> ParquetSchema:
    """Write what is not there yet, and the schema document last; the same call again goes on after any failure.

    Raises ConfigurationError without pyarrow, for a location that is none, for a folder that holds a finished export
    or one of something else, and for vectors that the source has not; and what reading and writing raise.
    """
    arrow()
    folder = open_folder(request.location, repository)
    plan = _planned(folder, source, request)
    columns = parquet_format.vector_columns(plan.source.config, request.vectors)
    ask = Ask(filter=request.filter, vectors=request.vectors, batch_bytes=GROUP_BYTES)

    def export(part: SourceRange) -> PartFile:
        found = _finished(folder, part)
        if found is not None:
            return found
        return job.step(part.label, part.points, lambda progress: write(part, progress))

    def write(part: SourceRange, progress: Progress) -> PartFile:
        with spool.folder(repository.worker) as work:
            path, name = work / "part.parquet", _name(part)
            points = _write(path, _groups(source, part, ask, columns, progress), columns, progress)
            folder.put(name, path, progress)
            written = PartFile(name=name, key=part.key, points=points, bytes=path.stat().st_size)
        folder.keep(_note(part), orjson.dumps(written.model_dump(mode="json")))
        return written

    lanes = [plan.ranges[lane :: request.readers] for lane in range(request.readers)]
    futures = job.run([lane for lane in lanes if lane], export)
    raise_failures(futures, f"the export to {folder.where()}")
    files = sorted((future.result() for future in futures), key=lambda file: file.name)
    return _finish(folder, plan, columns, files)


def _planned(folder: Folder, source: Source, request: ExportRequest) -> ExportPlan:
    """The plan of an export that was begun, or a new one. Raises ConfigurationError for a folder with anything else."""
    names, held = folder.names(), folder.document(PLAN)
    if SCHEMA in names or (names and held is None):
        what = "a finished export" if SCHEMA in names else "other files"
        msg = f"{folder.where()} holds {what} already; nothing was changed."
        raise ConfigurationError(msg, "Choose an empty folder, or empty it yourself.")
    description = source.describe()
    if held is not None:
        return _same(ExportPlan.model_validate_json(held), description, request, folder)
    known = parquet_format.vector_columns(description.config)
    if unknown := sorted(set(request.vectors or ()) - set(known)):
        msg = f"{description.name} has no vector {', '.join(map(repr, unknown))}, but: {', '.join(map(repr, known))}."
        raise ConfigurationError(msg, "Correct the names; nothing was changed.")
    wanted = max(request.readers, ceil((description.points or 0) / FILE_POINTS))
    plan = ExportPlan(
        export_id=uuid4().hex,
        created_at=now(),
        request=request,
        source=description,
        ranges=tuple(source.plan_ranges(wanted)),
    )
    folder.keep(PLAN, orjson.dumps(plan.model_dump(mode="json")), if_absent=True)
    return plan


def _same(plan: ExportPlan, found: SourceDescription, request: ExportRequest, folder: Folder) -> ExportPlan:
    """The plan, if it is of the same source and request; readers may be others."""
    was, asked = plan.request.model_dump(exclude={"readers"}), request.model_dump(exclude={"readers"})
    changed = [name for name in was if was[name] != asked[name]]
    changed += [] if plan.source.identity == found.identity else ["source"]
    changed += [] if plan.source.config["params"] == found.config["params"] else ["configuration of the source"]
    if changed:
        msg = (
            f"{folder.where()} holds a begun export with another {' and another '.join(changed)}; nothing was changed."
        )
        raise ConfigurationError(msg, "Ask for the same again, or choose an empty folder.")
    return plan


def _write(path: Path, tables: Iterator[Any], columns: Columns, progress: Progress) -> int:
    """Write a file, a row group for each table; returns how many points it has."""
    points = 0
    with parquet_format.open_writer(path, columns) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=table.num_rows)
            points += table.num_rows
            progress(table.num_rows)
    return points


def _groups(source: Source, part: SourceRange, ask: Ask, columns: Columns, progress: Progress) -> Iterator[Any]:
    """Tables of the size of a row group: sources begin with small batches, before they know how large points are."""
    held: list[Any] = []
    size_bytes = rows = 0
    for read in source.read(part, None, ask, lambda _read: progress(0)):
        if not isinstance(read.batch, PointBatch):
            raise FerryError(
                f"{part.label} came undecoded although that was not asked for; this is an error of Ferry's."
            )
        table = parquet_format.table_of(read.batch, columns)
        held.append(table)
        size_bytes, rows = size_bytes + table.nbytes, rows + table.num_rows
        if size_bytes >= GROUP_BYTES or rows >= GROUP_POINTS:
            yield arrow().concat_tables(held)
            held, size_bytes, rows = [], 0, 0
    if rows:  # a source may end with a batch of none, where a filter finds no more
        yield arrow().concat_tables(held)


def _finish(folder: Folder, plan: ExportPlan, columns: Columns, files: list[PartFile]) -> ParquetSchema:
    schema = ParquetSchema(
        export_id=plan.export_id,
        source=plan.source.name,
        created_at=plan.created_at,
        config=_config(plan.source.config, columns),
        payload_schema=plan.source.payload_schema,
        shards=plan.source.shards,
        vectors=columns,
        files=tuple(files),
        points=sum(file.points for file in files),
        unique_ids=plan.source.unique_ids,
    )
    folder.keep(SCHEMA, orjson.dumps(schema.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
    folder.delete({PLAN, *map(_note, plan.ranges)})
    return schema


def _config(config: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The source's configuration without the vectors that were left out."""
    params = dict(config["params"])
    if "size" not in (params.get("vectors") or {}):
        params["vectors"] = {name: vector for name, vector in (params.get("vectors") or {}).items() if name in columns}
    elif "" not in columns:
        params["vectors"] = {}
    if params.get("sparse_vectors"):
        params["sparse_vectors"] = {name: each for name, each in params["sparse_vectors"].items() if name in columns}
    return config | {"params": params}


def _finished(folder: Folder, part: SourceRange) -> PartFile | None:
    """The file of a range, where an earlier run has finished it."""
    note = folder.document(_note(part))
    return None if note is None else PartFile.model_validate_json(note)


def _name(part: SourceRange) -> str:
    return f"part-{part.number:05}.parquet"


def _note(part: SourceRange) -> str:
    """What says that a file is finished; gone when all are."""
    return f"part-{part.number:05}.json"
