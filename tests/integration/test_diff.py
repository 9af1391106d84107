"""A diff on real servers names exactly the points that were changed, and does not fetch what is equal."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyrage
import pytest

from ferry.__main__ import main
from ferry.errors import BackupNotFoundError, ConfigurationError
from ferry.models import Progress, no_progress
from ferry.repository.manifest import BackupRecord
from ferry.verify import sides
from ferry.verify.diff import Comparison, diff
from sandbox.prefect_server import PrefectServer
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import SERVERS, Eavesdropper, back_up, manifest_of
from tests.integration.samples import Api
from tests.unit.routing import shard_of
from tests.workshop import Workshop

pytestmark = SERVERS

POINTS = 50_000
# The same 37 points are changed in all; the small ones have fewer that are not.
DOCS, SMALL, TWO = "docs", "small", "small-of-two-shards"
SMALL_POINTS = 2000
TOUCHED = (0, 1)  # shard 2 stays equal
PER_REQUEST = 5000
IDENTITY = pyrage.x25519.Identity.generate()
ENCRYPTED = {"encryption": {"recipients": [str(IDENTITY.to_public())], "identity": str(IDENTITY)}}
Expected = dict[int, tuple[str, tuple[str, ...]]]  # kind and fields by id


@dataclass(frozen=True)
class Changed:
    """A collection backed up before and after 37 points were changed; the second backup's archives are encrypted."""

    shop: Workshop
    source: Api
    before: BackupRecord
    after: BackupRecord
    expected: Expected

    def diff(self, first: str, second: str, out: Path | None = None, progress: Progress = no_progress) -> Comparison:
        """The diff as the CLI and the flow make it."""
        return diff("main", (first, second), "a test", out, progress)

    def stored(self, record: BackupRecord, collection: str = DOCS) -> str:
        """The name of a side in a backup."""
        return f"source/{record.backup_id}/{collection}"

    def archive_bytes(self, record: BackupRecord, shards: tuple[int, ...], collection: str = DOCS) -> int:
        """Bytes of these shards' objects."""
        archives = manifest_of(self.shop.connect(), record, collection).archives
        return sum(archive.held[0] for archive in archives if archive.shards[0].shard_id in shards)


def point_of(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    vectors = {"image": [rng.random() for _ in range(4)], "text": [rng.random(), 1.0]}
    return {"id": number, "vector": vectors, "payload": {"n": number, "kind": "usual"}}


def put(api: Api, collection: str, points: list[dict[str, Any]]) -> None:
    for start in range(0, len(points), PER_REQUEST):
        body = {"points": points[start : start + PER_REQUEST]}
        api.call("PUT", f"{api.of(collection)}/points?wait=true", body)


def make(api: Api, collection: str, shards: int, numbers: range) -> None:
    params = {name: {"size": size, "distance": "Dot"} for name, size in (("image", 4), ("text", 2))}
    body = {"vectors": params, "shard_number": shards, "optimizers_config": {"indexing_threshold": 0}}
    api.call("PUT", api.of(collection), body)
    put(api, collection, [point_of(number) for number in numbers])


def change(api: Api, collections: tuple[str, ...]) -> Expected:
    """Change 37 points in the touched shards: payload, vectors, both, added, removed."""
    usable = [n for n in range(SMALL_POINTS) if shard_of(n, (0, 1, 2)) in TOUCHED]
    rng = random.Random(37)
    new = [n for n in range(POINTS, POINTS + 100) if shard_of(n, (0, 1, 2)) in TOUCHED][:7]
    chosen = rng.sample(usable, 30)
    payload, vector, both, removed = chosen[:12], chosen[12:19], chosen[19:22], chosen[22:]
    written = [point_of(number) for number in (*payload, *vector, *both, *new)]
    for point in written:
        if point["id"] in (*payload, *both):
            point["payload"] = {"n": point["id"], "kind": "changed"}
        if point["id"] in (*vector, *both):
            point["vector"]["image"][2] += 0.5
    for collection in collections:
        put(api, collection, written)
        api.call("POST", f"{api.of(collection)}/points/delete?wait=true", {"points": removed})
    expected: Expected = dict.fromkeys(payload, ("changed", ("payload.kind",)))
    expected |= dict.fromkeys(vector, ("changed", ("vector.image",)))
    expected |= dict.fromkeys(both, ("changed", ("payload.kind", "vector.image")))
    return expected | dict.fromkeys(new, ("added", ())) | dict.fromkeys(removed, ("removed", ()))


@pytest.fixture(scope="module")
def made(
    shared_s3: S3Server, three_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Changed]:
    """Two backups, 37 points of each collection apart."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(tmp_path_factory.mktemp("diff"), monkeypatch, shared_s3, {"source": three_nodes}) as shop,
        Api(three_nodes.urls[0]) as source,
    ):
        make(source, DOCS, 3, range(POINTS))
        make(source, SMALL, 3, range(SMALL_POINTS))
        make(source, TWO, 2, range(SMALL_POINTS))
        source.alias("docs-live", DOCS)
        before = back_up(shop, include=(DOCS, SMALL))
        expected = change(source, (DOCS, SMALL, TWO))
        shop.configure(repository=ENCRYPTED)
        yield Changed(shop, source, before, back_up(shop, include=(DOCS, SMALL)), expected)


@pytest.fixture
def changed(made: Changed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Changed]:
    """The two backups; nothing of a diff stays behind."""
    monkeypatch.setenv("FERRY_CONFIG", str(made.shop.config))
    objects = made.shop.objects()
    yield made
    assert made.shop.objects() == objects
    assert made.shop.leftovers() == []


@contextmanager
def overheard(shop: Workshop) -> Iterator[Eavesdropper]:
    """Note every request to the bucket and the nodes."""
    with Eavesdropper(shop, "source") as wire:
        nodes = {"source": {"nodes": [proxy.url for proxy in wire.nodes]}}
        shop.configure(clusters=nodes, repository={"endpoint_url": wire.bucket.url} | ENCRYPTED)
        yield wire
    shop.configure(repository=ENCRYPTED)


def told(path: Path) -> Expected:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: (line["what"], tuple(line["fields"])) for line in lines}


def opposite(expected: Expected) -> Expected:
    turned = {"added": "removed", "removed": "added", "changed": "changed"}
    return {point: (turned[what], fields) for point, (what, fields) in expected.items()}


def fetched(proxy_requests: list[str]) -> list[str]:
    """Archives that were asked of the bucket, as backup and shard, one entry a request."""
    paths = [line.split(" ")[1].partition("?")[0] for line in proxy_requests if line.startswith("GET")]
    return [path.split("/backups/source/")[1] for path in paths if ".snapshot" in path]


def test_two_backups_differ_in_exactly_the_changed_points(changed: Changed, tmp_path: Path) -> None:
    """37 of 50,000 by name, kind and field; each archive of a touched shard is fetched once, the others never."""
    with overheard(changed.shop) as wire:
        found = changed.diff(changed.stored(changed.before), changed.stored(changed.after), tmp_path / "list.jsonl")
        archives = fetched(wire.bucket.requests)
        marks = [line.split("/readers/source/")[1][:23] for line in wire.bucket.requests if line.startswith("PUT ")]
        moved = wire.bucket.bytes_moved["to_client"]
    assert told(tmp_path / "list.jsonl") == changed.expected
    assert len(changed.expected) == 37
    assert (found.added, found.removed, found.changed, found.changed_payload, found.changed_vector) == (
        7,
        8,
        22,
        15,
        10,
    )
    assert len(archives) == len(set(archives)) == 4
    assert marks == [changed.before.backup_id, changed.after.backup_id]  # no prune takes them away meanwhile
    assert {path.split("/shards/")[1].split(".")[0] for path in archives} == {str(shard) for shard in TOUCHED}
    for side, record in ((found.a, changed.before), (found.b, changed.after)):
        assert side.bytes_read == changed.archive_bytes(record, TOUCHED)
        assert (side.shards, side.shards_read) == (3, 2)
        assert 37 / 2 < side.points_read < side.points / 6  # at most 37 of 512 ranges of two thirds of the points
    stated = found.a.bytes_read + found.b.bytes_read
    assert stated < moved < 1.05 * stated + 100_000  # beside them manifests and headers
    assert found.schema_differences == ()


def test_a_backup_and_the_live_collection(changed: Changed, tmp_path: Path) -> None:
    """The same 37, through an alias; every live point is read once, and then only those that changed."""
    with overheard(changed.shop) as wire:
        found = changed.diff(changed.stored(changed.before), "live:source/docs-live", tmp_path / "list.jsonl")
        archives, asked = fetched(wire.bucket.requests), wire.of_nodes()
        moved = sum(node.bytes_moved["to_client"] for node in wire.nodes)
    assert told(tmp_path / "list.jsonl") == changed.expected
    assert len(archives) == 2
    assert not [line for line in asked if not line.startswith("GET") and "/points" not in line]
    pages = [line for line in asked if "/points/scroll" in line]
    assert all("/shards/" in line for line in pages)
    assert len([line for line in asked if line.startswith("POST") and line.split(" ")[1].endswith("/points")]) == 2
    assert (found.b.points, found.b.points_read, found.b.shards_read) == (POINTS - 1, POINTS - 1, 3)
    assert 0.9 * moved < found.b.bytes_read < moved
    messages = [(finding.severity, finding.message) for finding in found.findings]
    assert messages == [("info", "docs-live is an alias there; it points at docs.")]


def test_equal_sides_are_said_to_be_equal(changed: Changed) -> None:
    """A backup and what it was made of: no archive is fetched. A backup and itself: nothing is read at all."""
    with overheard(changed.shop) as wire:
        live = changed.diff(changed.stored(changed.after, SMALL), f"live:source/{SMALL}")
        same = changed.diff(changed.stored(changed.after), "source/latest/docs-live")
        assert fetched(wire.bucket.requests) == []
    assert (live.points, live.a.bytes_read, live.a.points_read, live.a.points) == (0, 0, 0, SMALL_POINTS - 1)
    assert (same.points, same.a.bytes_read, same.b.points_read, same.b.points) == (0, 0, 0, POINTS - 1)
    assert live.schema_differences == same.schema_differences == ()


def test_other_numbers_of_shards_are_compared(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards and two: the same 37 points turned around, and the schema's difference; live against live equal.

    Where more points changed than may be asked for by id, their sub-ranges are read: no other point is told for it.
    """
    monkeypatch.setattr(sides, "MOST_IDS", 1)
    found = changed.diff(f"live:source/{TWO}", changed.stored(changed.before, SMALL), tmp_path / "list.jsonl")
    assert told(tmp_path / "list.jsonl") == opposite(changed.expected)
    assert found.schema_differences == ("params.shard_number: 2 in the first, 3 in the second",)
    assert (found.a.shards_read, found.b.shards_read) == (2, 3)
    assert changed.diff(f"live:source/{TWO}", f"live:source/{SMALL}").points == 0


def test_a_proof_without_digests_is_read_whole(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup whose proof only counted is read as a whole, and the finding says why and what to do.

    Where the spool has no room to keep archives, those with changed points are fetched twice, and that is told.
    """
    monkeypatch.setattr(sides, "SPOOL_FACTOR", 1e12)
    record = back_up(changed.shop, include=(SMALL,), proof="count", kind="node")
    try:
        found = changed.diff(changed.stored(changed.before, SMALL), changed.stored(record, SMALL))
    finally:
        drop(changed.shop, record)
    assert (found.points, found.a.shards_read) == (37, 2)
    assert found.a.bytes_read == 2 * changed.archive_bytes(changed.before, TOUCHED, SMALL)
    assert (found.b.points_read, found.b.shards_read) == (SMALL_POINTS - 1, 3)
    [finding] = found.findings
    assert "Shards 0, 1, 2 were proven without a digest" in finding.message


def drop(shop: Workshop, record: BackupRecord) -> None:
    for key in shop.objects(f"backups/source/{record.backup_id}/"):
        shop.bucket.delete_object(Bucket="ferry", Key=f"{shop.folder.name}/{key}")


def test_writes_meanwhile_are_a_finding(changed: Changed) -> None:
    """A point added and one changed after the live side was read, before the second look: both are said."""
    victim = next(point for point, (what, _) in changed.expected.items() if what == "changed")
    added, done = POINTS + 5000, 0
    points = f"{changed.source.of(SMALL)}/points"
    [kept] = changed.source.call("POST", points, {"ids": [victim], "with_vector": True, "with_payload": True})

    def write(more: int) -> None:
        nonlocal done
        if done < SMALL_POINTS <= done + more:  # the archives are being read by now
            put(changed.source, SMALL, [{**kept, "payload": {"n": "meanwhile"}}, point_of(added)])
        done += more

    try:
        found = changed.diff(f"live:source/{SMALL}", changed.stored(changed.before, SMALL), progress=write)
    finally:
        put(changed.source, SMALL, [kept])
        changed.source.call("POST", f"{points}/delete?wait=true", {"points": [added]})
    [finding] = found.findings
    assert "1 of the points that differ were written again or deleted" in finding.message
    assert f"shard {shard_of(added, (0, 1, 2))} had" in finding.message
    assert found.points == 37


def test_the_command_line_names_them(
    changed: Changed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report as an operator sees it, the file beside it, and errors that name what there is."""
    monkeypatch.setenv("COLUMNS", "140")
    out = tmp_path / "list.jsonl"
    names = (changed.stored(changed.before, SMALL), f"live:source/{SMALL}")
    assert main(["diff", *names, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "37 points differ" in text
    named = {point for point, (what, _) in changed.expected.items() if what != "changed" or str(point) in text}
    assert len(named) == 7 + 8 + 20
    assert told(out) == changed.expected
    assert main(["diff", *names, "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    for wrong, kind in (("live:source/none", ConfigurationError), ("source/latest/none", BackupNotFoundError)):
        with pytest.raises(kind, match="none"):
            changed.diff(wrong, names[1])


def test_the_flow_shows_them(changed: Changed, prefect_server: PrefectServer) -> None:
    """The flow returns how many points differ, and its artifacts name them."""
    from prefect.client.orchestration import get_client

    from flows.compare_backups import compare_backups

    sides = {"first": changed.stored(changed.before, SMALL), "second": f"live:source/{SMALL}"}
    assert compare_backups(repository="main", **sides) == 37
    with get_client(sync_client=True) as client:
        shown = {str(each.key).partition("-")[0]: each.data for each in client.read_artifacts() if each.data}
    assert "37 points differ" in shown["compared"]
    assert '"fields": "payload.kind, vector.image"' in shown["differences"]
