"""What the arguments of ``migrate`` ask for, and what is said of a plan, of a report and of many migrations."""

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ferry import migration_report
from ferry.__main__ import main, parser
from ferry.cli import migrate
from ferry.connections import Repository
from ferry.errors import ConfigurationError
from ferry.migration import records
from ferry.migration.cut_over import CutOver
from ferry.migration.plan import (
    BackupSource,
    Changes,
    Cost,
    MigrationPlan,
    MigrationRequest,
    ParquetSource,
    QdrantSource,
)
from ferry.migration.reconcile import Pass, Reconciled
from ferry.migration.report import CompletenessReport, RangeState, RejectedPoint, VectorCount
from ferry.migration.source import SourceDescription, SourceRange
from ferry.models import ShardId, now
from ferry.profiles import RepositoryProfile, WorkerSettings
from ferry.repository.catalog import Catalog
from ferry.repository.layout import Keys
from ferry.repository.store import Store
from ferry.restore.shape import PlannedShard, Shape
from tests.unit.builders import collection, layout, node, shard
from tests.unit.fakes import MemoryStore

TO_TARGET = ["--cluster", "target", "--repository", "main", "--into", "new"]
LINE = ["migrate", "live:prod/docs", *TO_TARGET]


def a_plan(**asked: Any) -> MigrationPlan:
    """A migration of two ranges into one shard."""
    given = {"cluster": "target", "repository": "main", "into": "new", **asked}
    request = MigrationRequest(**{"source": QdrantSource(cluster="prod", collection="docs"), **given})
    found = collection("docs", [shard(0, [1])])
    source = SourceDescription(
        kind="qdrant",
        name="docs on prod",
        identity="prod/docs",
        config=found.config,
        payload_schema={},
        consistency="live",
        points=1_000,
        bytes=5_000,
    )
    return MigrationPlan(
        migration_id=records.migration_id_of(request),
        created_at=now(),
        request=request,
        source=source,
        fingerprint={},
        config=found.config,
        payload_schema={},
        shards=(PlannedShard(shard_id=ShardId(0), copies=2),),
        ranges=tuple(SourceRange(number=number, label=f"ids {number}", points=500) for number in (0, 1)),
        writer="stream",
        costs=(Cost(writer="stream", seconds=90), Cost(writer="build", spool_bytes=10_000, reason="no such engine")),
        reasons=("stream: because",),
    )


def a_report(plan: MigrationPlan, **told: Any) -> CompletenessReport:
    """What came of that migration."""
    usual: dict[str, Any] = {
        "migration_id": plan.migration_id,
        "source": plan.source.name,
        "cluster": "target",
        "target": plan.target,
        "writer": "stream",
        "verdict": "equal",
        "read": 1_000,
        "written": 998,
        "deduplicated": 0,
        "rejected": (RejectedPoint(id=7, reason="vector has NaN"),),
        "source_points": 998,
        "target_points": 998,
        "source_digest": "ab" * 32,
        "target_digest": "ab" * 32,
        "vectors": {"": VectorCount(source=998, target=998)},
        "started_at": plan.created_at,
        "finished_at": plan.created_at + timedelta(seconds=2),
        "copy_seconds": 1.0,
        "seconds": 2.0,
    }
    return CompletenessReport(**usual | told)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("live:prod/docs", QdrantSource(cluster="prod", collection="docs")),
        ("live:prod/a/b", QdrantSource(cluster="prod", collection="a/b")),
        ("prod/latest/docs", BackupSource(cluster="prod", backup="latest", collection="docs")),
        ("parquet:/data/docs", ParquetSource(location="/data/docs")),
    ],
)
def test_a_source_is_one_word(text: str, expected: object) -> None:
    """In the same form as for diff, and it is said in that form again."""
    made = migrate.source_of(text)
    assert made == expected
    assert migration_report.source_text(made) == text


@pytest.mark.parametrize("text", ["docs", "live:docs", "prod/docs", "parquet:", "live:Prod/docs"])
def test_a_word_that_names_no_source_is_refused(text: str) -> None:
    """With all forms that there are."""
    with pytest.raises(ConfigurationError, match="parquet:FOLDER") as refused:
        migrate.source_of(text)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Changes()),
        (["--rename-vector", "=text", "--drop-vector", "image"], Changes(vectors={"": "text", "image": None})),
        (["--rename-field", "a=b", "--drop-field", "c"], Changes(rename_fields={"a": "b"}, drop_fields=("c",))),
        (["--field-type", "price=float"], Changes(field_types={"price": "float"})),
        (["--datatype", "uint8", "--distance", "Dot"], Changes(datatype="uint8", distance="Dot")),
    ],
)
def test_changes_are_made_of_arguments(arguments: list[str], expected: Changes) -> None:
    """What is left out stays as it was."""
    assert migrate.changes_of(parser().parse_args([*LINE, *arguments])) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rename-vector", "a"], "must be OLD=NEW"),
        (["--rename-vector", "a=b", "--drop-vector", "a"], "--drop-vector a: it is renamed, too"),
        (["--rename-field", "=b"], "must be OLD=NEW"),
        (["--field-type", "price=number"], "field_types"),
    ],
)
def test_changes_that_cannot_be_meant_are_refused(arguments: list[str], said: str) -> None:
    """In words, before anything is asked of anybody."""
    with pytest.raises(ConfigurationError, match=said):
        migrate.changes_of(parser().parse_args([*LINE, *arguments]))


class Called:
    """What the command asked of the library, which is not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.migrated: list[MigrationRequest] = []
        self.cut_over: list[MigrationPlan] = []
        monkeypatch.setattr(migrate.terminal, "chosen_repository", lambda name: name)
        cluster = SimpleNamespace(read_layout=lambda **_asked: layout([node(1), node(2)], []))
        monkeypatch.setattr(migrate, "connect", lambda *_names: SimpleNamespace(cluster=cluster))
        monkeypatch.setattr(migrate, "prepare_migration", lambda _connections, request: planned(request))
        monkeypatch.setattr(migrate, "run_migration", self._run)
        monkeypatch.setattr(migrate, "_cut_over", self._cut_over)

    def _run(
        self, _connections: Any, request: MigrationRequest, _holder: str, _job: Any, announce: Any
    ) -> CompletenessReport:
        self.migrated.append(request)
        announce(planned(request))
        return a_report(planned(request))

    def _cut_over(self, _connections: Any, request: MigrationRequest, _holder: str) -> str:
        self.cut_over.append(planned(request))
        return "moved"


def planned(request: MigrationRequest) -> MigrationPlan:
    return a_plan().model_copy(update={"request": request})


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    return Called(monkeypatch)


def test_the_command_asks_for_what_was_typed(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    """And says the plan before, and what came of it after."""
    words = "--readers 7 --writer build --shard-number 5 --keep-deleted --leave-out-refused --restart"
    assert main([*LINE, *words.split(), "--filter", '{"must": []}', "--drop-field", "secret"]) == 0
    [request] = called.migrated
    assert request == MigrationRequest(
        cluster="target",
        repository="main",
        source=QdrantSource(cluster="prod", collection="docs"),
        into="new",
        filter={"must": []},
        shape=Shape(shard_number=5),
        changes=Changes(drop_fields=("secret",)),
        writer="build",
        readers=7,
        leave_out_refused=True,
        deletes=False,
        restart=True,
    )
    said = capsys.readouterr().out
    assert said.index("Migration ") < said.index("new is equal to its source")
    assert called.cut_over == []


@pytest.mark.parametrize("alias", [None, "docs-live"])
def test_only_an_alias_is_cut_over(alias: str | None, called: Called) -> None:
    """Without one the old collection stays in use."""
    assert main([*LINE, *(["--alias", alias] if alias else [])]) == 0
    assert [plan.request.alias for plan in called.cut_over] == ([alias] if alias else [])


def test_a_dry_run_only_plans(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    """For people and for programs."""
    assert main([*LINE, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "by the writer stream" in said
    assert "node-2:6333" in said
    assert main([*LINE, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["into"] == "new"
    assert called.migrated == []


def test_too_many_readers_are_refused(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    """In words, not as a traceback."""
    assert main([*LINE, "--readers", "65"]) == 1
    assert "readers: Input should be less than or equal to 64" in capsys.readouterr().err
    assert called.migrated == []


def test_the_list_says_how_far_each_migration_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its checkpoints, and by its report when it has ended."""
    profile, keys, store = RepositoryProfile(bucket="main"), Keys("ferry"), cast("Store", MemoryStore())
    repository = Repository(profile, WorkerSettings(), store, keys, Catalog(store, keys))
    monkeypatch.setattr(migrate.terminal, "chosen_repository", lambda name: name)
    monkeypatch.setattr(migrate, "connect_repository", lambda _name: repository)
    going, ended = a_plan(), a_plan(into="other")
    for plan in (going, ended):
        records.keep_plan(repository, plan)
    half = RangeState(stamp=records.stamp_of(going), number=0, cursor=9, read=400, written=399, done=True)
    records.keep_range_state(repository, going, half)
    records.keep_report(repository, a_report(ended))
    assert main(["migrations", "--json"]) == 0
    rows = {row["to"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["target/new"]["ranges done"], rows["target/new"]["read"]) == ("1 of 2", 400)
    assert rows["target/new"]["state"] == "not finished"
    assert rows["target/other"]["state"] == "equal"
    assert main(["migrations", "--cluster", "elsewhere"]) == 0
    assert "No migrations" in capsys.readouterr().out


def test_a_plan_says_what_is_chosen_and_why() -> None:
    """And what will be otherwise than in the source."""
    plan = a_plan(filter={"must": []}, changes=Changes(drop_fields=("secret",)), shape=Shape(shard_number=5))
    text = migration_report.plan_text(plan)
    assert "of live:prod/docs to target as **new** by the writer **stream**: about 1000 points, about 5.0 kB" in text
    assert "in 2 ranges, into 1 shards × 2 replicas, about 90 s" in text
    assert "- stream: because" in text
    for wish in ("- shard_number: 5", "- drop_fields: ('secret',)", "- filter: {'must': []}"):
        assert wish in text
    assert "- nothing" in migration_report.plan_text(a_plan())
    assert [row["chosen"] for row in migration_report.cost_rows(plan)] == ["yes", "no such engine"]
    assert [row["points"] for row in migration_report.plan_rows(plan)] == [500, 500]


def test_progress_says_how_long_it_takes() -> None:
    """At the speed so far; without a total or a speed nobody knows."""
    assert (
        migration_report.progress_text(1_000, 4_000, 100.0)
        == "1,000 of about 4,000 points, 100 points/s, about 30 s left"
    )
    assert migration_report.progress_text(1_000, None, 100.0) == "1,000 points, 100 points/s"
    assert "nobody knows how long" in migration_report.progress_text(0, 4_000, 0.0)
    assert "about 0 s left" in migration_report.progress_text(5_000, 4_000, 100.0)


def test_a_report_names_what_is_not_in_the_target() -> None:
    """Counts of both sides, every kind of vector, and the points that were refused with the reason."""
    plan = a_plan()
    text = migration_report.report_text(a_report(plan))
    assert "## new is equal to its source" in text
    assert "- 7: vector has NaN" in text
    assert "| refused | 1 |" in text
    assert "(unnamed) 998 / 998" in text
    assert "499 points/s" in text
    different = migration_report.report_text(a_report(plan, verdict="different", differences=("point 3 is missing",)))
    assert "**differs from its source**" in different
    assert "- point 3 is missing" in different


def test_an_approval_says_what_to_pause() -> None:
    """Only what can still change."""
    plan = a_plan(alias="docs-live")
    asked = migration_report.approval_text(plan, a_report(plan))
    assert "Shall alias docs-live move to new?" in asked
    assert "Pause what writes to live:prod/docs first" in asked
    frozen = plan.model_copy(update={"source": plan.source.model_copy(update={"consistency": "frozen"})})
    assert "Pause what writes" not in migration_report.approval_text(frozen, a_report(plan))


SEEN = Pass(
    number=1,
    source_points=998,
    target_points=998,
    source_digest="ab",
    target_digest="ab",
    missing=2,
    changed=1,
    surplus=0,
    written=3,
    seconds=0.5,
)


def test_a_cut_over_says_what_was_carried_over_and_the_freeze() -> None:
    """Where an earlier call had moved the alias, there is nothing more to say than that."""
    plan = a_plan(alias="docs-live")
    once = Reconciled(passes=(SEEN,), within_limit=True)
    done = CutOver(before=once, final=once, freeze_seconds=1.25, switch=None, instruction="Let writers go on.")
    text = migration_report.cut_over_text(plan, done)
    assert "## new is in service\n\nLet writers go on." in text
    assert "Before that 6 points were written again and 0 deleted" in text
    assert "1.2 s" in text
    again = migration_report.cut_over_text(plan, CutOver(switch=None, instruction="Let writers go on."))
    assert "pause" not in again
    assert "Let writers go on." in again


def test_a_pause_says_how_long() -> None:
    """By what the last comparison took."""
    said = migration_report.pause_text(a_plan(), Reconciled(passes=(SEEN,), within_limit=True))
    assert "Pause what writes to live:prod/docs" in said
    assert "3 of 998 points differed" in said


def test_a_pass_is_a_line() -> None:
    """With what differed and what was done about it."""
    said = migration_report.pass_text(SEEN)
    assert said == "Pass 1: 2 missing, 1 changed, 0 surplus of 998 points; 3 written, 0 deleted, in 0.5 s."
