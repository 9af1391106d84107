"""Cancel by Prefect's API, and SIGTERM and SIGINT to the process of a flow run: it cleans up and ends within 30 s."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from ferry.qdrant.node import Node
from sandbox.fault_proxy import FaultProxy
from sandbox.prefect_server import PrefectServer, PrefectWorker
from tests.faults.conftest import BACK_UP, MIGRATE, RESTORE, SOURCE, TARGET, Runs
from tests.faults.scene import ALIAS, LIVE, Scene, later, names_and_aliases, session, soon

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 30.0  # after that Prefect's runner kills


def uploading(scene: Scene) -> bool:
    """Whether a multipart upload is under way."""
    return any(found.startswith("upload") for found in scene.shop.leftovers())


class Api(httpx.Client):
    """A client that asks again when the server's database is busy, as Prefect's own client does."""

    def request(self, *arguments: Any, **named: Any) -> httpx.Response:
        """Send a request, several times if need be."""
        for _ in range(10):
            answer = super().request(*arguments, **named)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.3)
        return answer


def runs_of(server: PrefectServer, flow: str) -> list[dict[str, Any]]:
    """The runs of a flow that Prefect knows, the newest first."""
    query = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC"}
    answer = httpx.post(f"{server.api_url}/flow_runs/filter", json=query, trust_env=False)
    return list(answer.raise_for_status().json())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_backup_that_is_signalled_cleans_up(
    scene: Scene, runs: Runs, slow: FaultProxy, prefect_server: PrefectServer, number: signal.Signals
) -> None:
    """A signal in mid-upload ends the run as crashed and leaves nothing, before it would be killed."""
    slow.slow(2_000_000)
    pid = runs.start(BACK_UP, SOURCE)
    soon(lambda: uploading(scene))
    os.kill(pid, number)
    began = time.monotonic()
    assert runs.wait(pid) in ("exit 1", f"signal {int(number)}")  # Prefect sends itself the SIGTERM again at the end
    assert time.monotonic() - began < GRACE_SECONDS
    slow.clear()
    assert "it cleans up after itself" in runs.output(pid)
    assert scene.complete() == []
    scene.require_sound()
    assert runs_of(prefect_server, "back-up-cluster")[0]["state"]["type"] == "CRASHED"


def test_a_restore_that_is_signalled_drops_what_it_made(
    scene: Scene, runs: Runs, slow: FaultProxy, prefect_server: PrefectServer
) -> None:
    """A signal while nodes fetch archives drops the new collection; the alias stays where it was."""
    scene.back_up()
    slow.slow(2_000_000)
    pid = runs.start(RESTORE, {**TARGET, "collection": "large"})
    target = scene.shop.clusters["target"]
    soon(lambda: len(names_and_aliases(target)[0]) > 1)
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    assert runs.wait(pid) == f"signal {int(signal.SIGTERM)}"
    assert time.monotonic() - began < GRACE_SECONDS
    slow.clear()
    assert names_and_aliases(target) == ({LIVE}, {ALIAS: LIVE})
    scene.require_sound()
    assert runs_of(prefect_server, "restore-collection")[0]["state"]["type"] == "CRASHED"


def test_a_migration_that_is_signalled_is_gone_on_with(scene: Scene, runs: Runs, prefect_server: PrefectServer) -> None:
    """A signal after the first checkpoint leaves what was copied, indexed; the same form again does only the rest."""
    wish = {
        "cluster": "target",
        "repository": "main",
        "source_cluster": "source",
        "collection": "docs",
        "into": "moved",
    }
    pid = runs.start(MIGRATE, wish, at="ferry.migration.records:keep_range_state", signal=int(signal.SIGTERM))
    assert runs.wait(pid) == f"signal {int(signal.SIGTERM)}"
    states = [scene.shop.read(key) for key in scene.shop.objects("migrations/") if "/ranges/" in key]
    assert any(state["done"] for state in states)
    target = scene.shop.clusters["target"]
    with session(target) as http:
        config = http.get("/collections/moved").json()["result"]["config"]
    assert config["optimizer_config"]["indexing_threshold"] != 0
    assert names_and_aliases(target) == ({LIVE, "moved"}, {ALIAS: LIVE})
    scene.require_sound()
    assert runs_of(prefect_server, "migrate-collection")[0]["state"]["type"] == "CRASHED"

    again = runs.start(MIGRATE, {**wish, "readers": 1})
    assert runs.wait(again) == "exit 0", runs.output(again)[-3000:]
    (report,) = [scene.shop.read(key) for key in scene.shop.objects("migrations/") if key.endswith("report.json")]
    assert (report["verdict"], report["read"], report["written"]) == ("equal", 240, 240)
    scene.require_sound()


def test_a_collection_that_appears_after_the_interrupt_is_dropped(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel while the cluster creates the collection does not stop the cluster; it is dropped all the same."""
    scene.back_up()
    create = Node.create_collection

    def interrupted(self: Node, *arguments: Any) -> None:
        later(1.0, lambda: create(self, *arguments))()
        raise KeyboardInterrupt

    monkeypatch.setattr(Node, "create_collection", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scene.restore()
    time.sleep(1)
    assert names_and_aliases(scene.shop.clusters["target"]) == ({LIVE}, {ALIAS: LIVE})
    scene.require_sound()


def test_a_cancelled_deployment_run_cleans_up(
    scene: Scene, slow: FaultProxy, prefect_server: PrefectServer, runs: Runs
) -> None:
    """Cancel by API under a worker, as the UI's button does it: CANCELLED, and nothing is left within 30 s."""
    api = Api(base_url=prefect_server.api_url, timeout=30, trust_env=False)
    with api, PrefectWorker(prefect_server, "faults", {"FERRY_CONFIG": str(scene.shop.config)}, ROOT):
        flow = api.post("/flows/", json={"name": "back-up-cluster"}).raise_for_status().json()
        deployment = {
            "name": "faults",
            "flow_id": flow["id"],
            "entrypoint": "flows.back_up_cluster.back_up_cluster",
            "work_pool_name": "faults",
            "parameters": SOURCE,
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        }
        made = api.post("/deployments/", json=deployment).raise_for_status().json()
        slow.slow(3_000_000)
        run = api.post(f"/deployments/{made['id']}/create_flow_run", json={}).raise_for_status().json()
        soon(lambda: uploading(scene))
        api.post(f"/flow_runs/{run['id']}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()
        began = time.monotonic()
        soon(lambda: api.get(f"/flow_runs/{run['id']}").json()["state"]["type"] == "CANCELLED")
        assert time.monotonic() - began < GRACE_SECONDS
        assert scene.shop.leftovers() == []
    slow.clear()
    assert scene.complete() == []
    scene.back_up()
    scene.require_sound()
