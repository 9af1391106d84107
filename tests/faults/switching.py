"""Switches that can be killed at any of their requests, and a reader who asks the alias all the time."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import httpx

from ferry.connections import connect
from ferry.models import BackupId
from ferry.restore import finish as finishing
from ferry.restore import roll_back as rolling
from ferry.restore import switch as switching
from ferry.restore.switch_record import FinishWishes, Switch
from sandbox.fault_proxy import Address
from tests.faults.conftest import Runs
from tests.faults.scene import fill, names_and_aliases, session, soon
from tests.integration.crossings import address
from tests.soak.tripwire import Snare, Tripwire
from tests.workshop import Workshop

ALIAS, OLD, NEW, OTHER = "shop", "shop-old", "shop-new", "shop-other"
POINTS = {OLD: 40, NEW: 60, OTHER: 20}
RECORD = f"switches/target/{ALIAS}.json"
ACT = "tests.faults.switching:hurried"
RUN = BackupId("20261122T030000Z-aaaaaa")


def hurry(change: Callable[[Any, str, Any], None]) -> None:
    """Searches here take milliseconds, and nobody writes. ``change`` is setattr, or a test's own that is undone."""
    change(finishing, "DRAIN_SECONDS", 0.3)
    change(rolling, "DRAIN_SECONDS", 0.3)
    change(switching, "CALM_SECONDS", 0.3)


def act(what: str, holder: str = "another run") -> None:
    """A switch from old to new, a finish of it, or a roll back that drops the new one."""
    connections = connect("target", "main")
    if what == "switch":
        intent = switching.Intent(alias=ALIAS, old=OLD, new=NEW, restore_id=RUN, backup_id=RUN, keep_days=0)
        switching.make_switch(connections, intent, holder)
    elif what == "finish":
        finishing.finish(connections, ALIAS, FinishWishes(), holder)
    else:
        rolling.roll_back(connections, ALIAS, True, holder)


def hurried(what: str) -> None:
    """The same in a process of its own."""
    hurry(setattr)
    act(what)


class Wire(Tripwire):
    """A tripwire that can also tell of requests that change nothing."""

    def __init__(self, target: Address) -> None:
        super().__init__(target)
        self.on_request: Callable[[str], bool] | None = None

    async def _note_request(self, data: bytes, reader: Any) -> bytes:
        data = await super()._note_request(data, reader)
        if self.on_request is not None:
            self.on_request(self.requests[-1])
        return data


class Stage(ExitStack):
    """Two nodes and a bucket behind wires, and an alias at the old one of two collections."""

    def __init__(self, shop: Workshop, runs: Runs) -> None:
        super().__init__()
        self.shop, self.runs = shop, runs
        self.cluster = shop.clusters["target"]
        self.bucket = Wire(shop.s3.host_port)
        self.nodes = [Wire(address(url)) for url in self.cluster.urls]

    def __enter__(self) -> Self:
        super().__enter__()
        for wire in self.wires:
            self.enter_context(wire)
        self.shop.configure(
            clusters={"target": {"nodes": [wire.url for wire in self.nodes]}},
            repository={"endpoint_url": self.bucket.url, "lease_seconds": 2},
        )
        return self

    @property
    def wires(self) -> list[Wire]:
        """All of them."""
        return [*self.nodes, self.bucket]

    def furnish(self, at: str = OLD) -> None:
        """Whatever was before: both collections are there, the alias is at one, and nobody has noted anything."""
        there, _ = names_and_aliases(self.cluster)
        for name in {OLD, NEW} - there:
            fill(self.cluster, name, POINTS[name], shards=1)
        for url in self.cluster.urls:
            soon(lambda url=url: all(_answers(url, name) for name in (OLD, NEW)))
        self.point(at)
        self.shop.connect("target").cluster.read_layout()  # all nodes agree
        for key in self.shop.objects("leases/") + self.shop.objects("switches/"):
            self.shop.bucket.delete_object(Bucket="ferry", Key=f"{self.shop.folder.name}/{key}")

    def point(self, name: str) -> None:
        """Somebody points the alias at a collection."""
        action = {"create_alias": {"alias_name": ALIAS, "collection_name": name}}
        with session(self.cluster) as http:
            http.post("/collections/aliases", json={"actions": [action]}).raise_for_status()

    def killed_at(self, what: str, nth: int, match: str, *, every: bool = False) -> str | None:
        """Kill a run at its nth request that matches, which is obeyed all the same; None when it has ended before."""
        pid = self.runs.start(ACT, {"what": what})
        snare = Snare(nth, lambda: os.kill(pid, signal.SIGKILL), match=match)
        for wire in self.wires:
            wire.on_change, wire.on_request = (None, snare) if every else (snare, None)
        how = self.runs.wait(pid)
        for wire in self.wires:
            wire.on_change = wire.on_request = None
        if snare.sprung is None:
            assert how == "exit 0", self.runs.output(pid)
        return snare.sprung

    def bury(self) -> None:
        """End the lease of the dead run, which would be waited for, when what it has sent has been obeyed."""
        time.sleep(0.3)
        for key in self.shop.objects("leases/"):
            self.shop.bucket.delete_object(Bucket="ferry", Key=f"{self.shop.folder.name}/{key}")

    def alias(self) -> str | None:
        """Where it points, as soon as all nodes agree."""
        return self.shop.connect("target").cluster.read_layout(include=()).aliases.get(ALIAS)

    def names(self) -> set[str]:
        """The collections."""
        return names_and_aliases(self.cluster)[0]

    def record(self) -> Switch | None:
        """What is noted."""
        return Switch.model_validate(self.shop.read(RECORD)) if RECORD in self.shop.objects("switches/") else None


def _answers(url: str, name: str) -> bool:
    """Whether a node finds something in a collection."""
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as http:
        return bool(_search(http, name))


def _search(http: httpx.Client, name: str) -> int:
    body = {"query": [1.0] * 16, "limit": 5}
    answer = http.post(f"/collections/{name}/points/query", json=body)
    return len(answer.raise_for_status().json()["result"]["points"])


@contextmanager
def watched(stage: Stage) -> Iterator[list[str]]:
    """Search by the alias on every node all the time; what was not a full answer is in the list, and fails."""
    wrong: list[str] = []
    answers, done = [0], threading.Event()

    def read(url: str) -> None:
        with httpx.Client(base_url=url, timeout=10, trust_env=False) as http:
            while not done.is_set():
                try:
                    found = _search(http, ALIAS)
                except httpx.HTTPError as error:
                    wrong.append(f"{url}: {error}")
                else:
                    answers[0] += 1
                    if found != 5:
                        wrong.append(f"{url}: {found} points")
                time.sleep(0.01)

    readers = [threading.Thread(target=read, args=(url,)) for url in stage.cluster.urls]
    for reader in readers:
        reader.start()
    try:
        yield wrong
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert answers[0] > 50
