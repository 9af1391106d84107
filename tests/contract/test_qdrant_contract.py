"""Every request that Ferry sends to Qdrant stands in Qdrant's published documents, or in a list of exceptions here."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ferry.models import ShardId
from ferry.profiles import ClusterProfile
from ferry.qdrant import points, schema, snapshots
from ferry.qdrant.node import Node

DOCUMENTS = Path(__file__).parents[3] / "shared" / "contract"
VERSIONS = ("1.16", "1.19")
# In the server's source and answering since before 1.16.3 (local_shard_api.rs), but in no published document.
UNDOCUMENTED = {
    ("post", "/collections/{}/shards/{}/points"),
    ("post", "/collections/{}/shards/{}/points/count"),
    ("post", "/collections/{}/shards/{}/points/scroll"),
}
NOT_BEFORE = {("get", "/quotas"): "1.19"}
C, S = "docs", ShardId(0)

CALLS: dict[str, Callable[[Node], object]] = {
    "identify": Node.identify,
    "require_identity": Node.require_identity,
    "cluster_info": Node.cluster_info,
    "collections": Node.collections,
    "collection": lambda node: node.collection(C),
    "collection_cluster": lambda node: node.collection_cluster(C),
    "exists": lambda node: node.exists(C),
    "aliases": Node.aliases,
    "telemetry": Node.telemetry,
    "metrics": Node.metrics,
    "create_collection": lambda node: node.create_collection(C, {}),
    "delete_collection": lambda node: node.delete_collection(C),
    "patch_collection": lambda node: node.patch_collection(C, {}),
    "create_payload_index": lambda node: node.create_payload_index(C, "town", "keyword"),
    "create_shard_key": lambda node: node.create_shard_key(C, {"shard_key": "a"}),
    "drop_shard_key": lambda node: node.drop_shard_key(C, "a"),
    "update_aliases": lambda node: node.update_aliases([]),
    "quotas": lambda node: node.request("GET", "/quotas"),
    "unmark_restore": lambda node: schema.unmark_restore(node, C, None),
    "create shard snapshot": lambda node: snapshots.create_snapshot(node, C, S),
    "create collection snapshot": lambda node: snapshots.create_snapshot(node, C, None),
    "delete shard snapshot": lambda node: snapshots.delete_snapshot(node, C, S, "s"),
    "delete collection snapshot": lambda node: snapshots.delete_snapshot(node, C, None, "s"),
    "snapshots_running": lambda node: snapshots.snapshots_running(node, C),
    "download shard snapshot": lambda node: list(snapshots.download_snapshot(node, C, S, "s", expected_bytes=2)),
    "download collection snapshot": lambda node: list(
        snapshots.download_snapshot(node, C, None, "s", expected_bytes=2)
    ),
    "recover_shard": lambda node: snapshots.recover_shard(node, C, S, location="s", checksum=None),
    "upload_shard": lambda node: snapshots.upload_shard(node, C, S, iter([b"x"]), 1, "0" * 64),
    "count": lambda node: points.count(node, C),
    "count on shard": lambda node: points.count(node, C, S),
    "scroll_shard": lambda node: list(points.scroll_shard(node, C, S)),
    "retrieve_shard": lambda node: points.retrieve_shard(node, C, S, [1]),
}
# Public names that send nothing of their own, or only send what the calls above send.
NO_REQUEST = {"close", "request", "stream", "fresh_identity"}


def respond(request: httpx.Request) -> httpx.Response:
    """The least that every call can read."""
    request.read()
    path = request.url.path
    if request.method == "GET" and path.endswith("/s"):
        return httpx.Response(200, content=iter([b"{}"]))
    snapshot = {"name": "s", "size": 2}
    result: Any = {
        "version": "1.16.3", "peer_id": None, "collections": [], "aliases": [], "exists": True, "id": "p", "points": [],
        "count": 0, "config": {}, **snapshot,
    }  # fmt: skip
    if request.method == "GET" and path.endswith("/snapshots"):
        result = [snapshot]
    if path.endswith("/points") and "/shards/" in path:
        result = []
    if path == "/telemetry":
        result = {"id": "p", "collections": {"snapshots": []}, "app": {}}
    if path.endswith("/cluster"):
        result = {"local_shards": [{"shard_id": S, "state": "Active"}]}
    if path == "/cluster":
        result = {"status": "disabled"}
    return httpx.Response(200, json=result if path == "/" else {"result": result, "status": "ok"})


@pytest.fixture(name="sent", scope="module")
def _sent() -> Iterator[list[httpx.Request]]:
    """Every request that the calls send."""
    requests: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return respond(request)

    with pytest.MonkeyPatch.context() as patch:
        transport = httpx.MockTransport(note)
        patch.setattr(httpx, "HTTPTransport", lambda **_: transport)
        with Node("http://n:1", ClusterProfile(nodes=["http://n:1"])) as node:
            for call in CALLS.values():
                call(node)
        yield requests


def template(request: httpx.Request) -> tuple[str, str]:
    """Method and path with every variable segment as ``{}``."""
    names = {C: "{}", str(S): "{}", "s": "{}"}
    return request.method.lower(), "/".join(names.get(part, part) for part in request.url.path.split("/"))


def published(version: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation of the published document, by method and path with ``{}``."""
    path = DOCUMENTS / f"qdrant-{version}.json"
    if not path.exists():
        pytest.skip(f"{path} is not here: the published documents are kept outside of the repository")
    return {
        (method, "/".join("{}" if part.startswith("{") else part for part in route.split("/"))): operation
        for route, operations in json.loads(path.read_text())["paths"].items()
        for method, operation in operations.items()
    }


def test_every_public_call_of_a_node_is_tried() -> None:
    """A call that is added to Node must be added to this contract too."""
    public = {name for name, value in vars(Node).items() if callable(value) and not name.startswith("_")}
    assert public - NO_REQUEST <= CALLS.keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_request_is_published(version: str, sent: list[httpx.Request]) -> None:
    """Method and path stand in the document of that version, save for the listed local-shard routes."""
    operations = published(version)
    for call in {template(request) for request in sent} - UNDOCUMENTED:
        if NOT_BEFORE.get(call, version) == version:
            assert call in operations


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_listed_as_undocumented_is(version: str) -> None:
    """An exception that has become public must leave the list."""
    assert not UNDOCUMENTED & published(version).keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_query_parameter_is_published(version: str, sent: list[httpx.Request]) -> None:
    """A misspelt parameter would be ignored by Qdrant in silence: ``wait`` and ``priority`` matter."""
    operations = published(version)
    for request in sent:
        if operation := operations.get(template(request)):
            known = {parameter["name"] for parameter in operation.get("parameters", [])}
            assert set(request.url.params) <= known
