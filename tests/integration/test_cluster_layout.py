"""Layouts, identities, snapshots and schemas on real Qdrant nodes."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from ferry.errors import ConfigurationError, LayoutError, NodeRefusedError, NodeUnreachableError
from ferry.models import PeerId, ShardId
from ferry.profiles import ClusterProfile
from ferry.qdrant import points, snapshots
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.node import STANDALONE_PEER, Node
from ferry.qdrant.schema import (
    creation_body,
    mark_restore,
    patch_body,
    payload_index_bodies,
    restore_mark,
    schema_differences,
    unmark_restore,
)
from sandbox.fault_proxy import FaultProxy, RotatingProxy
from sandbox.qdrant import QdrantCluster

pytestmark = pytest.mark.servers

DOCS = "dö cs"
POINTS = 3000
FULL_BODY: dict[str, Any] = {
    "vectors": {
        "scalar": {
            "size": 8, "distance": "Cosine", "on_disk": True, "datatype": "float16",
            "hnsw_config": {"m": 8, "ef_construct": 50, "payload_m": 4},
            "quantization_config": {"scalar": {"type": "int8", "quantile": 0.9, "always_ram": True}},
        },
        "product": {
            "size": 8, "distance": "Euclid",
            "quantization_config": {"product": {"compression": "x8", "always_ram": False}},
        },
        "binary": {
            "size": 16, "distance": "Dot", "datatype": "uint8",
            "quantization_config": {
                "binary": {"always_ram": True, "encoding": "two_bits", "query_encoding": "scalar8bits"}
            },
        },
        "multi": {
            "size": 4, "distance": "Manhattan", "multivector_config": {"comparator": "max_sim"},
            "hnsw_config": {"m": 0, "inline_storage": False},
        },
    },
    "sparse_vectors": {
        "idf": {"index": {"full_scan_threshold": 100, "on_disk": True, "datatype": "float16"}, "modifier": "idf"},
        "plain": {},
    },
    "shard_number": 2,
    "on_disk_payload": False,
    "hnsw_config": {"m": 24, "ef_construct": 64, "full_scan_threshold": 2000, "max_indexing_threads": 2,
                    "on_disk": True, "payload_m": 8},
    "wal_config": {"wal_capacity_mb": 16, "wal_segments_ahead": 1, "wal_retain_closed": 2},
    "optimizers_config": {
        "deleted_threshold": 0.3, "vacuum_min_vector_number": 500, "default_segment_number": 3,
        "max_segment_size": 50000, "memmap_threshold": 10000, "indexing_threshold": 5000, "flush_interval_sec": 7,
        "max_optimization_threads": 1,
    },
    "quantization_config": {"binary": {}},
    "strict_mode_config": {
        "enabled": True, "max_query_limit": 1000, "max_timeout": 30, "unindexed_filtering_retrieve": True,
        "unindexed_filtering_update": False, "search_max_hnsw_ef": 500, "search_allow_exact": True,
        "search_max_oversampling": 3.5, "upsert_max_batchsize": 500, "max_collection_vector_size_bytes": 10**9,
        "read_rate_limit": 10000, "write_rate_limit": 10000, "max_collection_payload_size_bytes": 10**9,
        "max_points_count": 10**6, "filter_max_conditions": 50, "condition_max_size": 100,
        "multivector_config": {"multi": {"max_vectors": 64}}, "sparse_config": {"idf": {"max_length": 500}},
        "max_payload_index_count": 50,
    },
    "metadata": {"owner": "team", "nothing": None, "deep": {"list": [1, None, {"nothing": None}]}},
}  # fmt: skip
INDEXES: dict[str, Any] = {
    "keyword": "keyword",
    "tenant": {"type": "keyword", "is_tenant": True, "on_disk": True},
    "integer": "integer",
    "principal": {"type": "integer", "lookup": False, "range": True, "is_principal": True, "on_disk": True},
    "float": {"type": "float", "is_principal": True, "on_disk": True},
    "bool": "bool",
    "bool_on_disk": {"type": "bool", "on_disk": True},
    "geo": {"type": "geo", "on_disk": True},
    "datetime": {"type": "datetime", "is_principal": True, "on_disk": True},
    "uuid": {"type": "uuid", "is_tenant": True, "on_disk": True},
    "text": "text",
    "long_text": {
        "type": "text", "tokenizer": "multilingual", "min_token_len": 2, "max_token_len": 20, "lowercase": True,
        "on_disk": True, "phrase_matching": True, "stopwords": {"languages": ["english"], "custom": ["foo"]},
        "stemmer": {"type": "snowball", "language": "english"}, "ascii_folding": True,
    },
    "nested.list[].field": "keyword",
}  # fmt: skip


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def profile(urls: list[str], **settings: Any) -> ClusterProfile:
    return ClusterProfile(nodes=urls, **{"timeout_seconds": 5.0, **settings})


def fill(node: Node, name: str, **settings: Any) -> None:
    node.create_collection(name, {"vectors": {"size": 8, "distance": "Dot"}, **settings})
    batch = [{"id": number, "vector": [number / 7] * 8, "payload": {"n": number}} for number in range(POINTS)]
    node.request("PUT", f"/collections/{name}/points", params={"wait": "true"}, json={"points": batch})


@pytest.fixture(name="servers", scope="module")
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantCluster]:
    """Three nodes with one collection of three shards, two copies each."""
    with QdrantCluster(nodes=3, folder=tmp_path_factory.mktemp("qdrant")) as servers:
        with Cluster("t", profile(servers.urls)) as cluster:
            fill(cluster.nodes[0], DOCS, shard_number=3, replication_factor=2)
            cluster.nodes[0].update_aliases([{"create_alias": {"collection_name": DOCS, "alias_name": "live"}}])
            cluster.wait_until_active(DOCS, None, 20)
        yield servers


@pytest.fixture(name="cluster")
def _cluster(servers: QdrantCluster) -> Iterator[Cluster]:
    with Cluster("t", profile(servers.urls)) as cluster:
        yield cluster


def test_the_layout_is_what_all_nodes_agree_on(cluster: Cluster) -> None:
    """Nodes, shards, replicas, aliases and configuration are read, and the cluster is at rest."""
    layout = cluster.read_layout()
    collection = layout.collection(DOCS)
    assert collection is not None
    assert [node.url for node in layout.nodes] == [node.url for node in cluster.nodes]
    assert {node.version for node in layout.nodes} == {"1.16.3"}
    assert layout.aliases == {"live": DOCS}
    assert [len(shard.replicas) for shard in collection.shards] == [2, 2, 2]
    assert {replica.state for shard in collection.shards for replica in shard.replicas} == {"Active"}
    assert {replica.peer_id for shard in collection.shards for replica in shard.replicas} <= {
        node.peer_id for node in layout.nodes
    }
    assert cluster.require_quiet(layout) == []


def test_replicas_are_counted_one_by_one(cluster: Cluster) -> None:
    """Both replicas of a shard have the same exact count, and the shards together have every point."""
    collection = cluster.read_layout().collections[0]
    counts = cluster.exact_counts(collection)
    assert all(len(by_peer) == 2 and len(set(by_peer.values())) == 1 for by_peer in counts.values())
    assert sum(max(by_peer.values()) for by_peer in counts.values()) == POINTS == points.count(cluster.nodes[2], DOCS)


def test_points_of_one_replica_are_scrolled_and_retrieved(cluster: Cluster) -> None:
    """Scrolling brings every point of the replica once, in order, and retrieving finds them by id."""
    shard = cluster.read_layout().collections[0].shards[1]
    node = cluster.node(shard.replicas[0].peer_id)
    batches = list(points.scroll_shard(node, DOCS, shard.shard_id, batch_points=97))
    ids = [point["id"] for batch in batches for point in batch]
    assert ids == sorted(set(ids))
    assert len(ids) == points.count(node, DOCS, shard.shard_id)
    found = points.retrieve_shard(node, DOCS, shard.shard_id, [*ids[:5], 10**9])
    assert sorted(point["id"] for point in found) == ids[:5]
    assert all(len(point["vector"]) == 8 and point["payload"] == {"n": point["id"]} for point in found)


@pytest.mark.parametrize("kind", ["shard", "node"])
def test_a_snapshot_is_made_fetched_and_deleted(cluster: Cluster, kind: str) -> None:
    """The bytes have the size and checksum that Qdrant said, and nothing is left; deleting again is fine."""
    shard = cluster.read_layout().collections[0].shards[0]
    node = cluster.node(shard.replicas[0].peer_id)
    shard_id = shard.shard_id if kind == "shard" else None
    made = snapshots.create_snapshot(node, DOCS, shard_id)
    assert [found.name for found in snapshots.list_snapshots(node, DOCS, shard_id)] == [made.name]
    blocks = list(snapshots.download_snapshot(node, DOCS, shard_id, made.name, expected_bytes=made.size))
    assert {len(block) for block in blocks[:-1]} <= {snapshots.MIB}
    assert hashlib.sha256(b"".join(blocks)).hexdigest() == made.checksum
    for _ in range(2):
        snapshots.delete_snapshot(node, DOCS, shard_id, made.name)
    assert snapshots.list_snapshots(node, DOCS, shard_id) == []
    assert not snapshots.snapshots_running(node, DOCS)


def test_a_shard_is_recovered_by_name_and_by_upload(cluster: Cluster) -> None:
    """A shard's snapshot loaded into a replica of another collection brings its points, and replicas stay Active."""
    cluster.nodes[0].create_collection(
        "copy", {"vectors": {"size": 8, "distance": "Dot"}, "shard_number": 3, "replication_factor": 2}
    )
    try:
        cluster.wait_until_active("copy", None, 20)
        layout = cluster.read_layout(["copy", DOCS])
        source, copy = layout.collection(DOCS), layout.collection("copy")
        assert source is not None
        assert copy is not None
        for shard in source.shards:
            node = cluster.node(shard.replicas[0].peer_id)
            made = snapshots.create_snapshot(node, DOCS, shard.shard_id)
            parts = list(snapshots.download_snapshot(node, DOCS, shard.shard_id, made.name, expected_bytes=made.size))
            snapshots.recover_shard(node, DOCS, shard.shard_id, location=made.name, checksum=made.checksum)
            snapshots.delete_snapshot(node, DOCS, shard.shard_id, made.name)
            for replica in copy.shards[shard.shard_id].replicas:
                target = cluster.node(replica.peer_id)
                with pytest.raises(NodeRefusedError, match="hecksum"):
                    snapshots.upload_shard(target, "copy", shard.shard_id, iter(parts), made.size, "0" * 64)
                snapshots.upload_shard(target, "copy", shard.shard_id, iter(parts), made.size, made.checksum)
        expect = {shard.shard_id: {replica.peer_id for replica in shard.replicas} for shard in copy.shards}
        cluster.wait_until_active("copy", expect, 20)
        assert {shard: set(counts.values()) for shard, counts in cluster.exact_counts(copy).items()} == {
            shard: set(counts.values()) for shard, counts in cluster.exact_counts(source).items()
        }
        with pytest.raises(LayoutError, match="no shard 0 on peer 1"):
            cluster.wait_until_active("copy", {ShardId(0): {PeerId(1)}}, 0)
    finally:
        cluster.nodes[0].delete_collection("copy")


def test_a_lost_reply_makes_no_second_snapshot(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The proxy breaks while the node works: the one snapshot that appears is taken."""
    shard = cluster.read_layout().collections[0].shards[0]
    real = cluster.node(shard.replicas[0].peer_id)
    with FaultProxy(address(real.url)) as proxy:

        def lose_the_reply() -> None:
            while not any(line.startswith("POST") for line in proxy.requests):
                time.sleep(0.002)
            proxy.slow(20)  # the reply is on its way for longer than the snapshot takes
            while not snapshots.list_snapshots(real, DOCS, shard.shard_id):
                time.sleep(0.002)
            proxy.cut()
            proxy.clear()

        with Node(proxy.url, profile([proxy.url])) as node:
            node.identify()
            proxy.slow(3000)  # so that what is done before the reply can be noticed
            breaker = threading.Thread(target=lose_the_reply)
            breaker.start()
            made = snapshots.create_snapshot(node, DOCS, shard.shard_id)
            breaker.join()
    assert "waiting for the snapshot to appear" in caplog.text
    assert [found.name for found in snapshots.list_snapshots(real, DOCS, shard.shard_id)] == [made.name]
    snapshots.delete_snapshot(real, DOCS, shard.shard_id, made.name)


def test_a_download_survives_broken_connections(cluster: Cluster) -> None:
    """Cut three times on the way, the bytes are still those that Qdrant hashed."""
    shard = cluster.read_layout().collections[0].shards[0]
    real = cluster.node(shard.replicas[0].peer_id)
    made = snapshots.create_snapshot(real, DOCS, shard.shard_id)
    cuts = []
    with FaultProxy(address(real.url)) as proxy, Node(proxy.url, profile([proxy.url])) as node:

        def cut_and_cut_again() -> None:
            cuts.append(proxy.bytes_total)
            proxy.cut()
            if len(cuts) < 3:
                proxy.after(60_000, cut_and_cut_again)

        proxy.after(60_000, cut_and_cut_again)
        digest = hashlib.sha256()
        for block in snapshots.download_snapshot(node, DOCS, shard.shard_id, made.name, expected_bytes=made.size):
            digest.update(block)
    snapshots.delete_snapshot(real, DOCS, shard.shard_id, made.name)
    assert len(cuts) == 3
    assert digest.hexdigest() == made.checksum


def test_an_address_that_rotates_is_refused(servers: QdrantCluster) -> None:
    """A balancer in front of the nodes is found out, though each answer by itself is right."""
    with (
        RotatingProxy([address(url) for url in servers.urls]) as proxy,
        Cluster("t", profile([proxy.url])) as cluster,
        pytest.raises(LayoutError, match="answers as different peers"),
    ):
        cluster.read_layout()


def test_two_addresses_of_one_node_are_refused(servers: QdrantCluster) -> None:
    """Every node needs one address and not two."""
    with FaultProxy(address(servers.urls[0])) as proxy:
        urls = [*servers.urls, proxy.url]
        with Cluster("t", profile(urls)) as cluster, pytest.raises(LayoutError, match="are the same peer"):
            cluster.read_layout()


def test_a_peer_without_an_address_is_refused(servers: QdrantCluster) -> None:
    """A node that is not configured would be a shard that is not backed up."""
    with Cluster("t", profile(servers.urls[:2])) as cluster, pytest.raises(LayoutError, match="without a configured"):
        cluster.read_layout()


def test_a_pattern_without_a_match_is_refused_at_once(cluster: Cluster) -> None:
    """A misspelt pattern is an error that lists what there is, and does not wait for consensus."""
    before = time.monotonic()
    with pytest.raises(ConfigurationError, match=f"There are: {DOCS}"):
        cluster.read_layout(["dox*"])
    assert time.monotonic() - before < 3
    assert cluster.read_layout(exclude=["d*"]).collections == ()


def test_a_node_that_hangs_is_named(servers: QdrantCluster) -> None:
    """A frozen process accepts connections and never answers: the error says which one."""
    with Cluster("t", profile(servers.urls, timeout_seconds=1.0)) as cluster:
        servers.nodes[1].freeze()
        try:
            with pytest.raises(NodeUnreachableError, match=str(address(servers.urls[1])[1])):
                cluster.read_layout()
        finally:
            servers.nodes[1].thaw()
    _settle(servers)


def test_a_replica_that_is_not_active_is_no_rest(servers: QdrantCluster) -> None:
    """Recovering one replica with priority snapshot makes the other Dead: rest is refused, and waiting names it."""
    with Cluster("t", profile(servers.urls)) as cluster:
        layout = cluster.read_layout()
        victim = layout.nodes[2]
        shard = next(
            shard
            for shard in layout.collections[0].shards
            if victim.peer_id in {replica.peer_id for replica in shard.replicas}
        )
        # recovering with priority "replica" from itself would do as well; this is the documented way to a Dead replica.
        healthy = next(replica.peer_id for replica in shard.replicas if replica.peer_id != victim.peer_id)
        node = cluster.node(healthy)
        made = snapshots.create_snapshot(node, DOCS, shard.shard_id)
        servers.nodes[2].freeze()
        try:
            snapshots.recover_shard(
                node, DOCS, shard.shard_id, location=made.name, checksum=made.checksum, priority="snapshot"
            )
            state = _state_after_active(node, shard.shard_id, victim.peer_id)
            with Cluster("t", profile(servers.urls[:2], timeout_seconds=2.0)) as seen:
                seen.identify()
                with pytest.raises(LayoutError, match=f"shard {shard.shard_id} of {DOCS} is {state} on peer"):
                    seen.require_quiet(layout)
                with pytest.raises(LayoutError, match="not Active everywhere"):
                    seen.wait_until_active(DOCS, None, 0)
        finally:
            servers.nodes[2].thaw()
            snapshots.delete_snapshot(node, DOCS, shard.shard_id, made.name)
    _settle(servers)


def test_a_schema_makes_its_equal(cluster: Cluster) -> None:
    """Every setting and every kind of payload index comes back as it was, from the captured documents alone."""
    node = cluster.nodes[0]
    try:
        node.create_collection("source", FULL_BODY)
        node.patch_collection("source", {"params": {"read_fan_out_factor": 2}})
        for field, wanted in INDEXES.items():
            node.create_payload_index("source", field, wanted)
        (collection,) = cluster.read_layout(["source"]).collections  # waits until every node has all of it
        source = {"config": collection.config, "payload_schema": collection.payload_schema}
        assert set(source["payload_schema"]) == set(INDEXES)
        assert source["config"]["params"]["read_fan_out_factor"] == 2
        node.create_collection("target", creation_body(source["config"], restore_id="r1"))
        assert restore_mark(node.collection("target")["config"]) == "r1"
        node.patch_collection("target", patch_body(source["config"]))
        for field, body in payload_index_bodies(source["payload_schema"]):
            node.create_payload_index("target", field, body)
        unmark_restore(node, "target", source["config"]["metadata"])
        (target,) = cluster.read_layout(["target"]).collections
        assert target.config == source["config"]
        assert target.payload_schema == source["payload_schema"]
        assert not schema_differences(source["config"], source["payload_schema"], target.config, target.payload_schema)
    finally:
        node.delete_collection("source")
        node.delete_collection("target")


@pytest.mark.parametrize("metadata", [None, {}, {"owner": "team", "nothing": None}])
def test_a_mark_comes_and_goes_and_leaves_metadata_alone(cluster: Cluster, metadata: dict[str, Any] | None) -> None:
    """Marking and unmarking twice is as once; without metadata before, none is left."""
    node = cluster.nodes[0]
    body = {"vectors": {"size": 4, "distance": "Dot"}} | ({} if metadata is None else {"metadata": metadata})
    node.create_collection("marked", body)
    try:
        for _ in range(2):
            mark_restore(node, "marked", "r9")
        assert restore_mark(node.collection("marked")["config"]) == "r9"
        for _ in range(2):
            unmark_restore(node, "marked", metadata)
        assert (node.collection("marked")["config"].get("metadata") or {}) == (metadata or {})
        cluster.read_layout(["marked"])
        node.patch_collection("marked", {"metadata": {"foreign": 1}})
        with (
            Node(node.url, profile([node.url], timeout_seconds=1.0)) as hasty,
            pytest.raises(NodeRefusedError, match="not the source's"),
        ):
            unmark_restore(hasty, "marked", metadata)
    finally:
        node.delete_collection("marked")


def test_one_node_without_cluster_mode_and_with_a_key(tmp_path: Path) -> None:
    """A single node is peer 0: layout, counts and snapshots work, and a wrong key is refused with its remedy."""
    with QdrantCluster(nodes=1, folder=tmp_path / "q", api_key="right") as servers:
        with Cluster("one", profile(servers.urls, api_key=SecretStr("right"))) as cluster:
            fill(cluster.nodes[0], "docs", shard_number=2)
            layout = cluster.read_layout()
            assert cluster.require_quiet(layout) == []
            (collection,) = layout.collections
            assert sum(sum(counts.values()) for counts in cluster.exact_counts(collection).values()) == POINTS
        with (
            Cluster("one", profile(servers.urls, api_key=SecretStr("wrong"))) as cluster,
            pytest.raises(NodeRefusedError, match="api_key"),
        ):
            cluster.read_layout()


def test_a_node_without_cluster_mode_is_peer_0(tmp_path: Path) -> None:
    """Without cluster mode there is no peer id to be had, so Ferry calls it 0 everywhere."""
    import os
    import subprocess

    from sandbox.binaries import qdrant_binary
    from sandbox.process import free_port

    port = free_port()
    env = os.environ | {
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(port),
        "QDRANT__SERVICE__GRPC_PORT": str(free_port()),
        "QDRANT__STORAGE__STORAGE_PATH": str(tmp_path / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(tmp_path / "snapshots"),
        "QDRANT__TELEMETRY_DISABLED": "true",
    }
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([str(qdrant_binary())], env=env, cwd=tmp_path, stdout=-3, stderr=-3) as process:
        try:
            with Cluster("one", profile([url])) as cluster:
                _wait_for(cluster.nodes[0])
                fill(cluster.nodes[0], "docs", shard_number=2)
                (collection,) = cluster.read_layout().collections
                assert [shard.replicas[0].peer_id for shard in collection.shards] == [STANDALONE_PEER] * 2
                cluster.wait_until_active("docs", {ShardId(0): {STANDALONE_PEER}}, 5)
                counts = cluster.exact_counts(collection)
                assert sum(by_peer[STANDALONE_PEER] for by_peer in counts.values()) == POINTS
                cluster.nodes[0].require_identity()
                made = snapshots.create_snapshot(cluster.node(STANDALONE_PEER), "docs", ShardId(1))
                assert made.checksum
        finally:
            process.terminate()


def _wait_for(node: Node) -> None:
    for _ in range(100):
        try:
            node.identify()
        except NodeUnreachableError:
            time.sleep(0.1)
        else:
            return


def _state_after_active(node: Node, shard_id: ShardId, peer_id: PeerId) -> str:
    """The first state other than Active that the node shows for a remote replica."""
    for _ in range(100):
        for shard in node.collection_cluster(DOCS)["remote_shards"]:
            if (shard["shard_id"], shard["peer_id"]) == (shard_id, peer_id) and shard["state"] != "Active":
                return str(shard["state"])
        time.sleep(0.1)
    raise AssertionError


def _settle(servers: QdrantCluster) -> None:
    """Wait until the cluster is whole again."""
    with Cluster("t", profile(servers.urls)) as cluster:
        cluster.wait_until_active(DOCS, None, 60)
        for _ in range(5):
            try:
                cluster.require_quiet(cluster.read_layout())
            except LayoutError:
                time.sleep(1)
            else:
                return
