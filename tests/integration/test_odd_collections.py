"""Collections as they really are: sharded by keys, strict, diverged, busy, empty. What comes back is compared."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ferry.errors import LayoutError, PreflightError
from ferry.models import ShardId
from ferry.profiles import ClusterProfile
from ferry.qdrant import snapshots
from ferry.qdrant.cluster import Cluster
from ferry.repository.manifest import BackupRecord, CollectionManifest
from ferry.verify.replica import shard_digest
from sandbox.fault_proxy import RotatingProxy
from tests.integration.crossings import (
    SERVERS,
    StandaloneNode,
    address,
    back_up,
    manifest_of,
    proven_everywhere,
    restore,
)
from tests.integration.samples import Api, Sample, few, floats, point_id
from tests.workshop import Workshop

pytestmark = SERVERS
VECTORS = {"vectors": {"size": 4, "distance": "Cosine"}, "shard_number": 1}


@pytest.fixture
def api(workshop: Workshop) -> Iterator[Api]:
    """The first node of the source."""
    with Api(workshop.clusters["source"].urls[0]) as opened:
        yield opened


def archives_are_what_the_nodes_hold(shop: Workshop, record: BackupRecord, collection: str) -> CollectionManifest:
    """Every archive's count and digest are those of the replica that it was taken from, read point by point."""
    connections = shop.connect()
    manifest = manifest_of(connections, record, collection)
    assert {shard.shard_id for shard, _ in manifest.best_shards()} == {shard.shard_id for shard in manifest.layout}
    for shard, archive in manifest.best_shards():
        live = shard_digest(connections.cluster.node(archive.source_peer), collection, shard.shard_id)
        assert shard.proof.content is not None
        assert (shard.proof.points, shard.proof.content.digest) == (live.points, live.hexdigest)
    return manifest


def test_a_collection_without_shards_keeps_its_schema(workshop: Workshop, api: Api) -> None:
    """A custom-sharded collection before its first key is in the backup, with a manifest and a finding."""
    api.call("PUT", "/collections/keyed", VECTORS | {"sharding_method": "custom"})
    api.call("PUT", "/collections/docs", VECTORS)
    record = back_up(workshop)
    assert [entry.collection for entry in record.collections] == ["docs", "keyed"]
    manifest = manifest_of(workshop.connect(), record, "keyed")
    assert manifest.archives == ()
    assert manifest.config["params"]["sharding_method"] == "custom"
    assert "keyed has no shards" in record.findings[0].message
    assert workshop.leftovers() == []


def test_a_name_too_long_for_a_snapshot_is_refused_before_anything_is_made(workshop: Workshop, api: Api) -> None:
    """Qdrant answers 500 for it again and again; Ferry says so at once, and what to do."""
    name = "n" * 206
    api.call("PUT", f"/collections/{name}", VECTORS)
    with pytest.raises(PreflightError, match="206 bytes"):
        back_up(workshop)
    assert workshop.objects() == []
    api.call("PUT", "/collections/docs", VECTORS)
    assert [entry.collection for entry in back_up(workshop, exclude=(name,)).collections] == ["docs"]


# Key, shards and copies in the order of their making: the ids are 1-2, 3, 4-5 and 6; then "gone" goes.
KEYS: list[tuple[str | int, int, int]] = [("z/ключ", 2, 1), ("gone", 1, 1), (7, 2, 2), ("7", 1, 1)]
IDS = {1: "z/ключ", 2: "z/ключ", 4: 7, 5: 7, 6: "7"}


def make_keyed(api: Api) -> None:
    """A collection sharded by keys, with points in each; ids of points repeat from key to key, as they may."""
    api.call("PUT", "/collections/keyed", VECTORS | {"sharding_method": "custom", "metadata": {"of": "keyed"}})
    for key, shards, copies in KEYS:
        body = {"shard_key": key, "shards_number": shards, "replication_factor": copies}
        api.call("PUT", "/collections/keyed/shards", body)
        points = [
            {"id": n, "vector": [1.0, n / 7, 2.0, 3.0], "payload": {"key": key, "n": n}} for n in range(1, 30 * shards)
        ]
        api.call("PUT", "/collections/keyed/points?wait=true", {"points": points, "shard_key": key})
    api.call("POST", "/collections/keyed/shards/delete", {"shard_key": "gone"})


def test_shards_with_keys_come_back_under_the_same_numbers(workshop: Workshop, api: Api) -> None:
    """Keys made in odd order, with several shards, one dropped: every replica equals its archive, key by key.

    Writing every point again makes none twice: each went to the shard that already held it.
    """
    make_keyed(api)
    record = back_up(workshop)
    manifest = archives_are_what_the_nodes_hold(workshop, record, "keyed")
    assert {shard.shard_id: shard.key for shard in manifest.layout} == IDS
    assert {record.shard_id: record.shard_key for record, _ in manifest.best_shards()} == IDS
    assert [len(shard.replicas) for shard in manifest.layout] == [1, 1, 2, 2, 1]
    assert manifest.points == sum(30 * shards - 1 for key, shards, _ in KEYS if key != "gone")

    restored = restore(workshop, record, "keyed", into="keyed")
    assert restored.plan.path == "shards"
    layout = workshop.connect("target").cluster.read_layout(["keyed"]).collection("keyed")
    assert layout is not None
    assert {shard.shard_id: shard.key for shard in layout.shards} == IDS
    assert [len(shard.replicas) for shard in layout.shards] == [1, 1, 2, 2, 1]
    assert len(restored.verdicts) == 7
    with Api(workshop.clusters["target"].urls[0]) as target:
        for key, shards, _ in KEYS:
            if key != "gone":
                points = [{"id": n, "vector": [1.0, n / 7, 2.0, 3.0]} for n in range(1, 30 * shards)]
                target.call("PUT", "/collections/keyed/points?wait=true", {"points": points, "shard_key": key})
        assert target.count("keyed") == manifest.points
    assert workshop.leftovers() == []


STRICT = {
    "enabled": True, "search_allow_exact": False, "max_query_limit": 10, "read_rate_limit": 120,
    "unindexed_filtering_retrieve": False, "unindexed_filtering_update": False, "upsert_max_batchsize": 60,
    "max_timeout": 5, "filter_max_conditions": 1, "search_max_hnsw_ef": 16,
}  # fmt: skip


def test_strict_mode_is_kept_and_obeyed(workshop: Workshop, api: Api) -> None:
    """No exact counts, pages of ten, and 120 reads a minute, all of them used up: it takes longer and comes out right.

    Where exact counts are forbidden every id is listed; a 429 is waited out for as long as Qdrant says.
    """
    sample = few("strict", 160)
    body = sample.body | {"strict_mode_config": STRICT}
    api.make("strict", Sample(body, sample.points))
    (home,) = [Api(url) for url in workshop.clusters["source"].urls if _has_shard(url, "strict")]
    with home:
        refused = use_up(home, "/collections/strict/shards/0/points/scroll", {"limit": 1})
    assert refused.headers["retry-after"]
    began = time.monotonic()
    record = back_up(workshop)
    assert time.monotonic() - began > 5  # sixteen pages, two a second
    assert [(entry.collection, entry.points) for entry in record.collections] == [("strict", 160)]
    manifest = manifest_of(workshop.connect(), record, "strict")
    (shard, _) = manifest.best_shards()[0]
    assert [count.points for count in shard.replica_counts] == [160]
    restored = restore(workshop, record, "strict", verify="count")
    assert [(verdict.points, verdict.problems) for verdict in restored.verdicts] == [(160, ())]
    strict = (
        workshop.connect("target").cluster.nodes[0].collection(restored.plan.target)["config"]["strict_mode_config"]
    )
    assert strict == STRICT


def use_up(api: Api, path: str, body: dict[str, Any]) -> httpx.Response:
    """Read until Qdrant says that it is too much."""
    for _ in range(400):
        answer = api._client.post(path, json=body)
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return answer
    raise AssertionError


def _has_shard(url: str, collection: str) -> bool:
    with Api(url) as node:
        return bool(node.call("GET", node.of(collection) + "/cluster")["local_shards"])


def test_of_replicas_that_differ_the_fuller_one_is_kept(workshop: Workshop, api: Api) -> None:
    """One replica of two lost points without anybody noticing: the backup has them all, and says so."""
    sample = few("differ", 30)
    api.make("differ", Sample(sample.body | {"replication_factor": 2}, sample.points))
    connections = workshop.connect()
    connections.cluster.wait_until_active("differ", None, 30)
    layout = connections.cluster.read_layout(["differ"]).collections[0]
    poor, full = [replica.peer_id for replica in layout.shards[0].replicas]
    node = connections.cluster.node(poor)
    old = snapshots.create_snapshot(node, "differ", ShardId(0))
    more = [{"id": 10**6 + n, "vector": [n, 1, 2, 3], "payload": {"n": n}} for n in range(20)]
    api.call("PUT", "/collections/differ/points?wait=true", {"points": more})
    # As a replica may be after a crash without a flush: behind, Active, and nobody knows (Qdrant 9579).
    snapshots.recover_shard(node, "differ", ShardId(0), location=old.name, checksum=None)
    snapshots.delete_snapshot(node, "differ", ShardId(0), old.name)
    connections.cluster.wait_until_active("differ", None, 30)
    assert connections.cluster.exact_counts(layout) == {ShardId(0): {poor: 30, full: 50}}

    record = back_up(workshop)
    manifest = archives_are_what_the_nodes_hold(workshop, record, "differ")
    assert [archive.source_peer for archive in manifest.archives] == [full]
    assert manifest.points == 50
    (told,) = [finding for finding in record.findings if finding.subject == "differ/shard 0"]
    assert f"peer {min(poor, full)}: " in told.message
    assert "30" in told.message
    assert "50" in told.message
    restored = restore(workshop, record, "differ", replication_factor=2)
    assert proven_everywhere(restored)


def busy_sample(points: int) -> Sample:
    """One that takes its node some seconds to index, in one thread."""
    sample = few("busy", 0)
    body = sample.body | {
        "vectors": {"size": 64, "distance": "Cosine"},
        "hnsw_config": {"m": 48, "ef_construct": 1500, "max_indexing_threads": 1},
        "optimizers_config": {"indexing_threshold": 100, "default_segment_number": 1, "max_optimization_threads": 1},
    }
    rng = random.Random("busy")
    return Sample(body, [{"id": point_id(n), "vector": floats(rng, 64), "payload": {"n": n}} for n in range(points)])


def status(api: Api, collection: str) -> str:
    """What Qdrant says of the whole collection."""
    return str(api.call("GET", api.of(collection))["status"])


def test_a_collection_that_is_being_optimized_is_backed_up_whole(workshop: Workshop, api: Api) -> None:
    """Yellow, while the index is built: told, and every point is there."""
    sample = busy_sample(1)
    rows = busy_sample(4000).points
    api.make("busy", sample)
    for start in range(0, len(rows), 1000):
        api.call("PUT", "/collections/busy/points?wait=true", {"points": rows[start : start + 1000]})
    deadline = time.monotonic() + 10
    while status(api, "busy") != "yellow" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert status(api, "busy") == "yellow"
    record = back_up(workshop)
    archives_are_what_the_nodes_hold(workshop, record, "busy")
    assert "busy is yellow" in " ".join(finding.message for finding in record.findings)
    assert [entry.points for entry in record.collections] == [4000]


def test_a_collection_that_waits_to_be_optimized_is_backed_up_whole(workshop: Workshop, api: Api) -> None:
    """Grey, as after a recover or a restart until the next write: no reason to go without a backup."""
    body = busy_sample(0).body | {"optimizers_config": {"indexing_threshold": 0, "default_segment_number": 1}}
    api.make("grey", Sample(body, busy_sample(800).points))
    connections = workshop.connect()
    (shard,) = connections.cluster.read_layout(["grey"]).collections[0].shards
    node = connections.cluster.node(shard.replicas[0].peer_id)
    made = snapshots.create_snapshot(node, "grey", ShardId(0))
    body = busy_sample(0).body
    api.call("PUT", "/collections/waits", body)
    grey_one = connections.cluster.read_layout(["waits"]).collections[0].shards[0]
    owner = connections.cluster.node(grey_one.replicas[0].peer_id)
    fetched = snapshots.download_snapshot(node, "grey", ShardId(0), made.name, expected_bytes=made.size)
    snapshots.upload_shard(owner, "waits", ShardId(0), fetched, made.size, None)
    snapshots.delete_snapshot(node, "grey", ShardId(0), made.name)
    assert status(api, "waits") == "grey"
    record = back_up(workshop, include=("waits",))
    archives_are_what_the_nodes_hold(workshop, record, "waits")
    assert [(entry.collection, entry.points) for entry in record.collections] == [("waits", 800)]
    assert "waits is grey" in " ".join(finding.message for finding in record.findings)


def test_an_address_that_rotates_over_nodes_without_cluster_mode_is_refused(tmp_path: Path) -> None:
    """They name no peer, so it is the process that tells them apart."""
    with StandaloneNode(tmp_path / "a") as first, StandaloneNode(tmp_path / "b") as second:
        places = [address(first.urls[0]), address(second.urls[0])]
        with (
            RotatingProxy(places) as proxy,
            Cluster("t", ClusterProfile.model_validate({"nodes": [proxy.url]})) as cluster,
            pytest.raises(LayoutError, match=r"answers as different peers: .*process"),
        ):
            cluster.read_layout()
