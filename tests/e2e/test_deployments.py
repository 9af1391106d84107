"""The deployments of prefect.yaml as an operator meets them: a server, a worker, and calls over HTTP."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.data import WordShape, load_words
from sandbox.prefect_server import PrefectServer, PrefectWorker
from tests.workshop import Workshop

ROOT = Path(__file__).parents[2]


class Prefect:
    """Prefect's API as curl sees it."""

    def __init__(self, server: PrefectServer) -> None:
        self.http = httpx.Client(base_url=server.api_url, timeout=30, trust_env=False)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send; once more while SQLite is busy, which answers 503."""
        for _ in range(20):
            answer = self.http.post(path, json=body)
            if answer.status_code != 503:
                return answer
            time.sleep(0.5)
        raise AssertionError(answer.text)

    def start(self, deployment: str, parameters: dict[str, Any], key: str) -> httpx.Response:
        """Create a flow run of a deployment."""
        found = self.http.get(f"/deployments/name/{deployment}").raise_for_status().json()
        body = {"parameters": parameters, "idempotency_key": key}
        return self.post(f"/deployments/{found['id']}/create_flow_run", body)

    def finish(self, run_id: str) -> dict[str, Any]:
        """Wait for a run to end, or to ask for something."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            state: dict[str, Any] = self.http.get(f"/flow_runs/{run_id}").raise_for_status().json()["state"]
            if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED", "PAUSED"):
                return state
            time.sleep(0.5)
        raise AssertionError(f"flow run {run_id} did not end")


@pytest.fixture
def prefect(workshop: Workshop, prefect_server: PrefectServer) -> Iterator[Prefect]:
    """The deployments registered on a real server, with a worker that runs them."""
    workshop.configure()
    text = workshop.config.read_text().replace("repositories.main", "repositories.sandbox")
    workshop.config.write_text(text + "\n[policies.nightly]\nretention = {keep_last = 3}\n")  # prefect.yaml names it
    env = {"FERRY_CONFIG": str(workshop.config), "FERRY_HOME": str(ROOT)}
    with PrefectWorker(prefect_server, "ferry", env, workshop.folder):
        deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(deploy, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        prefect = Prefect(prefect_server)
        with prefect.http:
            yield prefect


def test_backup_and_restore_by_the_api(workshop: Workshop, prefect: Prefect) -> None:
    """A POST backs up and another restores; a wrong parameter is refused at once; the same key is the same run."""
    load_words(workshop.clusters["source"].urls[0], "words", 2_000, shape=WordShape(alias="words-live"))
    backup = prefect.start("back-up-cluster/nightly", {}, "night-1").json()
    assert prefect.finish(backup["id"])["type"] == "COMPLETED"

    wrong = prefect.start("restore-collection/restore", {"collection": "words", "verify": "perhaps"}, "r-0")
    assert wrong.status_code == 409
    assert "verify" in wrong.json()["detail"]
    unknown = prefect.start("restore-collection/restore", {"collection": "words", "cluster": "prod"}, "r-1")
    assert unknown.status_code == 409
    assert "'prod' is not one of ['source', 'target']" in unknown.json()["detail"]

    wish = {"collection": "words", "into": "words-2", "alias": "words-live"}
    restore = prefect.start("restore-collection/restore", wish, "r-2")
    again = prefect.start("restore-collection/restore", wish, "r-2")
    assert (restore.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == restore.json()["id"]
    assert prefect.finish(restore.json()["id"])["type"] == "COMPLETED"
    target = workshop.clusters["target"].urls[0]
    counted = httpx.post(f"{target}/collections/words-live/points/count", json={"exact": True}).json()["result"]
    assert counted == {"count": 2_000}
    (noted,) = workshop.objects("restores/target/")
    assert workshop.read(noted)["verdict"] == "equal"

    migrate_with_approval(workshop, prefect)

    missing = prefect.start("restore-collection/restore", {"collection": "wordz"}, "r-3").json()
    state = prefect.finish(missing["id"])
    assert state["type"] == "FAILED"
    assert "There is no backup of wordz" in state["message"]
    assert "python -m ferry list" in state["message"]
    assert workshop.leftovers() == []

    artifacts = prefect.post("/artifacts/filter", {}).json()
    keys = {artifact["key"] for artifact in artifacts}
    assert {"plan-source", "backup-source-words", "verdict-source", "plan-target-words"} <= keys
    assert {"migration-target-words-3", "migrated-target-words-3", "cut-over-target-words-3"} <= keys


def migrate_with_approval(workshop: Workshop, prefect: Prefect) -> None:
    """A migration is suspended until somebody answers; only then the alias moves, and nothing is copied twice."""
    wish = {"collection": "words", "into": "words-3", "alias": "words-live", "shape": {"shard_number": 5}}
    run = prefect.start("migrate-collection/migrate", wish, "m-1").json()
    asking = prefect.finish(run["id"])
    assert asking["type"] == "PAUSED", asking.get("message")
    target = workshop.clusters["target"].urls[0]
    aliases = httpx.get(f"{target}/aliases").json()["result"]["aliases"]
    assert aliases == [{"alias_name": "words-live", "collection_name": "words-2"}]
    copied = {name: workshop.read(name) for name in workshop.objects("migrations/") if "/ranges/" in name}
    assert sum(state["written"] for state in copied.values()) == 2_000

    prefect.post(f"/flow_runs/{run['id']}/resume", {"run_input": {"go_on": True}}).raise_for_status()
    assert prefect.finish(run["id"])["type"] == "COMPLETED"
    aliases = httpx.get(f"{target}/aliases").json()["result"]["aliases"]
    assert aliases == [{"alias_name": "words-live", "collection_name": "words-3"}]
    counted = httpx.post(f"{target}/collections/words-live/points/count", json={"exact": True}).json()["result"]
    assert counted == {"count": 2_000}
    assert {name: workshop.read(name) for name in copied} == copied
