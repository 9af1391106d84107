"""Headroom providers: Prometheus and Qdrant 1.19 from their documented answers, the rest for real."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ferry.errors import ConfigurationError, HeadroomError
from ferry.models import ClusterLayout, NodeHeadroom, NodeInfo, PeerId, now
from ferry.profiles import ClusterProfile, Headroom
from ferry.qdrant import resources
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.resources import Need, read_headroom, require_headroom

GIB = 1024**3
CONTRACT = Path(__file__).parents[3] / "shared" / "contract" / "qdrant-1.19.json"
URL = "http://node-1:6333"
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(name="answers")
def _answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each path of any server answers; everything else is 404."""
    answers: dict[str, Any] = {}

    def handle(request: httpx.Request) -> httpx.Response:
        answer = answers.get(request.url.path)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, httpx.Response):
            return answer
        status = {"status": {"error": "Not found"}}
        return httpx.Response(404, json=status) if answer is None else httpx.Response(200, json=answer)

    transport = httpx.MockTransport(handle)
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: transport)
    return answers


def headroom(settings: Headroom) -> NodeHeadroom:
    profile = ClusterProfile(nodes=[URL], headroom=settings)
    node = NodeInfo(url=URL, peer_id=PeerId(7), version="1.19.0")
    layout = ClusterLayout(cluster="c", taken_at=now(), nodes=(node,), collections=(), aliases={})
    with Cluster("c", profile) as cluster:
        (found,) = read_headroom(cluster, layout)
    return found


def quotas(disk_percent: int | None, ram_percent: int | None) -> dict[str, Any]:
    usage = {"disk_usage_percent": disk_percent, "resident_memory_percent": ram_percent}
    return {"result": {"config": {"enabled": False}, "usage": usage, "peers": None}, "status": "ok", "time": 0.0}


def telemetry(disk_kib: int | None, ram_kib: int | None) -> dict[str, Any]:
    system = {"disk_size": disk_kib, "ram_size": ram_kib, "cpu_flags": "", "is_docker": True}
    return {"result": {"id": "x", "app": {"name": "qdrant", "version": "1.19.0", "system": system}}, "status": "ok"}


def vector(*values: str) -> dict[str, Any]:
    samples = [{"metric": {"instance": "n"}, "value": [1763800000.0, value]} for value in values]
    return {"status": "success", "data": {"resultType": "vector", "result": samples}}


def test_quotas_are_read_as_sizes_less_the_used_percent_and_one_more(answers: dict[str, Any]) -> None:
    """Whole percents are rounded, so one percent is kept back."""
    answers.update({"/quotas": quotas(40, 10), "/telemetry": telemetry(100 * 1024 * 1024, 10 * 1024 * 1024)})
    found = headroom(Headroom())
    assert found.source == "quotas"
    assert found.disk_free_bytes == 100 * GIB * 59 // 100
    assert found.ram_free_bytes == 10 * GIB * 89 // 100


def test_a_full_disk_is_nought_and_not_less(answers: dict[str, Any]) -> None:
    """A hundred percent used leaves no bytes, not a negative number of them."""
    answers.update({"/quotas": quotas(100, None), "/telemetry": telemetry(1024, None)})
    found = headroom(Headroom(kind="quotas"))
    assert (found.disk_free_bytes, found.ram_free_bytes) == (0, None)


def test_quotas_answer_has_the_published_shape() -> None:
    """The fields that are read stand in the 1.19 document under these names, and are percentages and KiB."""
    if not CONTRACT.exists():
        pytest.skip(f"{CONTRACT} is not here: the published document of 1.19 is kept outside of the repository")
    schemas = json.loads(CONTRACT.read_text())["components"]["schemas"]
    assert {"usage", "config"} <= set(schemas["QuotaStatus"]["required"])
    assert set(quotas(1, 1)["result"]["usage"]) == set(schemas["QuotaUsage"]["properties"])
    system = schemas["RunningEnvironmentTelemetry"]["properties"]
    assert "KiB" in system["disk_size"]["description"]
    assert "KiB" in system["ram_size"]["description"]


def test_before_1_19_auto_goes_on_to_what_is_configured(answers: dict[str, Any], tmp_path: Path) -> None:
    """Without /quotas the order is Prometheus, local paths, static numbers, unknown."""
    answers["/api/v1/query"] = vector("1000")
    asked = Headroom(prometheus_url="http://prom:9090", disk_query="free", paths=[tmp_path])
    assert headroom(asked).source == "prometheus"
    assert headroom(Headroom(paths=[tmp_path])).source == "local"
    assert headroom(Headroom.model_validate({"static": [{"disk_free_bytes": 5}]})).disk_free_bytes == 5
    assert headroom(Headroom()) == NodeHeadroom(
        peer_id=PeerId(7), disk_free_bytes=None, ram_free_bytes=None, source="unknown"
    )


def test_quotas_that_do_not_tell_the_disk_are_passed_over(answers: dict[str, Any], tmp_path: Path) -> None:
    """A null percentage is no answer where another provider is configured."""
    answers.update({"/quotas": quotas(None, None), "/telemetry": telemetry(1024, 1024)})
    assert headroom(Headroom(paths=[tmp_path])).source == "local"


def test_quotas_asked_for_by_name_must_be_there(answers: dict[str, Any]) -> None:
    """An older server is a wrong setting, not unknown headroom."""
    with pytest.raises(ConfigurationError, match=r"1\.19"):
        headroom(Headroom(kind="quotas"))


def test_prometheus_is_asked_with_the_host_of_the_node(answers: dict[str, Any]) -> None:
    """Both queries get the host name without its port, and numbers in scientific notation are read."""
    queries: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        queries.append(request.url.params["query"])
        return httpx.Response(200, json=vector("1.5e+09"))

    answers["/api/v1/query"] = answer
    asked = Headroom(
        kind="prometheus", prometheus_url="http://prom:9090", disk_query='disk{h="{host}"}', ram_query="ram"
    )
    found = headroom(asked)
    assert queries == ['disk{h="node-1"}', "ram"]
    assert (found.disk_free_bytes, found.ram_free_bytes) == (1_500_000_000, 1_500_000_000)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (vector(), ConfigurationError, "found 0 series"),
        (vector("1", "2"), ConfigurationError, "found 2 series"),
        (vector("NaN"), HeadroomError, "NaN"),
        ({"status": "error", "errorType": "bad_data", "error": "parse error"}, ConfigurationError, "parse error"),
        (httpx.Response(502, text="bad gateway"), HeadroomError, "did not answer"),
    ],
)
def test_prometheus_is_never_guessed(answers: dict[str, Any], answer: Any, error: type[Exception], says: str) -> None:
    """No series, several series, NaN and refusals are errors that say so."""
    answers["/api/v1/query"] = answer
    with pytest.raises(error, match=says):
        headroom(Headroom(kind="prometheus", prometheus_url="http://prom:9090", disk_query="free"))


def test_a_local_path_is_measured_and_a_missing_one_is_a_setting_error(
    answers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk under the path and MemAvailable in bytes; a path that is not there is named."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    monkeypatch.setattr(resources, "_MEMINFO", meminfo)
    found = headroom(Headroom(kind="local", paths=[tmp_path]))
    assert found.disk_free_bytes is not None
    assert found.disk_free_bytes > 0
    assert found.ram_free_bytes == 2048 * 1024
    with pytest.raises(ConfigurationError, match="nowhere"):
        headroom(Headroom(kind="local", paths=[tmp_path / "nowhere"]))


def test_a_shortage_is_refused_with_its_numbers() -> None:
    """Node, need, free and missing bytes stand in the error, for every node that lacks something."""
    headrooms = [
        NodeHeadroom(peer_id=PeerId(1), disk_free_bytes=2 * GIB, ram_free_bytes=GIB, source="static"),
        NodeHeadroom(peer_id=PeerId(2), disk_free_bytes=9 * GIB, ram_free_bytes=0, source="static"),
    ]
    needs = {PeerId(1): Need(disk_bytes=5 * GIB), PeerId(2): Need(disk_bytes=9 * GIB, ram_bytes=GIB)}
    with pytest.raises(HeadroomError) as caught:
        require_headroom(headrooms, needs, "refuse", {PeerId(1): "node-1:6333"})
    assert "node-1:6333 needs 5.0 GiB of disk and has 2.0 GiB (static): 3.0 GiB are missing" in caught.value.message
    assert "peer 2 needs 1.0 GiB of memory and has 0 B (static): 1.0 GiB are missing" in caught.value.message


def test_enough_room_has_no_findings() -> None:
    """Exactly enough is enough."""
    has = [NodeHeadroom(peer_id=PeerId(1), disk_free_bytes=GIB, ram_free_bytes=GIB, source="static")]
    assert require_headroom(has, {PeerId(1): Need(disk_bytes=GIB, ram_bytes=GIB)}, "refuse") == []


@pytest.mark.parametrize("known", [True, False])
def test_unknown_disk_refuses_or_warns_as_the_profile_says(known: bool) -> None:
    """A node that nobody knows counts as unknown, not as free."""
    has = [NodeHeadroom(peer_id=PeerId(1), disk_free_bytes=None, ram_free_bytes=None, source="unknown")] * known
    needs = {PeerId(1): Need(disk_bytes=GIB, ram_bytes=GIB)}
    with pytest.raises(HeadroomError, match="nobody can tell"):
        require_headroom(has, needs, "refuse")
    assert [finding.severity for finding in require_headroom(has, needs, "warn")] == ["warning", "warning"]
    assert require_headroom(has, {PeerId(1): Need(disk_bytes=0)}, "refuse") == []
