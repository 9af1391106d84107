"""Random canaries in every place that holds a secret, looked for in every place that people or programs can read."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from ferry.connections import forget_connections
from ferry.errors import FerryError
from sandbox.fault_proxy import FaultProxy
from sandbox.prefect_server import PrefectServer
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.faults.conftest import BACK_UP, RESTORE, SOURCE, Runs
from tests.faults.scene import ALIAS, COLLECTION, Scene, fill
from tests.workshop import Workshop

ROOT = Path(__file__).parents[2]
PAGE = 200
SIGNATURES = ("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token")


def canary(what: str) -> str:
    """Something that stands nowhere else."""
    return f"canary{what}{uuid4().hex}"


class Canaries:
    """A node and a store behind canaries, settings of every kind that name them, and all that was said meanwhile."""

    def __init__(self, node: QdrantCluster, s3: S3Server, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.node, self.s3 = node, s3
        self.secrets = {"api_key": str(node.api_key), "access_key": s3.access_key, "secret_key": s3.secret_key} | {
            name: canary(name) for name in ("wrong_api_key", "wrong_access_key", "wrong_secret_key", "token")
        }
        self.shop = Workshop(folder, patch, s3, {"source": node, "target": node})
        self.said: list[str] = []
        secrets_dir = folder / "secrets"
        secrets_dir.mkdir()
        # One secret from the environment, one from the secrets directory, the others from ferry.toml.
        (secrets_dir / "FERRY_CLUSTERS__TARGET__API_KEY").write_text(self.secrets["api_key"])
        self.env = {
            "FERRY_CLUSTERS__SOURCE__API_KEY": self.secrets["api_key"],
            "FERRY_SECRETS_DIR": str(secrets_dir),
            "FERRY_CONFIG": str(self.shop.config),
            "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        }
        for name, value in self.env.items():
            patch.setenv(name, value)

    def configure(self, proxy: FaultProxy) -> None:
        """ferry.toml with a right profile of each kind, and wrong ones that hold canaries, too."""
        self.shop.configure(repository={"lease_seconds": 1})
        text = self.shop.config.read_text()
        main = text.partition("[repositories.main]")[2].partition("[worker]")[0]
        for key in ("access_key", "secret_key"):
            main = main.replace(self.secrets[key], self.secrets[f"wrong_{key}"])
        text += f"[repositories.wrong]{main}"
        text += f"[repositories.expired]{main}session_token = {json.dumps(self.secrets['token'])}\n"
        right = text.partition("[repositories.main]")[2].partition("[worker]")[0]
        text += f'[repositories.broken]{right}node_endpoint_url = "{proxy.url}"\n'
        text += f'[clusters.wrong]\nnodes = {json.dumps(self.node.urls)}\napi_key = "{self.secrets["wrong_api_key"]}"\n'
        text += '[clusters.wrong.headroom]\nkind = "unknown"\nwhen_unknown = "warn"\n'
        self.shop.config.write_text(text)
        forget_connections()

    def require_none(self, where: str, text: str | bytes) -> None:
        """Fail when a canary or a signature stands in there."""
        data = text.encode() if isinstance(text, str) else text
        for name, value in self.secrets.items():
            assert value.encode() not in data, f"{name} stands in {where}"
        for signature in SIGNATURES:
            found = data.find(signature.encode())
            assert found < 0, f"{signature} stands in {where}: {data[max(0, found - 200) : found + 40]!r}"


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canaries]:
    """Servers that ask for canaries."""
    with (
        QdrantCluster(nodes=1, api_key=canary("apikey")) as node,
        S3Server(access_key=canary("access")[:32], secret_key=canary("secret")) as s3,
    ):
        fill(node, shards=1, replicas=1, alias="old-alias")
        yield Canaries(node, s3, tmp_path, monkeypatch)
        forget_connections()


def everything(server: PrefectServer) -> Iterator[tuple[str, str]]:
    """All that Prefect's API tells: logs, artifacts, runs with their parameters and states."""
    with httpx.Client(base_url=server.api_url, timeout=60, trust_env=False) as api:
        for what in ("logs", "artifacts", "flow_runs", "task_runs", "flow_run_states", "deployments", "variables"):
            if what == "flow_run_states":
                continue
            offset = 0
            while True:
                answer = api.post(f"/{what}/filter", json={"limit": PAGE, "offset": offset}).raise_for_status()
                yield what, answer.text
                offset += PAGE
                if len(answer.json()) < PAGE:
                    break


def chain(error: BaseException) -> str:
    """An error with all that hangs behind it, also what ``from None`` hides."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is not None and found not in seen:
            seen.append(found)
            waiting += [found.__cause__, found.__context__]
    return "\n".join("".join(traceback.format_exception(found)) + repr(found) + repr(vars(found)) for found in seen)


def test_no_secret_is_written_down_anywhere(canaries: Canaries, runs: Runs, prefect_server: PrefectServer) -> None:
    """Neither keys nor signatures stand in Prefect's API and database, outputs, errors or objects, at DEBUG too."""
    restore = {"cluster": "target", "source_cluster": "source", "collection": COLLECTION, "repository": "main"}
    with FaultProxy(canaries.s3.host_port) as proxy:
        canaries.configure(proxy)
        proxy.http_status(404, count=1_000)
        outcomes = {
            "backup": (BACK_UP, SOURCE, "exit 0"),
            "restore": (RESTORE, restore | {"into": "restored", "alias": ALIAS}, "exit 0"),
            "restore whose address answers 404": (RESTORE, restore | {"into": "new", "repository": "broken"}, "exit 0"),
            "wrong S3 key": (BACK_UP, SOURCE | {"repository": "wrong"}, "exit 1"),
            "wrong token": (BACK_UP, SOURCE | {"repository": "expired"}, "exit 1"),
            "wrong api key": (BACK_UP, SOURCE | {"cluster": "wrong"}, "exit 1"),
            "restore with a wrong api key": (RESTORE, restore | {"cluster": "wrong"}, "exit 1"),
        }
        pids = {name: runs.start(*given[:2], env=canaries.env) for name, given in outcomes.items() if name == "backup"}
        assert runs.wait(pids["backup"]) == "exit 0", runs.output(pids["backup"])[-3000:]
        pids |= {name: runs.start(*given[:2], env=canaries.env) for name, given in outcomes.items() if name != "backup"}
        for name, pid in pids.items():
            if name != "backup":
                assert runs.wait(pid) == outcomes[name][2], f"{name}: {runs.output(pid)[-3000:]}"
            canaries.require_none(f"the output of: {name}", runs.output(pid))
        for arguments in (["doctor"], ["doctor", "--json"], ["settings"]):
            said = subprocess.run(
                [sys.executable, "-m", "ferry", *arguments, *(["--verbose"] if arguments == ["doctor"] else [])],
                cwd=ROOT, env={**os.environ, **canaries.env}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            canaries.require_none(f"python -m ferry {arguments}", said.stdout + said.stderr)
            assert "SecretStr" not in said.stdout
        raised = errors_of(canaries, proxy)
    for name, text in raised.items():
        canaries.require_none(f"the error of: {name}", text)
    for what, text in everything(prefect_server):
        canaries.require_none(f"Prefect's {what}", text)
    for file in prefect_server.folder.rglob("*.db*"):
        canaries.require_none(file.name, file.read_bytes())
    for file in prefect_server.folder.rglob("*.log"):
        canaries.require_none(file.name, file.read_bytes())
    for key, body in Scene(canaries.shop).documents():
        canaries.require_none(key, body)


def errors_of(canaries: Canaries, proxy: FaultProxy) -> dict[str, str]:
    """What the plain runner raises in failing runs, in full."""
    scene = Scene(canaries.shop)
    found: dict[str, str] = {}
    attempts: dict[str, Any] = {
        "wrong S3 key": lambda: scene.back_up(repository="wrong"),
        "wrong token": lambda: scene.back_up(repository="expired"),
        "wrong api key": lambda: scene.back_up(cluster="wrong"),
        "404 for the node, and the upload refused": lambda: scene.restore(repository="broken", into="again"),
    }
    for name, attempt in attempts.items():
        forget_connections()
        try:
            attempt()
        except FerryError as error:
            found[name] = chain(error)
    assert len(found) >= 3
    return found
