"""``export``: a collection, live or out of a backup, as Parquet files."""

import argparse
from typing import Any

from ferry.cli import terminal
from ferry.cli.chosen import given_filter
from ferry.cli.migrate import source_of
from ferry.connections import connect_repository
from ferry.errors import ConfigurationError
from ferry.lanes import Job
from ferry.migration.export import ExportRequest, export_points
from ferry.migration.plan import ParquetSource, QdrantSource
from ferry.migration.sources.backup import QdrantBackup
from ferry.migration.sources.qdrant import QdrantLive


def run(given: argparse.Namespace) -> int:
    """Write the files, or go on with those of an export that was interrupted; prints what is there then."""
    repository = terminal.chosen_repository(given.repository)
    name = source_of(given.source)
    if isinstance(name, ParquetSource):
        msg = f"{given.source} is Parquet already; nothing was done."
        raise ConfigurationError(msg, "Name live:CLUSTER/COLLECTION or CLUSTER/BACKUP/COLLECTION.")
    request = ExportRequest(
        location=given.location,
        filter=given_filter(given),
        vectors=tuple(given.vector) if given.vector else None,
        readers=given.readers,
    )
    connections = connect_repository(repository)
    opened = QdrantLive(name) if isinstance(name, QdrantSource) else QdrantBackup(connections, name)
    with terminal.progress_bars() as tell, opened as source:
        schema = export_points(connections, source, request, Job(tell))
    rows: list[dict[str, Any]] = [file.model_dump(include={"name", "points", "bytes"}) for file in schema.files]
    terminal.print_rows(rows, f"{schema.points} points of {schema.source} in {given.location}")
    return 0
