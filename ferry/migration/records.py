"""The documents of a migration in the repository: its plan, a checkpoint for each range, and its report.

They are all that a resume needs, so a worker may be replaced at any time. A checkpoint belongs to a plan and a range,
never to a worker; one that bears the stamp of another plan counts as none.
"""

import hashlib
import logging
from typing import TypeVar

import orjson
from pydantic import ValidationError

from ferry.connections import Repository
from ferry.errors import BackupNotFoundError, ConflictError, FerryError, RepositoryError
from ferry.migration.plan import MigrationPlan, MigrationRequest
from ferry.migration.report import CompletenessReport, RangeState
from ferry.models import Value

V = TypeVar("V", bound=Value)
log = logging.getLogger(__name__)


def migration_id_of(request: MigrationRequest) -> str:
    """The id of a migration: the same for the same source, target cluster and new name, whatever else is asked.

    Of a backup any of the same collection counts as the same source, so that ``latest`` can be gone on with when there
    is a newer one; which one it was is in the plan.
    """
    source = request.source.model_dump(mode="json", exclude={"backup"})
    named = orjson.dumps([source, request.cluster, request.into], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(named).hexdigest()[:16]


def stamp_of(plan: MigrationPlan) -> str:
    """What a plan's checkpoints bear: the moment at which it was made."""
    return plan.created_at.isoformat()


def saved_plan(repository: Repository, migration_id: str) -> MigrationPlan | None:
    """The plan of a migration that was begun; None when it never was."""
    return read_record(repository, repository.keys.migration_plan(migration_id), MigrationPlan)


def keep_plan(repository: Repository, plan: MigrationPlan) -> MigrationPlan:
    """Write the plan, once: the one that counts from here on. To be called by the holder of the target's lease.

    A request to ``restart`` replaces what is there. Raises ConflictError when another run was faster.
    """
    key = repository.keys.migration_plan(plan.migration_id)
    data = orjson.dumps(plan.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
    before = saved_plan(repository, plan.migration_id)
    if before is None:
        repository.store.put_document(key, data, if_absent=True)
    elif stamp_of(before) == stamp_of(plan):
        return plan
    elif plan.request.restart:
        repository.store.put_document(key, data, if_match=repository.store.get_document(key)[1])
    else:
        msg = f"Migration {plan.migration_id} was planned by another run at {before.created_at:%H:%M:%S} UTC."
        raise ConflictError(msg, "Run it again: it goes on with that plan.")
    return plan


def range_state(repository: Repository, plan: MigrationPlan, number: int) -> RangeState:
    """How far a range of this plan is; a new one when nothing of it was done."""
    found = read_record(repository, repository.keys.migration_range(plan.migration_id, number), RangeState)
    if found is None or found.stamp != stamp_of(plan):
        return RangeState(stamp=stamp_of(plan), number=number)
    return found


def range_states(repository: Repository, plan: MigrationPlan) -> list[RangeState]:
    """How far every range of this plan is, in the plan's order."""
    return [range_state(repository, plan, part.number) for part in plan.ranges]


def keep_range_state(repository: Repository, plan: MigrationPlan, state: RangeState) -> None:
    """Write the checkpoint of a range, after everything that it counts was applied by the target."""
    repository.store.put_document(repository.keys.migration_range(plan.migration_id, state.number), state.to_bytes())


def keep_quietly(repository: Repository, plan: MigrationPlan, state: RangeState) -> None:
    """The same where something has failed already, which must not be hidden: a store's refusal is only logged."""
    try:
        keep_range_state(repository, plan, state)
    except FerryError as error:
        log.warning(
            "range %d of %s has no checkpoint of its last batches: %s", state.number, plan.target, error.message
        )


def forget_progress(repository: Repository, plan: MigrationPlan) -> None:
    """Forget all that counts as done: the collection that it was done in is not there (any more).

    The plan stays. With keys that may not delete, empty documents stand for none.
    """
    store, keys = repository.store, repository.keys
    plan_key = keys.migration_plan(plan.migration_id)
    found = [info for info in store.list(keys.migration_prefix(plan.migration_id)) if info.key != plan_key]
    if store.can_delete:
        store.delete(info.key for info in found)
        return
    for info in found:
        if info.bytes:
            store.put_document(info.key, b"")


def saved_report(repository: Repository, migration_id: str) -> CompletenessReport | None:
    """The report of a migration that has ended; None while it has not."""
    return read_record(repository, repository.keys.migration_report(migration_id), CompletenessReport)


def keep_report(repository: Repository, report: CompletenessReport) -> None:
    """Write the report of a migration; a later run's replaces it."""
    repository.store.put_document(repository.keys.migration_report(report.migration_id), report.to_bytes())


def read_record(repository: Repository, key: str, kind: type[V]) -> V | None:
    try:
        data, _ = repository.store.get_document(key)
    except BackupNotFoundError:
        return None
    try:
        return kind.model_validate_json(data) if data else None
    except ValidationError as error:
        msg = f"{key} cannot be read by this version of Ferry; nothing was changed."
        raise RepositoryError(msg, "Go on with the version that wrote it, or begin anew: restart.") from error
