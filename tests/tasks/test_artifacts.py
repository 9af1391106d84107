"""Reports are for people: no step fails by one, and none waits long for Prefect's server."""

import threading
import time
from collections.abc import Iterator

import pytest

from tasks.artifacts import Post


@pytest.fixture
def post() -> Post:
    return Post(patience_seconds=0.2)


@pytest.fixture
def server() -> Iterator[threading.Event]:
    """Set: it answers. What waits for it is let go at the end."""
    event = threading.Event()
    yield event
    event.set()


def test_a_report_is_there_when_the_step_goes_on(post: Post) -> None:
    """With a server that answers, nothing has changed for whoever looks at once."""
    sent: list[int] = []
    for number in range(3):
        post.send(lambda number=number: sent.append(number))  # type: ignore[misc]
        assert sent[-1] == number


def test_a_report_that_fails_fails_nothing(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged by its kind, and the next one is sent."""
    sent: list[int] = []

    def refused() -> None:
        raise ConnectionError("refused")

    post.send(refused)
    post.send(lambda: sent.append(1))
    assert sent == [1]
    assert "Not shown in Prefect's UI: ConnectionError: refused" in caplog.text


def test_a_server_that_is_away_is_waited_for_once(
    post: Post, server: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Hundreds of collections must not each wait; when the server is back everything arrives, in order."""
    sent: list[int] = []
    began = time.monotonic()
    post.send(lambda: (server.wait(10), sent.append(0)))
    for number in range(1, 200):
        post.send(lambda number=number: sent.append(number))  # type: ignore[misc]
    assert time.monotonic() - began < 2
    assert caplog.text.count("the run goes on") == 1
    server.set()
    deadline = time.monotonic() + 10
    while len(sent) < 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sent == list(range(200))


def test_progress_waits_for_nobody(post: Post, server: threading.Event) -> None:
    """Not even for the patience: it is called between two parts of a transfer."""
    began = time.monotonic()
    post.send(lambda: server.wait(10), wait=False)
    assert time.monotonic() - began < 0.1
