"""Real servers that all layers above the unit tests share, started once for the whole run and only when asked for."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from ferry.connections import forget_connections
from sandbox.prefect_server import PrefectServer
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.workshop import Workshop

# The unit layer is to be over within ten seconds; HYPOTHESIS_PROFILE=thorough looks harder, as `make soak` does.
hypothesis.settings.register_profile("quick", max_examples=25)
hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# A test that runs flows asks for the real server; without this Prefect would quietly start one of its own.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"

LAYERS = ("unit", "contract", "tasks", "flows", "integration", "faults", "e2e", "soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The quick layers first: what is wrong in them is wrong in the others, too.

    What takes minutes runs only when the expression of -m names its marker: `make soak`.
    """
    if "soak" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    items.sort(key=lambda item: LAYERS.index(item.path.relative_to(Path(__file__).parent).parts[0]))


@pytest.fixture(autouse=True)
def no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the settings of whoever runs it or of the test before; our logger is as new."""
    logger = logging.getLogger("ferry")  # Prefect stops it from propagating, and the command line quiets it
    logger.setLevel(logging.NOTSET)
    monkeypatch.setattr(logger, "propagate", True)
    for name in [name for name in os.environ if name.startswith("FERRY_") and name != "FERRY_QDRANT_BINARY"]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist's; the command line would break its tables there
    forget_connections()
    yield
    forget_connections()


@pytest.fixture(scope="session")
def shared_s3() -> Iterator[S3Server]:
    """A real S3 server; every test has a prefix of its own in its one bucket."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def three_nodes() -> Iterator[QdrantCluster]:
    """A real cluster of three nodes; tests drop the collections that they make. Never killed: take one of your own."""
    with QdrantCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[QdrantCluster]:
    """A real cluster of two nodes, as restore target; never killed."""
    with QdrantCluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture
def workshop(
    shared_s3: S3Server,
    three_nodes: QdrantCluster,
    two_nodes: QdrantCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workshop]:
    """Settings with ``source`` (three nodes), ``target`` (two nodes) and repository ``main``; leaves no collection."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"source": three_nodes, "target": two_nodes}) as shop:
        yield shop


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[PrefectServer]:
    """A real Prefect server; this process and all that it starts become its clients."""
    with PrefectServer() as server, ExitStack() as settings:
        os.environ.update(server.env())
        if "prefect" in sys.modules:  # it has read its settings when some test module imported it
            from prefect.settings import temporary_settings

            known = {"api.url": server.api_url, "server.ephemeral.enabled": False}
            settings.enter_context(temporary_settings(known))
        yield server
        drain_prefect()


def drain_prefect() -> None:
    """Send what Prefect's client has in its queues while its server lives; else it tries for minutes at exit."""
    for module, worker in (("prefect.logging.handlers", "APILogWorker"), ("prefect.events.worker", "EventsWorker")):
        if module in sys.modules:
            getattr(sys.modules[module], worker).drain_all(timeout=10, at_exit=False)
