"""SIGKILL of a recovery in mid-write: the next run writes what is still missing, and leaves nothing of either."""

from typing import Any

import pytest

from flows.recover_points import recover_points
from tests.faults.conftest import Runs
from tests.faults.scene import COLLECTION, Scene, names_and_aliases, session

pytestmark = pytest.mark.usefixtures("quick")

RECOVER = "flows.recover_points:recover_points"
DELETED = list(range(0, 240, 2))
ASKED: dict[str, Any] = {
    "cluster": "source",
    "repository": "main",
    "source_cluster": "source",
    "collection": COLLECTION,
    "filter": {"must": [{"key": "number", "range": {"lt": 200}}]},
}


def points(scene: Scene, collection: str = COLLECTION, cluster: str = "source") -> int:
    """Exact number of points."""
    with session(scene.shop.clusters[cluster]) as http:
        answer = http.post(f"/collections/{collection}/points/count", json={"exact": True})
        return int(answer.json()["result"]["count"])


def test_a_killed_recovery_is_finished_by_the_next(scene: Scene, runs: Runs) -> None:
    """Dead with one shard's points written and not read back, then with those of the next one read back."""
    scene.back_up()
    with session(scene.shop.clusters["source"]) as http:
        http.post(f"/collections/{COLLECTION}/points/delete?wait=true", json={"points": DELETED}).raise_for_status()
    wanted, before = 240 - 20, points(scene)
    assert before == 120
    counts = []
    for at, when in (
        ("ferry.recovery.steps:write_points", "after"),
        ("ferry.recovery.steps:_Group._require_there", "after"),
    ):
        runs.killed(RECOVER, ASKED, at, when)
        counts.append(points(scene))
    assert before < counts[0] < counts[1] < wanted
    done = recover_points(**ASKED)
    assert points(scene) == wanted
    assert done == {
        "selected": 200,
        "missing": wanted - counts[1],
        "differing": 0,
        "equal": 200 - (wanted - counts[1]),
        "written": wanted - counts[1],
    }
    assert recover_points(**ASKED | {"filter": {}})["written"] == 20
    scene.require_sound()


def test_the_new_collection_of_a_killed_recovery_goes(scene: Scene, runs: Runs) -> None:
    """The next recovery into that name begins anew; what it has made is the operator's."""
    scene.back_up()
    asked = ASKED | {"cluster": "target", "mode": "new collection", "into": "picked"}
    runs.killed(RECOVER, asked, "ferry.recovery.steps:write_points")
    assert 0 < points(scene, "picked", "target") < 200
    assert recover_points(**asked)["written"] == 200
    assert points(scene, "picked", "target") == 200
    assert "picked" in names_and_aliases(scene.shop.clusters["target"])[0]
    scene.require_sound()
