"""A backup answers as the live server does: filters of every kind, count, scroll, nearest; and it is fetched once."""

import json
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyrage
import pytest

from ferry.__main__ import main
from ferry.archive.points import Selection, read_points
from ferry.archive.reader import id_order, open_archive
from ferry.archive.search import Search
from ferry.archive.selected import batches
from ferry.repository.manifest import BackupRecord
from ferry.verify.cache import cached_shard
from ferry.verify.query import StoredCollection
from ferry.verify.stored_points import stored_shard
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.conditions import KINDS, POINTS, kinds, leaf, sample, tree, vectors_of
from tests.integration.crossings import SERVERS, Eavesdropper, back_up, manifest_of
from tests.integration.samples import Api, everything
from tests.workshop import Workshop

pytestmark = SERVERS

TREES = 120
LIGHT = "light"  # the same points without payload indexes, so with few files to open
# Qdrant 1.16 leaves points without the field out here; the engine, which is newer, counts no values in them.
FEW = {"must": [{"key": "tags", "values_count": {"lt": 1}}]}
IDENTITY = pyrage.x25519.Identity.generate()
ENCRYPTED = {"encryption": {"recipients": [str(IDENTITY.to_public())], "identity": str(IDENTITY)}}


@dataclass(frozen=True)
class Kept:
    """A collection of the source, and a backup of it."""

    shop: Workshop
    api: Api
    record: BackupRecord

    def ask(self, *arguments: str) -> int:
        """The command line's exit code."""
        return main(["query", self.record.backup_id, LIGHT, *arguments])


@pytest.fixture(scope="module")
def made(shared_s3: S3Server, three_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """Made and backed up once."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(tmp_path_factory.mktemp("query"), monkeypatch, shared_s3, {"source": three_nodes}) as shop,
        Api(three_nodes.urls[0]) as api,
    ):
        api.make("docs", sample())
        light = sample()
        body = light.body | {"optimizers_config": {"default_segment_number": 1}}
        api.make(LIGHT, replace(light, body=body, indexes={}))
        yield Kept(shop, api, back_up(shop))


@pytest.fixture
def kept(made: Kept, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Under the settings of this module, with nothing on the disk yet."""
    monkeypatch.setenv("FERRY_CONFIG", str(made.shop.config))
    shutil.rmtree(made.shop.folder / "spool" / "cache", ignore_errors=True)
    return made


@pytest.fixture
def asked(kept: Kept, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What the command line answers."""

    def ask(*arguments: str) -> dict[str, Any]:
        assert kept.ask(*arguments, "--json") == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return ask


def test_filters_find_what_they_find_on_the_server(kept: Kept) -> None:
    """Single conditions and trees of them; every kind is among them, and tells some points from others."""
    rng = random.Random("conditions")
    filters = [FEW, *({"must": [leaf(rng)]} for _ in range(TREES)), *(tree(rng) for _ in range(TREES))]
    live = [kept.api.pages("docs", limit=POINTS, filter=one, with_payload=False) for one in filters]
    expected = [{str(point["id"]) for point in points} for points in live]
    telling: dict[str, int] = defaultdict(int)
    for one, ids in zip(filters, expected, strict=True):
        for kind in set(kinds(one)) if 0 < len(ids) < POINTS else ():
            telling[kind] += 1
    assert {kind for kind in KINDS if telling[kind] < 2} == set()
    found: list[set[str]] = [set() for _ in filters]
    connections = kept.shop.connect()
    manifest = manifest_of(connections, kept.record, "docs")
    for shard in manifest.layout:
        with (
            stored_shard(connections, manifest, shard.shard_id) as path,
            open_archive(path, path.parent / "open") as archive,
        ):
            for one, ids in zip(filters, found, strict=True):
                chosen = Selection(filter=one, with_points=False)
                ids |= {str(point_id) for batch in batches(archive, chosen) for point_id in batch.ids}
    bare = {str(point["id"]) for point in sample().points if "tags" not in (point["payload"] or {})}
    assert bare
    expected[filters.index(FEW)] |= bare
    wrong = [one for one, ids, live_ids in zip(filters, found, expected, strict=True) if ids != live_ids]
    assert wrong == [], f"{len(wrong)} of {len(filters)} filters"


def test_nearest_is_what_is_nearest_on_the_server(kept: Kept) -> None:
    """The same points with the same scores, the best first, over all shards and among those of a filter."""
    connections = kept.shop.connect()
    few = {"must": [{"key": "rank", "range": {"lt": 90}}]}
    with StoredCollection(connections, manifest_of(connections, kept.record, LIGHT)) as stored:
        for using, vector in vectors_of(random.Random("nearest")).items():
            for chosen in (None, few):
                body = {"query": vector, "using": using, "limit": 15, "filter": chosen, "params": {"exact": True}}
                live = kept.api.call("POST", f"/collections/{LIGHT}/points/query", body)["points"]
                asked = Search(vector=vector, using=using, limit=15, exact=True, selection=Selection(filter=chosen))
                assert_same(stored.nearest(asked), live)
            without = stored.nearest(Search(vector=vector, using=using, limit=15, with_vectors=True))
            assert all(using in point["vector"] for point in without)


def assert_same(found: list[dict[str, Any]], live: list[dict[str, Any]]) -> None:
    """The same 15 points in the same order, with scores that differ by rounding alone."""
    assert [point["id"] for point in found] == [point["id"] for point in live]
    assert [point["score"] for point in found] == pytest.approx([point["score"] for point in live], rel=1e-5)
    assert len(found) == 15


def test_nearest_on_the_command_line(kept: Kept, asked: Callable[..., dict[str, Any]]) -> None:
    """By a vector, and by a point, which is not among its own neighbours."""
    like = next(point["id"] for point in sample().points if "b" in point["vector"])
    few = {"must": [{"key": "rank", "range": {"lt": 90}}]}
    for query, option in (([0.5, 1.5], "--vector"), (like, "--like")):
        body = {"query": query, "using": "b", "limit": 15, "filter": few, "params": {"exact": True}}
        live = kept.api.call("POST", f"/collections/{LIGHT}/points/query", body)["points"]
        words = [option, json.dumps(query).strip('"'), "--filter", json.dumps(few)]
        assert_same(asked("nearest", *words, "--using", "b", "--exact", "--limit", "15")["points"], live)


def test_count_and_scroll(kept: Kept, asked: Callable[..., dict[str, Any]]) -> None:
    """Counts are the server's; pages follow each other in the order of ids until every point was shown as it is."""
    assert asked("count")["count"] == POINTS
    red = {"must": [{"key": "tags[].name", "match": {"value": "red"}}]}
    live = kept.api.call("POST", f"/collections/{LIGHT}/points/count", {"filter": red, "exact": True})["count"]
    assert 0 < asked("count", "--filter", json.dumps(red))["count"] == live < POINTS
    shown: list[dict[str, Any]] = []
    start: list[str] = []
    while True:
        page = asked("scroll", "--limit", "60", "--vectors", *start)
        shown += page["points"]
        if page["next_offset"] is None:
            break
        assert len(page["points"]) == 60
        start = ["--offset", str(page["next_offset"])]
    assert [id_order(point["id"]) for point in shown] == sorted(id_order(point["id"]) for point in sample().points)
    live_payloads = {key: json.loads(text)[0] for key, text in everything(kept.shop.clusters["source"], LIGHT).items()}
    assert {str(point["id"]): written(point["payload"]) for point in shown} == {
        key: written(payload) for key, payload in live_payloads.items()
    }
    three = [str(point["id"]) for point in shown[:3]]
    found = asked("scroll", "--ids", ",".join([*three, "404"]))["points"]
    assert [str(point["id"]) for point in found] == three
    assert all("vector" not in point for point in found)


def written(payload: dict[str, Any] | None) -> str:
    """A payload as text, which tells 1 from 1.0."""
    return json.dumps(payload or {}, sort_keys=True)


def test_the_second_question_downloads_nothing(kept: Kept, asked: Callable[..., dict[str, Any]]) -> None:
    """Two processes at once fetch each archive once between them; whoever asks then fetches none."""

    def downloads() -> list[str]:
        return [line for line in wire.bucket.requests if line.startswith("GET") and ".snapshot" in line]

    with Eavesdropper(kept.shop) as wire:
        command = [sys.executable, "-m", "ferry", "query", kept.record.backup_id, LIGHT, "count"]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(POINTS)] * 2
        assert len(downloads()) == 2
        answer = asked("nearest", "--vector", "[1, 0, 0, 0]", "--using", "a")
        assert (len(answer["points"]), answer["fetched_bytes"]) == (10, 0)
        assert len(downloads()) == 2
    kept.shop.configure(worker={"cache_bytes": 0})
    assert asked("count")["count"] == POINTS
    assert list((kept.shop.folder / "spool" / "cache").iterdir()) == []
    kept.shop.configure()


def test_what_is_encrypted_does_not_stay_on_the_disk(kept: Kept) -> None:
    """It is decrypted to be read, and goes as soon as it has been; so it is fetched each time."""
    kept.shop.configure(repository=ENCRYPTED)
    connections = kept.shop.connect()
    manifest = manifest_of(connections, back_up(kept.shop, include=(LIGHT,)), LIGHT)
    for _ in range(2):
        with cached_shard(connections, manifest, manifest.layout[0].shard_id) as shard:
            assert shard.fetched_bytes > 0
            found = read_points(shard.folder, kept.shop.folder / "work", Selection(with_points=False))
            assert sum(len(batch.ids) for batch in found) > 0
        assert list((kept.shop.folder / "spool" / "cache").iterdir()) == []
    kept.shop.configure()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["count", "--filter", '{"must":[{"key":"a","match":{"valeu":1}}]}'], "filter.must[0].match: unknown 'valeu'"),
        (["count", "--filter", "{must}"], "--filter is no JSON"),
        (["count", "--ids", "1,x"], "'x' is no point id"),
        (["nearest", "--using", "a"], "--vector JSON or --like ID"),
        (["nearest", "--using", "c", "--vector", "[1]"], "has no vector 'c', but: 'a' (dense, 4 × float32, Dot)"),
        (["nearest", "--using", "a", "--vector", "[1]"], "4 numbers are needed"),
        (["nearest", "--using", "many", "--vector", "[[1, 2]]"], "rows of 3 numbers are needed"),
        (["nearest", "--using", "words", "--vector", "[1]"], "indices and values are needed"),
        (["nearest", "--using", "a", "--like", "404"], "holds no point 404"),
    ],
)
def test_a_wrong_question_is_refused(
    kept: Kept, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """And the answer says what is wrong."""
    assert kept.ask(*arguments) == 1
    assert said in capsys.readouterr().err
