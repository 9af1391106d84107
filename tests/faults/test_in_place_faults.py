"""What goes wrong while a live collection is overwritten: it is told what holds what, and run again it comes right."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ferry.errors import InPlaceError, LayoutError, LeaseHeldError, VerificationError
from ferry.models import BackupId
from ferry.qdrant import snapshots
from ferry.restore import overwrite
from ferry.restore.in_place import InPlaceRequest, again, back_to
from ferry.restore.overwrite import Overwritten, run_in_place
from flows.restore_in_place import restore_in_place
from sandbox.fault_proxy import FaultProxy
from sandbox.qdrant import QdrantCluster, QdrantNode
from sandbox.s3 import S3Server
from tests.faults.conftest import SOURCE, Runs
from tests.faults.scene import COLLECTION, Scene, fill, session, soon
from tests.integration.crossings import HOLDER, address, back_up, new_id, quick_job
from tests.workshop import Workshop

IN_PLACE = "flows.restore_in_place:restore_in_place"
LARGE = "large"


def wishes(backup: str, collection: str = COLLECTION, **more: Any) -> dict[str, Any]:
    """The flow's parameters."""
    return SOURCE | {
        "source_cluster": "source",
        "collection": collection,
        "backup": backup,
        "confirm": collection,
        **more,
    }


def request(backup: str, collection: str = COLLECTION, **more: Any) -> InPlaceRequest:
    return InPlaceRequest(restore_id=new_id(), **wishes(backup, collection, **more))


def overwritten(scene: Scene, asked: InPlaceRequest) -> Overwritten:
    return run_in_place(scene.shop.connect(), asked, HOLDER, quick_job())


def write(scene: Scene, numbers: range, collection: str = COLLECTION, size: int = 16) -> None:
    """New points, and new payloads for those that there are."""
    points = [{"id": n, "vector": [float(n)] * size, "payload": {"new": n}} for n in numbers]
    with session(scene.shop.clusters["source"]) as http:
        http.put(f"/collections/{collection}/points?wait=true", json={"points": points}).raise_for_status()


def replicas_differ(scene: Scene, collection: str) -> bool:
    """Whether two replicas of one shard hold something else."""
    found: dict[int, set[str]] = {}
    for (shard_id, _), digest in scene.content("source", collection).items():
        found.setdefault(shard_id, set()).add(digest)
    return any(len(digests) > 1 for digests in found.values())


@contextmanager
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Every replica's recovering says that it begins, and waits."""
    begun, go_on, recover = threading.Event(), threading.Event(), overwrite.recover_in_place

    def waiting(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return recover(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(overwrite, "recover_in_place", waiting)
        try:
            yield begun, go_on
        finally:
            go_on.set()


@pytest.mark.usefixtures("quick")
def test_a_worker_killed_in_mid_recover_leaves_a_mixture_until_it_is_run_again(scene: Scene, runs: Runs) -> None:
    """Its backup of the state before counts; the same flow brings every replica to the backup that was asked for."""
    backup = scene.back_up()
    write(scene, range(100, 300))
    runs.killed(IN_PLACE, wishes(backup), "ferry.qdrant.snapshots:recover_shard")
    before = scene.complete()[0]
    assert before > backup
    assert scene.connections().catalog.read_manifest("source", before, COLLECTION).points == 300
    mixed = scene.content("source", COLLECTION)
    wanted = scene.before["source", COLLECTION]
    assert 0 < sum(digest == wanted[replica] for replica, digest in mixed.items()) < len(wanted)

    assert restore_in_place(**wishes(backup, waive_backup=True)) is None
    scene.require_sound()


def test_who_comes_meanwhile_is_refused_and_what_is_written_meanwhile_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second restore and no backup begins; writes that were overwritten are a warning, later ones a failure."""
    backup = scene.back_up()
    with held_back(monkeypatch) as (begun, go_on), ThreadPoolExecutor() as pool:
        first = pool.submit(overwritten, scene, request(backup))
        assert begun.wait(60)
        with pytest.raises(LeaseHeldError, match=rf"source\.restore\.{COLLECTION}.*{HOLDER}"):
            overwritten(scene, request(backup))
        with pytest.raises(LeaseHeldError, match=rf"leases/source\.json.*{HOLDER}"):
            back_up(scene.shop)
        assert len(scene.shop.objects(f"readers/source/{backup}/")) == 1  # else a prune might take it away meanwhile
        write(scene, range(100, 300))
        go_on.set()
        done = first.result()
    told = " ".join(finding.message for finding in done.findings)
    assert "right before it was overwritten" in told
    assert "were counted: nodes passed" in told
    scene.require_sound()

    settle: Callable[..., None] = overwrite.settle_in_place

    def written_to(*arguments: Any) -> None:
        write(scene, range(7, 8))
        settle(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(overwrite, "settle_in_place", written_to)
        asked = request(backup, waive_backup=True)
        with pytest.raises(VerificationError, match="content digest differs in 1 of 256 sub-ranges") as failed:
            overwritten(scene, asked)
    assert "Writes to docs while it was restored were counted" in failed.value.message
    assert again(asked) in str(failed.value.remedy)
    assert overwritten(scene, request(backup, waive_backup=True)).findings == ()
    scene.require_sound()


def test_a_lost_answer_is_not_taken_for_an_overwritten_replica(scene: Scene) -> None:
    """The replica holds as many points as the backup already, and other ones: its count says nothing."""
    backup = scene.back_up()
    write(scene, range(240))
    urls = scene.shop.clusters["source"].urls
    with FaultProxy(address(urls[0])) as proxy:
        nodes = {"nodes": [proxy.url, *urls[1:]], "snapshot_timeout_seconds": 1.0}
        scene.configure(clusters={"source": nodes})
        proxy.http_status(502, count=100, match="/snapshots/recover")
        with pytest.raises(InPlaceError, match="nobody knows whether the node has recovered") as failed:
            overwritten(scene, request(backup, waive_backup=True, verify="count"))
    assert failed.value.message.count("points as before") == 2
    assert failed.value.message.count("points as the backup") == 4
    assert scene.shop.leftovers() == []


def killed_while_loading(node: QdrantNode, collection: str) -> threading.Thread:
    """SIGKILL for a node while the flag lies there that says that it replaces a shard."""
    folder = node.storage_path / "collections" / collection

    def strike() -> None:
        while not any(path.name.endswith(".initializing") for path in folder.iterdir()):
            pass
        node.kill()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    return thread


def test_a_node_killed_in_mid_recover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_s3: S3Server) -> None:
    """The error says what each replica holds. Run again all are equal, and stay so when nodes come and go."""
    with (
        QdrantCluster(nodes=3) as cluster,
        Workshop(tmp_path, monkeypatch, shared_s3, {"source": cluster}) as shop,
    ):
        scene = Scene(shop)
        scene.configure()
        fill(cluster, LARGE, 1500, size=128, shards=3)
        scene.remember("source", LARGE)
        backup = scene.back_up(include=(LARGE,))
        write(scene, range(1400, 1600), LARGE, size=128)
        victim = cluster.nodes[1]
        label = victim.url.split("://")[1]
        asked = request(backup, LARGE)
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, "AWAY_SECONDS", 1.0)
            struck = killed_while_loading(victim, LARGE)
            with pytest.raises(InPlaceError) as failed:
                overwritten(scene, asked)
        struck.join(10)
        message, remedy = failed.value.message, str(failed.value.remedy)
        assert message.count(f"on {label} cannot be read") == 2
        assert message.count("points as the backup") == 4
        assert again(asked) in remedy
        assert back_to(asked, BackupId(scene.complete()[0])) in remedy

        victim.restart()
        scene.settled("source")
        with pytest.raises(LayoutError, match=rf"on {label} cannot be read .* cannot be backed up"):
            overwritten(scene, asked)
        overwritten(scene, request(backup, LARGE, waive_backup=True))
        scene.require_sound()

        write(scene, range(1400, 1600), LARGE, size=128)
        other = cluster.nodes[2]
        other.kill()
        write(scene, range(1600, 1800), LARGE, size=128)
        other.restart()
        scene.settled("source")
        soon(lambda: states(cluster, LARGE) == {"Active"})
        assert not replicas_differ(scene, LARGE)


def states(cluster: QdrantCluster, collection: str) -> set[str]:
    """The states of all replicas, as every node sees them."""
    seen = [httpx.get(f"{url}/collections/{collection}/cluster").json()["result"] for url in cluster.urls]
    return {shard["state"] for view in seen for shard in view["local_shards"] + view["remote_shards"]}
