"""``migrate`` and ``migrations``: bring a collection into a new one without Prefect, and see how far that is."""

import argparse
import sys
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.markdown import Markdown

from ferry import migration_report
from ferry.cli import terminal
from ferry.cli.chosen import given_filter
from ferry.cli.restore import pairs, shape_of
from ferry.connections import Connections, connect, connect_repository
from ferry.errors import ConfigurationError
from ferry.lanes import Job
from ferry.migration import records
from ferry.migration.cut_over import cut_over
from ferry.migration.plan import (
    BackupSource,
    Changes,
    MigrationPlan,
    MigrationRequest,
    ParquetSource,
    QdrantSource,
    SourceName,
)
from ferry.migration.prepare import open_source, prepare_migration
from ferry.migration.reconcile import Reconciled
from ferry.migration.run import alone, run_migration
from ferry.models import Value
from ferry.verify.sides import parse_side

_PARQUET = "parquet:"
M = TypeVar("M", bound=Value)


def run(given: argparse.Namespace) -> int:
    """Show the plan; unless no more was asked for migrate, move the alias, and print what came of it."""
    if given.command == "migrations":
        return _list(given)
    connections, request = asked(given)
    if given.dry_run:
        plan = prepare_migration(connections, request)
        if given.json:
            terminal.print_json(plan.model_dump(mode="json"))
        else:
            _print_plan(plan)
            layout = connections.cluster.read_layout(include=())
            terminal.print_rows(migration_report.need_rows(plan, layout), "Nodes")
        return 0
    holder = f"migration into {request.into} by python -m ferry"
    with terminal.progress_bars() as tell:
        announce = _say_nothing if given.json else _print_plan
        report = run_migration(connections, request, holder, Job(tell), announce=announce)
    if given.json:
        terminal.print_json(report.model_dump(mode="json"))
    else:
        terminal.print_text(migration_report.report_text(report))
    if request.alias:
        said = _cut_over(connections, request, holder)
        (terminal.err() if given.json else terminal.out()).print(Markdown(said))
    return 0


def asked(given: argparse.Namespace) -> tuple[Connections, MigrationRequest]:
    """The request that the arguments make, and the clients that it needs. Raises ConfigurationError."""
    repository = terminal.chosen_repository(given.repository)
    wishes: dict[str, Any] = {
        "cluster": given.cluster,
        "repository": repository,
        "source": source_of(given.source),
        "into": given.into,
        "filter": given_filter(given),
        "replication_factor": given.replication_factor,
        "shape": shape_of(given),
        "changes": changes_of(given),
        "writer": given.writer,
        "readers": given.readers,
        "leave_out_refused": given.leave_out_refused,
        "deletes": not given.keep_deleted,
        "alias": given.alias,
        "keep_days": given.keep_days,
        "restart": given.restart,
    }
    return connect(given.cluster, repository), _valid(MigrationRequest, wishes)


def source_of(text: str) -> SourceName:
    """What ``SOURCE`` names. Raises ConfigurationError for what cannot be meant."""
    if text.startswith(_PARQUET) and (location := text.removeprefix(_PARQUET)):
        return ParquetSource(location=location)
    try:
        side = parse_side(text)
    except ConfigurationError:
        msg = f"{text!r} is neither live:CLUSTER/COLLECTION nor CLUSTER/BACKUP/COLLECTION nor parquet:FOLDER."
        raise ConfigurationError(msg, "Such as live:prod/docs, prod/latest/docs or parquet:/data/docs.") from None
    if side.backup is None:
        return QdrantSource(cluster=side.cluster, collection=side.collection)
    return BackupSource(cluster=side.cluster, backup=side.backup, collection=side.collection)


def changes_of(given: argparse.Namespace) -> Changes:
    """The changes that the arguments ask for. Raises ConfigurationError for what cannot be meant."""
    renamed = pairs(given.rename_vector, "--rename-vector", unnamed=True)
    if both := renamed.keys() & set(given.drop_vector):
        msg = f"--drop-vector {min(both)}: it is renamed, too."
        raise ConfigurationError(msg, "Say one of both.")
    wishes = {
        "vectors": renamed | dict.fromkeys(given.drop_vector),
        "drop_fields": given.drop_field,
        "rename_fields": pairs(given.rename_field, "--rename-field"),
        "field_types": pairs(given.field_type, "--field-type"),
        "datatype": given.datatype,
        "distance": given.distance,
    }
    return _valid(Changes, wishes)


def _valid(model: type[M], wishes: dict[str, Any]) -> M:
    try:
        return model.model_validate(wishes)
    except ValidationError as error:
        told = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise ConfigurationError(f"{told}.", "See the command's --help.") from None


def _print_plan(plan: MigrationPlan) -> None:
    terminal.print_text(migration_report.plan_text(plan))
    terminal.print_rows(migration_report.plan_rows(plan), "Ranges")
    terminal.print_rows(migration_report.cost_rows(plan), "Writers")


def _say_nothing(_plan: MigrationPlan) -> None:
    """For programs that read the report as JSON."""


def _cut_over(connections: Connections, request: MigrationRequest, holder: str) -> str:
    """Put the new collection into service; what was done, in words."""
    plan = prepare_migration(connections, request.model_copy(update={"restart": False}))

    def pause(before: Reconciled) -> None:
        """Wait for a person, where there is one: a script has paused its writers before."""
        terminal.err().print(Markdown(migration_report.pause_text(plan, before)))
        if sys.stdin.isatty():
            input("Enter when they have paused, Ctrl-C to leave it as it is. ")

    with alone(connections, request, holder), open_source(plan.request) as source:
        done = cut_over(connections, plan, source, pause)
    return migration_report.cut_over_text(plan, done)


def _list(given: argparse.Namespace) -> int:
    """Print one row a migration: from where to where, and how far it is. Changes nothing."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    ids = repository.store.list_folders(repository.keys.migrations_prefix)
    plans = [plan for each in sorted(ids) if (plan := records.saved_plan(repository, each)) is not None]
    rows = [
        migration_report.migration_row(
            plan, records.range_states(repository, plan), records.saved_report(repository, plan.migration_id)
        )
        for plan in sorted(plans, key=lambda plan: plan.created_at, reverse=True)
        if given.cluster in (None, plan.request.cluster)
    ]
    if given.json:
        terminal.print_json(rows)
        return 0
    terminal.print_rows(rows)
    if not rows:
        terminal.print_raw("No migrations in this repository.")
    return 0
