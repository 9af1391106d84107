"""Whole migrations while nodes, ways, keys, disks and workers fail: every point arrives, or nothing is changed.

What nodes do to the stream writer alone: test_migration_writer.py. Kills at any batch: test_migration_kills.py.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from ferry.archive import builder
from ferry.archive.builder import ShardBuilders
from ferry.connections import Connections
from ferry.errors import FerryError, HeadroomError, NodeRefusedError, PreflightError
from ferry.lanes import Job
from ferry.migration import build, records, target
from ferry.migration.plan import MigrationPlan, MigrationRequest, QdrantSource
from ferry.migration.report import CompletenessReport
from ferry.migration.run import run_migration
from ferry.models import Progress
from ferry.qdrant import rota
from sandbox import disk
from sandbox.disk import STORAGE_LIMIT_REASON, storage_limit_supported
from sandbox.fault_proxy import FaultProxy
from sandbox.prefect_server import PrefectServer
from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.faults.conftest import Runs
from tests.faults.grpc_limits import LimitingProxy
from tests.faults.scene import Scene, fill, later, session, soon, together
from tests.integration.crossings import address
from tests.integration.tokens import API_KEY, TokenCluster, token
from tests.workshop import AS_IN_A_TERMINAL, Workshop

POINTS, NEW = 2000, "new"
HELD_BACK, USUAL = 0, 10_000
LEEWAY_SECONDS = 30  # for so long Qdrant takes a token that has expired (src/common/auth/jwt_parser.rs)
DELAYS = (0.5, 1.0, 2.0, 4.0)
Act = Callable[[], object]
limited = pytest.mark.skipif(not storage_limit_supported(), reason=STORAGE_LIMIT_REASON)


@pytest.fixture(scope="module")
def fragile() -> Iterator[QdrantCluster]:
    """Three nodes that may be killed."""
    with QdrantCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def from_fragile(
    fragile: QdrantCluster,
    two_nodes: QdrantCluster,
    shared_s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator["Stage"]:
    """A source whose nodes may be killed."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"source": fragile, "target": two_nodes}) as shop:
        yield Stage(shop)
        bring_back(fragile)


@pytest.fixture
def to_fragile(
    fragile: QdrantCluster,
    three_nodes: QdrantCluster,
    shared_s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator["Stage"]:
    """A target whose nodes may be killed."""
    with Workshop(tmp_path, monkeypatch, shared_s3, {"source": three_nodes, "target": fragile}) as shop:
        yield Stage(shop)
        bring_back(fragile)


def bring_back(cluster: QdrantCluster) -> None:
    """Start what a test that failed has left dead."""
    for node in cluster.nodes:
        if not node.answers():
            node.restart()


@pytest.fixture
def stage(workshop: Workshop) -> "Stage":
    """Both on nodes that nobody kills."""
    return Stage(workshop)


class AtPoints(Job):
    """A job that does something when so many points of its steps were done; a step's label may be asked for."""

    def __init__(self, *acts: tuple[int, Act], only: str = "", delays: tuple[float, ...] = DELAYS) -> None:
        super().__init__(retry_delays_seconds=delays)
        self._acts, self._only, self.done = list(acts), only, 0

    @property
    def acted(self) -> bool:
        """Whether all was done."""
        return not self._acts

    def _stoppable(self, label: str, show: Progress) -> Progress:
        inner = super()._stoppable(label, show)

        def tell(done: int) -> None:
            inner(done)
            if not label.startswith(self._only):
                return
            self.done += done
            while self._acts and self.done >= self._acts[0][0]:
                self._acts.pop(0)[1]()

        return tell


class Stage:
    """A migration of ``docs`` on the source into ``new`` on the target."""

    def __init__(self, shop: Workshop) -> None:
        self.shop, self.scene = shop, Scene(shop)
        self.source, self.target = shop.clusters["source"], shop.clusters["target"]
        self.scene.configure()

    def use(self, source: str, into: str) -> None:
        """Take these keys."""
        self.scene.configure(clusters={"source": {"api_key": source}, "target": {"api_key": into}})

    def asked(self, **wishes: Any) -> MigrationRequest:
        source = QdrantSource(cluster="source", collection="docs")
        usual = {"cluster": "target", "repository": "main", "source": source, "into": NEW, "batch_bytes": 8192}
        return MigrationRequest(**{**usual, **wishes})

    def migrate(self, job: Job | None = None, **wishes: Any) -> CompletenessReport:
        """As ``python -m ferry migrate`` does, with clients of its own."""
        connections = self.scene.connections("target")
        return run_migration(connections, self.asked(**wishes), "a test", job or Job(retry_delays_seconds=DELAYS))

    def plan(self, **wishes: Any) -> tuple[Connections, MigrationPlan]:
        """The plan that is kept in the repository."""
        connections = self.scene.connections("target")
        plan = records.saved_plan(connections, records.migration_id_of(self.asked(**wishes)))
        assert plan is not None
        return connections, plan

    def require_only_the_rest(self) -> None:
        """Some of the points count as copied; the same call copies the others, and no other, and all are equal then."""
        before = sum(state.read for state in records.range_states(*self.plan()))
        assert 0 < before < POINTS
        again = AtPoints(only="copy")
        self.require_equal(self.migrate(again), copies=1)
        assert again.done == POINTS - before

    def content(self, cluster: QdrantCluster, name: str) -> dict[Any, Any]:
        """Every point by its id, as Qdrant's REST API shows it."""
        body = {"limit": 100_000, "with_vector": True, "with_payload": True}
        with session(cluster) as http:
            answer = http.post(f"/collections/{name}/points/scroll", json=body).raise_for_status()
        return {point["id"]: point for point in answer.json()["result"]["points"]}

    def threshold(self, name: str = NEW) -> int:
        """From how many KiB on the new collection indexes."""
        with session(self.target) as http:
            config = http.get(f"/collections/{name}").raise_for_status().json()["result"]["config"]
        return int(config["optimizer_config"]["indexing_threshold"])

    def names(self) -> list[str]:
        """The target's collections."""
        with session(self.target) as http:
            return sorted(each["name"] for each in http.get("/collections").json()["result"]["collections"])

    def require_equal(self, report: CompletenessReport, name: str = NEW, *, copies: int = 2) -> None:
        """Every point of every copy as in the source, each counted once, and nothing of ours left."""
        before = self.content(self.source, "docs")
        assert self.content(self.target, name) == before
        assert (report.verdict, report.read, report.written) == ("equal", len(before), len(before))
        self.scene.settled("target")
        self.scene.connections("target").cluster.wait_until_active(name, None, 30.0)
        digests = self.scene.content("target", name)
        shards = {shard for shard, _ in digests}
        assert len(digests) == copies * len(shards)
        assert len(set(digests.values())) == len(shards)
        assert self.threshold(name) == USUAL
        assert self.shop.objects("loads/") == []
        assert self.shop.leftovers() == []


@pytest.mark.parametrize("copies", [1, 2])
def test_a_node_of_the_source_that_is_killed_is_read_around_or_waited_for(from_fragile: Stage, copies: int) -> None:
    """With a second copy the others are read meanwhile; a shard that only it has is waited for. Nothing is missed."""
    fill(from_fragile.source, points=POINTS, replicas=copies)
    node = from_fragile.source.nodes[1]
    back: Act = node.start if copies == 2 else lambda: None
    killed = [(500, node.kill), (1500, back)]
    if copies == 1:
        killed = [(500, together(node.kill, node.start))]
    job = AtPoints(*killed, only="copy")
    report = from_fragile.migrate(job)
    assert job.acted
    from_fragile.scene.settled("source")
    from_fragile.require_equal(report, copies=copies)


@pytest.mark.parametrize("number", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_node_of_the_target_that_is_killed_is_gone_on_without(to_fragile: Stage, number: int) -> None:
    """It comes back only when most points are written, so the others must have taken them; in the end it has all."""
    fill(to_fragile.source, points=POINTS)
    node = to_fragile.target.nodes[number]
    job = AtPoints((500, node.kill), (1500, node.start), only="copy")
    report = to_fragile.migrate(job)
    assert job.acted
    to_fragile.require_equal(report)


def test_the_node_that_makes_the_collection_is_waited_for_at_every_step(
    to_fragile: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when the collection is to be made, to settle and to be handed over, and back a moment later."""
    fill(to_fragile.source)
    node, killed = to_fragile.target.nodes[0], list[str]()

    def strike(name: str) -> None:
        step: Callable[..., Any] = getattr(target, name)

        def struck(*given: Any) -> Any:
            if name not in killed:
                killed.append(name)
                node.kill()
                later(0.3, node.start)()
            return step(*given)

        monkeypatch.setattr(target, name, struck)

    for name in ("open_target", "settle_target", "hand_over"):
        strike(name)
    report = to_fragile.migrate()
    assert killed == ["open_target", "settle_target", "hand_over"]
    to_fragile.require_equal(report)


@pytest.mark.soak
def test_a_node_of_the_target_that_is_killed_over_its_shard_gets_it_when_it_is_back(to_fragile: Stage) -> None:
    """The writer that builds shards: it is killed when the first is sent to it, and back half a second later."""
    fill(to_fragile.source, points=POINTS)
    node = to_fragile.target.nodes[2]
    job = AtPoints((1, together(node.kill, node.start)), only="upload")
    report = to_fragile.migrate(job, replication_factor=3, writer="build")
    assert job.acted
    assert report.repaired == 0
    to_fragile.require_equal(report, copies=3)


@pytest.mark.soak
@pytest.mark.parametrize("which", ["source", "target"])
def test_nodes_that_stay_away_end_a_run_that_can_be_gone_on_with(
    from_fragile: Stage, to_fragile: Stage, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The error says what to do, what was copied counts, and when they are back the same call does the rest."""
    stage = from_fragile if which == "source" else to_fragile
    stage.scene.configure()
    fill(stage.source, points=POINTS, replicas=1)
    # A shard of the source is only on its node; points for the target are taken by any other.
    nodes = [stage.source.nodes[1]] if which == "source" else stage.target.nodes
    monkeypatch.setattr(rota, "AWAY_SECONDS", 2.0)
    job = AtPoints((500, together(*(node.kill for node in nodes))), only="copy", delays=())
    with pytest.raises(FerryError, match=r"(?s)For \d+ s no node has .* start it, then run this again"):
        stage.migrate(job)
    assert job.acted
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_ready()
    stage.scene.settled(which)
    assert stage.threshold() == (HELD_BACK if which == "target" else USUAL)
    stage.require_only_the_rest()


def test_small_messages_only_and_busy_nodes_on_the_way(stage: Stage) -> None:
    """4 MiB to read and 2 MiB to write is all that proxies let through, and both are busy in bursts, REST too."""
    fill(stage.source, points=300, size=2048)
    with session(stage.source) as http:
        large = [{"id": 10_000 + n, "vector": [0.5] * 2048, "payload": {"text": "ü" * 700_000}} for n in range(3)]
        for point in large:
            http.put("/collections/docs/points?wait=true", json={"points": [point]}).raise_for_status()
    with ExitStack() as stack:
        reads = [stack.enter_context(LimitingProxy(url, 4 << 20, "/Get", 2)) for url in stage.source.grpc_urls]
        writes = [stack.enter_context(LimitingProxy(url, 2 << 20, "/Upsert", 2)) for url in stage.target.grpc_urls]
        rest = [stack.enter_context(FaultProxy(address(url))) for url in stage.target.urls]
        stage.scene.configure(
            clusters={
                "source": {"grpc_nodes": [proxy.url for proxy in reads]},
                "target": {
                    "grpc_nodes": [proxy.url for proxy in writes],
                    "nodes": [proxy.url for proxy in rest],
                },
            }
        )

        def busy() -> None:
            for proxy in rest:
                proxy.http_status(429, 1, "/points/scroll", {"Retry-After": "1"})

        job = AtPoints((100, busy), only="copy")
        report = stage.migrate(job, batch_bytes=16 << 20, readers=1)
        assert job.acted
    assert sum(proxy.refused["answer"] for proxy in reads) > 0
    assert sum(proxy.refused["request"] for proxy in writes) > 0
    for proxies in (reads, writes):
        assert sum(proxy.refused["busy"] for proxy in proxies) >= 2
    assert any(proxy.largest_bytes > 1 << 20 for proxy in writes)
    stage.scene.configure()
    stage.require_equal(report)


@pytest.fixture
def keyed(shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Stage"]:
    """One node that takes tokens, with ``docs``, as source and target."""
    with (
        TokenCluster(nodes=1) as cluster,
        Workshop(tmp_path, monkeypatch, shared_s3, {"source": cluster, "target": cluster}) as shop,
    ):
        fill(cluster, points=POINTS, shards=2, replicas=1)
        yield Stage(shop)
        shop.clusters.clear()  # the workshop itself has no key


def test_keys_that_do_not_suffice_are_refused_before_anything_is_changed(keyed: Stage) -> None:
    """Of the source and of the target; the error says which setting it is, and not the key."""
    gone = int(time.time()) - LEEWAY_SECONDS - 5
    poor = {
        "wrong": "another-key-that-nobody-knows",
        "expired": token({"access": "m", "exp": gone}),
        "of another collection": token({"access": [{"collection": "other", "access": "rw"}]}),
        "read only": token({"access": "r"}),
    }
    for what, key in poor.items():
        if what != "read only":
            keyed.use(key, API_KEY)
            with pytest.raises((PreflightError, NodeRefusedError)) as caught:
                keyed.migrate()
            require_told(caught.value, key)
        keyed.use(API_KEY, key)
        with pytest.raises((PreflightError, NodeRefusedError)) as caught:
            keyed.migrate()
        require_told(caught.value, key)
    keyed.use(API_KEY, API_KEY)
    assert keyed.names() == ["docs"]
    assert keyed.shop.objects("migrations/") == keyed.shop.objects("loads/") == keyed.shop.leftovers() == []


@pytest.mark.parametrize("which", ["target", pytest.param("source", marks=pytest.mark.soak)])
def test_a_token_that_expires_in_mid_run(keyed: Stage, which: str) -> None:
    """The error says so, what was copied counts, and with another token the same call does the rest."""
    until = time.time() + 3
    brief = token({"access": "m", "exp": int(until) - LEEWAY_SECONDS})
    keyed.use(*(brief if name == which else API_KEY for name in ("source", "target")))
    job = AtPoints((600, lambda: time.sleep(max(0.0, until + 1 - time.time()))), only="copy")
    with pytest.raises(FerryError) as caught:
        keyed.migrate(job)
    assert job.acted
    require_told(caught.value, brief)
    keyed.use(API_KEY, API_KEY)
    # With a token that has expired nothing can be put back: the next run does it.
    assert keyed.threshold() == (HELD_BACK if which == "target" else USUAL)
    keyed.require_only_the_rest()


def require_told(error: Exception, key: str) -> None:
    """The error says what to set, and not the key."""
    assert "api_key" in f"{error} {getattr(error, 'remedy', '')}", error
    assert key not in f"{error!r} {error}"


def test_a_collection_that_is_not_ours_stays_as_it_is(stage: Stage) -> None:
    """Another schema, or the same one made by others: refused whatever is asked, and not a point of it is touched."""
    fill(stage.source)
    fill(stage.target, NEW, 90, size=8, shards=1, replicas=1)
    fill(stage.target, "same", 50, replicas=1)
    before = {name: stage.content(stage.target, name) for name in (NEW, "same")}
    for name, words in ((NEW, "another schema"), ("same", "not made by this migration")):
        for writer, restart in (("stream", False), ("build", True)):
            with pytest.raises(PreflightError, match=rf"(?s){words}.*Nothing was changed"):
                stage.migrate(into=name, restart=restart, writer=writer)
            assert stage.content(stage.target, name) == before[name]
            assert stage.threshold(name) == USUAL
    assert stage.names() == [NEW, "same"]
    assert stage.shop.objects("migrations/") == stage.shop.objects("loads/") == stage.shop.leftovers() == []


@limited
@pytest.mark.parametrize("guarded", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_disk_that_fills_up_while_shards_are_built(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Seen before the engine hits it, or hit by it: told as what it is, nothing is left, and the same call goes on."""
    fill(stage.source, points=POINTS, size=256)
    spool = tmp_path / "spool"
    disk.mount_limited(spool, (500 << 20) if guarded else (6 << 20))
    acts: list[tuple[int, Act]] = [(1000, lambda: disk.fill(spool, leave_bytes=100 << 20))] if guarded else []
    try:
        with monkeypatch.context() as patch:
            if not guarded:
                patch.setattr(build, "SHARD_BYTES", 1)
                patch.setattr(build, "SPOOL_FACTOR", 0.1)
                patch.setattr(build, "LEAST_FREE_BYTES", 0)
                patch.setattr(builder, "LEAST_FREE_BYTES", 4 << 20)
                patch.setattr(ShardBuilders, "_require_room", lambda _self: None)
            with pytest.raises(HeadroomError, match="ran full while shards were built"):
                stage.migrate(AtPoints(*acts, only="read"), writer="build")
        disk.free(spool)
        assert list(spool.iterdir()) == []
        assert stage.shop.leftovers() == []
        assert stage.content(stage.target, NEW) == {}
    finally:
        disk.unmount(spool)
    stage.require_equal(stage.migrate(writer="build"))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Migrations in processes of their own, which may be killed; they need no Prefect server."""
    made = Runs(cast("PrefectServer", SimpleNamespace(env=dict, folder=tmp_path)))
    yield made
    made.close()


def test_shards_that_a_killed_run_has_finished_are_not_built_again(
    stage: Stage, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL between two shards: the next run tidies the worker's spool and builds only the others."""
    fill(stage.source, points=POINTS)
    wish: dict[str, Any] = {"writer": "build", "shape": {"shard_number": 5}}
    asked = stage.asked(**wish).model_dump(mode="json")
    runs.killed(
        "tests.faults.migrating:migrate",
        {"request": asked, "checkpoint_seconds": 2.0},
        at="ferry.migration.build:_Building._deliver",
        nth=2,
    )
    finished = {shard.shard_id for shard in build.built(*stage.plan(**wish))}
    assert 2 <= len(finished) < 5
    assert [found for found in stage.shop.leftovers() if found.startswith("spool")] != []

    built: list[int] = []
    finish = ShardBuilders.finish

    def counted(self: ShardBuilders, shard: Any, *given: Any) -> Any:
        built.append(shard)
        return finish(self, shard, *given)

    monkeypatch.setattr(ShardBuilders, "finish", counted)
    report = stage.migrate(**wish)
    assert sorted([*finished, *built]) == [0, 1, 2, 3, 4]
    assert report.repaired == 0
    stage.require_equal(report)


class Command:
    """``python -m ferry migrate`` of ``docs`` as a process, through proxies before the target's gRPC that slow it."""

    def __init__(self, stage: Stage, into: str = NEW) -> None:
        command = [*AS_IN_A_TERMINAL, sys.executable, "-m", "ferry", "migrate", "live:source/docs"]
        command += ["--cluster", "target", "--repository", "main", "--into", into, "--json"]
        self._out = (stage.shop.folder / f"{time.monotonic_ns()}.log").open("w+")
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(command, cwd=root, stdout=self._out, stderr=subprocess.STDOUT, text=True)

    def end(self, number: signal.Signals | None = None) -> int:
        """Wait for its end, which a signal may bring about; its exit code."""
        if number is not None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()

    def said(self) -> str:
        """All that it has printed."""
        self._out.seek(0)
        return self._out.read()

    def report(self) -> CompletenessReport:
        """What it has printed as JSON."""
        text = self.said()
        return CompletenessReport.model_validate(json.loads(text[text.index("{") :]))


@pytest.mark.soak
def test_a_command_that_is_killed_or_interrupted_is_gone_on_with(stage: Stage) -> None:
    """SIGKILL leaves indexing held back, and the next command of any migration into that cluster puts it back; Ctrl-C
    puts it back at once. The same command again does the rest."""
    fill(stage.source, points=POINTS, size=256)
    with ExitStack() as stack:
        slow = [stack.enter_context(FaultProxy(address(url))) for url in stage.target.grpc_urls]
        stage.scene.configure(clusters={"target": {"grpc_nodes": [proxy.url for proxy in slow]}})

        def begun(into: str) -> Command:
            """In mid-run: some points are there, and all cannot be for some seconds."""
            for proxy in slow:
                proxy.slow(150_000)
            command = Command(stage, into)
            soon(lambda: command.process.poll() is not None or (into in stage.names() and some(into)))
            assert command.process.poll() is None, command.said()
            assert stage.threshold(into) == HELD_BACK
            return command

        def some(into: str) -> bool:
            with session(stage.target) as http:
                answer = http.post(f"/collections/{into}/points/count", json={"exact": True})
            return bool(answer.status_code == httpx.codes.OK and answer.json()["result"]["count"])

        assert begun(NEW).end(signal.SIGKILL) == -signal.SIGKILL
        assert stage.threshold() == HELD_BACK
        other = begun("other")  # the next one into that cluster, whatever it makes itself
        assert stage.threshold() == USUAL
        assert other.end(signal.SIGINT) == 130, other.said()
        assert stage.threshold("other") == USUAL
        assert stage.shop.objects("loads/") == stage.shop.leftovers() == []
        for proxy in slow:
            proxy.clear()
        for into in ("other", NEW):
            again = Command(stage, into)
            assert again.end() == 0, again.said()
            stage.require_equal(again.report(), into)
