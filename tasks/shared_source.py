"""One open source for all tasks of this process that read from it: a backup's archives are fetched once for all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ferry.migration.plan import MigrationPlan
from ferry.migration.prepare import open_source
from ferry.migration.source import Source

_lock = threading.Lock()
_open: dict[str, tuple[Source, int]] = {}  # by the migration, with how many use it


@contextmanager
def shared(planned: MigrationPlan) -> Iterator[Source]:
    """The source of a migration, open; whoever leaves it last closes it. Raises what opening raises."""
    key = planned.migration_id
    with _lock:
        source, users = _open.get(key) or (open_source(planned.request).__enter__(), 0)
        _open[key] = (source, users + 1)
    try:
        yield source
    finally:
        with _lock:
            source, users = _open.pop(key)
            if users > 1:
                _open[key] = (source, users - 1)
            else:
                source.__exit__(None, None, None)
