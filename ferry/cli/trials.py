"""Trying every profile without changing anything that belongs to the operator: what works, what not, what to do.

A trial that fails never hides another one: each catches its own errors, and every profile is tried by itself.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from ferry.archive.encryption import Encoder, decoded, require_keys
from ferry.errors import FerryError
from ferry.models import ClusterLayout, NodeInfo, Value, now
from ferry.profiles import ClusterProfile, Encryption, RepositoryProfile, WorkerSettings
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.condition import read_conditions
from ferry.qdrant.resources import read_headroom, readable_bytes
from ferry.qdrant.rights import RIGHTS, Right, refusal
from ferry.qdrant.stuck import find_stuck
from ferry.repository.conformance import passed, read_conformance
from ferry.repository.kms import find_identity
from ferry.repository.layout import Keys
from ferry.repository.probe import probe
from ferry.repository.store import Store
from ferry.settings import Settings, config_path


class Trial(Value):
    """One thing that was tried. ``remedy`` is the next step where it failed."""

    profile: str
    test: str
    ok: bool
    detail: str
    remedy: str | None = None


class Trials:
    """The trials of one profile, in order."""

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.done: list[Trial] = []

    def passed(self, test: str, detail: str) -> None:
        """Note that a test went well."""
        self.done.append(Trial(profile=self.profile, test=test, ok=True, detail=detail))

    def failed(self, test: str, detail: str, remedy: str | None) -> None:
        """Note that a test failed, and what to do."""
        self.done.append(Trial(profile=self.profile, test=test, ok=False, detail=detail, remedy=remedy))

    def attempt(self, test: str, work: Callable[[], str]) -> None:
        """Do something that returns its detail; its error is the failure."""
        with self.survived(test):
            self.passed(test, work())

    @contextmanager
    def survived(self, test: str) -> Iterator[None]:
        """Whatever the body raises is a failed test, because the profiles after this one must still be tried."""
        try:
            yield
        except FerryError as error:
            self.failed(test, error.message, error.remedy)
        except Exception as error:  # noqa: BLE001 - see above
            # The text is left out: what comes from elsewhere was not cleared of secrets.
            self.failed(test, f"{type(error).__name__}, which Ferry does not expect here.", "Please report it.")


def try_everything(settings: Settings, cluster: str | None, repository: str | None) -> list[Trial]:
    """Try the worker, and the profiles named or else all of them: beside each other, answered in their order."""
    everything = cluster is None and repository is None
    jobs: list[tuple[Trials, Callable[[Trials], None]]] = [(Trials("worker"), partial(_try_worker, settings.worker))]
    for name in sorted(settings.clusters) if everything else [cluster] if cluster else []:
        jobs.append((Trials(f"clusters.{name}"), partial(_try_cluster, name, settings.cluster(name))))
    for name in sorted(settings.repositories) if everything else [repository] if repository else []:
        jobs.append((Trials(f"repositories.{name}"), partial(_try_repository, settings.repository(name))))
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="ferry-doctor") as pool:
        for ended in [pool.submit(_survive, work, trials) for trials, work in jobs]:
            ended.result()
    trials = [trial for trials, _ in jobs for trial in trials.done]
    if len(jobs) == 1:
        remedy = "Copy deployments/ferry.example.toml to ferry.toml and fill it in, or let FERRY_CONFIG name your file."
        detail = f"no cluster and no repository is configured; {config_path()} would say so"
        trials.append(Trial(profile="settings", test="profiles", ok=False, detail=detail, remedy=remedy))
    return trials


def _survive(work: Callable[[Trials], None], trials: Trials) -> None:
    with trials.survived("set up"):
        work(trials)


def _try_worker(worker: WorkerSettings, trials: Trials) -> None:
    def look() -> str:
        try:
            worker.spool_dir.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(worker.spool_dir).free
        except OSError as error:
            msg = f"{worker.spool_dir} cannot be used: {error.strerror}."
            raise FerryError(msg, "Set worker.spool_dir to a folder that this user may write to.") from error
        return f"{worker.spool_dir} has {readable_bytes(free)} free, for archives of {readable_bytes(int(free / 2.2))}"

    trials.attempt("spool disk", look)


def _try_repository(profile: RepositoryProfile, trials: Trials) -> None:
    store = Store(profile)
    if profile.encryption is not None:
        trials.attempt("encryption keys", partial(_try_keys, profile, profile.encryption))
    results = probe(store)
    for result in results:
        if result.ok:
            trials.passed(result.name, result.detail)
        else:
            trials.failed(result.name, result.detail, result.remedy)
    if results[0].ok:
        trials.attempt("trials on record", partial(recorded, store))


def recorded(store: Store) -> str:
    """What the last backup has noted of the bucket; doctor itself writes nothing that stays."""
    held = passed(read_conformance(store, Keys(store.profile.prefix)), store.profile)
    if held is None:
        return "none with these settings; the next backup tries the bucket first"
    return f"{len(held.results)} passed on {held.at:%Y-%m-%d %H:%M} UTC"


def _try_keys(profile: RepositoryProfile, encryption: Encryption) -> str:
    """A few bytes there and back; without an identity, there."""
    identity = find_identity(profile)
    require_keys(encryption, identity, reads_back=False)
    encoder = Encoder(encryption, [b"ferry"])
    data = b"".join(encoder.blocks())
    told = f"{len(encryption.recipients)} recipients, archives are named after {encoder.key_id}"
    if identity is None:
        return f"{told}; no identity: only proof `bytes`, and no restore here"
    form = encoder.form((len(data), hashlib.sha256(data).hexdigest()))
    b"".join(decoded(identity, form, "a trial", [data]))
    return f"{told}; the identity opens what they get"


def _try_cluster(name: str, profile: ClusterProfile, trials: Trials) -> None:
    with Cluster(name, profile) as cluster:
        answered = _try_nodes(cluster, trials)
        if len(answered) == len(cluster.nodes):
            trials.attempt("nodes agree", lambda: _agreement(cluster))
        else:
            detail = f"not tried: {len(answered)} of {len(cluster.nodes)} nodes answered"
            trials.failed("nodes agree", detail, "Repair the nodes named above first; a backup needs all of them.")
        if answered:
            with trials.survived("replicas"):
                _try_replicas(cluster, trials)
            _try_headroom(cluster, answered, trials)
            _try_rights(cluster, answered, trials)


def _try_nodes(cluster: Cluster, trials: Trials) -> list[NodeInfo]:
    answered = []
    with ThreadPoolExecutor(len(cluster.nodes), thread_name_prefix="ferry-doctor-node") as pool:
        asked = [(node, pool.submit(node.identify)) for node in cluster.nodes]
    for node, future in asked:

        def tell(future: Future[NodeInfo] = future) -> str:
            info = future.result()
            answered.append(info)
            return f"Qdrant {info.version}, peer {info.peer_id}"

        trials.attempt(f"node {node.label}", tell)
    return answered


def _agreement(cluster: Cluster) -> str:
    layout = cluster.read_layout()
    shards = sum(len(collection.shards) for collection in layout.collections)
    return (
        f"{len(layout.nodes)} nodes on {len(layout.collections)} collections, {shards} shards, "
        f"{len(layout.aliases)} aliases"
    )


def _try_replicas(cluster: Cluster, trials: Trials) -> None:
    """One line for each collection that is stuck. Replicas are asked whether they can be read, and not counted."""
    conditions = read_conditions(cluster)
    for condition in conditions:
        if found := [stuck for stuck in find_stuck(condition) if not stuck.under_way]:
            remedy = f"See the call for each: python -m ferry mend {cluster.name} {condition.collection} --dry-run"
            detail = " ".join(f"{stuck.subject}: {stuck.diagnosis}" for stuck in found)
            trials.failed(f"collection {condition.collection}", detail, remedy)
    if not any(trial.test.startswith("collection ") for trial in trials.done):
        detail = f"{len(conditions)} collections, every replica Active on every node's view and readable"
        trials.passed("replicas", detail)


def _try_headroom(cluster: Cluster, nodes: list[NodeInfo], trials: Trials) -> None:
    headroom = cluster.profile.headroom
    for info in nodes:
        layout = ClusterLayout(cluster=cluster.name, taken_at=now(), nodes=(info,), collections=(), aliases={})

        def read(layout: ClusterLayout = layout) -> str:
            found = read_headroom(cluster, layout)[0]
            disk, ram = (
                "unknown" if free is None else readable_bytes(free)
                for free in (found.disk_free_bytes, found.ram_free_bytes)
            )
            detail = f"disk {disk} free, memory {ram} free; from: {found.source}"
            if found.disk_free_bytes is None and headroom.when_unknown == "refuse":
                msg = f"{detail}; every backup and restore will refuse."
                raise FerryError(msg, f"Configure clusters.{cluster.name}.headroom, or set its when_unknown to warn.")
            return detail

        trials.attempt(f"headroom {info.label}", read)


def _try_rights(cluster: Cluster, nodes: list[NodeInfo], trials: Trials) -> None:
    """Every node is asked, since each has its own configuration; one row a right, the first refusal in it."""
    answering = [node for node in cluster.nodes if node.url in {info.url for info in nodes}]
    key = "key" if cluster.profile.api_key else "nobody's key"
    for right in RIGHTS:

        def ask(right: Right = right) -> str:
            for node in answering:
                if said := refusal(node, right):
                    msg = f"{node.label} refuses what {right.needed_for} need: {said}"
                    raise FerryError(msg, f"Set clusters.{cluster.name}.api_key to a key with the right to manage.")
            return f"{right.needed_for}; asked {len(answering)} nodes"

        trials.attempt(f"{key} {right.label}", ask)
