"""What goes wrong between a restore and its target's nodes: what may pass is passed, and nothing half-made is left."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from ferry.errors import LeaseHeldError
from ferry.report import findings_text
from ferry.repository.store import Store
from ferry.restore import steps
from ferry.restore.run import Restored
from flows.restore_collection import restore_collection
from sandbox.fault_proxy import FaultProxy
from tests.faults.conftest import RESTORE, TARGET, Runs
from tests.faults.scene import ALIAS, COLLECTION, LIVE, Scene, fill, names_and_aliases, session
from tests.integration import crossings
from tests.integration.crossings import address

AS_JSON = {"Content-Type": "application/json"}
FORBIDDEN = "Forbidden: URL snapshot recovery is disabled"  # what 1.18 says (enable_snapshot_url_recovery)
UNREADABLE = "Service internal error: Failed to read segment state"


@contextmanager
def in_front_of_the_target(scene: Scene) -> Iterator[list[FaultProxy]]:
    """Every node of the target behind a proxy of its own."""
    with ExitStack() as stack:
        urls = scene.shop.clusters["target"].urls
        proxies = [stack.enter_context(FaultProxy(address(url))) for url in urls]
        scene.configure(clusters={"target": {"nodes": [proxy.url for proxy in proxies]}})
        yield proxies
    scene.configure()


def restored_from(scene: Scene, backup: str, **wishes: Any) -> Restored:
    """A restore of ``docs``, compared point by point, with how each replica got its data."""
    record = scene.connections().catalog.read_backup("source", backup)
    return crossings.restore(scene.shop, record, COLLECTION, **wishes)


def answered(proxies: list[FaultProxy], code: int, said: str, count: int) -> None:
    """Every node answers that many recoveries by address like this."""
    for proxy in proxies:
        body = json.dumps({"status": {"error": said}, "time": 0.0}).encode()
        proxy.http_status(code, count=count, match="/snapshots/recover", headers=AS_JSON, body=body)


@pytest.mark.parametrize(
    ("code", "said", "times"),
    [(403, FORBIDDEN, 100), (500, UNREADABLE, 1)],
    ids=["addresses are forbidden", "a segment that cannot be read"],
)
def test_a_recovery_that_is_refused_is_an_upload(scene: Scene, code: int, said: str, times: int) -> None:
    """The replica gets its archive through the worker, the finding says why, and it equals its proof."""
    backup = scene.back_up()
    with in_front_of_the_target(scene) as proxies:
        answered(proxies, code, said, times)
        restored = restored_from(scene, backup, into="new")
        uploaded = [replica for replica in restored.recovered if replica.path == "upload"]
        assert len(uploaded) == (len(restored.verdicts) if times > 1 else len(proxies))
        assert all(said in findings_text(replica.findings) for replica in uploaded)
    assert crossings.proven_everywhere(restored)
    scene.require_sound()


def test_an_address_that_has_expired_is_an_upload(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store refuses what was signed too long ago; its words are in the finding, the signature is not."""
    fill(scene.shop.clusters["source"], "one", 60, shards=1, replicas=1)
    record = scene.connections().catalog.read_backup("source", scene.back_up())

    def late(store: Store, key: str) -> str:
        wanted = {"Bucket": store.bucket, "Key": key}
        signed = str(store._boto_for_nodes.generate_presigned_url("get_object", Params=wanted, ExpiresIn=1))
        time.sleep(2.2)
        return signed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "presign", late)
        restored = crossings.restore(scene.shop, record, "one", into="new")
    assert [replica.path for replica in restored.recovered] == ["upload"]
    said = findings_text(restored.recovered[0].findings)
    assert "could not fetch" in said
    assert "403" in said
    assert "Signature" not in said
    assert crossings.proven_everywhere(restored)
    scene.require_sound()


def test_a_second_restore_into_the_same_name_says_who_is_at_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is touched, and the first one goes on to its end."""
    record = scene.connections().catalog.read_backup("source", scene.back_up())
    settling, go_on, settle = threading.Event(), threading.Event(), steps.settle_target

    def waiting(*arguments: Any) -> list[str]:
        settling.set()
        assert go_on.wait(60)
        return settle(*arguments)

    monkeypatch.setattr(steps, "settle_target", waiting)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(crossings.restore, scene.shop, record, COLLECTION, into="new", alias=ALIAS)
        assert settling.wait(60)
        with pytest.raises(LeaseHeldError, match=crossings.HOLDER):
            crossings.restore(scene.shop, record, COLLECTION, into="new")
        go_on.set()
        assert crossings.proven_everywhere(first.result())
    assert names_and_aliases(scene.shop.clusters["target"]) == ({LIVE, "new"}, {ALIAS: "new"})
    scene.require_sound()


@pytest.mark.usefixtures("quick")
def test_a_restore_that_dies_between_two_shard_keys_begins_anew(scene: Scene, runs: Runs) -> None:
    """Half of the keys, and keys that only held a number's place, are gone with the collection that they were in."""
    source = scene.shop.clusters["source"]
    fill(source, "keyed", 0)
    with session(source) as http:
        http.delete("/collections/keyed").raise_for_status()
        shape = {"vectors": {"size": 4, "distance": "Dot"}, "sharding_method": "custom"}
        http.put("/collections/keyed", json=shape).raise_for_status()
        for key, shards in (("a", 2), ("gone", 1), ("b", 2)):
            body = {"shard_key": key, "shards_number": shards}
            http.put("/collections/keyed/shards", json=body).raise_for_status()
            points = [{"id": n, "vector": [1.0, n, 2.0, 3.0], "payload": {"key": key}} for n in range(60)]
            rows = {"points": points, "shard_key": key}
            http.put("/collections/keyed/points?wait=true", json=rows).raise_for_status()
        http.post("/collections/keyed/shards/delete", json={"shard_key": "gone"}).raise_for_status()
    scene.remember("source", "keyed")
    scene.back_up()
    parameters = TARGET | {"collection": "keyed", "into": "new", "alias": None}
    runs.killed(RESTORE, parameters, "ferry.qdrant.node:Node.create_shard_key", nth=2)
    runs.killed(RESTORE, parameters, "ferry.qdrant.node:Node.drop_shard_key", "before")
    assert restore_collection(**parameters | {"verify": "content"}) == "new"
    target = scene.connections("target").cluster.read_layout(["new"]).collection("new")
    assert target is not None
    assert {shard.shard_id: shard.key for shard in target.shards} == {1: "a", 2: "a", 4: "b", 5: "b"}
    scene.require_sound()
