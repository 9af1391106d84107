"""From any number of nodes and copies to any other."""

from pathlib import Path

import pytest

from ferry.backup.plan import BackupRequest
from ferry.backup.run import prepare, run_backup
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import (
    HOLDER,
    SERVERS,
    StandaloneNode,
    back_up,
    new_id,
    proven_everywhere,
    quick_job,
    restore,
)
from tests.integration.samples import SAMPLES, Api, everything
from tests.workshop import Workshop

pytestmark = SERVERS

DOCS = "docs"


def test_more_nodes(
    shared_s3: S3Server, three_nodes: QdrantCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes to four: all replicas are Active and equal, no node has more than its share, none is re-sent."""
    with (
        QdrantCluster(nodes=4, folder=tmp_path / "four") as four,
        Workshop(tmp_path, monkeypatch, shared_s3, {"source": three_nodes, "target": four}) as shop,
        Api(three_nodes.urls[0]) as source,
    ):
        source.make(DOCS, SAMPLES["dense"]())
        restored = restore(shop, back_up(shop), DOCS, replication_factor=3)
        assert proven_everywhere(restored)
        assert everything(four, restored.plan.target) == everything(three_nodes, DOCS)
        for url in four.urls:
            with Api(url) as target:
                shards = target.call("GET", target.of(restored.plan.target) + "/cluster")
                assert 2 <= len(shards["local_shards"]) <= 3
                assert {shard["state"] for shard in [*shards["local_shards"], *shards["remote_shards"]]} == {"Active"}
        assert shop.leftovers() == []


def test_a_node_without_cluster_mode(
    shared_s3: S3Server, three_nodes: QdrantCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes to a single node without cluster mode, and from there, by a backup of its own, back to three."""
    with (
        StandaloneNode(tmp_path / "one") as one,
        Workshop(tmp_path, monkeypatch, shared_s3, {"source": three_nodes, "target": one}) as shop,
        Api(three_nodes.urls[0]) as source,
    ):
        source.make(DOCS, SAMPLES["named"]())
        there = restore(shop, back_up(shop), DOCS, into="there")
        assert proven_everywhere(there)
        assert there.plan.replication_factor == 1
        assert everything(one, "there") == everything(three_nodes, DOCS)
        connections = shop.connect("target")
        request = BackupRequest(backup_id=new_id(), cluster="target", repository="main")
        own = run_backup(connections, prepare(connections, request), HOLDER, quick_job())
        back = restore(shop, own, "there", cluster="source", source_cluster="target", into="back", replication_factor=2)
        assert proven_everywhere(back)
        assert everything(three_nodes, "back") == everything(three_nodes, DOCS)
        assert shop.leftovers() == []


def test_fewer_copies_on_fewer_nodes(workshop: Workshop) -> None:
    """Replication factor 2 on three nodes becomes 1 on two, with no more confirmations of writes than copies."""
    source, target = workshop.clusters["source"], workshop.clusters["target"]
    with Api(source.urls[0]) as api:
        api.make(DOCS, SAMPLES["dense"]())
    restored = restore(workshop, back_up(workshop), DOCS, replication_factor=1)
    assert proven_everywhere(restored)
    assert len(restored.verdicts) == 3
    assert everything(target, restored.plan.target) == everything(source, DOCS)
    with Api(target.urls[0]) as api:
        params = api.call("GET", api.of(restored.plan.target))["config"]["params"]
        assert (params["replication_factor"], params["write_consistency_factor"]) == (1, 1)
        point = {"id": 1, "vector": [1.0] * 16}
        api.call("PUT", api.of(restored.plan.target) + "/points?wait=true", {"points": [point]})
    assert workshop.leftovers() == []
