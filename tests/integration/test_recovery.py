"""Points out of a backup put back into a live collection on real servers: only what is missing, all, or elsewhere."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ferry.__main__ import main
from ferry.archive.digest import digest_of
from ferry.archive.points import Selection, read_points
from ferry.errors import FerryError, PreflightError, VerificationError
from ferry.qdrant.writer import write_points
from ferry.recovery import report, steps
from ferry.recovery.plan import RecoveryRequest
from ferry.recovery.run import Recovered, run_recovery
from ferry.report import size
from ferry.repository.manifest import BackupRecord
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import HOLDER, SERVERS, Eavesdropper, back_up, manifest_of, new_id, quick_job
from tests.integration.samples import Api
from tests.unit.shard_archives import build_archive, points
from tests.workshop import Workshop

pytestmark = SERVERS

POINTS, PER_REQUEST = 50_000, 5000
DOCS, ALIAS = "docs", "docs-live"
CHOSEN = {"must": [{"key": "n", "range": {"lt": 2000}}]}
DELETED = random.Random("deleted").sample(range(2000), 500)
CHANGED = [number for number in range(2000) if number not in DELETED][:5]
VECTORS: dict[str, Any] = {
    "image": {"size": 4, "distance": "Dot"},
    "half": {"size": 8, "distance": "Cosine", "datatype": "float16"},
}
BODY: dict[str, Any] = {
    "vectors": VECTORS,
    "sparse_vectors": {"words": {}},
    "shard_number": 3,
    "replication_factor": 2,
    "optimizers_config": {"default_segment_number": 1},
}


def point_of(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    vectors = {
        "image": [rng.random() for _ in range(4)],
        "half": [rng.gauss() for _ in range(8)],
        "words": {"indices": rng.sample(range(2**32), 3), "values": [rng.random() for _ in range(3)]},
    }
    return {"id": number, "vector": vectors, "payload": {"n": number, "ü": {"score": rng.random(), "of": [None, 1.0]}}}


@dataclass(frozen=True)
class Damaged:
    """A collection of which points were deleted and changed after its backup, and how these points were."""

    shop: Workshop
    api: Api
    record: BackupRecord
    before: dict[int, str]

    def now(self) -> dict[int, str]:
        """The same points as they are now."""
        return read(self.api, list(self.before))

    def recover(self, into: str | None = None, **asked: Any) -> Recovered:
        """Recover into the source itself, unless something else is said."""
        request = request_of(self.record, DOCS, into=into, **({"filter": CHOSEN} | asked))
        return run_recovery(self.shop.connect(request.cluster), request, HOLDER, quick_job())


def request_of(record: BackupRecord, collection: str, **asked: Any) -> RecoveryRequest:
    usual = {"cluster": "source", "repository": "main", "source_cluster": "source", "backup": record.backup_id}
    return RecoveryRequest(**{"recovery_id": new_id(), "collection": collection, **usual, **asked})


def read(api: Api, ids: list[int], collection: str = DOCS) -> dict[int, str]:
    """Points as text, which tells 1 from 1.0."""
    body = {"ids": ids, "with_payload": True, "with_vector": True}
    found = api.call("POST", f"{api.of(collection)}/points", body)
    return {point["id"]: json.dumps([point["payload"], point["vector"]], sort_keys=True) for point in found}


@pytest.fixture(scope="module")
def made(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Damaged]:
    """50,000 points in three shards of two replicas, and a backup of them."""
    clusters = {"source": three_nodes, "target": two_nodes}
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(tmp_path_factory.mktemp("recovery"), monkeypatch, shared_s3, clusters) as shop,
        Api(three_nodes.urls[0]) as api,
    ):
        api.call("PUT", api.of(DOCS), BODY)
        for start in range(0, POINTS, PER_REQUEST):
            body = {"points": [point_of(number) for number in range(start, start + PER_REQUEST)]}
            api.call("PUT", f"{api.of(DOCS)}/points?wait=true", body)
        api.alias(ALIAS, DOCS)
        yield Damaged(shop, api, back_up(shop), read(api, DELETED + CHANGED))


@pytest.fixture
def damaged(made: Damaged, monkeypatch: pytest.MonkeyPatch) -> Iterator[Damaged]:
    """500 points deleted and 5 changed; afterwards nothing of a recovery stays behind."""
    monkeypatch.setenv("FERRY_CONFIG", str(made.shop.config))
    made.api.call("POST", f"{made.api.of(DOCS)}/points/delete?wait=true", {"points": DELETED})
    changed = [point_of(number) | {"payload": {"n": number, "by": "somebody"}} for number in CHANGED]
    made.api.call("PUT", f"{made.api.of(DOCS)}/points?wait=true", {"points": changed})
    assert made.api.count(DOCS) == POINTS - 500
    yield made
    assert made.shop.leftovers() == []


def test_500_deleted_points_come_back_as_they_were(damaged: Damaged) -> None:
    """Payload and vectors to the bit, on every replica; what others have written since stays; bytes read are told."""
    now = damaged.now()
    recovered = damaged.recover()
    sums = [sum(getattr(shard, kind) for shard in recovered.shards) for kind in ("selected", "missing", "differing")]
    assert sums == [2000, 500, 5]
    assert sum(shard.written for shard in recovered.shards) == 500
    assert damaged.api.count(DOCS) == POINTS
    assert damaged.now() == damaged.before | {number: now[number] for number in CHANGED}
    replicas = everything_of(damaged.shop.clusters["source"], DELETED)
    assert set(replicas) == set(DELETED)
    archives = manifest_of(damaged.shop.connect(), damaged.record, DOCS).archives
    fetched, live_bytes = (
        sum(getattr(shard, kind) for shard in recovered.shards) for kind in ("fetched_bytes", "live_bytes")
    )
    assert fetched == sum(archive.bytes for archive in archives)
    text = report.recovered_text(recovered)
    assert f"Read: {size(fetched)} from the bucket" in text
    assert f"{size(live_bytes)} from the nodes" in text
    assert 1500 * 300 < live_bytes < 2500 * 2000  # of the points that are there, and of those written, twice
    again = damaged.recover()
    assert [
        sum(getattr(shard, kind) for shard in again.shards) for kind in ("missing", "written", "fetched_bytes")
    ] == [0] * 3


def everything_of(cluster: QdrantCluster, ids: list[int]) -> dict[int, str]:
    """These points by their ids, as both replicas have them on their own nodes."""
    found: dict[int, list[str]] = {}
    for url in cluster.urls:
        with Api(url) as api:
            for shard in api.call("GET", api.of(DOCS) + "/cluster")["local_shards"]:
                path = f"{api.of(DOCS)}/shards/{shard['shard_id']}/points"
                for point in api.call("POST", path, {"ids": ids, "with_payload": True, "with_vector": True}):
                    text = json.dumps([point["payload"], point["vector"]], sort_keys=True)
                    found.setdefault(point["id"], []).append(text)
    assert all(len(texts) == 2 and texts[0] == texts[1] for texts in found.values())
    return {point_id: texts[0] for point_id, texts in found.items()}


def test_a_dry_run_tells_what_differs_and_changes_nothing(damaged: Damaged, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts and the first ids, through an alias; not one request that could change anything."""
    now = damaged.now()
    chosen = ["--filter", json.dumps(CHOSEN), "--backup", damaged.record.backup_id]
    with Eavesdropper(damaged.shop, "source") as heard:
        clusters = ["--cluster", "source", "--source-cluster", "source"]
        assert main(["recover", DOCS, "--into", ALIAS, *clusters, *chosen, "--dry-run"]) == 0
        assert heard.changes() == []
        assert heard.of_nodes()
    damaged.shop.configure()
    said = " ".join(capsys.readouterr().out.split())
    assert f"into {DOCS}, which the alias {ALIAS} points at, on source" in said
    assert (
        f"2000 points of backup {damaged.record.backup_id} were selected: 500 are missing in {DOCS}, 5 differ" in said
    )
    assert f"Differ: {', '.join(str(number) for number in sorted(CHANGED))}"[:12] in said
    assert damaged.now() == now


def test_overwrite_replaces_what_differs(damaged: Damaged) -> None:
    """Through the alias, by ids; one that the backup lacks is named, and shards that hold none of them are not read."""
    ids = tuple(CHANGED[:2])
    recovered = damaged.recover(into=ALIAS, filter=None, ids=(*ids, POINTS + 1), mode="overwrite")
    assert recovered.plan.target == DOCS
    assert recovered.not_found == (POINTS + 1,)
    assert sum(shard.written for shard in recovered.shards) == 2
    now = damaged.now()
    assert {number: now[number] for number in ids} == {number: damaged.before[number] for number in ids}
    assert now[CHANGED[2]] != damaged.before[CHANGED[2]]
    one = damaged.recover(filter=None, ids=(DELETED[0],), mode="overwrite")
    holding = [shard for shard in one.shards if shard.selected]
    assert one.shards[-1] == holding[0]


def test_into_a_new_collection_elsewhere(damaged: Damaged) -> None:
    """With the backup's schema on a cluster of two nodes; a second one under its name is refused."""
    recovered = damaged.recover(into="picked", cluster="target", mode="new collection")
    assert sum(shard.written for shard in recovered.shards) == 2000
    with Api(damaged.shop.clusters["target"].urls[0]) as target:
        assert target.count("picked") == 2000
        assert read(target, list(damaged.before), "picked") == damaged.before
        assert target.settings("picked") == damaged.api.settings(DOCS)
    with pytest.raises(PreflightError, match="picked is already a collection"):
        damaged.recover(into="picked", cluster="target", mode="new collection")


def test_a_failed_recovery_drops_only_its_new_collection(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a new collection nothing stays."""
    monkeypatch.setattr(steps, "write_points", _failing)
    with pytest.raises(VerificationError, match="no room"):
        damaged.recover(into="half", cluster="target", mode="new collection")
    with Api(damaged.shop.clusters["target"].urls[0]) as target:
        assert "half" not in target.collections()


def _failing(*_: Any, **__: Any) -> int:
    raise VerificationError("no room")


def test_a_point_that_somebody_writes_meanwhile_is_not_overwritten(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the comparison and the write: it stays theirs, and the recovery says which one it is."""
    number = DELETED[0]
    theirs = point_of(number) | {"payload": {"n": number, "by": "somebody"}}

    def late(*arguments: Any, **named: Any) -> int:
        damaged.api.call("PUT", f"{damaged.api.of(DOCS)}/points?wait=true", {"points": [theirs]})
        return write_points(*arguments, **named)

    monkeypatch.setattr(steps, "write_points", late)
    monkeypatch.setattr(steps, "SETTLE_SECONDS", 0.5)
    with pytest.raises(VerificationError, match=f"point {number} differs in shard"):
        damaged.recover(filter=None, ids=(number, DELETED[1]))
    payload, _ = json.loads(damaged.now()[number])
    assert payload == theirs["payload"]


def test_what_was_not_stored_is_found(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that says it is done and has lost a point does not pass."""

    def losing(cluster: Any, collection: str, batches: Any, **named: Any) -> int:
        kept = [steps._only(batch, set(batch.ids[1:])) for batch in batches]
        return write_points(cluster, collection, [batch for batch in kept if batch.ids], **named)

    monkeypatch.setattr(steps, "write_points", losing)
    monkeypatch.setattr(steps, "SETTLE_SECONDS", 0.5)
    with pytest.raises(VerificationError, match=r"point \d+ is missing"):
        damaged.recover()


def other(**vectors: Any) -> dict[str, Any]:
    """The same collection but for a vector."""
    return {"vectors": VECTORS | vectors}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "size": (other(image={"size": 5, "distance": "Dot"}), "4 × float32, Dot in the backup and dense, 5 × float32, Dot"),
    "distance": (other(image={"size": 4, "distance": "Cosine"}), "in the backup and dense, 4 × float32, Cosine there"),
    "datatype": (other(half={"size": 8, "distance": "Cosine"}), "vector 'half' is dense, 8 × float16, Cosine in the"),
    "unnamed": ({"vectors": {"size": 4, "distance": "Dot"}}, "vector 'image' (dense, 4 × float32, Dot) is not there"),
    "sparse": ({"sparse_vectors": {}}, "vector 'words' (sparse) is not there"),
    "keys": ({"sharding_method": "custom"}, "by their ids, and it by shard keys"),
}


def test_what_does_not_fit_is_refused_before_anything_is_touched(damaged: Damaged) -> None:
    """Vectors of other names, sizes, distances or datatypes, other sharding, no such collection."""
    with Api(damaged.shop.clusters["target"].urls[0]) as target:
        for name, (body, _) in REFUSED.items():
            target.call("PUT", target.of(f"other-{name}"), BODY | body)
    with Eavesdropper(damaged.shop, "target") as heard:
        for name, (_, said) in [*REFUSED.items(), ("nothing", ({}, "no collection and no alias other-nothing"))]:
            with pytest.raises(PreflightError) as refused:
                damaged.recover(into=f"other-{name}", cluster="target")
            assert said in str(refused.value)
        assert [
            line
            for proxy in heard.nodes
            for line in proxy.requests
            if " /collections" in line and line[:3] in ("PUT", "DEL", "PAT")
        ] == []
    damaged.shop.configure()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"filter": None}, "Neither a filter nor ids"),
        ({"filter": {"must": [{"key": "n", "rang": {}}]}}, "unknown 'rang'"),
        ({"filter": None, "ids": (-1,)}, "-1 is no point id"),
    ],
)
def test_a_wrong_selection_is_refused_before_anything_is_asked(
    made: Damaged, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], said: str
) -> None:
    """Not one request is sent."""
    monkeypatch.setenv("FERRY_CONFIG", str(made.shop.config))
    with Eavesdropper(made.shop, "source") as heard:
        with pytest.raises(FerryError, match=said):
            made.recover(**asked)
        assert (heard.of_nodes(), heard.bucket.requests) == ([], [])
    made.shop.configure()


def test_points_go_back_to_their_shard_keys(damaged: Damaged) -> None:
    """The same id under two keys comes back as each key had it; a key that is gone is a refusal."""
    api, path = damaged.api, damaged.api.of("keyed")
    api.call("PUT", path, {"vectors": {"size": 2, "distance": "Dot"}, "sharding_method": "custom", "shard_number": 1})
    for key in ("berlin", 7):
        api.call("PUT", f"{path}/shards", {"shard_key": key})
        rows = [{"id": number, "vector": [number, 1.5], "payload": {"of": key}} for number in range(20)]
        api.call("PUT", f"{path}/points?wait=true", {"points": rows, "shard_key": key})
    record = back_up(damaged.shop, include=("keyed",))
    before = _by_key(api)
    api.call("POST", f"{path}/points/delete?wait=true", {"points": [3, 4], "shard_key": ["berlin", 7]})
    request = request_of(record, "keyed", ids=(3, 4))
    recovered = run_recovery(damaged.shop.connect(), request, HOLDER, quick_job())
    assert [shard.written for shard in recovered.shards] == [2, 2]
    assert _by_key(api) == before
    api.call("POST", f"{path}/shards/delete", {"shard_key": 7})
    with pytest.raises(PreflightError, match="no shard key 7 any more"):
        run_recovery(damaged.shop.connect(), request, HOLDER, quick_job())


def _by_key(api: Api) -> dict[tuple[Any, int], str]:
    found = {}
    for key in ("berlin", 7):
        for point in api.pages("keyed", shard_key=key, with_vector=True):
            found[key, point["id"]] = json.dumps([point["payload"], point["vector"]], sort_keys=True)
    return found


def test_what_is_sent_is_shown_to_the_bit(damaged: Damaged, tmp_path: Path) -> None:
    """Doubles that Qdrant does not read as they are written: as the archive shows them, or as it was told before."""
    rng = random.Random("doubles")
    content = [
        point | {"payload": {"x": [rng.random(), rng.gauss() * 1e6, rng.random() * 1e-9, rng.random() * 1e-20]}}
        for point in points(1500)
    ]
    [batch] = read_points(build_archive(tmp_path, content), tmp_path / "work", Selection(hashes=True))
    assert 0 < len(batch.carried) < 10
    api, path = damaged.api, damaged.api.of("doubles")
    vectors = {"image": {"size": 4, "distance": "Dot"}, "text": {"size": 2, "distance": "Euclid"}}
    api.call("PUT", path, {"vectors": vectors, "shard_number": 1, "replication_factor": 3})
    api.call("PUT", f"{path}/points?wait=true", None, content=b'{"points":' + batch.body + b"}")
    shown = {point["id"]: point for point in api.pages("doubles", with_vector=True)}
    expected = [batch.carried.get(point_id, value) for point_id, value in zip(batch.ids, batch.hashes, strict=True)]
    assert [digest_of([shown[point_id]]).digest for point_id in batch.ids] == expected
