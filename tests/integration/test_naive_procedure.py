"""The restore of Qdrant's documentation beside ours, on one cluster: what each leaves. With -s it prints both.

The documented way: on every node recover that node's own collection snapshot, into a collection that is not there yet,
with priority ``snapshot``. docs/naive-restore.md tells what comes of it.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ferry.connections import connect
from ferry.restore.mend import MendRequest, mend
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import SERVERS, back_up, proven_everywhere, restore
from tests.integration.samples import Api, few
from tests.workshop import Workshop

pytestmark = SERVERS
PLAIN, KEYED, ALIAS, POINTS, SHARDS, COPIES = "plain", "keyed", "plain-live", 900, 9, 2
KEYS = ("red", "blue")
UNCHANGED_SECONDS, PATIENCE_SECONDS = 4.0, 30.0  # a Dead replica recovers by itself within some 2 s (1.16.3)


@dataclass(frozen=True)
class Left:
    """What a restore has left: states and exact counts by shard and node, as each node says of itself."""

    states: dict[int, dict[str, str]]
    counts: dict[int, dict[str, int]]
    keys: set[Any]
    aliases: dict[str, str]
    points: int | None

    @property
    def inactive(self) -> list[tuple[int, str]]:
        """Replicas that are not Active."""
        return [
            (shard, node) for shard, nodes in self.states.items() for node, state in nodes.items() if state != "Active"
        ]

    @property
    def crowded(self) -> list[int]:
        """Shards with more copies than there should be."""
        return [shard for shard, nodes in self.states.items() if len(nodes) > COPIES]


@pytest.fixture
def shop(
    shared_s3: S3Server, three_nodes: QdrantCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workshop]:
    """Three nodes that are source and target, with a plain collection behind an alias and one with shard keys."""
    clusters = {"source": three_nodes, "target": three_nodes}
    with Workshop(tmp_path, monkeypatch, shared_s3, clusters) as made, Api(three_nodes.urls[0]) as api:
        sample = few(PLAIN, POINTS)
        api.make(PLAIN, replace(sample, body=sample.body | {"shard_number": SHARDS, "replication_factor": COPIES}))
        api.alias(ALIAS, PLAIN)
        custom = {"sharding_method": "custom", "shard_number": 2, "replication_factor": COPIES}
        api.make(KEYED, replace(sample, body=sample.body | custom, points=[]))
        for number, key in enumerate(KEYS):
            api.call("PUT", f"/collections/{KEYED}/shards", {"shard_key": key})
            points = sample.points[number :: len(KEYS)]
            api.call("PUT", f"/collections/{KEYED}/points?wait=true", {"points": points, "shard_key": key})
        yield made


def naive(cluster: QdrantCluster, collection: str, into: str) -> tuple[list[int], float]:
    """Do as the documentation says; the status of each node's answer, and how long the recovering took."""
    made: dict[str, str] = {}
    for url in cluster.urls:
        with Api(url) as api:
            made[url] = api.call("POST", f"/collections/{collection}/snapshots?wait=true")["name"]
    began, statuses = time.monotonic(), []
    for url, name in made.items():
        body = {"location": f"{url}/collections/{collection}/snapshots/{name}", "priority": "snapshot"}
        with Api(url) as api:
            statuses.append(api._client.put(f"/collections/{into}/snapshots/recover?wait=true", json=body).status_code)
    seconds = time.monotonic() - began
    for url, name in made.items():
        with Api(url) as api:
            api.call("DELETE", f"/collections/{collection}/snapshots/{name}?wait=true")
    return statuses, seconds


def left(cluster: QdrantCluster, collection: str) -> Left:
    """Ask every node for its own replicas."""
    states: dict[int, dict[str, str]] = {}
    counts: dict[int, dict[str, int]] = {}
    keys: set[Any] = set()
    for number, url in enumerate(cluster.urls):
        with Api(url) as api:
            seen = api.call("GET", f"/collections/{collection}/cluster")
            for shard in seen["local_shards"]:
                place = shard["shard_id"]
                states.setdefault(place, {})[f"node {number}"] = shard["state"]
                path = f"/collections/{collection}/shards/{place}/points/count"
                counts.setdefault(place, {})[f"node {number}"] = api.call("POST", path, {"exact": True})["count"]
            keys |= {shard.get("shard_key") for shard in [*seen["local_shards"], *seen["remote_shards"]]} - {None}
    with Api(cluster.urls[0]) as api:
        answer = api._client.post(f"/collections/{collection}/points/count", json={"exact": True})
        points = answer.json()["result"]["count"] if answer.is_success else None
        return Left(states, counts, keys, api.aliases(), points)


def left_at_last(cluster: QdrantCluster, collection: str) -> Left:
    """The same when it has not changed for a while: what Qdrant mends by itself is mended."""
    found, since = left(cluster, collection), time.monotonic()
    deadline = since + PATIENCE_SECONDS
    while time.monotonic() - since < UNCHANGED_SECONDS:
        assert time.monotonic() < deadline, "it does not come to rest"
        time.sleep(0.3)
        if (now := left(cluster, collection)) != found:
            found, since = now, time.monotonic()
    return found


def show(title: str, found: Left, seconds: float) -> None:
    """One line a shard, for people: run with -s."""
    keys, place = sorted(found.keys) or "none", ", ".join(f"{a} → {c}" for a, c in found.aliases.items())
    lines = [f"\n{title}: {seconds:.2f} s, {found.points} points, keys: {keys}, aliases: {place}"]
    for shard, nodes in sorted(found.states.items()):
        told = (f"{node}: {state} {found.counts[shard][node]}" for node, state in sorted(nodes.items()))
        lines.append(f"  shard {shard}: {', '.join(told)}")
    sys.stdout.write("\n".join([*lines, ""]))


def test_the_documented_way_and_ours_side_by_side(shop: Workshop, three_nodes: QdrantCluster) -> None:
    """Ours: every copy Active where it is wanted, the keys, the alias. The other: answers 200 to everything, too.

    It leaves no alias, of a collection with shard keys nothing at all, and mostly copies too many that stay Partial.
    """
    source = left(three_nodes, PLAIN)
    statuses, seconds = naive(three_nodes, PLAIN, "naive")
    theirs = left_at_last(three_nodes, "naive")
    show("documented way, auto sharding", theirs, seconds)
    assert statuses == [200, 200, 200]
    # Copies too many that stay Partial are left in most runs, and not in all: it depends on where Qdrant places copies.
    assert all(theirs.counts[shard][node] < max(source.counts[shard].values()) for shard, node in theirs.inactive)
    assert "naive" not in theirs.aliases.values()

    statuses, seconds = naive(three_nodes, KEYED, "naive-keyed")
    keyless = left_at_last(three_nodes, "naive-keyed")
    show("documented way, shard keys", keyless, seconds)
    assert statuses == [200, 200, 200]
    assert keyless.keys == set()
    assert not keyless.points

    record = back_up(shop, include=(PLAIN, KEYED))  # never of the documented way's: it is not at rest
    began = time.monotonic()
    restored = restore(shop, record, PLAIN, into="ours", alias=ALIAS)
    ours = left(three_nodes, "ours")
    show("ours, auto sharding", ours, time.monotonic() - began)
    assert proven_everywhere(restored)
    assert (ours.inactive, ours.crowded, ours.points) == ([], [], POINTS)
    assert {shard: {*nodes.values()} for shard, nodes in ours.counts.items()} == {
        shard: {*nodes.values()} for shard, nodes in source.counts.items()
    }
    assert ours.aliases[ALIAS] == "ours"

    began = time.monotonic()
    restore(shop, record, KEYED, into="ours-keyed")
    keyed = left(three_nodes, "ours-keyed")
    show("ours, shard keys", keyed, time.monotonic() - began)
    assert (keyed.keys, keyed.points, keyed.inactive) == ({*KEYS}, POINTS, [])

    mended = mend(connect("source", "main").cluster, MendRequest(collection="naive", patience_seconds=1))
    after = left(three_nodes, "naive")
    show("documented way, then ferry mend", after, mended.seconds)
    assert mended.left == ()
    assert (after.inactive, after.crowded, after.points) == ([], [], POINTS)
