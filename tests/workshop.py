"""What tests on real servers have in common: settings for some clusters and a bucket, and looking at what is left."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import pytest

from ferry.connections import Connections, connect, forget_connections
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server

# A run that was started in the background passes an ignored SIGINT on to all it starts; a terminal's does not.
AS_IN_A_TERMINAL = ("env", "--default-signal=INT")


def eventually(holds: Callable[[], bool], timeout_seconds: float = 10) -> bool:
    """Ask until it holds, or until the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


class Workshop:
    """Clusters and a bucket under settings of their own. Leaves the clusters without collections and aliases."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        s3: S3Server,
        clusters: Mapping[str, QdrantCluster],
    ) -> None:
        self.folder = folder
        self.s3 = s3
        self.bucket = s3.client()
        self.clusters = dict(clusters)
        self.config = folder / "ferry.toml"
        self._monkeypatch = monkeypatch

    def __enter__(self) -> Self:
        self.configure()
        return self

    def __exit__(self, *_: object) -> None:
        for cluster in self.clusters.values():
            if all(node.answers() for node in cluster.nodes):
                drop_everything(cluster)
            for node in cluster.nodes:  # what a test that failed has left is no failure of the next one
                for path in node.snapshots_path.rglob("*.snapshot*"):
                    path.unlink(missing_ok=True)
        self.bucket.close()
        forget_connections()

    def configure(
        self,
        *,
        clusters: Mapping[str, Mapping[str, Any]] | None = None,
        repository: Mapping[str, Any] | None = None,
        worker: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write ferry.toml with what is to differ from the usual, and use it from here on."""
        tables: dict[str, dict[str, Any]] = {}
        for name, cluster in self.clusters.items():
            headroom = {"kind": "local", "paths": [str(node.disk_path) for node in cluster.nodes]}
            tables[f"clusters.{name}"] = {
                "nodes": cluster.urls,
                "grpc_nodes": cluster.grpc_urls,
                "headroom": headroom,
            }
            if cluster.api_key:
                tables[f"clusters.{name}"]["api_key"] = cluster.api_key
            tables[f"clusters.{name}"] |= dict((clusters or {}).get(name, {}))
        tables["repositories.main"] = {
            "bucket": "ferry",
            "prefix": self.folder.name,
            "endpoint_url": self.s3.endpoint_url,
            "access_key": self.s3.access_key,
            "secret_key": self.s3.secret_key,
            "lease_seconds": 3,
        } | dict(repository or {})
        tables["worker"] = {"spool_dir": str(self.folder / "spool")} | dict(worker or {})
        text = "\n".join(
            f"[{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in t.items()) for name, t in tables.items()
        )
        self.config.write_text(text)
        self._monkeypatch.setenv("FERRY_CONFIG", str(self.config))
        forget_connections()
        return self.config

    def connect(self, cluster: str = "source") -> Connections:
        """Ferry's own clients."""
        return connect(cluster, "main")

    def objects(self, folder: str = "") -> list[str]:
        """Keys in the bucket under this test's prefix, without the prefix."""
        prefix = f"{self.folder.name}/{folder}"
        pages = self.bucket.get_paginator("list_objects_v2").paginate(Bucket="ferry", Prefix=prefix)
        return sorted(
            entry["Key"].removeprefix(self.folder.name + "/") for page in pages for entry in page.get("Contents", [])
        )

    def leftovers(self, *clusters: str) -> list[str]:
        """Whatever of ours must not be there after a run has ended: snapshots on nodes, uploads, journal entries,
        archives that no manifest counts, leases that are held, files in the spool.

        What the next run can go on with is no leftover: archives that were proven, with the entries that say so.
        """
        kept = self._resumable()
        found = [f"journal {key}" for key in self.objects("runs/") if key not in kept]
        listed = self.bucket.list_multipart_uploads(Bucket="ferry", Prefix=self.folder.name)
        found += [f"upload {upload['Key']}" for upload in listed.get("Uploads", [])]
        counted = {key for folder in self._manifests() for key in folder} | kept
        for key in self.objects("backups/"):
            if not key.endswith(".json") and key not in counted:
                found.append(f"archive {key}")
        for key in self.objects("leases/"):
            body = self.bucket.get_object(Bucket="ferry", Key=f"{self.folder.name}/{key}")["Body"].read()
            if not json.loads(body)["released"]:
                found.append(f"lease {key}")
        spool = self.folder / "spool"
        found += [f"spool {path.name}" for path in (spool.iterdir() if spool.exists() else []) if path.name != "cache"]
        for name in clusters or self.clusters:
            found += [f"{name}: {path}" for path in node_snapshots(self.clusters[name])]
        return found

    def read(self, key: str) -> dict[str, Any]:
        """A document of this test's, by the key that ``objects`` gives."""
        body = self.bucket.get_object(Bucket="ferry", Key=f"{self.folder.name}/{key}")["Body"].read()
        found: dict[str, Any] = json.loads(body)
        return found

    def _manifests(self) -> list[list[str]]:
        """For each manifest the archives that it names; fences are none."""
        documents = {key: self.read(key) for key in self.objects("backups/") if key.endswith("/manifest.json")}
        return [
            [f"{key.rpartition('/')[0]}/{archive['key']}" for archive in content["archives"]]
            for key, content in documents.items()
            if "fence" not in content
        ]

    def _resumable(self) -> set[str]:
        """Keys that a run which has died or failed leaves for the next one."""
        kept = set()
        for key in self.objects("runs/"):
            folder, kind, name = key.rsplit("/", 2)
            if kind == "proof":
                archive = f"{folder}/archive/{name}"
                kept |= {key, archive, f"{folder}/run/request.json"}
                kept.add(self.read(archive)["detail"]["key"].removeprefix(self.folder.name + "/"))
        for key in self.objects("backups/"):  # a collection that counts, of a run that did not end
            _, cluster, backup_id, *rest = key.split("/")
            if rest[-1] == "manifest.json":
                kept.add(f"runs/{cluster}/{backup_id}/run/request.json")
        return kept


def toml(value: Any) -> str:
    """A value as TOML; tables inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)


def node_snapshots(cluster: QdrantCluster) -> list[str]:
    """Every snapshot file on every node's disk, finished or not: the node's own list may not know a dead one's."""
    return [
        str(path.relative_to(node.folder))
        for node in cluster.nodes
        for path in node.snapshots_path.rglob("*")
        if path.is_file()
    ]


def drop_everything(cluster: QdrantCluster) -> None:
    """Delete all collections, and with them their aliases."""
    headers = {"api-key": cluster.api_key} if cluster.api_key else {}
    with httpx.Client(base_url=cluster.urls[0], headers=headers, timeout=30, trust_env=False) as http:
        for entry in http.get("/collections").json()["result"]["collections"]:
            http.delete(f"/collections/{quote(entry['name'], safe='')}").raise_for_status()

        def empty(url: str) -> bool:
            try:
                return not http.get(f"{url}/collections").json()["result"]["collections"]
            except httpx.TransportError:
                return True  # a node that its test has stopped

        # A node may learn a moment later what the first was told.
        assert all(eventually(lambda url=url: empty(url)) for url in cluster.urls)
