"""doctor against real servers: everything well, and each thing that operators get wrong, named with its remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ferry.__main__ import main
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.integration.conftest import API_KEY, READ_ONLY_KEY

pytestmark = pytest.mark.servers
Configure = Callable[..., Path]
WRONG_KEY = "entirely-wrong-key"
WRONG_SECRET = "entirely-wrong-secret"


def doctor(capsys: pytest.CaptureFixture[str], s3: S3Server, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run it; its exit code and what it printed, in which no secret may be."""
    code = main(["doctor", "--json", *arguments])
    as_json = capsys.readouterr()
    assert main(["doctor", *arguments]) == code
    as_table = capsys.readouterr()
    for text in (*as_json, *as_table):
        for secret in (API_KEY, READ_ONLY_KEY, WRONG_KEY, WRONG_SECRET, s3.secret_key, "X-Amz-Signature"):
            assert secret not in text
    answer: dict[str, Any] = json.loads(as_json.out)
    assert answer["ok"] == (code == 0)
    for trial in answer["trials"]:
        assert trial["ok"] or trial["remedy"]
    return code, answer


def failures(answer: dict[str, Any], profile: str | None = None) -> dict[str, str]:
    """Detail and remedy by test, of what failed."""
    return {
        trial["test"]: f"{trial['detail']} {trial['remedy']}"
        for trial in answer["trials"]
        if not trial["ok"] and profile in (None, trial["profile"])
    }


def test_all_is_well(
    configure: Configure, s3: S3Server, source: QdrantCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """With right settings every trial passes: nodes, agreement, headroom, rights, bucket; nothing is left behind."""
    configure()
    code, answer = doctor(capsys, s3)
    assert (code, failures(answer)) == (0, {})
    tests = [trial["test"] for trial in answer["trials"] if trial["profile"] == "clusters.source"]
    labels = [url.removeprefix("http://") for url in source.urls]
    assert tests == [
        *(f"node {label}" for label in labels),
        "nodes agree",
        "replicas",
        *(f"headroom {label}" for label in labels),
        "key may make snapshots",
        "key may manage",
    ]
    assert any("1.16.3" in trial["detail"] for trial in answer["trials"])
    keys = {setting["key"]: setting for setting in answer["settings"]}
    assert keys["clusters.source.api_key"]["value"] == "*****"
    assert keys["clusters.source.api_key"]["source"].endswith("ferry.toml")
    assert keys["clusters.source.timeout_seconds"]["source"] == "default"


def test_wrong_key(configure: Configure, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong key is said of every node, and the bucket is tried all the same."""
    configure(cluster={"api_key": WRONG_KEY})
    code, answer = doctor(capsys, s3)
    failed = failures(answer)
    assert code == 1
    assert sum("401" in text and "api_key" in text for text in failed.values()) == 3
    assert failures(answer, "repositories.main") == {}
    assert any(trial["profile"] == "repositories.main" for trial in answer["trials"])


def test_read_only_key(configure: Configure, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A read-only key sees everything and has neither right; both are named."""
    configure(cluster={"api_key": READ_ONLY_KEY})
    code, answer = doctor(capsys, s3)
    failed = failures(answer)
    assert code == 1
    assert set(failed) == {"key may make snapshots", "key may manage"}
    assert all("manage" in text and "clusters.source.api_key" in text for text in failed.values())


def test_missing_node(
    configure: Configure, s3: S3Server, source: QdrantCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that does not answer is named, and the others are tried all the same."""
    gone = "http://127.0.0.1:9"
    configure(cluster={"nodes": [*source.urls[:2], gone]})
    code, answer = doctor(capsys, s3, "--cluster", "source")
    failed = failures(answer)
    assert code == 1
    assert set(failed) == {"node 127.0.0.1:9", "nodes agree"}
    assert "did not answer" in failed["node 127.0.0.1:9"]
    assert {trial["profile"] for trial in answer["trials"]} == {"worker", "clusters.source"}


def test_address_left_out(
    configure: Configure, s3: S3Server, source: QdrantCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer without a configured address is a failure that says which setting lacks it."""
    configure(cluster={"nodes": source.urls[:2]})
    code, answer = doctor(capsys, s3, "--cluster", "source")
    failed = failures(answer)
    assert (code, set(failed)) == (1, {"nodes agree"})
    assert "clusters.source.nodes" in failed["nodes agree"]


def test_unknown_headroom(configure: Configure, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody tells the free disk and settings say refuse, doctor says so before a backup does."""
    path = configure()
    path.write_text(path.read_text().replace('kind = "local"', 'kind = "unknown"'))
    code, answer = doctor(capsys, s3, "--cluster", "source")
    failed = failures(answer)
    assert code == 1
    assert len(failed) == 3
    assert all("when_unknown" in text for text in failed.values())


def test_missing_bucket(configure: Configure, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A bucket that is not there is named; the cluster is not asked when only the repository is wanted."""
    configure(repository={"bucket": "no-such-bucket"})
    code, answer = doctor(capsys, s3, "--repository", "main")
    failed = failures(answer)
    assert code == 1
    assert any("no-such-bucket" in text and "bucket" in text for text in failed.values())
    assert {trial["profile"] for trial in answer["trials"]} == {"worker", "repositories.main"}


def test_wrong_secret(configure: Configure, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong secret key is said to be one, and the cluster is tried all the same."""
    configure(repository={"secret_key": WRONG_SECRET})
    code, answer = doctor(capsys, s3)
    assert code == 1
    assert any("secret key" in text for text in failures(answer, "repositories.main").values())
    assert failures(answer, "clusters.source") == {}


def test_nothing_is_left_or_changed(
    configure: Configure, s3: S3Server, source: QdrantCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """doctor leaves no object in the bucket and no collection or snapshot on a node."""
    path = configure()
    doctor(capsys, s3)
    listed = s3.client().list_objects_v2(Bucket="ferry", Prefix=path.parent.name)
    assert listed["KeyCount"] == 0
    assert not [file for node in source.nodes for file in node.snapshots_path.rglob("*") if file.is_file()]
