"""Backups of kind node: every node's own collection snapshot, proven by shard, restored by Ferry or stock means."""

from pathlib import Path

import httpx

from ferry.repository.manifest import CollectionManifest
from tests.integration.crossings import SERVERS, StandaloneNode, back_up, manifest_of, proven_everywhere, restore
from tests.integration.samples import SAMPLES, Api, Sample, everything
from tests.workshop import Workshop

pytestmark = SERVERS

NAME = "nämed [1]"  # unicode, a space and a pattern's characters, in object keys and in Qdrant's own file names


def replicated(sample: Sample, copies: int) -> Sample:
    return Sample(sample.body | {"replication_factor": copies}, sample.points, sample.indexes, gone=sample.gone)


def shards_by_archive(manifest: CollectionManifest) -> list[set[int]]:
    return [{int(shard.shard_id) for shard in archive.shards} for archive in manifest.archives]


def test_each_nodes_archive_is_proven_and_restored_to_other_nodes(workshop: Workshop) -> None:
    """Every shard in every node's archive has a proof of its own, copies agree, and two nodes get the same points."""
    with (
        Api(workshop.clusters["source"].urls[0]) as source,
        Api(workshop.clusters["target"].urls[0]) as target,
    ):
        source.make(NAME, SAMPLES["dense"]())
        record = back_up(workshop, kind="node")
        assert workshop.leftovers() == []
        manifest = manifest_of(workshop.connect(), record, NAME)
        held = shards_by_archive(manifest)
        assert len(held) == 3
        assert sorted(shard for shards in held for shard in shards) == [0, 0, 1, 1, 2, 2]
        digests: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
        for archive in manifest.archives:
            for shard in archive.shards:
                assert shard.proof.content is not None
                assert shard.proof.points == shard.proof.content.points > 0
                digests[shard.shard_id].add(shard.proof.content.digest)
        assert [len(found) for found in digests.values()] == [1, 1, 1]
        assert manifest.points == record.collections[0].points == source.count(NAME)

        restored = restore(workshop, record, NAME)
        assert proven_everywhere(restored)
        assert {replica.path for replica in restored.recovered} == {"upload"}
        clusters = workshop.clusters
        assert everything(clusters["target"], restored.plan.target) == everything(clusters["source"], NAME)
        assert target.settings(restored.plan.target) == source.settings(NAME)
        assert workshop.leftovers() == []


def test_a_nodes_archive_is_what_qdrant_alone_restores(workshop: Workshop, tmp_path: Path) -> None:
    """The bytes in the bucket, uploaded to a fresh node by Qdrant's own collection upload, bring everything back."""
    with (
        StandaloneNode(tmp_path / "fresh") as fresh,
        Api(workshop.clusters["source"].urls[0]) as source,
        Api(fresh.urls[0]) as target,
    ):
        source.make(NAME, replicated(SAMPLES["named"](), 3))
        record = back_up(workshop, kind="node")
        manifest = manifest_of(workshop.connect(), record, NAME)
        assert shards_by_archive(manifest) == [{0, 1}] * 3
        (first, *_) = [key for key in workshop.objects("backups/") if key.endswith(".snapshot")]
        stored = workshop.bucket.get_object(Bucket="ferry", Key=f"{workshop.folder.name}/{first}")
        answer = httpx.post(
            f"{fresh.urls[0]}/collections/stock/snapshots/upload?priority=snapshot",
            files={"snapshot": ("any.snapshot", stored["Body"].read())},
            timeout=60,
            trust_env=False,
        )
        assert answer.is_success, answer.text
        assert everything(fresh, "stock") == everything(workshop.clusters["source"], NAME)
        assert target.settings("stock")[1] == source.settings(NAME)[1]
        assert workshop.leftovers() == []
