"""A folder of Parquet files as the source of a migration: ranges are files, or row groups of them."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Self

import numpy as np

from ferry.connections import Repository
from ferry.errors import ArchiveDamagedError, FerryError, PreflightError
from ferry.migration import parquet_format
from ferry.migration.batch import PointBatch, PointId
from ferry.migration.columns import take
from ferry.migration.parquet_folder import Folder, LocalFolder, open_folder
from ferry.migration.parquet_format import SCHEMA, ParquetSchema, PartFile, arrow
from ferry.migration.plan import ParquetSource
from ferry.migration.source import Ask, Cursor, Read, SourceDescription, SourceRange
from ferry.migration.whole_config import whole_config
from ferry.models import Finding, Progress, ShardKey, no_progress


class ParquetFolder:
    """Parquet files as `ferry.migration.export` writes them, or as docs/parquet.md says. A cursor is a row's number."""

    def __init__(self, repository: Repository, name: ParquetSource) -> None:
        """Raises ConfigurationError without pyarrow, or for a location that is none."""
        arrow()
        self._folder: Folder = open_folder(name.location, repository)
        self._found: ParquetSchema | None = None

    def __enter__(self) -> Self:
        """Raises ConfigurationError for a folder without a schema document that Ferry knows."""
        self._found = parquet_format.read_schema(self._folder.document(SCHEMA), self._folder.where(SCHEMA))
        return self

    def __exit__(self, *_: object) -> None:
        self._found = None

    @property
    def schema(self) -> ParquetSchema:
        """The schema document. Raises FerryError before the source is opened."""
        if self._found is None:
            raise FerryError("The Parquet files were not opened before they were read.")
        return self._found

    def describe(self) -> SourceDescription:
        """What the schema document says; no file is read."""
        schema = self.schema
        no_filter = "Points in Parquet files cannot be filtered; filter when you export, or in the target afterwards."
        return SourceDescription(
            kind="parquet",
            name=self._folder.where(),
            identity=f"parquet:{schema.export_id}",
            config=whole_config(schema.config),
            payload_schema=schema.payload_schema,
            consistency="frozen",
            points=schema.points,
            bytes=sum(file.bytes for file in schema.files),
            shards=schema.shards,
            unique_ids=schema.unique_ids,
            findings=(Finding(severity="info", subject=self._folder.where(), message=no_filter),),
        )

    def plan_ranges(self, wanted: int) -> list[SourceRange]:
        """A range for each file; of files on this worker's disk more, at row groups, where fewer files are there."""
        ranges: list[SourceRange] = []
        each = max(1, self.schema.points // max(1, wanted))
        for file in self.schema.files:
            cuts = self._cuts(file, each) if file.points > each and isinstance(self._folder, LocalFolder) else []
            for start, end in zip([0, *cuts], [*cuts, file.points], strict=True):
                label = file.name + (f" from row {start}" if cuts else "")
                ranges.append(
                    SourceRange(
                        number=len(ranges),
                        label=label,
                        key=file.key,
                        part=file.name,
                        start=start,
                        end=end,
                        points=end - start,
                    )
                )
        return ranges

    def read(
        self, part: SourceRange, cursor: Cursor | None, ask: Ask, progress: Progress = no_progress
    ) -> Iterator[Read]:
        """The points of a range in the order of rows. One row group is in memory at a time.

        Raises PreflightError for a filter, ConfigurationError for a file that is missing or has another size,
        ArchiveDamagedError for one that is no Parquet file of these columns.
        """
        if ask.filter is not None:
            msg = "Parquet files cannot be filtered on the way; nothing was read."
            raise PreflightError(msg, "Filter when you export, or leave the filter out.")
        file = self._file(part)
        start, end = int(part.start if cursor is None else cursor), int(part.end or file.points)  # type: ignore[arg-type]
        for first, table in self._tables(file, start, end, ask, progress):
            last = first + table.num_rows
            batch = self._batch(table, file, ask)
            yield Read(batch, None if last >= end else last)

    def retrieve(self, ids: Sequence[PointId], key: ShardKey | None, ask: Ask) -> Iterator[PointBatch]:
        """These points. Every file of that key is read for them: Parquet has no index of ids."""
        wanted = set(ids)
        for part in self.plan_ranges(1):
            if part.key == key:
                for read in self.read(part, None, ask):
                    if not isinstance(read.batch, PointBatch):
                        continue
                    rows = [row for row, point_id in enumerate(read.batch.ids) if point_id in wanted]
                    if rows:
                        yield take(read.batch, np.array(rows, dtype=np.intp))

    def _tables(self, file: PartFile, start: int, end: int, ask: Ask, progress: Progress) -> Iterator[tuple[int, Any]]:
        """Tables of about the size that is asked for, with the number of their first row."""
        columns = self._columns(ask)
        with self._folder.fetched(file.name, file.bytes, progress) as path, self._opened(path, file) as opened:
            first = 0
            for number in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(number)
                following = first + group.num_rows
                if following > start and first < end:
                    step = max(1, ask.batch_bytes * group.num_rows // max(1, group.total_byte_size))
                    table = self._group(opened, number, columns, file)
                    for row in range(max(start, first), min(end, following), step):
                        progress(0)
                        yield row, table.slice(row - first, min(step, end - row, following - row))
                first = following

    def _columns(self, ask: Ask) -> list[str]:
        named = [
            column.column for name, column in self.schema.vectors.items() if ask.vectors is None or name in ask.vectors
        ]
        return ["id", *(["payload"] if ask.payload else []), *named]

    def _batch(self, table: Any, file: PartFile, ask: Ask) -> PointBatch:
        vectors = {
            name: column for name, column in self.schema.vectors.items() if ask.vectors is None or name in ask.vectors
        }
        try:
            return parquet_format.batch_of(table, vectors, file.key)
        except (ValueError, TypeError) as error:
            raise self._damage(file, error) from error

    def _cuts(self, file: PartFile, each: int) -> list[int]:
        """The rows at which ranges of about so many points end: between row groups."""
        with self._folder.fetched(file.name, file.bytes) as path, self._opened(path, file) as opened:
            sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.metadata.num_row_groups)]
        cuts, last = [], 0
        for border in list(accumulate(sizes))[:-1]:
            if border - last >= each:
                cuts.append(border)
                last = border
        return cuts

    def _opened(self, path: Any, file: PartFile) -> Any:
        try:
            opened = parquet_format.open_file(path)
        except (OSError, ValueError) as error:
            raise self._damage(file, error) from error
        if opened.metadata.num_rows != file.points:
            opened.close()
            raise self._damage(file, f"it has {opened.metadata.num_rows} rows, {SCHEMA} says {file.points}")
        return opened

    def _group(self, opened: Any, number: int, columns: list[str], file: PartFile) -> Any:
        try:
            return opened.read_row_group(number, columns=columns)
        except (OSError, ValueError, KeyError) as error:
            raise self._damage(file, error) from error

    def _damage(self, file: PartFile, reason: object) -> ArchiveDamagedError:
        msg = f"{self._folder.where(file.name)} cannot be read as points: {reason}."
        return ArchiveDamagedError(msg, "Export again, or copy the file again; see docs/parquet.md.")

    def _file(self, part: SourceRange) -> PartFile:
        for file in self.schema.files:
            if file.name == part.part:
                return file
        msg = f"{self._folder.where(SCHEMA)} names no file {part.part}, which was planned to be read."
        raise PreflightError(msg, "The folder holds another export now; plan the migration anew: restart.")
