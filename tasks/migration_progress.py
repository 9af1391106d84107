"""How far a migration is, on its run's page: every range together, and the threads inside one task."""

import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ferry import migration_report
from ferry.connections import connect
from ferry.errors import FerryError
from ferry.lanes import Job
from ferry.migration import records
from ferry.migration.plan import MigrationPlan
from ferry.models import Progress
from ferry.repository.lease import Lease
from tasks.policy import Shown, lease_watch, progress

PROGRESS_POINTS = 100_000  # fewer are copied before anybody looks
SHOWN_SECONDS = 5.0  # between two looks at how far all ranges are


def job_of(planned: MigrationPlan, lease: Lease) -> Job:
    """Threads inside one task: what they tell is shown as this task's, and a cancel of the flow stops them."""
    watch = lease_watch(connect(planned.request.cluster, planned.request.repository).store, lease.key, lease.fencing)
    here = contextvars.copy_context()  # what makes it a report of this task; a thread has a context of its own

    @contextmanager
    def tell(label: str, total: int | None) -> Iterator[Progress]:
        shown = here.copy().run(progress, label, total or 0, watch, PROGRESS_POINTS)
        yield lambda done: here.copy().run(shown, done)

    return Job(tell)


@contextmanager
def shown_as_a_whole(planned: MigrationPlan) -> Iterator[None]:
    """Show how far all ranges are together, how fast they go and how long they still take.

    It is read from the checkpoints in the bucket, so it is right wherever the tasks run.
    """
    over, here = threading.Event(), contextvars.copy_context()
    watcher = threading.Thread(target=here.run, args=(_show, planned, over), name="ferry-migration", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def _show(planned: MigrationPlan, over: threading.Event) -> None:
    connections = connect(planned.request.cluster, planned.request.repository)
    bar, total = Shown(f"migrate into {planned.target}"), planned.source.points
    began, before, pause = time.monotonic(), None, 0.0
    while not over.wait(pause):
        pause, looked = SHOWN_SECONDS, time.monotonic()
        try:
            done = sum(state.read for state in records.range_states(connections, planned))
        except FerryError:
            continue  # it is only shown; the tasks say what is wrong
        now = time.monotonic()
        before = done if before is None else before  # by earlier runs
        speed = (done - before) / max(0.001, now - began)
        percent = min(100.0, 100.0 * done / total) if total else 0.0
        bar.show(percent, migration_report.progress_text(done, total, speed))
        pause = max(SHOWN_SECONDS, 10 * (now - looked))  # a store that is slow, or many ranges, are asked less often
