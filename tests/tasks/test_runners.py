"""Where a flow's tasks run is read from the settings when its run begins."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ferry.connections import forget_connections
from ferry.errors import ConfigurationError
from sandbox.prefect_server import PrefectServer


@pytest.fixture
def runners(prefect_server: PrefectServer) -> Any:
    """The module, imported when the server's address is known."""
    from tasks import runners

    return runners


def chosen(monkeypatch: pytest.MonkeyPatch, runner: str, address: str | None = None) -> None:
    monkeypatch.setenv("FERRY_WORKER__RUNNER", runner)
    if address:
        monkeypatch.setenv("FERRY_WORKER__RUNNER_ADDRESS", address)
    forget_connections()


def test_the_setting_counts_when_the_run_begins(runners: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow is imported under other settings than it runs with: at deploy, or on another machine."""
    stand_in = runners.task_runner()
    assert stand_in.duplicate().name == "threadpool"
    chosen(monkeypatch, "dask", "tcp://127.0.0.1:1")
    assert stand_in.duplicate().address == "tcp://127.0.0.1:1"


def test_wrong_settings_are_left_to_the_first_step(runners: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which reads them again and says what is wrong, on the run's page."""
    chosen(monkeypatch, "ponies")
    assert runners.task_runner().duplicate().name == "threadpool"


@pytest.mark.parametrize(("runner", "package"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_a_missing_extra_says_how_to_install_it(
    runners: Any, monkeypatch: pytest.MonkeyPatch, runner: str, package: str
) -> None:
    """The run fails at once with the line to type, before anything was asked."""
    from prefect import flow
    from prefect.settings import temporary_settings

    for name in (package, f"{package}.task_runners"):
        monkeypatch.setitem(sys.modules, name, None)
    chosen(monkeypatch, runner)

    @flow(task_runner=runners.task_runner())
    def running() -> None:
        raise AssertionError

    with (
        temporary_settings({"api.url": os.environ["PREFECT_API_URL"]}),
        pytest.raises(ConfigurationError, match=rf"pip install 'ferry\[{runner}\]'"),
    ):
        running()


def test_a_step_that_fails_does_not_end_its_lane_on_dask(
    runners: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What waits for it with allow_failure goes on, what needs it does not; and the order of the lane is kept."""
    from prefect import allow_failure, flow
    from prefect.futures import wait
    from prefect.settings import temporary_settings

    from tasks import policy

    chosen(monkeypatch, "dask")
    trace = tmp_path / "trace"

    @policy.step("step")
    def step(name: str, fails: bool = False) -> str:
        with trace.open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if fails:
            raise ConfigurationError(name)
        return name

    @flow(task_runner=runners.task_runner())
    def lane() -> list[str]:
        first = step.submit("first", fails=True)
        needs_it = step.submit(first)
        second = step.submit("second", wait_for=[allow_failure(first)])
        third = step.submit("third", wait_for=[allow_failure(second)])
        futures = [first, needs_it, second, third]
        wait(futures)
        return [type(policy.failure(future)).__name__ for future in futures]

    with temporary_settings({"api.url": os.environ["PREFECT_API_URL"]}):
        assert lane() == ["ConfigurationError", "NoneType", "NoneType", "NoneType"]
    lines = [line.split() for line in trace.read_text().splitlines()]
    assert [name for name, _ in lines] == ["first", "second", "third"]
    assert str(os.getpid()) not in {pid for _, pid in lines}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'ferry[ray]'")
def test_ray_runs_steps_in_its_own_processes(runners: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray cluster on this machine, begun and ended by the run."""
    from prefect import flow
    from prefect.settings import temporary_settings

    from tasks import policy

    chosen(monkeypatch, "ray")

    @policy.step("step")
    def step() -> int:
        return os.getpid()

    @flow(task_runner=runners.task_runner())
    def running() -> int:
        return int(step.submit().result())

    with temporary_settings({"api.url": os.environ["PREFECT_API_URL"]}):
        assert running() != os.getpid()
