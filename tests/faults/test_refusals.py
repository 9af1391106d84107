"""Keys that do not suffice, addresses that rotate, and disks that are full: refused by name, and nothing changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry.backup import steps as backup_steps
from ferry.errors import FerryError, HeadroomError, LayoutError, NodeRefusedError, PreflightError
from ferry.restore import steps as restore_steps
from flows.back_up_cluster import back_up_cluster
from flows.restore_collection import restore_collection
from sandbox.disk import STORAGE_LIMIT_REASON
from sandbox.fault_proxy import RotatingProxy
from sandbox.qdrant import NodePlace, QdrantCluster, storage_limit_supported
from sandbox.s3 import S3Server
from tests.faults.conftest import SOURCE, TARGET
from tests.faults.scene import ALIAS, COLLECTION, LIVE, Scene, fill, names_and_aliases
from tests.workshop import Workshop

pytestmark = pytest.mark.usefixtures("quick")
FULL_KEY, READ_ONLY_KEY = "full-key", "read-only-key"
limited = pytest.mark.skipif(not storage_limit_supported(), reason=STORAGE_LIMIT_REASON)


class KeyedCluster(QdrantCluster):
    """One node that also knows a read-only key."""

    def _env(self, place: NodePlace) -> dict[str, str]:
        return {**super()._env(place), "QDRANT__SERVICE__READ_ONLY_API_KEY": READ_ONLY_KEY}


def alone(
    cluster: QdrantCluster, s3: S3Server, folder: Path, patch: pytest.MonkeyPatch, points: int = 240
) -> Iterator[Scene]:
    """A scene in which one small cluster is source and target."""
    with Workshop(folder, patch, s3, {"source": cluster, "target": cluster}) as shop:
        scene = Scene(shop)
        fill(cluster, COLLECTION, points, size=1024, shards=1, replicas=1)
        fill(cluster, LIVE, 60, shards=1, replicas=1, alias=ALIAS)
        key = {"api_key": cluster.api_key} if cluster.api_key else {}
        scene.configure(clusters={"source": key, "target": key})
        scene.remember("source", COLLECTION)
        scene.remember("target", LIVE)
        yield scene


@pytest.fixture(scope="module")
def keyed_cluster() -> Iterator[QdrantCluster]:
    """A node behind keys."""
    with KeyedCluster(nodes=1, api_key=FULL_KEY) as cluster:
        yield cluster


@pytest.fixture
def keyed(
    keyed_cluster: QdrantCluster, shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    """A scene behind keys."""
    for scene in alone(keyed_cluster, shared_s3, tmp_path, monkeypatch):
        yield scene
        drop(scene)


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[QdrantCluster]:
    """A node whose disk can be filled."""
    with QdrantCluster(nodes=1, storage_limit_bytes=700 << 20) as cluster:
        yield cluster


@pytest.fixture
def small(
    small_cluster: QdrantCluster, shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    """A scene on a small disk."""
    try:
        for scene in alone(small_cluster, shared_s3, tmp_path, monkeypatch, points=6000):
            yield scene
            small_cluster.nodes[0].free_disk()
            drop(scene)
    finally:
        small_cluster.nodes[0].free_disk()


def drop(scene: Scene) -> None:
    """Delete what the scene made; the workshop itself has no key."""
    clients = scene.connections("target").cluster
    for name in clients.nodes[0].collections():
        clients.nodes[0].delete_collection(name)
    scene.shop.clusters.clear()


@pytest.mark.parametrize("key", ["wrong-key", READ_ONLY_KEY])
def test_a_key_that_does_not_suffice_is_refused_before_anything_is_touched(keyed: Scene, key: str) -> None:
    """A backup and a restore are refused with the remedy; neither bucket nor cluster has anything new."""
    full = {"api_key": FULL_KEY}
    backup = keyed.back_up()
    before = keyed.shop.objects()
    keyed.configure(clusters={"source": {"api_key": key}, "target": {"api_key": key}})
    state = back_up_cluster(**SOURCE, return_state=True)
    assert state.is_failed()
    assert "api_key" in (state.message or "")
    assert key not in (state.message or "")
    with pytest.raises((PreflightError, NodeRefusedError), match="api_key"):
        state.result()
    with pytest.raises((PreflightError, NodeRefusedError), match="api_key"):
        restore_collection(**TARGET)
    keyed.configure(clusters={"source": full, "target": full})
    assert [path for path in keyed.shop.objects() if not path.startswith("leases/")] == [
        path for path in before if not path.startswith("leases/")
    ]
    assert keyed.complete() == [backup]
    clients = keyed.connections("target").cluster
    assert clients.nodes[0].collections() == sorted([COLLECTION, LIVE])
    assert clients.nodes[0].aliases() == {ALIAS: LIVE}
    keyed.require_honest()
    assert keyed.shop.leftovers() == []


def test_an_address_that_rotates_over_nodes_is_refused(scene: Scene) -> None:
    """Behind a balancer nobody knows whose snapshot is read, so nothing begins."""
    nodes = scene.shop.clusters["source"].nodes
    with RotatingProxy([("127.0.0.1", node.place.http_port) for node in nodes]) as proxy:
        scene.configure(clusters={"source": {"nodes": [proxy.url, *scene.shop.clusters["source"].urls[1:]]}})
        with pytest.raises(LayoutError, match=r"(?s)answers as different peers.*address of every node itself"):
            back_up_cluster(**SOURCE)
    scene.configure()
    assert scene.shop.objects() == []
    scene.require_sound()


@limited
def test_a_full_source_disk_is_refused_beforehand(small: Scene) -> None:
    """A node without room for its largest snapshot is refused with the numbers; nothing is made."""
    small.shop.clusters["source"].nodes[0].fill_disk(leave_bytes=1 << 20)
    with pytest.raises(HeadroomError):
        back_up_cluster(**SOURCE)
    assert small.shop.objects() == []
    small.shop.clusters["source"].nodes[0].free_disk()
    small.require_sound()


@limited
def test_a_source_disk_that_fills_up_meanwhile_fails_the_run(small: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot for which the disk has no room any more fails by name, and leaves no file on the node."""
    small.back_up()  # so that all mapped pages have their place on the disk
    node = small.shop.clusters["source"].nodes[0]
    made = backup_steps.create_snapshot

    def filled(*arguments: Any) -> Any:
        node.fill_disk(leave_bytes=16 << 20)  # with less, mapped files on a tmpfs kill the node by SIGBUS
        return made(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(backup_steps, "create_snapshot", filled)
        with pytest.raises(FerryError, match=r"(?is)no space left|not enough space"):
            back_up_cluster(**SOURCE)
    node.free_disk()
    assert len(small.complete()) == 1
    small.back_up()
    small.require_sound()


@limited
def test_a_target_disk_that_fills_up_meanwhile_drops_the_new_collection(
    small: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recover without room fails by name; the new collection is dropped, the live one and its alias are untouched."""
    small.back_up()
    node = small.shop.clusters["target"].nodes[0]
    recover = restore_steps.recover_replica

    def filled(*arguments: Any) -> Any:
        node.fill_disk(leave_bytes=16 << 20)  # with less, mapped files on a tmpfs kill the node by SIGBUS
        return recover(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(restore_steps, "recover_replica", filled)
        with pytest.raises(FerryError, match=r"(?is)no space left|not enough space"):
            restore_collection(**TARGET)
    node.free_disk()
    assert names_and_aliases(small.shop.clusters["target"]) == ({COLLECTION, LIVE}, {ALIAS: LIVE})
    small.require_sound()
