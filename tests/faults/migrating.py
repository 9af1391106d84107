"""A migration in a process of its own, to be killed: what ``tests.faults.killed`` forks."""

from typing import Any

from ferry.connections import connect
from ferry.lanes import Job
from ferry.migration import copy
from ferry.migration.plan import MigrationRequest
from ferry.migration.run import run_migration


def migrate(request: dict[str, Any], checkpoint_seconds: float) -> None:
    """Migrate as ``python -m ferry migrate`` does, with checkpoints as often as a test wants them."""
    copy.CHECKPOINT_SECONDS = checkpoint_seconds
    asked = MigrationRequest.model_validate(request)
    run_migration(connect(asked.cluster, asked.repository), asked, "a run to be killed", Job(retry_delays_seconds=()))
