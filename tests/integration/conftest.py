"""Real servers that the whole integration layer shares, and the settings that name them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry.connections import forget_connections
from sandbox.moto_s3 import MotoServer
from sandbox.qdrant import NodePlace, QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.keyed_s3 import KeyedS3
from tests.workshop import toml

API_KEY = "integration-api-key"
READ_ONLY_KEY = "integration-read-only-key"


class KeyedCluster(QdrantCluster):
    """A cluster that also knows a read-only key."""

    def _env(self, place: NodePlace) -> dict[str, str]:
        return {**super()._env(place), "QDRANT__SERVICE__READ_ONLY_API_KEY": READ_ONLY_KEY}


@pytest.fixture(scope="session")
def s3(shared_s3: S3Server) -> S3Server:
    """The S3 server that all layers share."""
    return shared_s3


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """The second S3 implementation, with STS and KMS."""
    with MotoServer() as server:
        yield server


@pytest.fixture(scope="session")
def keyed() -> Iterator[KeyedS3]:
    """A server with limited keys, a role, and a bucket with Object Lock; tests may start it anew."""
    with KeyedS3() as server:
        yield server


@pytest.fixture
def folder() -> str:
    """A folder in the bucket of its own for each test."""
    return f"test/{os.urandom(8).hex()}/"


@pytest.fixture(scope="session")
def source() -> Iterator[QdrantCluster]:
    """Three real nodes behind API_KEY."""
    with KeyedCluster(nodes=3, api_key=API_KEY) as cluster:
        yield cluster


@pytest.fixture
def configure(
    s3: S3Server, source: QdrantCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A function that writes ferry.toml for cluster ``source`` and repository ``main``, with what is to differ."""

    def write(cluster: dict[str, Any] | None = None, repository: dict[str, Any] | None = None) -> Path:
        tables = {
            "clusters.source": {"nodes": source.urls, "api_key": API_KEY} | (cluster or {}),
            "clusters.source.headroom": {"kind": "local", "paths": [str(node.disk_path) for node in source.nodes]},
            "repositories.main": {
                "bucket": "ferry",
                "prefix": tmp_path.name,
                "endpoint_url": s3.endpoint_url,
                "access_key": s3.access_key,
                "secret_key": s3.secret_key,
                "lease_seconds": 5,
            }
            | (repository or {}),
            "worker": {"spool_dir": str(tmp_path / "spool")},
        }
        tables["clusters.source.headroom"]["paths"] = tables["clusters.source.headroom"]["paths"][
            : len(tables["clusters.source"]["nodes"])
        ]
        lines = [
            f"[{table}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in values.items())
            for table, values in tables.items()
        ]
        path = tmp_path / "ferry.toml"
        path.write_text("\n".join(lines))
        monkeypatch.setenv("FERRY_CONFIG", str(path))
        forget_connections()
        return path

    return write
