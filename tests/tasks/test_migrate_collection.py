"""What the migration's tasks decide before anything is asked of a server: sources, restarts, approvals, one source."""

from datetime import timedelta
from typing import Any, Self

import pytest

from ferry.errors import ConfigurationError
from ferry.migration.plan import BackupSource, ParquetSource, QdrantSource
from tasks import migrate_collection, shared_source
from tests.unit.test_migrate_cli import a_plan, a_report

WISHES = {"source": QdrantSource(cluster="prod", collection="docs"), "into": "new", "shape": None}
FIELDS = {"cluster": "prod", "collection": "docs", "backup": "latest", "location": None}


@pytest.fixture(autouse=True)
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked."""
    monkeypatch.setattr(migrate_collection, "connect", lambda *_names: None)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("live collection", QdrantSource(cluster="prod", collection="docs")),
        ("backup", BackupSource(cluster="prod", collection="docs", backup="latest")),
        ("parquet", ParquetSource(location="/data")),
    ],
)
def test_the_form_names_a_source(kind: Any, expected: object) -> None:
    """By the fields that it needs; the others may hold what they like."""
    assert migrate_collection.source_named(kind, **FIELDS | {"location": "/data"}) == expected


@pytest.mark.parametrize(("kind", "field"), [("live collection", "collection"), ("backup", "collection")])
def test_a_field_that_is_empty_is_named(kind: Any, field: str) -> None:
    """By the name that it has in the form."""
    with pytest.raises(ConfigurationError, match=f"A {kind} as the source needs {field};"):
        migrate_collection.source_named(kind, **FIELDS | {field: None})
    with pytest.raises(ConfigurationError, match="A parquet as the source needs folder;"):
        migrate_collection.source_named("parquet", **FIELDS)


@pytest.mark.parametrize(
    ("began_after_seconds", "expected"),
    [(None, True), (60, True), (-60, False)],
    ids=["first time", "the plan is of an earlier run", "the plan is this run's"],
)
def test_a_run_restarts_a_migration_once(
    began_after_seconds: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was suspended begins from the top: what it has copied since must not be dropped again."""
    plan = a_plan()
    began = None if began_after_seconds is None else plan.created_at + timedelta(seconds=began_after_seconds)
    monkeypatch.setattr(migrate_collection, "_began", lambda: began)
    monkeypatch.setattr(migrate_collection.records, "saved_plan", lambda *_asked: plan)
    request = migrate_collection.request_migration("target", "main", {**WISHES, "restart": True})
    assert request.restart is expected
    assert migrate_collection.request_migration("target", "main", WISHES).restart is False


@pytest.mark.parametrize(("began_before_seconds", "kept"), [(None, False), (60, True), (-60, False)])
def test_only_a_report_of_this_very_run_counts(
    began_before_seconds: int | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another run has compared is another moment."""
    plan = a_plan(alias="docs-live")
    report = a_report(plan)
    began = None if began_before_seconds is None else report.finished_at - timedelta(seconds=began_before_seconds)
    monkeypatch.setattr(migrate_collection, "_began", lambda: began)
    monkeypatch.setattr(migrate_collection.records, "saved_report", lambda *_asked: report)
    assert (migrate_collection._finished_before(plan) == report) is kept


def test_only_a_deployment_can_be_asked() -> None:
    """Said before hours of copying, and only where there is something to ask."""
    asking = a_plan(alias="docs-live").request
    with pytest.raises(ConfigurationError, match="Only a run of a deployment"):
        migrate_collection.require_answerable(asking, approve=True)
    migrate_collection.require_answerable(asking, approve=False)
    migrate_collection.require_answerable(a_plan().request, approve=True)


class Opened:
    """A source that notes when it is opened and closed."""

    def __init__(self, noted: list[str]) -> None:
        self.noted = noted

    def __enter__(self) -> Self:
        self.noted.append("open")
        return self

    def __exit__(self, *_: object) -> None:
        self.noted.append("close")


def test_tasks_of_a_process_share_one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed by the last of them, and opened again when it is wanted again."""
    noted: list[str] = []
    monkeypatch.setattr(shared_source, "open_source", lambda _request: Opened(noted))
    plan = a_plan()
    with shared_source.shared(plan) as first:
        with shared_source.shared(plan) as second:
            assert second is first
        assert noted == ["open"]
    assert noted == ["open", "close"]
    with shared_source.shared(plan):
        pass
    assert noted == ["open", "close"] * 2
