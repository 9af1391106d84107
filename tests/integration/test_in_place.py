"""Restores over a live collection: every replica, nothing but its points, and no way without its name."""

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ferry.errors import LayoutError, PreflightError
from ferry.restore.in_place import InPlaceRequest
from ferry.restore.overwrite import Overwritten, require_present, run_in_place
from ferry.restore.present import prepare_in_place
from tests.integration.crossings import HOLDER, SERVERS, Eavesdropper, back_up, changes_something, new_id, quick_job
from tests.integration.samples import Api, Sample, everything
from tests.workshop import Workshop

pytestmark = SERVERS
DOCS = "docs [1]"  # what patterns know, and a space


@pytest.fixture
def api(workshop: Workshop) -> Iterator[Api]:
    """The source's first node."""
    with Api(workshop.clusters["source"].urls[0]) as api:
        yield api


def request(backup: str, collection: str = DOCS, **asked: Any) -> InPlaceRequest:
    usual = {
        "restore_id": new_id(),
        "cluster": "source",
        "repository": "main",
        "source_cluster": "source",
        "backup": backup,
        "collection": collection,
        "confirm": collection,
    }
    return InPlaceRequest(**{**usual, **asked})


def overwrite(shop: Workshop, backup: str, collection: str = DOCS, **asked: Any) -> Overwritten:
    return run_in_place(shop.connect(), request(backup, collection, **asked), HOLDER, quick_job())


def points(numbers: range, tag: str = "old") -> list[dict[str, Any]]:
    return [{"id": n, "vector": [n / 7, 1.0, 0.5, -1.0], "payload": {"n": n, "tag": tag}} for n in numbers]


def unreadable_archive() -> bytes:
    """A shard's archive that Qdrant unpacks and then cannot load, as one of a newer version; the old shard is gone."""
    packed = io.BytesIO()
    segment = "segments/0b5e2b0e-6c1f-4f6a-9d0e-3a1f7c1f0001/files/"
    state = {"is_local": True, "this_peer_id": 1, "peers": {"1": "Active"}}
    files = {
        f"{segment}segment.json": b"{}",
        f"{segment}version.info": b"0.6.0",
        "shard_config.json": b'{"type": "ReplicaSet"}',
        "replica_state.json": json.dumps(state).encode(),
    }
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        wal = tarfile.TarInfo("wal")
        wal.type = tarfile.DIRTYPE
        archive.addfile(wal)
    return packed.getvalue()


def test_every_replica_is_overwritten_and_nothing_else(workshop: Workshop, api: Api) -> None:
    """Points are as they were, settings and aliases as they are; what was there before can be had again."""
    body = {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 3, "replication_factor": 2}
    api.make(DOCS, Sample(body, points(range(240)), {"n": "integer"}))
    api.alias("in use", DOCS)
    source = workshop.clusters["source"]
    old, saved = everything(source, DOCS), back_up(workshop).backup_id
    api.call("POST", f"{api.of(DOCS)}/points/delete?wait=true", {"points": list(range(50))})
    api.call("PUT", f"{api.of(DOCS)}/points?wait=true", {"points": points(range(200, 300), "new")})
    api.call("PATCH", api.of(DOCS), {"optimizers_config": {"flush_interval_sec": 7}})
    api.call("DELETE", f"{api.of(DOCS)}/index/n?wait=true")
    api.call("PUT", f"{api.of(DOCS)}/index?wait=true", {"field_name": "tag", "field_schema": "keyword"})
    new, (settings, _) = everything(source, DOCS), api.settings(DOCS)

    with Eavesdropper(workshop, "source") as ears:
        with pytest.raises(PreflightError, match="must be typed"):
            overwrite(workshop, saved, confirm="docs")
        with pytest.raises(PreflightError, match="would take that for latest"):
            overwrite(workshop, "latest")
        assert ears.of_nodes() == ears.bucket.requests == []
        planned = prepare_in_place(workshop.connect(), request(saved))
        assert [line for line in ears.of_nodes() + ears.bucket.requests if changes_something(line)] == []
    assert planned.plan.in_place is not None
    told = " ".join(finding.message for finding in planned.plan.findings)
    assert "payload index n is in the backup and not live: it comes back" in told
    assert "payload index tag.type: nothing in the backup, 'keyword' live: it stays as it is live" in told
    assert "flush_interval_sec: 5 in the backup, 7 live: it stays as it is live" in told
    workshop.configure()

    done = overwrite(workshop, saved)
    assert everything(source, DOCS) == old
    assert len(done.verdicts) == 6
    assert done.findings == ()
    assert (api.settings(DOCS)[0], api.aliases()) == (settings, {"in use": DOCS})
    assert {field: index["points"] for field, index in api.settings(DOCS)[1].items()} == {"n": 240, "tag": 240}
    assert done.before is not None
    another = planned.plan.model_copy(update={"in_place": planned.plan.in_place.model_copy(update={"uuid": "another"})})
    with pytest.raises(LayoutError, match="was made anew"):
        require_present(workshop.connect(), planned.model_copy(update={"plan": another}), done.before)
    assert workshop.connect().catalog.read_manifest("source", done.before, DOCS).points == len(new)
    record = workshop.read(f"restores/source/{done.plan.request.restore_id}.json")
    assert (record["in_place"], record["before"], record["verdict"]) == (True, done.before, "equal")

    back = overwrite(workshop, done.before, waive_backup=True)
    assert everything(source, DOCS) == new
    assert back.before is None
    assert workshop.read(f"restores/source/{back.plan.request.restore_id}.json")["before"] is None
    assert workshop.leftovers() == []


def test_shard_keys_are_found_again_and_others_refused(workshop: Workshop, api: Api) -> None:
    """A key that was made anew has another number and the same points; a key that the backup lacks is not touched."""
    body = {"vectors": {"size": 4, "distance": "Dot"}, "sharding_method": "custom"}
    api.make(DOCS, Sample(body))

    def fill(key: str, numbers: range, shards: int) -> None:
        api.call("PUT", f"{api.of(DOCS)}/shards", {"shard_key": key, "shards_number": shards})
        body = {"points": points(numbers, key), "shard_key": key}
        api.call("PUT", f"{api.of(DOCS)}/points?wait=true", body)

    fill("one", range(20), 1)
    fill("two", range(20, 60), 2)
    source = workshop.clusters["source"]
    old, saved = everything(source, DOCS), back_up(workshop).backup_id
    api.call("POST", f"{api.of(DOCS)}/shards/delete", {"shard_key": "one"})
    fill("one", range(100, 110), 1)

    done = overwrite(workshop, saved, waive_backup=True)
    assert everything(source, DOCS) == old
    planned = {(shard.key, shard.shard_id, shard.source) for shard in done.plan.shards}
    assert planned == {("one", 4, 1), ("two", 2, 2), ("two", 3, 3)}
    assert sum(1 for _ in api.pages(DOCS, shard_key="one")) == 20

    fill("three", range(200, 205), 1)
    with pytest.raises(PreflightError, match=r"has the shards none of key 'three', live are \[5\]"):
        overwrite(workshop, saved, waive_backup=True)
    assert api.count(DOCS) == 65
    assert workshop.leftovers() == []


def test_a_collection_that_cannot_be_read_any_more(workshop: Workshop, api: Api) -> None:
    """A shard that failed to load answers nothing and shows as Active: it is overwritten without a backup of that."""
    vectors = {"a": {"size": 4, "distance": "Dot", "hnsw_config": {"m": 8}}}
    body = {"vectors": vectors, "sparse_vectors": {"s": {}}, "shard_number": 3, "metadata": {"of": "a test"}}
    named = [point | {"vector": {"a": point["vector"]}} for point in points(range(40))]
    api.make(DOCS, Sample(body, named, {"n": "integer"}))
    source = workshop.clusters["source"]
    old, settings, saved = everything(source, DOCS), api.settings(DOCS), back_up(workshop).backup_id
    first = api.call("GET", f"{api.of(DOCS)}/cluster")["local_shards"]
    broken = httpx.post(
        f"{source.urls[0]}{api.of(DOCS)}/shards/{first[0]['shard_id']}/snapshots/upload?priority=no_sync",
        files={"snapshot": ("bad.snapshot", unreadable_archive())},
        timeout=30,
    )
    assert broken.status_code == 500
    assert httpx.get(f"{source.urls[1]}{api.of(DOCS)}").status_code == 500

    with pytest.raises(LayoutError, match=r"shard \d on .* cannot be read") as refused:
        overwrite(workshop, saved)
    assert f"--confirm '{DOCS}' --waive-backup" in str(refused.value.remedy)
    done = overwrite(workshop, saved, waive_backup=True)
    assert (everything(source, DOCS), api.settings(DOCS)) == (old, settings)
    assert [finding.message for finding in done.plan.findings if "it is overwritten like the others" in finding.message]
    assert workshop.leftovers() == []
