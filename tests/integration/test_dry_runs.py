"""Dry runs and plans against real servers, behind proxies that note every request: none of them changes anything.

Every deployment and every command of the command line stands in one of the tables below, or a test fails.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from ferry.__main__ import _MODULES, main
from ferry.repository.manifest import BackupRecord
from ferry.restore.switch import Intent, make_switch
from sandbox.prefect_server import PrefectServer
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.crossings import HOLDER, SERVERS, Eavesdropper, back_up, changes_something, new_id, restore
from tests.integration.samples import Api, few
from tests.workshop import Workshop, node_snapshots

pytestmark = SERVERS
DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]

DOCS, ALIAS, BACKUP = "docs", "docs-live", "{backup}"  # the last one stands for the id of the newest backup
STORED = {"repository": "main"}
SOURCE, TARGET = {**STORED, "cluster": "source"}, {**STORED, "cluster": "target"}
TO_TARGET = {**TARGET, "source_cluster": "source"}
LIVE = {**TO_TARGET, "collection": DOCS, "into": "new"}

# Parameters of each flow whose run must change nothing, by the name of its function.
FLOWS: dict[str, dict[str, Any]] = {
    "back_up_cluster": {**SOURCE, "dry_run": True},
    "restore_collection": {**TO_TARGET, "collection": DOCS, "alias": ALIAS, "dry_run": True},
    "plan_restore": {**TO_TARGET, "collection": DOCS, "alias": ALIAS, "path": "points"},
    "restore_cluster": {**TO_TARGET, "aliases": ["*"], "dry_run": True},
    "restore_in_place": {**LIVE, "backup": BACKUP, "confirm": "new", "dry_run": True},
    "recover_points": {**LIVE, "filter": {}, "mode": "overwrite", "dry_run": True},
    "finish_restore": {**TARGET, "alias": ALIAS, "now": True, "dry_run": True},
    "roll_back_restore": {**TARGET, "alias": ALIAS, "drop_new": True, "dry_run": True},
    "mend_collection": {
        "cluster": "target",
        "collection": "new",
        "replication_factor": 1,
        "patience_seconds": 0,
        "dry_run": True,
    },
    "migrate_collection": {
        **TARGET,
        "source_cluster": "source",
        "collection": DOCS,
        "into": "migrated",
        "alias": ALIAS,
        "dry_run": True,
    },
    "prune_backups": {**SOURCE, "policy": "strict", "dry_run": True},
}
# Command lines that must change nothing, and what they say when they have found what there is to do or to see.
_TO = "--cluster target --source-cluster source"
LINES = {
    "settings": "repositories.main",
    "list": "complete",
    "show source": DOCS,
    "backup source --dry-run": "3 archives",
    f"restore {_TO} {DOCS} --alias {ALIAS} --dry-run": "priority no_sync",
    f"plan {_TO} {DOCS} --shard-number 5": "points",
    f"restore-cluster {_TO} --alias * --dry-run": DOCS,
    f"restore-in-place {_TO} {DOCS} --into new --confirm new --backup {BACKUP} --dry-run": "new",
    f"recover {_TO} {DOCS} --into new --filter {{}} --mode overwrite --dry-run": "60",
    f"finish --cluster target --alias {ALIAS} --now --dry-run": "Would be dropped: old",
    f"roll-back --cluster target --alias {ALIAS} --drop-new --dry-run": "old",
    "mend target new --replication-factor 1 --patience 0 --dry-run": "surplus",
    f"migrate live:source/{DOCS} --cluster target --into migrated --alias {ALIAS} --dry-run": "by the writer stream",
    "migrations": "No migrations",
    "prune --cluster source --policy strict": "1 are to be deleted",
    "gc --cluster source --policy strict --all": "shards/7.1.snapshot",
}
# What reads archives puts a reader's mark beside their backup, so that no prune takes them away, and nothing else.
READING_FLOWS = {
    "verify_backup": SOURCE,
    "compare_backups": {**STORED, "first": f"source/latest/{DOCS}", "second": "live:target/new"},
}
READING_LINES = {
    "verify source": "intact",
    f"diff source/latest/{DOCS} live:target/new": "0",
    f"query --cluster source latest {DOCS} count": "60",
}
# What has no dry run, and why.
CHANGING = {
    "follow": "makes the old collection of a migration what the new one is, pass by pass",
    "export": "writes files into an empty folder, and says how many points they hold",
    "doctor": "tries the bucket with objects of its own",
    "hold": "puts one document, and says so",
    "hold_backup": "puts or takes away one document, and says so",
    "release": "takes one document away, and says so",
}


@dataclass(frozen=True)
class Stage:
    """Real clusters and a bucket with work for all who would do more than look."""

    shop: Workshop
    record: BackupRecord

    def given(self, value: Any) -> Any:
        """A parameter or a word of a command line, with the id of the backup where it is wanted."""
        return value.replace(BACKUP, self.record.backup_id) if isinstance(value, str) else value

    def state(self) -> list[Any]:
        """Objects in the bucket, collections and aliases of the clusters, and snapshots on their disks."""
        found: list[Any] = [self.shop.objects()]
        for cluster in self.shop.clusters.values():
            with Api(cluster.urls[0]) as api:
                found.append((api.collections(), api.aliases(), node_snapshots(cluster)))
        return found


@pytest.fixture(scope="module")
def stage(
    shared_s3: S3Server, three_nodes: QdrantCluster, two_nodes: QdrantCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """A backup to prune and an archive that nobody needs; an alias that a restore has moved, whose old collection is
    kept; and a collection that a dead restore has left. Afterwards all of it is as it was."""
    clusters, folder = {"source": three_nodes, "target": two_nodes}, tmp_path_factory.mktemp("dry-runs")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Workshop(folder, monkeypatch, shared_s3, clusters) as shop,
        Api(three_nodes.urls[0]) as source,
        Api(two_nodes.urls[0]) as target,
    ):
        sample = few(DOCS, 60)
        source.make(DOCS, replace(sample, body=sample.body | {"shard_number": 3, "replication_factor": 2}))
        source.alias(ALIAS, DOCS)
        target.make("old", few("old"))
        target.alias(ALIAS, "old")
        back_up(shop)
        made = Stage(shop, back_up(shop))
        restore(shop, made.record, DOCS, into="new")
        switch = Intent(alias=ALIAS, old="old", new="new", restore_id=new_id(), backup_id=made.record.backup_id)
        make_switch(shop.connect("target"), switch, HOLDER)
        target.make("half", few("half"))
        journal = shop.connect("target").journal(new_id())
        journal.note("collection", "half", {"collection": "half", "created": True})
        nobodys = f"{folder.name}/backups/source/{made.record.backup_id}/{DOCS}/shards/7.1.snapshot"
        shop.bucket.put_object(Bucket="ferry", Key=nobodys, Body=b"nobody's")
        before = made.state()
        yield made
        shop.configure()
        assert made.state() == before


@pytest.fixture
def heard(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Eavesdropper]:
    """Proxies before both clusters and the bucket, and a policy that keeps next to nothing."""
    monkeypatch.setenv("FERRY_CONFIG", str(stage.shop.config))
    monkeypatch.setenv("FERRY_POLICIES__STRICT__RESUME_HOURS", "0")
    for name, value in {"KEEP_LAST": 1, "MINIMUM_PROVEN": 1, "GRACE_HOURS": 0}.items():
        monkeypatch.setenv(f"FERRY_POLICIES__STRICT__RETENTION__{name}", str(value))
    with Eavesdropper(stage.shop, "source", "target") as listening:
        yield listening


def unmarked(stage: Stage, changes: list[str]) -> list[str]:
    """Changes without the marks of readers."""
    marks = f"/ferry/{stage.shop.folder.name}/readers/source/"
    return [line for line in changes if not line.split(" ")[1].startswith(marks)]


def flow_of(deployment: dict[str, Any]) -> tuple[str, Any]:
    """A deployment's flow by the name of its function."""
    module, _, name = deployment["entrypoint"].rpartition(".")
    return name, getattr(import_module(module), name)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_flow_that_only_looks_changes_nothing(
    deployment: dict[str, Any], stage: Stage, heard: Eavesdropper, prefect_server: PrefectServer
) -> None:
    """Each deployment has its dry run here, or its reason to have none."""
    name, flow = flow_of(deployment)
    can_look = "dry_run" in signature(flow.fn).parameters
    if name in CHANGING:
        assert not can_look
        return
    asked = FLOWS.get(name) or READING_FLOWS[name]
    assert asked.get("dry_run", False) is can_look
    flow(**{field: stage.given(value) for field, value in asked.items()})
    assert heard.of_nodes() + heard.bucket.requests
    assert (heard.changes() if name in FLOWS else unmarked(stage, heard.changes())) == []


@pytest.mark.parametrize("line", [*LINES, *READING_LINES], ids=lambda line: line.split()[0])
def test_a_command_that_only_looks_changes_nothing(
    line: str, stage: Stage, heard: Eavesdropper, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it has found what there is to do."""
    code = main([stage.given(word) for word in line.split()])
    assert code == (1 if line.startswith("mend ") else 0)  # 1 says that something is stuck
    assert (LINES | READING_LINES)[line] in capsys.readouterr().out
    assert heard.of_nodes() + heard.bucket.requests or line == "settings"
    assert (heard.changes() if line in LINES else unmarked(stage, heard.changes())) == []


def test_the_plan_of_a_first_backup_makes_no_repository(stage: Stage, heard: Eavesdropper) -> None:
    """Where nobody has ever backed up, nothing is there afterwards."""
    prefix = f"{stage.shop.folder.name}-empty/"
    stage.shop.configure(repository={"prefix": prefix.rstrip("/")})
    assert main(["backup", "source", "--dry-run"]) == 0
    assert stage.shop.bucket.list_objects_v2(Bucket="ferry", Prefix=prefix)["KeyCount"] == 0


def test_every_deployment_and_every_command_is_in_a_table() -> None:
    """It is proven to change nothing, or says why it does."""
    commands = {line.split()[0] for line in (*LINES, *READING_LINES)}
    flows = FLOWS.keys() | READING_FLOWS.keys()
    deployed = {deployment["entrypoint"].rpartition(".")[2] for deployment in DEPLOYMENTS}
    assert commands | flows | CHANGING.keys() == _MODULES.keys() | deployed
    assert not (commands | flows) & CHANGING.keys()


def test_requests_that_change_something_are_known() -> None:
    """Else the tests above would find nothing, whatever was asked."""
    for line in (
        "POST /collections/aliases",
        "PUT /collections/a/points?wait=true",
        "POST /collections/a/points/delete",
        "DELETE /collections/a",
        "PATCH /collections/a",
        "POST /collections/a/shards/0/snapshots?wait=true",
        "PUT /ferry/prefix/leases/source.json",
        "POST /ferry/prefix/a.snapshot?uploads",
    ):
        assert changes_something(f"{line} HTTP/1.1")
    for line in (
        "GET /collections",
        "HEAD /ferry/a",
        "POST /collections/a/shards/0/points/count",
        "POST /collections/a/points/query",
    ):
        assert not changes_something(f"{line} HTTP/1.1")
