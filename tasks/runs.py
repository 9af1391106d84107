"""Who this flow run is: its id in the bucket, the same however often Prefect retries it, and its name in leases."""

import os
import socket
from datetime import UTC, datetime
from uuid import uuid4

from prefect.runtime import flow_run

from ferry.models import BackupId, now
from ferry.repository.layout import new_backup_id


def run_id() -> BackupId:
    """A sortable id from the flow run's scheduled time and its own id; from the clock outside a flow run."""
    started = flow_run.scheduled_start_time
    moment = datetime.fromisoformat(started.isoformat()).astimezone(UTC) if started else now()
    return new_backup_id(moment, str(flow_run.id or uuid4()))


def holder(what: str) -> str:
    """What a lease says about who holds it."""
    return f"{what}, flow run {flow_run.name or 'without Prefect'}, process {os.getpid()} on {socket.gethostname()}"
