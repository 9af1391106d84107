"""What comes back is what was backed up: point by point, setting by setting, for everything a collection can hold."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ferry.errors import ConfigurationError
from ferry.qdrant.cluster import select_collections
from ferry.repository.manifest import BackupRecord
from ferry.restore.run import Restored
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import SERVERS, back_up, manifest_of, proven_everywhere, restore
from tests.integration.samples import CONDITIONS, SAMPLES, Api, Sample, everything, few
from tests.workshop import Workshop

pytestmark = SERVERS

# Qdrant 1.16 refuses / \ : * ? " < > | and NUL; all of these it takes, and each has broken some path, key or pattern.
NAMES = ["a∕b %2F 😀", "docs[1]", ".hidden", "backup.json", "aliases", " sp&ce=+#;~e\u0301 日本語\n"]
ALIASES = {"dense-live": "dense", "ali∕as 😀%2F": "named", "second": "dense"}
EXCLUDED = "scratch[1]"


@dataclass(frozen=True)
class Crossing:
    """One backup of many collections, and the restore of each onto another number of nodes."""

    record: BackupRecord
    restored: dict[str, Restored]
    samples: dict[str, Sample]
    shop: Workshop
    source: Api
    target: Api

    def other(self, name: str) -> str:
        """What a collection was restored as."""
        return self.restored[name].plan.target


@pytest.fixture(scope="module")
def crossing(
    shared_s3: S3Server,
    three_nodes: QdrantCluster,
    two_nodes: QdrantCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crossing]:
    """All samples made on three nodes, backed up in one run, and each restored to two nodes."""
    samples = {name: make() for name, make in SAMPLES.items()} | {name: few(name) for name in NAMES}
    folder: Path = tmp_path_factory.mktemp("round-trip")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(folder, monkeypatch, shared_s3, {"source": three_nodes, "target": two_nodes}) as shop,
        Api(three_nodes.urls[0]) as source,
        Api(two_nodes.urls[1]) as target,
    ):
        for name, sample in (samples | {EXCLUDED: few(EXCLUDED)}).items():
            source.make(name, sample)
        for alias, collection in ALIASES.items():
            source.alias(alias, collection)
        record = back_up(shop, include=("*",), exclude=("scratch*",))
        assert shop.leftovers() == []
        with ThreadPoolExecutor(3) as pool:  # beside each other, as a whole cluster is brought back
            restored = dict(zip(samples, pool.map(lambda name: restore(shop, record, name), samples), strict=True))
        assert shop.leftovers() == []
        yield Crossing(record, restored, samples, shop, source, target)


@pytest.fixture(autouse=True)
def configured(crossing: Crossing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the crossing."""
    monkeypatch.setenv("FERRY_CONFIG", str(crossing.shop.config))


each_sample = pytest.mark.parametrize("name", [*SAMPLES, *NAMES])


@each_sample
def test_every_replica_has_the_digest_of_its_archive(crossing: Crossing, name: str) -> None:
    """After the restore every replica of every shard was read in full, and is its archive's count and digest."""
    assert proven_everywhere(crossing.restored[name])
    assert {replica.path for replica in crossing.restored[name].recovered} == {"url"}


@each_sample
def test_every_point_comes_back_bit_for_bit(crossing: Crossing, name: str) -> None:
    """Every replica on both sides, read over REST without code of Ferry's, holds the same ids, payloads and vectors."""
    clusters = crossing.shop.clusters
    before, after = everything(clusters["source"], name), everything(clusters["target"], crossing.other(name))
    sample = crossing.samples[name]
    assert before.keys() == {str(point["id"]) for point in sample.points} - {str(gone) for gone in sample.gone}
    assert after == before
    assert crossing.target.count(crossing.other(name)) == len(before)


@each_sample
def test_every_setting_comes_back(crossing: Crossing, name: str) -> None:
    """Configuration, metadata, strict mode and payload indexes are shown alike, the counts of indexed points too."""
    before, after = crossing.source.settings(name), crossing.target.settings(crossing.other(name))
    assert after == before
    assert before[1].keys() == crossing.samples[name].indexes.keys()


@pytest.mark.parametrize("where", CONDITIONS)
def test_every_payload_index_finds_the_same_points(crossing: Crossing, where: str) -> None:
    """A filter on each indexed field finds the same ids before and after, some and not all."""
    found = crossing.source.filtered("payload", CONDITIONS[where], where)
    assert 0 < len(found) < len(crossing.samples["payload"].points)
    assert crossing.target.filtered(crossing.other("payload"), CONDITIONS[where], where) == found


@pytest.mark.parametrize("name", ["dense", "named", "payload", "strict", "quantized"])
def test_exact_searches_find_the_same_points_with_the_same_scores(crossing: Crossing, name: str) -> None:
    """An exact search in every vector gives the same ids and scores; Qdrant adds idf up in an order of its own."""
    for using, query in crossing.samples[name].queries.items():
        found = crossing.source.nearest(name, using, query)
        assert found, using
        again = crossing.target.nearest(crossing.other(name), using, query)
        assert {point: score for score, point in again} == pytest.approx({point: score for score, point in found}), (
            using
        )


def test_the_record_has_what_was_asked_for_and_the_aliases(crossing: Crossing) -> None:
    """One run holds every collection that the patterns chose, none that was excluded, and all aliases."""
    record = crossing.record
    assert {entry.collection: entry.points for entry in record.collections} == {
        name: len(sample.points) - len(sample.gone) for name, sample in crossing.samples.items()
    }
    assert record.aliases == ALIASES
    assert crossing.shop.connect().catalog.read_backup("source", "latest") == record
    assert not [key for key in crossing.shop.objects() if "scratch" in key]


@each_sample
def test_the_manifest_is_the_source_in_words(crossing: Crossing, name: str) -> None:
    """The manifest holds Qdrant's own configuration and schema, every replica's count and every shard's proof."""
    manifest = manifest_of(crossing.shop.connect(), crossing.record, name)
    document = crossing.source.call("GET", crossing.source.of(name))
    assert (manifest.config, manifest.payload_schema) == (document["config"], document["payload_schema"])
    assert len(manifest.nodes) == 3
    body = crossing.samples[name].body
    assert [len(shard.replicas) for shard in manifest.layout] == [body.get("replication_factor", 1)] * len(
        manifest.archives
    )
    assert len(manifest.archives) == body["shard_number"]
    for shard, _ in manifest.best_shards():
        assert {count.points for count in shard.replica_counts} == {shard.proof.points}
        assert shard.proof.content is not None


def test_a_name_is_its_own_pattern_and_others_choose() -> None:
    """A collection's exact name chooses it even where it reads as a pattern; one that finds nothing is refused."""
    names = ["docs[1]", "docs1", "other"]
    assert select_collections(["docs[1]", "other"], ["docs[1]"]) == ["docs[1]"]
    assert select_collections(names, ["docs*"], ["docs[[]1]"]) == ["docs1"]
    with pytest.raises(ConfigurationError, match="matches no collection"):
        select_collections(names, ["Docs*"])
