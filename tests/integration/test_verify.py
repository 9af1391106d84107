"""Whatever happens to a backup in the bucket is found by verifying it, named, and never reaches service."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ferry.cli.stored import find_backup
from ferry.errors import ArchiveDamagedError, FerryError, PreflightError
from ferry.repository.manifest import BackupRecord, CollectionManifest
from ferry.verify.archive import ArchiveVerdict, verify_archive
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import SERVERS, back_up, manifest_of, new_id, restore
from tests.integration.samples import SAMPLES, Api, few
from tests.workshop import Workshop

pytestmark = SERVERS

DOCS, OTHER = "dense", "other"
SHARDS = [f"{DOCS}/shards/{number}.2.snapshot" for number in range(3)]


@dataclass(frozen=True)
class Stored:
    """Two backups of one source in a bucket that can be tampered with."""

    shop: Workshop
    record: BackupRecord
    older: BackupRecord
    source: Api
    target: Api

    def key(self, name: str, record: BackupRecord | None = None) -> str:
        """The full key of something in a backup."""
        return f"{self.shop.folder.name}/backups/source/{(record or self.record).backup_id}/{name}"

    def read(self, name: str, record: BackupRecord | None = None) -> bytes:
        """An object's bytes."""
        return bytes(self.shop.bucket.get_object(Bucket="ferry", Key=self.key(name, record))["Body"].read())

    def write(self, name: str, data: bytes | None) -> None:
        """Replace an object, or remove it."""
        if data is None:
            self.shop.bucket.delete_object(Bucket="ferry", Key=self.key(name))
        else:
            self.shop.bucket.put_object(Bucket="ferry", Key=self.key(name), Body=data)

    def problems(self, record: BackupRecord | None = None) -> dict[str, str]:
        """What verifying a backup finds, by the object's name in it; what is intact is left out."""
        verdicts = verify(self.shop, record or self.record)
        folder = self.key("", record)
        return {each.key.removeprefix(folder): "; ".join(each.problems) for each in verdicts if each.problems}


def verify(shop: Workshop, record: BackupRecord) -> list[ArchiveVerdict]:
    repository = shop.connect()
    manifests = find_backup(repository, "source", record.backup_id).manifests
    return [verify_archive(repository, manifest, archive) for manifest in manifests for archive in manifest.archives]


@pytest.fixture(scope="module")
def bucket(
    shared_s3: S3Server,
    three_nodes: QdrantCluster,
    two_nodes: QdrantCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stored]:
    """A source of two collections, backed up twice."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(
            tmp_path_factory.mktemp("verify"), monkeypatch, shared_s3, {"source": three_nodes, "target": two_nodes}
        ) as shop,
        Api(three_nodes.urls[0]) as source,
        Api(two_nodes.urls[0]) as target,
    ):
        source.make(DOCS, SAMPLES["dense"]())
        source.make(OTHER, few(OTHER))
        older = back_up(shop)
        yield Stored(shop, back_up(shop), older, source, target)


@pytest.fixture
def stored(bucket: Stored, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    """The backups, intact before and after."""
    monkeypatch.setenv("FERRY_CONFIG", str(bucket.shop.config))
    before = {name: bucket.read(name) for name in [*SHARDS, f"{DOCS}/manifest.json", "backup.json"]}
    yield bucket
    for name, data in before.items():
        bucket.write(name, data)
    assert bucket.problems() == {}
    assert bucket.shop.leftovers() == []


def test_an_intact_backup_has_no_problems(stored: Stored) -> None:
    """Every archive of every collection is read back and found equal to its manifest, and nothing is changed."""
    before = stored.shop.objects()
    assert len(verify(stored.shop, stored.record)) == 4
    assert stored.problems() == stored.problems(stored.older) == {}
    assert stored.shop.objects() == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999], ids=["first", "middle", "end"])
def test_one_flipped_bit_is_found(stored: Stored, share: float) -> None:
    """A single bit anywhere in an archive is found, and only that archive is blamed."""
    data = bytearray(stored.read(SHARDS[1]))
    data[int(len(data) * share)] ^= 0b100
    stored.write(SHARDS[1], bytes(data))
    problems = stored.problems()
    assert problems.keys() == {SHARDS[1]}
    assert "sha256" in problems[SHARDS[1]]


def test_a_missing_object_is_found(stored: Stored) -> None:
    """A removed archive is named, and the others are verified all the same."""
    stored.write(SHARDS[2], None)
    assert stored.problems() == {SHARDS[2]: "the object is missing"}


def test_a_truncated_object_is_found(stored: Stored) -> None:
    """An archive that lost its end is named with the bytes it has and should have."""
    data = stored.read(SHARDS[0])
    stored.write(SHARDS[0], data[:-512])
    problems = stored.problems()
    assert problems.keys() == {SHARDS[0]}
    assert str(len(data)) in problems[SHARDS[0]]
    assert str(len(data) - 512) in problems[SHARDS[0]]


def test_two_swapped_objects_are_found(stored: Stored) -> None:
    """Two whole archives in each other's place are both named: each is intact and the wrong shard."""
    first, second = stored.read(SHARDS[0]), stored.read(SHARDS[1])
    stored.write(SHARDS[0], second)
    stored.write(SHARDS[1], first)
    assert stored.problems().keys() == {SHARDS[0], SHARDS[1]}


def with_more_points(data: bytes) -> bytes:
    """Valid JSON of the right form with one count changed, and the old hash."""
    document = json.loads(data)
    document["archives"][0]["shards"][0]["proof"]["points"] += 1
    return json.dumps(document).encode()


def with_more_points_and_a_new_hash(data: bytes) -> bytes:
    """The same by somebody who knows the format."""
    document = json.loads(with_more_points(data))
    document.pop("self_sha256")
    return CollectionManifest.model_validate(document).to_bytes()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (with_more_points, "does not match its own hash"),
        (with_more_points_and_a_new_hash, "is not the manifest that its run recorded"),
        (lambda data: data[:-2], "is not a document of Ferry's"),
        (lambda _data: b"{}", "is not a document of Ferry's"),
    ],
    ids=["edited", "edited-and-hashed", "cut", "emptied"],
)
def test_an_edited_manifest_is_found(stored: Stored, edit: Callable[[bytes], bytes], said: str) -> None:
    """A manifest that is not what the run wrote is refused by name, by verifying and by restoring."""
    stored.write(f"{DOCS}/manifest.json", edit(stored.read(f"{DOCS}/manifest.json")))
    for attempt in (stored.problems, lambda: restore(stored.shop, stored.record, DOCS)):
        with pytest.raises(ArchiveDamagedError, match=said) as caught:
            attempt()
        assert stored.key(f"{DOCS}/manifest.json") in caught.value.message


def test_a_manifest_of_another_backup_is_found(stored: Stored) -> None:
    """A genuine manifest copied over from another backup is refused, though its own hash is right."""
    stored.write(f"{DOCS}/manifest.json", stored.read(f"{DOCS}/manifest.json", stored.older))
    with pytest.raises(ArchiveDamagedError, match=f"document of source/{stored.older.backup_id}/{DOCS}: it was copied"):
        stored.problems()


def test_a_removed_manifest_is_found(stored: Stored) -> None:
    """A collection that the run recorded and that has no manifest any more is an error, not a smaller backup."""
    stored.write(f"{DOCS}/manifest.json", None)
    with pytest.raises(FerryError, match=stored.key(f"{DOCS}/manifest.json")):
        stored.problems()


def test_a_damaged_archive_never_reaches_service(stored: Stored) -> None:
    """A restore from an archive with one flipped bit fails, leaves no collection, and the alias where it was."""
    stored.target.make("old", few("old"))
    stored.target.alias("live", "old")
    data = bytearray(stored.read(SHARDS[1]))
    data[len(data) // 2] ^= 1
    stored.write(SHARDS[1], bytes(data))
    with pytest.raises(FerryError, match=r"shards/1\.2\.snapshot holds"):
        restore(stored.shop, stored.record, DOCS, alias="live")
    assert stored.target.aliases() == {"live": "old"}
    assert stored.target.collections() == {"old"}
    assert stored.shop.leftovers() == []


def test_a_proof_that_says_otherwise_is_found(stored: Stored) -> None:
    """Bytes that are right and a proof that is not: the count and the ranges of ids that differ are named."""
    repository = stored.shop.connect()
    manifest = manifest_of(repository, stored.record, DOCS)
    one, other = manifest.archives[0], manifest.archives[1]
    mixed = one.model_copy(update={"shards": (one.shards[0].model_copy(update={"proof": other.shards[0].proof}),)})
    (problem, *more) = verify_archive(repository, manifest, mixed).problems
    points = (one.shards[0].proof.points, other.shards[0].proof.points)
    if points[0] != points[1]:
        assert problem == f"shard 0: {points[0]} points, the proof says {points[1]}"
        (problem,) = more
    assert "content digest differs in" in problem


@pytest.mark.parametrize("level", ["bytes", "count", "content"])
def test_each_level_of_proof_says_what_it_knows(stored: Stored, level: str) -> None:
    """A proof holds what its level found, verifying repeats just that, and a restore promises no more than there is."""
    record = back_up(stored.shop, include=(OTHER,), proof=level)
    manifest = manifest_of(stored.shop.connect(), record, OTHER)
    proof = manifest.archives[0].shards[0].proof
    assert (proof.points, proof.content is not None) == {"bytes": (None, False), "count": (12, False)}.get(
        level, (12, True)
    )
    assert manifest.points == proof.points
    assert stored.problems(record) == {}
    into = str(new_id())
    if level == "content":
        assert restore(stored.shop, record, OTHER, into=into).verdicts[0].problems == ()
    else:
        with pytest.raises(PreflightError, match="without a content digest"):
            restore(stored.shop, record, OTHER, into=into)
        assert into not in stored.target.collections()
    sampled = restore(stored.shop, record, OTHER, into=into + "-sampled", verify="sample")
    warned = [finding for finding in sampled.plan.findings if "nothing to compare" in finding.message]
    assert (len(warned), sampled.verdicts[0].compared) == {"bytes": (1, 0)}.get(level, (0, 12))
    stored.target.call("DELETE", stored.target.of(into + "-sampled"))
