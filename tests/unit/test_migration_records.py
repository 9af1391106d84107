"""Documents of migrations: what counts as the same migration, and which checkpoints count for which plan."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ferry.connections import Repository
from ferry.errors import ConflictError, RepositoryError
from ferry.migration import records
from ferry.migration.plan import BackupSource, MigrationPlan, MigrationRequest, QdrantSource
from ferry.migration.report import RangeState, RejectedPoint
from ferry.migration.source import SourceDescription, SourceRange
from ferry.models import now
from ferry.repository.layout import Keys
from tests.unit.fakes import MemoryStore

CONFIG: dict[str, Any] = {
    "params": {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 1, "replication_factor": 1},
    "optimizer_config": {"indexing_threshold": 10_000},
}


def request(**wishes: Any) -> MigrationRequest:
    usual = {"cluster": "target", "repository": "main", "source": QdrantSource(cluster="source", collection="docs")}
    return MigrationRequest(**{**usual, "into": "new", **wishes})


def description(**others: Any) -> SourceDescription:
    usual = {
        "kind": "qdrant",
        "name": "docs of source",
        "identity": "qdrant/source/docs/1",
        "config": CONFIG,
        "payload_schema": {"city": {"data_type": "keyword", "points": 7}},
        "consistency": "live",
        "points": 1000,
    }
    return SourceDescription(**{**usual, **others})


def plan(asked: MigrationRequest | None = None, **others: Any) -> MigrationPlan:
    asked = asked or request()
    usual = {
        "migration_id": records.migration_id_of(asked),
        "created_at": now(),
        "request": asked,
        "source": description(),
        "fingerprint": {},
        "config": CONFIG,
        "payload_schema": {},
        "shards": (),
        "ranges": (SourceRange(number=0, label="first"), SourceRange(number=1, label="second")),
        "writer": "stream",
    }
    return MigrationPlan(**{**usual, **others})


@pytest.fixture
def repository() -> Repository:
    """A repository in memory."""
    return cast("Repository", SimpleNamespace(store=MemoryStore(), keys=Keys("ferry")))


def test_a_migration_is_known_by_its_source_its_cluster_and_its_name() -> None:
    """Other wishes are the same migration, as is another backup of the collection; another place is another one."""
    own = records.migration_id_of(request())
    assert own == records.migration_id_of(request(readers=9, batch_bytes=4096, filter={"must": []}, alias="a"))
    others = [request(into="other"), request(cluster="third")]
    others += [request(source=QdrantSource(cluster="source", collection="other"))]
    assert len({own, *map(records.migration_id_of, others)}) == 4
    backups = [
        request(source=BackupSource(cluster="source", collection="docs", backup=backup)) for backup in ("latest", "b")
    ]
    assert len({own, *map(records.migration_id_of, backups)}) == 2


def test_a_plan_is_written_once(repository: Repository) -> None:
    """The first one stays, unless it is begun anew; written again it is the same."""
    first = plan()
    assert records.saved_plan(repository, first.migration_id) is None
    assert records.keep_plan(repository, first) == first
    assert records.keep_plan(repository, first) == records.saved_plan(repository, first.migration_id) == first
    later = plan(created_at=first.created_at + timedelta(seconds=1))
    with pytest.raises(ConflictError, match="planned by another run"):
        records.keep_plan(repository, later)
    anew = plan(request(restart=True), created_at=later.created_at)
    records.keep_plan(repository, anew)
    assert records.saved_plan(repository, first.migration_id) == anew


def test_a_checkpoint_counts_for_its_plan_alone(repository: Repository) -> None:
    """One of a plan that was replaced, as a worker that was frozen may write it, is none."""
    first = plan()
    state = RangeState(
        stamp=records.stamp_of(first),
        number=1,
        cursor=2**63,
        read=3,
        written=2,
        rejected=(RejectedPoint(id=7, reason="why"),),
    )
    records.keep_range_state(repository, first, state)
    assert records.range_states(repository, first) == [RangeState(stamp=state.stamp, number=0), state]
    later = plan(created_at=first.created_at + timedelta(seconds=1))
    assert [each.read for each in records.range_states(repository, later)] == [0, 0]


@pytest.mark.parametrize("can_delete", [True, False])
def test_nothing_counts_when_the_collection_is_gone(repository: Repository, can_delete: bool) -> None:
    """All but the plan is forgotten, with keys that may not delete, too."""
    cast("MemoryStore", repository.store).can_delete = can_delete
    known = records.keep_plan(repository, plan())
    records.keep_range_state(repository, known, RangeState(stamp=records.stamp_of(known), number=0, read=5, done=True))
    records.forget_progress(repository, known)
    assert not any(state.done or state.read for state in records.range_states(repository, known))
    assert records.saved_plan(repository, known.migration_id) == known


def test_a_document_of_another_version_is_an_error_and_not_nothing(repository: Repository) -> None:
    """Read as nothing, it would begin a migration anew that another version has half done."""
    repository.store.put_document(repository.keys.migration_plan("x"), b'{"format": "of the future"}')
    with pytest.raises(RepositoryError, match="cannot be read by this version"):
        records.saved_plan(repository, "x")
