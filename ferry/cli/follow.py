"""``follow``: after a cut-over keep the old collection equal to the new one, so that a roll back loses nothing."""

import argparse

from ferry import migration_report
from ferry.cli import terminal
from ferry.connections import connect, connect_repository
from ferry.errors import ConfigurationError
from ferry.lanes import Job
from ferry.migration import records
from ferry.migration.follow import follow
from ferry.migration.plan import MigrationPlan
from ferry.migration.reconcile import Pass


def run(given: argparse.Namespace) -> int:
    """Print one line a pass, until the switch is finished or rolled back, or after the one pass that was asked for."""
    repository = terminal.chosen_repository(given.repository)
    plan = _plan(repository, given.migration, given.alias)
    connections = connect(plan.request.cluster, repository)
    every = None if given.once else given.every
    with terminal.progress_bars() as tell:
        done = Job(tell).step(
            f"follow {plan.target}", None, lambda told: follow(connections, plan, every, announce=_say, progress=told)
        )
    same = "are equal" if done.equal else "were not equal when they were last compared"
    terminal.print_raw(f"{plan.target} and {plan.source.name} {same}.")
    return 0


def _plan(repository: str, migration_id: str, alias: str) -> MigrationPlan:
    """The plan of a migration, with the alias that it was cut over with, which a later run than the first may name."""
    plan = records.saved_plan(connect_repository(repository), migration_id)
    if plan is None:
        msg = f"There is no migration {migration_id} in repository {repository}."
        raise ConfigurationError(msg, "See them: python -m ferry migrations")
    return plan.model_copy(update={"request": plan.request.model_copy(update={"alias": alias})})


def _say(done: Pass) -> None:
    terminal.print_raw(migration_report.pass_text(done))
