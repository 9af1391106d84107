"""Collections that are dropped, made, moved and changed while their backup runs."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import pytest

from ferry.backup.plan import BackupPlan, BackupRequest
from ferry.backup.recheck import Recheck, recheck
from ferry.backup.run import prepare, run_backup
from ferry.connections import Connections
from ferry.errors import FerryError, NodeUnreachableError, SnapshotError
from ferry.lanes import Job
from ferry.models import Progress, ShardId, no_progress
from ferry.qdrant import snapshots
from ferry.qdrant.node import Node
from ferry.qdrant.view import read_collection_view
from ferry.repository.manifest import BackupRecord
from tests.integration.crossings import HOLDER, SERVERS, new_id, proven_everywhere, restore
from tests.integration.samples import Api, Sample, few
from tests.workshop import Workshop, node_snapshots

pytestmark = SERVERS
KEYED = {"vectors": {"size": 4, "distance": "Dot"}, "sharding_method": "custom"}


@pytest.fixture
def api(workshop: Workshop) -> Iterator[Api]:
    """The first node of the source."""
    with Api(workshop.clusters["source"].urls[0]) as opened:
        yield opened


def planned(connections: Connections) -> BackupPlan:
    """A plan of everything but scratch collections."""
    return prepare(
        connections,
        BackupRequest(backup_id=new_id(), cluster="source", repository="main", exclude=("scratch*",)),
    )


def drop(api: Api, name: str) -> None:
    api.call("DELETE", api.of(name))


def drop_everywhere(connections: Connections, api: Api, name: str) -> None:
    """Until each node has done it: one that is behind would still make a snapshot."""
    drop(api, name)
    wait_for(lambda: not any(node.exists(name) for node in connections.cluster.nodes))


def make_again(api: Api, name: str) -> None:
    drop(api, name)
    api.make(name, few(name))


def make_otherwise(api: Api, name: str) -> None:
    drop(api, name)
    sample = few(name, 0)
    api.make(name, Sample(sample.body | {"vectors": {"size": 8, "distance": "Dot"}}))


def index(api: Api, name: str) -> None:
    api.call("PUT", f"{api.of(name)}/index?wait=true", {"field_name": "n", "field_schema": "integer"})


def configure(api: Api, name: str) -> None:
    api.call("PATCH", api.of(name), {"optimizers_config": {"deleted_threshold": 0.4}})


def another_key(api: Api, name: str) -> None:
    api.call("PUT", f"{api.of(name)}/shards", {"shard_key": "b"})


def no_key(api: Api, name: str) -> None:
    api.call("POST", f"{api.of(name)}/shards/delete", {"shard_key": "a"})


def nothing(_api: Api, _name: str) -> None:
    return


CHANGES: dict[str, tuple[Callable[[Api, str], None], str | None]] = {
    "untouched": (nothing, None),
    "dropped": (drop, None),
    "again": (make_again, "it was dropped and made again under the same name"),
    "otherwise": (make_otherwise, "it was dropped and made again under the same name"),
    "indexed": (index, "payload index n.type: nothing before, 'integer' now"),
    "configured": (configure, "optimizer_config.deleted_threshold: 0.2 before, 0.4 now"),
    "keyed": (another_key, "shards 2 (key 'b') came"),
    "unkeyed": (no_key, "shards 1 (key 'a') went"),
}


def test_every_change_in_mid_run_is_noticed_before_the_commit(workshop: Workshop, api: Api) -> None:
    """What was dropped is told and no failure; what changed has its reason; the rest is as it was planned."""
    for name in CHANGES:
        if name.endswith("keyed"):
            api.call("PUT", api.of(name), KEYED)
            api.call("PUT", f"{api.of(name)}/shards", {"shard_key": "a"})
        else:
            api.make(name, few(name))
    api.make("scratch-old", few("scratch-old"))
    api.alias("live", "untouched")
    connections = workshop.connect()
    plan = planned(connections)
    assert recheck(connections, plan) == Recheck()

    for name, (change, _) in CHANGES.items():
        change(api, name)
    for name in ("new", "scratch-new"):
        api.make(name, few(name))
    api.alias("live", "new")
    found = recheck(connections, plan)
    assert found.dropped == ("dropped",)
    assert found.changed == {
        name: f"{name} changed while the backup ran: {why}." for name, (_, why) in CHANGES.items() if why
    }
    told = {finding.message: finding.severity for finding in found.findings}
    assert told == {
        "dropped was dropped while the backup ran, and is not in this backup.": "warning",
        "Created while the backup ran, and not in this backup: new.": "info",
        "Aliases changed while the backup ran: live (untouched → new). The record has those of its start.": "info",
    }


def test_moved_and_copied_replicas_still_count(workshop: Workshop, api: Api) -> None:
    """A rebalancing in mid-run moves replicas: the archives are what their nodes held, and it is told."""
    for name in ("moved", "copied"):
        api.make(name, few(name))
    connections = workshop.connect()
    plan = planned(connections)
    home: dict[str, set[int]] = {}
    for name, action in (("moved", "move_shard"), ("copied", "replicate_shard")):
        (source,) = replicas(connections, name)
        target = next(node.peer_id for node in plan.layout.nodes if node.peer_id != source)
        body = {action: {"shard_id": 0, "from_peer_id": source, "to_peer_id": target}}
        api.call("POST", f"{api.of(name)}/cluster", body)
        home[name] = {target} if name == "moved" else {source, target}

    def at_home() -> bool:
        try:
            return all(replicas(connections, name) == peers for name, peers in home.items())
        except NodeUnreachableError:
            return False  # a node that asks the one which a replica has just left answers 500 (seen on 1.16.3)

    wait_for(at_home)
    connections.cluster.wait_until_active("moved", None, 30)
    connections.cluster.wait_until_active("copied", None, 30)
    found = recheck(connections, plan)
    assert (found.dropped, found.changed) == ((), {})
    assert sorted((finding.severity, finding.subject) for finding in found.findings) == [
        ("info", "copied"),
        ("info", "moved"),
    ]


class InMidRun:
    """Calls something once, when the first step whose label begins like this is about to be done."""

    def __init__(self, **acts: Callable[[], None]) -> None:
        self._acts = {label.replace("_", " ", 1): act for label, act in acts.items()}
        self._one_at_a_time = Lock()

    @contextmanager
    def __call__(self, label: str, _total: int | None) -> Iterator[Progress]:
        with self._one_at_a_time:
            for start in [start for start in self._acts if label.startswith(start)]:
                self._acts.pop(start)()
        yield no_progress


def run(connections: Connections, plan: BackupPlan, tell: InMidRun) -> BackupRecord:
    return run_backup(connections, plan, HOLDER, Job(tell, retry_delays_seconds=(0.5,)))


def test_the_backup_of_the_rest_counts_when_collections_are_dropped_and_made(workshop: Workshop, api: Api) -> None:
    """One goes before its snapshot is made, one while it is proven: no failure, no manifest, and nothing is left."""
    for name in ("early", "late", "rest"):
        api.make(name, few(name))
    connections = workshop.connect()

    def first() -> None:
        drop_everywhere(connections, api, "early")
        api.make("new", few("new"))

    record = run(connections, planned(connections), InMidRun(create=first, prove_late=lambda: drop(api, "late")))
    assert [entry.collection for entry in record.collections] == ["rest"]
    assert {finding.subject for finding in record.findings if "was dropped" in finding.message} == {"early", "late"}
    assert any("Created while the backup ran" in finding.message for finding in record.findings)
    assert workshop.leftovers() == []
    assert proven_everywhere(restore(workshop, record, "rest"))
    again = run(connections, planned(connections), InMidRun())
    assert [entry.collection for entry in again.collections] == ["new", "rest"]


@pytest.mark.parametrize("moment", ["before the download", "after the upload"])
def test_a_snapshot_that_outlives_its_collection_is_told(
    workshop: Workshop, api: Api, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qdrant leaves it on the disk, where no request reaches it: the record says where to look."""
    for name in ("doomed", "rest"):
        api.make(name, few(name))
    connections, delete = workshop.connect(), snapshots.delete_snapshot

    def dropped_before(node: Node, collection: str, *what: Any) -> bool:
        if collection == "doomed":
            drop_everywhere(connections, api, "doomed")
        return delete(node, collection, *what)

    if moment == "after the upload":
        monkeypatch.setattr(snapshots, "delete_snapshot", dropped_before)
        tell = InMidRun()
    else:
        tell = InMidRun(upload_doomed=lambda: drop_everywhere(connections, api, "doomed"))
    plan = planned(connections)
    (node,) = {archive.node for archive in plan.of_collection("doomed")}
    record = run(connections, plan, tell)
    told = [finding.message for finding in record.findings if finding.subject == "doomed"]
    assert told == [
        "doomed was dropped while the backup ran, and is not in this backup.",
        f"doomed was dropped while its snapshot was on {node.label}: the file may be left on the node's disk, out of "
        "reach of any request.",
    ]
    left = workshop.leftovers()
    assert [path.partition("-shard-0-")[0] for path in left] == ["source: data/snapshots/doomed/shards/0/doomed"] * 2
    for place in workshop.clusters["source"].nodes:
        shutil.rmtree(place.snapshots_path / "doomed", ignore_errors=True)
    assert workshop.leftovers() == []


def test_what_changed_in_mid_run_fails_alone(workshop: Workshop, api: Api) -> None:
    """Its archives do not count and the error says why; the manifests of the others are written, and the next run is
    whole."""
    for name in ("again", "indexed", "rest"):
        api.make(name, few(name))
    connections = workshop.connect()
    plan = planned(connections)

    def late() -> None:
        make_again(api, "again")
        index(api, "indexed")

    with pytest.raises(FerryError) as caught:
        run(connections, plan, InMidRun(prove_rest=late))
    assert "again changed while the backup ran: it was dropped and made again" in str(caught.value)
    assert "indexed changed while the backup ran: payload index n.type" in str(caught.value)
    manifests = [key for key in workshop.objects("backups/") if key.endswith(("manifest.json", "backup.json"))]
    assert manifests == [f"backups/source/{plan.backup_id}/rest/manifest.json"]
    record = run(connections, planned(connections), InMidRun())
    assert [entry.collection for entry in record.collections] == ["again", "indexed", "rest"]
    assert workshop.leftovers() == []
    assert proven_everywhere(restore(workshop, record, "again"))


def test_a_replica_that_is_being_filled_is_not_read(workshop: Workshop, api: Api) -> None:
    """Qdrant would make its snapshot, whole by every checksum and without most points; Ferry refuses it."""
    api.call("PUT", "/collections/filling", few("filling").body)
    for start in range(0, 40_000, 10_000):
        points = [{"id": n, "vector": [n, 1, 2, 3]} for n in range(start, start + 10_000)]
        api.call("PUT", "/collections/filling/points?wait=true", {"points": points})
    connections = workshop.connect()
    layout = connections.cluster.read_layout(["filling"])
    (source,) = replicas(connections, "filling")
    target = next(node.peer_id for node in layout.nodes if node.peer_id != source)
    copy = {"shard_id": 0, "from_peer_id": source, "to_peer_id": target, "method": "stream_records"}
    api.call("POST", "/collections/filling/cluster", {"replicate_shard": copy})
    node = connections.cluster.node(target)
    wait_for(lambda: bool(node.collection_cluster("filling")["local_shards"]))
    with pytest.raises(SnapshotError, match=r"Shard 0 of filling on .* is (Partial|Initializing): a snapshot"):
        snapshots.create_snapshot(node, "filling", ShardId(0))
    assert node_snapshots(workshop.clusters["source"]) == []
    connections.cluster.wait_until_active("filling", {ShardId(0): {target}}, 60)
    made = snapshots.create_snapshot(node, "filling", ShardId(0))
    snapshots.delete_snapshot(node, "filling", ShardId(0), made.name)


def replicas(connections: Connections, name: str) -> set[int]:
    """The peers with a replica of shard 0, as the first node sees it."""
    view = read_collection_view(connections.cluster.nodes[0], name)
    return {int(peer) for _, peer in view.replicas}


def wait_for(reached: Callable[[], bool]) -> None:
    """Wait until it is so, at most half a minute."""
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
