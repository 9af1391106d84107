"""Prefect's server goes away in mid-run: the backup commits all the same, and its run ends as what it is."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.fault_proxy import FaultProxy
from sandbox.prefect_server import PrefectServer, PrefectWorker
from tests.faults.conftest import SOURCE
from tests.faults.scene import Scene, soon
from tests.faults.test_cancelled_runs import Api

ROOT = Path(__file__).parents[2]
# As prefect.yaml gives it to every run of a deployment.
PATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "10"}


def uploading(scene: Scene) -> bool:
    """Whether the multipart upload of an archive is under way; that of the bucket's trial is not meant."""
    return any(found.startswith("upload") and "/backups/" in found for found in scene.shop.leftovers())


@pytest.fixture
def api(prefect_server: PrefectServer) -> Iterator[Api]:
    """Prefect's API."""
    with Api(base_url=prefect_server.api_url, timeout=30, trust_env=False) as client:
        yield client


def started(api: Api, pool: str) -> str:
    """A backup that the worker of that pool is to run; the id of the flow run."""
    flow = api.post("/flows/", json={"name": "back-up-cluster"}).raise_for_status().json()
    deployment = {
        "name": pool,
        "flow_id": flow["id"],
        "entrypoint": "flows.back_up_cluster.back_up_cluster",
        "work_pool_name": pool,
        "parameters": SOURCE,
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
    }
    made = api.post("/deployments/", json=deployment).raise_for_status().json()
    run = api.post(f"/deployments/{made['id']}/create_flow_run", json={}).raise_for_status().json()
    return str(run["id"])


def away(server: PrefectServer, meanwhile: Callable[[], Any], seconds: float) -> None:
    """Kill the server, do something, and start it again on the same port and database when the time is over."""
    server.process.kill()
    began = time.monotonic()
    try:
        meanwhile()
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    finally:
        server.start()


@pytest.mark.parametrize(
    "seconds", [pytest.param(15, id="15 s"), pytest.param(120, id="two minutes", marks=pytest.mark.soak)]
)
def test_a_backup_outlives_an_outage(
    scene: Scene, slow: FaultProxy, prefect_server: PrefectServer, api: Api, seconds: float
) -> None:
    """The rest of its upload, its proofs and its manifests happen while there is no server; then the run completes."""
    env = {"FERRY_CONFIG": str(scene.shop.config), **PATIENT}
    with PrefectWorker(prefect_server, "outage", env, ROOT):
        slow.slow(3_000_000)
        run = started(api, "outage")
        soon(lambda: uploading(scene))

        def meanwhile() -> None:
            slow.clear()
            soon(scene.complete, 90)
            soon(lambda: scene.lease()["released"])

        away(prefect_server, meanwhile, seconds)
        end = soon(lambda: ended(api, run), 2 * seconds + 60)
    assert end == "COMPLETED"
    assert len(scene.complete()) == 1
    scene.require_sound()


def ended(api: Api, run: str) -> str | None:
    """The state in which a flow run has ended; None while it goes on."""
    state = str(api.get(f"/flow_runs/{run}").json()["state"]["type"])
    return state if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


@pytest.mark.soak
def test_two_servers_that_schedule_one_cluster(
    scene: Scene, slow: FaultProxy, prefect_server: PrefectServer, api: Api
) -> None:
    """Neither knows of the other; the bucket does. One backup works, the other ends and says who holds the cluster."""
    env = {"FERRY_CONFIG": str(scene.shop.config), **PATIENT}
    with (
        PrefectServer() as second,
        Api(base_url=second.api_url, timeout=30, trust_env=False) as other,
        PrefectWorker(prefect_server, "first", env, ROOT),
        PrefectWorker(second, "second", env, ROOT),
    ):
        slow.slow(1_000_000)
        runs = [(api, started(api, "first")), (other, started(other, "second"))]
        ends = [soon(lambda at=at, run=run: ended(at, run), 120) for at, run in runs]  # type: ignore[misc]
        states = [at.get(f"/flow_runs/{run}").json()["state"] for at, run in runs]
    assert sorted(ends) == ["COMPLETED", "FAILED"]
    refused = next(state for state in states if state["type"] == "FAILED")
    assert "Its holder is backup" in refused["message"]
    slow.clear()
    assert len(scene.complete()) == 1
    scene.require_sound()
