"""What all tasks share, on a real Prefect server."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from ferry.errors import ArchiveDamagedError, FerryError, NodeUnreachableError, StoppedError
from sandbox.prefect_server import PrefectServer


@pytest.fixture
def policy(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, imported when the server's address is known, without pauses between attempts."""
    from tasks import policy

    monkeypatch.setattr(policy, "RETRY_DELAYS_SECONDS", (0.0, 0.0))
    yield policy
    policy._stop.clear()


@pytest.mark.parametrize(("error", "attempts"), [(NodeUnreachableError, 3), (ArchiveDamagedError, 1)])
def test_only_what_may_pass_is_tried_again(policy: Any, error: type[FerryError], attempts: int) -> None:
    """An unreachable node is asked again; a damaged archive fails at once, and its error arrives whole."""
    from prefect import flow

    seen = []

    @policy.step("fail")
    def fail() -> None:
        seen.append(1)
        raise error("the fact", "the next command")

    @flow
    def failing() -> None:
        fail()

    state = failing(return_state=True)
    raised = state.result(raise_on_failure=False)
    assert len(seen) == attempts
    assert type(raised) is error
    assert "the next command" in str(state.message)


def test_bytes_on_the_move_show_in_the_ui(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long transfer has a progress artifact that ends where the transfer ends; a short one has none."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType

    monkeypatch.setattr(policy, "PROGRESS_SECONDS", 0.0)

    @policy.step("move")
    def move(label: str, total: int) -> None:
        tell = policy.progress(label, total)
        for _ in range(4):
            tell(total // 4)

    @flow
    def moving() -> None:
        move("upload long/shard 0", policy.PROGRESS_BYTES)
        move("upload short/shard 0", policy.PROGRESS_BYTES - 1)

    moving()
    with get_client(sync_client=True) as client:
        kind = ArtifactFilter(type=ArtifactFilterType(any_=["progress"]))
        shown = {a.description: a.data for a in client.read_artifacts(artifact_filter=kind)}
    assert shown["upload long/shard 0"] == 100.0
    assert "upload short/shard 0" not in shown


def test_a_flow_that_fails_stops_its_long_steps(policy: Any) -> None:
    """When the flow ends early, steps in threads end at their next part, and have cleaned up before it is over."""
    from prefect import flow

    from tasks.runners import task_runner

    cleaned = []

    @policy.step("endless")
    def endless() -> None:
        tell = policy.progress("endless", 0)
        try:
            while True:
                tell(0)
                time.sleep(0.01)
        except StoppedError:
            cleaned.append(1)
            raise

    @flow(task_runner=task_runner())
    def ending() -> None:
        futures = [endless.submit()]
        with policy.stop_with_the_flow(futures):
            time.sleep(0.3)
            raise KeyError("the flow's own end")

    with pytest.raises(KeyError):
        ending()
    assert cleaned == [1]
