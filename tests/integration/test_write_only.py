"""Backups with keys that cannot delete, locked, and restores with keys that can only read: the documented policies."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ferry.errors import StoreRefusedError
from ferry.repository.layout import Keys
from ferry.repository.probe import require_conforming
from ferry.repository.store import Store
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster
from tests.integration.crossings import SERVERS, back_up, proven_everywhere, restore
from tests.integration.keyed_s3 import PREFIX, KeyedS3
from tests.integration.samples import Api, few
from tests.integration.stores import profile
from tests.workshop import Workshop

pytestmark = SERVERS
LOCKED = {"can_delete": False, "lock_mode": "COMPLIANCE", "lock_days": 1}


@pytest.fixture
def shop(
    keyed: KeyedS3,
    three_nodes: QdrantCluster,
    two_nodes: QdrantCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workshop]:
    """The clusters and a bucket whose keys are limited to one prefix."""
    folder = tmp_path / PREFIX
    folder.mkdir()
    with Workshop(folder, monkeypatch, keyed, {"source": three_nodes, "target": two_nodes}) as made:
        with Api(three_nodes.urls[0]) as api:
            api.make("docs", few("docs"))
        yield made


def test_a_backup_without_delete_is_locked_and_restored_by_keys_that_only_read(shop: Workshop, keyed: KeyedS3) -> None:
    """Twice, so that the second run meets what the first could not take away; not one Delete is asked for."""
    with FaultProxy(keyed.host_port) as proxy:
        shop.configure(repository={"endpoint_url": proxy.url, **keyed.keys("write-only"), **LOCKED})
        back_up(shop)
        record = back_up(shop)
        assert not [line for line in proxy.requests if line.startswith("DELETE ") and "uploadId=" not in line]
    store = Store(profile(keyed))
    assert {info.bytes for info in store.list(f"{PREFIX}/runs/")} <= {0}
    held = {info.key.removeprefix(PREFIX + "/"): store.head(info.key) for info in store.list(f"{PREFIX}/")}
    kept = {key for key, info in held.items() if info is not None and info.locked_until is not None}
    must = {key for key in held if key.startswith("backups/")}
    assert len([key for key in must if key.endswith("backup.json")]) == 2
    assert len([key for key in must if key.endswith("manifest.json")]) == 2
    assert kept - {"probe/kept/locked.bin", "probe/kept/locked-parts.bin"} == must

    shop.configure(repository=keyed.keys("restore-only"))
    assert proven_everywhere(restore(shop, record, "docs"))
    tops = {"backups", "conformance.json", "ferry.json", "leases", "probe", "runs", "readers", "restores"}
    assert {key.split("/")[0] for key in shop.objects()} <= tops


def test_keys_that_cannot_delete_are_named_when_the_profile_says_that_they_can(keyed: KeyedS3) -> None:
    """Else the first prune would find out."""
    store = Store(profile(keyed, prefix=PREFIX, **keyed.keys("write-only")))
    with pytest.raises(StoreRefusedError, match=r"delete: 4 objects were not deleted.*no right") as caught:
        require_conforming(store)
    assert "can_delete" in (caught.value.remedy or "")


def test_trials_with_keys_that_cannot_delete_leave_the_same_objects_each_time(keyed: KeyedS3) -> None:
    """And each of them passes on what the last one left."""
    store = Store(profile(keyed, prefix=f"{PREFIX}/trials", **keyed.keys("write-only"), **LOCKED))
    for _ in range(2):
        assert "not tried" in require_conforming(store)[-1].detail
        left = [info.key.rpartition("/")[2] for info in store.list(f"{PREFIX}/trials/probe/")]
        assert left == ["archive.bin", "document.json", "locked-parts.bin", "locked.bin"]
        assert store.uploads(f"{PREFIX}/trials/") == ()


def test_keys_with_all_documented_rights_pass_all_trials(keyed: KeyedS3) -> None:
    """The policy in docs/stores.md is enough, and reaches no other folder."""
    locked = {"lock_mode": "GOVERNANCE", "lock_days": 1}
    require_conforming(Store(profile(keyed, prefix=PREFIX, **keyed.keys("full"), **locked)))
    with pytest.raises(StoreRefusedError, match="no right"):
        Store(profile(keyed, **keyed.keys("full"))).put_document(Keys("other").repository, b"{}")


def test_keys_that_only_read_change_nothing(keyed: KeyedS3) -> None:
    """Neither archives nor manifests."""
    store = Store(profile(keyed, **keyed.keys("restore-only")))
    for key in (f"{PREFIX}/backups/c/x", f"{PREFIX}/ferry.json", "other"):
        with pytest.raises(StoreRefusedError, match="no right"):
            store.put_document(key, b"x")
        with pytest.raises(StoreRefusedError, match="no right"):
            store.delete([key])
