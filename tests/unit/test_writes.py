"""What Qdrant's counters say of writes between two moments, and what they cannot say."""

from typing import Any

import pytest

from ferry.restore.writes import NodeWrites, counted, write_finding
from tests.unit.builders import collection, shard

PAIRED = collection("docs", [shard(0, [1, 2])])
ALONE = collection("docs", [shard(0, [1, 2]), shard(1, [1])])
# As 1.16.3 tells it, without the times: REST by status, gRPC in sum, and each update that was passed on as failed.
TELEMETRY: dict[str, Any] = {
    "id": "a-process",
    "requests": {
        "rest": {
            "responses": {
                "PUT /collections/{name}/points": {"200": {"count": 3}, "400": {"count": 5}, "500": {"count": 1}},
                "POST /collections/{name}/points/payload/clear": {"200": {"count": 2}},
                "POST /collections/{name}/points/scroll": {"200": {"count": 90}},
                "POST /collections/{name}/points": {"200": {"count": 80}},
                "PUT /collections/{collection}/shards/{shard}/snapshots/recover": {"200": {"count": 7}},
            }
        },
        "grpc": {
            "responses": {
                "/qdrant.Points/Upsert": {"count": 4},
                "/qdrant.Points/Search": {"count": 60},
                "/qdrant.PointsInternal/Upsert": {"count": 50},
            }
        },
    },
    "collections": {
        "collections": [
            {"id": "other", "shards": [{"id": 0, "remote": [{"updates": {"count": 0, "fail_count": 40}}]}]},
            {"id": "docs", "shards": [{"id": 0, "remote": [{"updates": {"count": 1, "fail_count": 2}}]}]},
        ]
    },
}
BEFORE = NodeWrites(label="one", process="p", requests={"/qdrant.Points/Upsert": 4}, passed_on=10)


def test_only_writes_are_counted_and_only_that_collections_updates() -> None:
    """Reads, refused writes, what nodes pass on to each other and our own recovering are no client's writes."""
    found = counted("one", "docs", TELEMETRY)
    assert found.requests == {
        "PUT /collections/{name}/points": 4,
        "POST /collections/{name}/points/payload/clear": 2,
        "/qdrant.Points/Upsert": 4,
    }
    assert (found.passed_on, found.process) == (3, "a-process")


def after(**changed: Any) -> list[NodeWrites]:
    return [BEFORE.model_copy(update=changed)]


def test_nothing_counted_is_nothing_said() -> None:
    """Also where the collection has replicas that no other node would hear of."""
    assert write_finding(ALONE, [BEFORE], after()) is None


def test_updates_that_were_passed_on_are_writes_to_this_collection() -> None:
    """Their number is that since the first look."""
    finding = write_finding(PAIRED, [BEFORE], after(passed_on=12))
    assert finding is not None
    assert "were counted: nodes passed 2 updates of it on" in finding.message


@pytest.mark.parametrize(("live", "told"), [(PAIRED, False), (ALONE, True)], ids=["two replicas", "one replica"])
def test_requests_alone_say_something_only_where_a_shard_has_one_replica(live: Any, told: bool) -> None:
    """A write to two replicas is passed on, so one that was not was to another collection."""
    finding = write_finding(live, [BEFORE], after(requests={"/qdrant.Points/Upsert": 9}))
    assert (finding is not None) == told
    if finding is not None:
        assert "cannot be ruled out: write requests reached the cluster (5 × /qdrant.Points/Upsert)" in finding.message


def test_a_replica_that_is_not_active_hears_of_no_write() -> None:
    """So two replicas of which one is Dead are one."""
    dead = shard(0, [1, 2])
    replicas = (dead.replicas[0], dead.replicas[1].model_copy(update={"state": "Dead"}))
    live = collection("docs", [dead.model_copy(update={"replicas": replicas})])
    assert write_finding(live, [BEFORE], after(requests={"/qdrant.Points/Upsert": 9})) is not None


def test_a_node_that_was_restarted_has_forgotten_what_it_counted() -> None:
    """Its counters begin at nothing, so the earlier numbers are not taken off, and the finding says so."""
    finding = write_finding(PAIRED, [BEFORE], after(process="q", passed_on=3))
    assert finding is not None
    assert "3 updates" in finding.message
    assert "one was restarted" in finding.message
