"""A backup as a source, and Parquet out and in, while the source cluster is away: every point arrives as it was."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferry.__main__ import main
from ferry.archive.digest import ShardDigest
from ferry.connections import connect_repository
from ferry.lanes import Job
from ferry.migration.batch import PointBatch
from ferry.migration.columns import each_point
from ferry.migration.export import ExportRequest, export_points
from ferry.migration.parquet_format import SCHEMA, ParquetSchema, PartFile, VectorColumn
from ferry.migration.plan import BackupSource, MigrationRequest, ParquetSource, QdrantSource, SourceName
from ferry.migration.prepare import open_source
from ferry.migration.run import run_migration
from ferry.migration.source import Ask
from ferry.migration.sources.backup import QdrantBackup
from ferry.migration.sources.qdrant import QdrantLive
from ferry.models import now
from ferry.repository.manifest import BackupRecord, CollectionManifest
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import HOLDER, SERVERS, back_up, manifest_of, quick_job
from tests.integration.samples import SAMPLES, Api, everything
from tests.workshop import Workshop

pytestmark = SERVERS

# Ports that nobody listens on.
AWAY = {"source": {"nodes": [f"http://127.0.0.1:{port}" for port in (9, 19, 29)]}}


@dataclass(frozen=True)
class Stored:
    """One backup of some collections, made once for all tests, and what the source showed of each of them."""

    shop: Workshop
    record: BackupRecord
    shown: dict[str, dict[str, str]]

    def manifest(self, collection: str) -> CollectionManifest:
        return manifest_of(self.shop.connect("target"), self.record, collection)


@pytest.fixture(scope="module")
def made(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stored]:
    """Three nodes with vectors of every kind and payloads of every shape, backed up."""
    folder: Path = tmp_path_factory.mktemp("stored")
    clusters = {"source": three_nodes, "target": two_nodes}
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(folder, monkeypatch, shared_s3, clusters) as shop,
        Api(three_nodes.urls[0]) as source,
    ):
        for name in ("named", "payload"):
            source.make(name, SAMPLES[name]())
        yield Stored(shop, back_up(shop), {name: everything(three_nodes, name) for name in ("named", "payload")})


@pytest.fixture
def stored(made: Stored) -> Stored:
    """The same, while the source cluster cannot be reached."""
    made.shop.configure(clusters=AWAY)
    return made


def _digest(source: Any, ask: Ask) -> tuple[int, str]:
    digest = ShardDigest()
    for part in source.plan_ranges(4):
        for read in source.read(part, None, ask):
            assert isinstance(read.batch, PointBatch)
            rows = zip(read.batch.ids, read.batch.payloads, each_point(read.batch), strict=True)
            for point_id, payload, vectors in rows:
                digest.add(point_id, payload, vectors)
    return digest.points, digest.hexdigest


def _proven(manifest: CollectionManifest) -> tuple[int, str]:
    digest = ShardDigest()
    for _, proof in manifest.proofs():
        assert proof.content is not None
        digest.merge(proof.content)
    return digest.points, digest.hexdigest


@pytest.mark.parametrize("collection", ["named", "payload"])
def test_a_backup_gives_what_was_proven(stored: Stored, collection: str) -> None:
    """Through columns of numpy as through the proof; and by way of Parquet files, in a folder and in the bucket."""
    repository, proven = connect_repository("main"), _proven(stored.manifest(collection))
    name = BackupSource(cluster="source", collection=collection)
    folders = [
        str(stored.shop.folder / f"out-{collection}"),
        f"s3://ferry/exports/{stored.shop.folder.name}/{collection}",
    ]
    with QdrantBackup(repository, name) as source:
        assert source.describe().points == proven[0]
        assert _digest(source, Ask()) == proven
        for folder in folders:
            schema = export_points(repository, source, ExportRequest(location=folder), Job())
            assert schema.points == proven[0]
    for folder in folders:
        with open_source(_request(ParquetSource(location=folder), "none")) as files:
            assert _digest(files, Ask(batch_bytes=10_000)) == proven
    assert stored.shop.leftovers("target") == []


@pytest.mark.parametrize("by", ["backup", "parquet"])
def test_a_backup_becomes_a_collection_with_other_shards(stored: Stored, by: str) -> None:
    """2 shards become 5; nothing is asked of the cluster that was backed up."""
    repository, into = connect_repository("main"), f"from-{by}"
    name: SourceName = BackupSource(cluster="source", collection="named")
    if by == "parquet":
        folder = str(stored.shop.folder / "exported")
        with QdrantBackup(repository, name) as source:
            export_points(repository, source, ExportRequest(location=folder), Job())
        name = ParquetSource(location=folder)
    request = _request(name, into, shape={"shard_number": 5}, writer="stream")
    report = run_migration(stored.shop.connect("target"), request, HOLDER, quick_job())
    assert (report.verdict, report.rejected, report.repaired) == ("equal", (), 0)
    assert everything(stored.shop.clusters["target"], into) == stored.shown["named"]
    assert stored.shop.leftovers("target") == []


def test_files_of_another_tool_become_a_collection(stored: Stored) -> None:
    """Ids of text get UUIDs and stay in the payload, vectors get their length; a second run has nothing to do."""
    folder = stored.shop.folder / "foreign"
    folder.mkdir()
    rows = {"id": ["7", "doc-8", "DOC-8"], "payload": ['{"n": 1}', None, "{}"], "vector": [[3, 4], [0, 2], [1, 0]]}
    pq.write_table(pa.table(rows), folder / "mine.parquet")
    file = {"name": "mine.parquet", "points": 3, "bytes": (folder / "mine.parquet").stat().st_size}
    schema = ParquetSchema(
        export_id="catalogue",
        source="catalogue",
        created_at=now(),
        config={"params": {"vectors": {"size": 2, "distance": "Cosine"}}},
        vectors={"": VectorColumn(column="vector", kind="dense")},
        files=(PartFile.model_validate(file),),
        points=3,
    )
    (folder / SCHEMA).write_text(schema.model_dump_json())
    request = _request(ParquetSource(location=str(folder)), "foreign", writer="stream")
    for _ in range(2):
        report = run_migration(stored.shop.connect("target"), request, HOLDER, quick_job())
        assert (report.verdict, report.read, report.written, report.repaired) == ("equal", 3, 3, 0)
    with Api(stored.shop.clusters["target"].urls[0]) as api:
        found = {str(point["id"]): point for point in api.pages("foreign", with_payload=True, with_vector=True)}
    assert found.pop("7")["vector"] == pytest.approx([0.6, 0.8])
    assert {point["payload"]["__id__"]: point["vector"] for point in found.values()} == {
        "doc-8": [0, 1],
        "DOC-8": [1, 0],
    }


def test_a_live_collection_as_parquet_by_hand(made: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line, with a filter and one vector chosen."""
    made.shop.configure()
    folder = str(made.shop.folder / "by-hand")
    few = '{"must": [{"key": "n", "range": {"lt": 50}}]}'
    assert main(["export", "live:source/named", folder, "--filter", few, "--vector", "many"]) == 0
    assert "points of" in capsys.readouterr().out
    with open_source(_request(ParquetSource(location=folder), "none")) as files:
        description = files.describe()
        assert description.points == 50
        assert list(description.config["params"]["vectors"]) == ["many"]
        exported = _digest(files, Ask())
    with QdrantLive(QdrantSource(cluster="source", collection="named")) as source:
        asked = Ask(vectors=("many",), filter={"must": [{"key": "n", "range": {"lt": 50}}]})
        assert exported == _digest(source, asked)
    assert main(["export", "live:source/named", folder]) == 1
    assert "holds a finished export already" in capsys.readouterr().err


def _request(source: SourceName, into: str, **asked: Any) -> MigrationRequest:
    return MigrationRequest(cluster="target", repository="main", source=source, into=into, **asked)
