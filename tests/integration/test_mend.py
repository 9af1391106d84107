"""Stuck collections on a real cluster: found on every node's own view, mended by the calls that cannot lose data."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry.__main__ import main
from ferry.connections import connect
from ferry.errors import PreflightError, StuckError
from ferry.qdrant.stuck import ARCHIVE, Stuck
from ferry.restore.mend import Mended, MendRequest, mend, mend_restored, stuck_replicas
from sandbox.prefect_server import PrefectServer
from sandbox.qdrant import QdrantCluster, QdrantNode, wait_consensus
from sandbox.s3 import S3Server
from tests.faults.scene import fill, soon
from tests.integration.crossings import SERVERS, Eavesdropper, changes_something
from tests.integration.samples import Api, everything
from tests.workshop import Workshop

pytestmark = SERVERS
WARD, POINTS, FEWER = "ward", 600, 400
# What 1.16.3 never mends by itself: the state of a replica of shards 0 to 4. Shard 5 cannot be read on one node.
LASTING = ("Partial", "Recovery", "PartialSnapshot", "Resharding", "Partial")
FULLER, DIRTY, APART, SURPLUS, MISSING, UNLIKE = range(4, 10)
States = dict[tuple[int, int], str]


def states(url: str, name: str) -> States:
    """State by shard and peer, as one node sees it."""
    with Api(url) as api:
        seen = api.call("GET", f"/collections/{name}/cluster")
    local = {(shard["shard_id"], seen["peer_id"]): shard["state"] for shard in seen["local_shards"]}
    return local | {(shard["shard_id"], shard["peer_id"]): shard["state"] for shard in seen["remote_shards"]}


def peers(cluster: QdrantCluster) -> dict[int, QdrantNode]:
    """The nodes by peer."""
    return {node.cluster_state()["peer_id"]: node for node in cluster.nodes}  # type: ignore[index]


def holders(cluster: QdrantCluster, name: str, shard: int = 0) -> list[int]:
    """Peers with a replica of a shard."""
    return sorted(peer for of_shard, peer in states(cluster.urls[0], name) if of_shard == shard)


def archive(node: QdrantNode, name: str, shard: int = 0) -> bytes:
    """A snapshot of a shard as this node has it."""
    path = f"/collections/{name}/shards/{shard}/snapshots"
    with Api(node.url) as api:
        made = api.call("POST", f"{path}?wait=true")["name"]
        found = api._client.get(f"{path}/{made}").content
        api.call("DELETE", f"{path}/{made}?wait=true")
    return found


def give(node: QdrantNode, name: str, data: bytes, shard: int = 0) -> int:
    """Let a node load a shard from a snapshot; the answer's status."""
    path = f"/collections/{name}/shards/{shard}/snapshots/upload?wait=true&priority=no_sync"
    with Api(node.url) as api:
        return api._client.post(path, files={"snapshot": data}).status_code


def operate(cluster: QdrantCluster, name: str, **operation: dict[str, int]) -> None:
    """Change where replicas are, as an operator does."""
    with Api(cluster.urls[0]) as api:
        api.call("POST", f"/collections/{name}/cluster", operation)


def note_state(nodes: list[QdrantNode], shard: int, peer: int, state: str) -> None:
    """Write into stopped nodes' files what they believe of a replica."""
    for node in nodes:
        path = node.storage_path / "collections" / WARD / str(shard) / "replica_state.json"
        document = json.loads(path.read_text())
        document["peers"][str(peer)] = state
        path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def sick() -> Iterator[QdrantCluster]:
    """Three nodes that were killed over a collection of ten shards, two copies each, of which none is well since.

    Most is written into the nodes' files, since no request makes it last: a node finds it that died at the wrong time.
    """
    with QdrantCluster(nodes=3) as cluster:
        fill(cluster, WARD, FEWER, size=4, shards=10)
        fill(cluster, "only", POINTS, size=4, shards=1, replicas=1)
        fill(cluster, "shape", 10, size=5, shards=1, replicas=1)
        by_peer = peers(cluster)
        held = {shard: holders(cluster, WARD, shard) for shard in range(10)}
        older = {shard: archive(by_peer[held[shard][0]], WARD, shard) for shard in (FULLER, UNLIKE)}
        with Api(cluster.urls[0]) as api:
            more = [{"id": number, "vector": [0.5] * 4} for number in range(FEWER, POINTS)]
            api.call("PUT", f"/collections/{WARD}/points?wait=true", {"points": more})
        for shard, data in older.items():
            assert give(by_peer[held[shard][0]], WARD, data, shard) == 200
        first, second = held[SURPLUS]
        ids = {"shard_id": SURPLUS, "from_peer_id": first, "to_peer_id": next(iter({*by_peer} - {first, second}))}
        operate(cluster, WARD, replicate_shard=ids)
        operate(cluster, WARD, drop_replica={"shard_id": MISSING, "peer_id": held[MISSING][0]})
        soon(lambda: all([*states(url, WARD).values()] == ["Active"] * 20 for url in cluster.urls))
        for node in cluster.nodes:
            node.kill()
        for shard, state in enumerate(LASTING):
            note_state(cluster.nodes, shard, held[shard][1], state)
        note_state([next(by_peer[peer] for peer in by_peer if peer not in held[APART])], APART, held[APART][1], "Dead")
        # What Qdrant leaves when it dies while it replaces a shard.
        (by_peer[held[DIRTY][1]].storage_path / "collections" / WARD / f"shard_{DIRTY}.initializing").touch()
        for node in cluster.nodes:
            node.start()
        wait_consensus(cluster.nodes)  # not until they are ready: with a Partial replica a node never is (1.16.3)
        yield cluster


@pytest.fixture
def shop(
    sick: QdrantCluster, shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workshop]:
    """Settings that name it ``source``."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"source": sick}) as made:
        yield made


def request(name: str, **asked: Any) -> MendRequest:
    """A request that does not wait for what this module knows to last."""
    return MendRequest(collection=name, **{"patience_seconds": 0.5, "away_seconds": 0.5, **asked})


def mended(name: str, **asked: Any) -> Mended:
    """Mend a collection."""
    return mend(connect("source", "main").cluster, request(name, **asked))


def stuck_in(name: str) -> dict[int | None, Stuck]:
    """What is stuck, by shard."""
    return {stuck.shard_id: stuck for stuck in stuck_replicas(connect("source", "main").cluster, request(name))}


def hands_off(shop: Workshop, name: str, **asked: Any) -> Mended:
    """A mend that must not change anything, after looking that it has sent nothing that does."""
    with Eavesdropper(shop, "source") as heard:
        done = mended(name, **asked)
        assert [line for line in heard.of_nodes() if changes_something(line)] == []
    shop.configure()
    assert done.made == ()
    return done


def copies(cluster: QdrantCluster, shard: int) -> list[dict[str, str]]:
    """The points of every copy of a shard, each as its own node has them."""
    found = []
    for url in cluster.urls:
        with Api(url) as api:
            if any(
                place == shard for place, peer in states(url, WARD) if peer == api.call("GET", "/cluster")["peer_id"]
            ):
                where = f"/shards/{shard}"
                found.append(
                    {str(point["id"]): str(point["vector"]) for point in api.pages(WARD, where, with_vector=True)}
                )
    return found


def test_a_dry_run_shows_every_ailment_and_changes_nothing(
    sick: QdrantCluster, shop: Workshop, capsys: pytest.CaptureFixture[str], prefect_server: PrefectServer
) -> None:
    """By command line and by flow; a replica that is Active for all and cannot be read is found by asking itself."""
    from flows.mend_collection import mend_collection

    before = [states(url, WARD) for url in sick.urls]
    with Eavesdropper(shop, "source") as heard:
        assert main(["mend", "source", WARD, "--dry-run"]) == 1
        assert mend_collection(cluster="source", collection=WARD) in (10, 11)  # APART twice: whoever leads is believed
        assert [line for line in heard.of_nodes() if changes_something(line)] == []
    shop.configure()
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("drop_replica", "replicate_shard", "/cluster/recover"))
    assert [states(url, WARD) for url in sick.urls] == before
    found = stuck_in(WARD)
    told = {DIRTY: "broken", APART: "disagreement", SURPLUS: "surplus", MISSING: "missing", UNLIKE: "differs"}
    assert {shard: stuck.kind for shard, stuck in found.items()} == dict.fromkeys(range(5), "inactive") | told
    assert "It is Active, but its own node cannot read it: " in found[DIRTY].diagnosis
    assert "Dirty shard" in found[DIRTY].diagnosis
    assert {shard for shard, stuck in found.items() if stuck.may} == {0, 1, 2, DIRTY, SURPLUS, MISSING}


def test_what_cannot_lose_data_is_mended_and_the_rest_is_left_alone(sick: QdrantCluster, shop: Workshop) -> None:
    """One call each: filled again from a sound copy, the copy too many dropped, the missing one made.

    A replica of a resharding, a Partial one with more points than the Active one, Active ones that differ, and a shard
    that nodes see differently stay as they are. A second mend finds nothing to do.
    """
    before = {shard: copies(sick, shard) for shard in (FULLER, UNLIKE)}
    done = mended(WARD)
    assert {each.refused for each in done.made} == {None}
    calls = sorted(
        (int(each.stuck.shard_id or 0), *(each.stuck.call.body or {})) for each in done.made if each.stuck.call
    )
    fill_again = [(shard, "replicate_shard") for shard in (0, 1, 2, DIRTY, MISSING)]
    assert calls == sorted([*fill_again, (SURPLUS, "drop_replica")])
    for shard in (0, 1, 2, DIRTY, SURPLUS, MISSING):
        for url in sick.urls:
            assert [state for (place, _), state in states(url, WARD).items() if place == shard] == ["Active", "Active"]
        one, other = copies(sick, shard)
        assert one == other
        assert one
    left = {stuck.shard_id: stuck.withheld or "" for stuck in done.left}
    assert {*left} == {LASTING.index("Resharding"), FULLER, APART, UNLIKE}
    assert "resharding" in left[LASTING.index("Resharding")]  # type: ignore[index]
    assert "more points than the Active" in left[FULLER]  # type: ignore[index]
    assert {shard: copies(sick, shard) for shard in (FULLER, UNLIKE)} == before
    assert {stuck.shard_id for stuck in hands_off(shop, WARD).left} == {*left}
    with pytest.raises(StuckError, match=f"{WARD}/shard {UNLIKE}: Its Active replicas hold different numbers"):
        mend_restored(connect("source", "main"), WARD, dict.fromkeys(range(10), 2), "a restore")  # type: ignore[arg-type]


def test_a_node_that_sees_otherwise_is_told_with_the_call_that_mends_it(sick: QdrantCluster, shop: Workshop) -> None:
    """Whoever differs from the leader is named; the lines that are printed, typed as they are, make them agree."""
    for found in stuck_replicas(connect("source", "main").cluster, request(WARD)):
        if found.shard_id == APART:
            assert found.kind == "disagreement"
            assert found.call is not None
            assert "look at the node first" in (found.withheld or "")
            subprocess.run(["sh", "-c", f"{found.call.curl} -sf"], check=True, capture_output=True)
    soon(lambda: APART not in stuck_in(WARD))
    one, other = copies(sick, APART)
    assert one == other


def test_the_only_copy_is_never_given_up(
    sick: QdrantCluster, shop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken by an archive of another shape it is Active for all, and 500 for readers; doctor and mend say what to do.

    A transfer out of it, to make the missing copy, would stop the consensus of its node for good: none is begun.
    """
    [holder] = holders(sick, "only")
    node = peers(sick)[holder]
    sound = archive(node, "only")
    strange = archive(peers(sick)[holders(sick, "shape")[0]], "shape")
    assert give(node, "only", strange) == 400
    assert {*states(sick.urls[0], "only").values()} == {"Active"}
    for wanted in (None, 2):
        [stuck] = hands_off(shop, "only", copies=wanted).left
        assert (stuck.kind, stuck.may) == ("broken", False)
        assert "Failed to restore local replica" in stuck.diagnosis
    assert stuck.call is not None
    assert (stuck.call.method, stuck.call.path) == ("PUT", "/collections/only/shards/0/snapshots/recover")
    assert (stuck.peer_id, stuck.call.body) == (holder, {"location": ARCHIVE, "priority": "no_sync"})
    with pytest.raises(StuckError, match="only/shard 0 on") as caught:
        mend_restored(connect("source", "main"), "only", {0: 1}, "a restore")  # type: ignore[dict-item]
    assert "python -m ferry restore" in (caught.value.remedy or "")
    main(["doctor", "--cluster", "source", "--json"])
    trials = json.loads(capsys.readouterr().out)["trials"]
    [told] = [trial for trial in trials if trial["test"] == "collection only"]
    assert not told["ok"]
    assert told["remedy"].endswith("python -m ferry mend source only --dry-run")
    assert give(node, "only", sound) == 200
    assert stuck_in("only") == {}
    assert len(everything(sick, "only")) == POINTS


def test_names_that_are_none(shop: Workshop) -> None:
    """An unknown collection is refused before anything is judged."""
    with pytest.raises(PreflightError, match="knows a collection nothing"):
        mended("nothing")
