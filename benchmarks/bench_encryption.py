"""What encrypting archives costs: the backup's step with and without it, the library alone, and memory."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyrage  # type: ignore[import-untyped]
from pydantic import SecretStr

from benchmarks.bench_backup import (
    BLOCK_BYTES,
    RAW_KEY,
    download_alone,
    first_copy,
    put_alone,
    raw_client,
    snapshot_url,
)
from benchmarks.bench_memory import NOBODY, walk_figure, watch_walk
from benchmarks.data import Shape
from benchmarks.figures import Figure, Target, middle, ratios, timed
from benchmarks.load import Load
from benchmarks.stage import Stage
from ferry.archive.encryption import Encoder, decoded
from ferry.backup import steps
from ferry.backup.work import Work
from ferry.connections import Connections
from ferry.profiles import Encryption
from ferry.qdrant.snapshots import delete_snapshot

SHARE = Target(0.95, "at least")


@dataclass(frozen=True)
class Round:
    """Seconds for the same bytes, measured beside each other."""

    plain: float
    sealed: float
    down: float
    put: float
    library: float
    encode: float
    decode: float


class _Nowhere(io.RawIOBase):
    """Takes all and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return len(data)  # type: ignore[arg-type]


def measure(stage: Stage, points: int, rounds: int, warm_rounds: int, walked: Shape) -> list[Figure]:
    """Upload one shard's snapshot both ways some times over, then walk with a large one both ways."""
    identity = pyrage.x25519.Identity.generate()
    keys = Encryption(recipients=[str(identity.to_public())], identity=SecretStr(str(identity)))
    collection = stage.collection(Shape("bench-encryption", points))
    work, watch, results = stage.only_work(collection), stage.load_watch(), []
    try:
        data = first_copy(stage, work)
        for number in range(-warm_rounds, rounds):
            done = _round(stage, work, data, keys, number, watch if number >= 0 else stage.load_watch())
            results += [done] if number >= 0 else []
    finally:
        stage.drop(collection)
    return [*_figures(len(data), results, watch), *_memory(stage, walked, keys)]


def _round(stage: Stage, work: Work, data: bytes, keys: Encryption, number: int, watch: Load) -> Round:
    connections = stage.connect()
    sealed = replace(connections, profile=connections.profile.model_copy(update={"encryption": keys}))
    client, profile = raw_client(stage), connections.profile
    ways: dict[str, Callable[[], float]] = {
        "sealed": lambda: _step(stage, sealed, work),
        "down": lambda: _down(stage, work),
        "put": lambda: timed(lambda: put_alone(client, data, profile.part_bytes, profile.parts_in_flight))[0],
        "plain": lambda: _step(stage, connections, work),
    }
    with watch:  # in changing order, for what the machine does meanwhile
        seconds = {name: ways[name]() for name in (list(ways) if number % 2 else reversed(ways))}
    connections.store.delete([RAW_KEY])
    recipient = pyrage.x25519.Recipient.from_str(keys.recipients[0])
    seconds["library"] = timed(lambda: pyrage.encrypt_io(io.BytesIO(data), _Nowhere(), [recipient]))[0]
    encoder = Encoder(keys, _blocks(data))
    seconds["encode"], stored = timed(lambda: list(encoder.blocks()))
    form = encoder.form((sum(map(len, stored)), ""))
    decoding: Callable[[], object] = lambda: deque(decoded(keys.identity, form, "it", stored), maxlen=0)  # noqa: E731
    seconds["decode"] = timed(decoding)[0]
    return Round(**seconds)


def _step(stage: Stage, connections: Connections, work: Work) -> float:
    """One whole step of a backup: move, compare, delete the node's file."""
    work = work.model_copy(update={"backup_id": stage.new_id()})
    made = steps.create_snapshot(connections, work)
    seconds, stored = timed(lambda: steps.upload_snapshot(connections, work, made))
    connections.store.delete([stored.key])
    return seconds


def _down(stage: Stage, work: Work) -> float:
    connections = stage.connect()
    work = work.model_copy(update={"backup_id": stage.new_id()})
    made = steps.create_snapshot(connections, work)
    seconds = timed(lambda: download_alone(snapshot_url(work, made.name)))[0]
    node = connections.cluster.node(work.archive.node.peer_id)
    delete_snapshot(node, work.archive.collection, work.archive.shard_id, made.name)
    connections.journal(work.backup_id).drop("node_snapshot", work.noted)
    return seconds


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


def _figures(size: int, results: list[Round], watch: Load) -> list[Figure]:
    def speed(name: str) -> str:
        return f"{size / 1e6 / middle([getattr(done, name) for done in results]):,.0f} MB/s"

    def figure(name: str, ours: str, raw: list[str], target: Target | None, limit: str) -> Figure:
        slowest = [max(getattr(done, each) for each in raw) for done in results]
        values = ratios(slowest, [getattr(done, ours) for done in results])  # of speeds: seconds the other way round
        told = ", ".join(f"{each} {speed(each)}" for each in raw)
        return Figure("encryption", name, speed(ours), told, middle(values), values, target, limit, notes=notes)

    notes = (f"one archive of {size / 1e6:,.0f} MB",)
    load = f"{watch}; {watch.per_megabytes(size * len(results) / 1e6)}"
    lock = "pyrage 1.4 holds the interpreter's lock while it computes, so it takes turns with what else Python does"
    alone = (
        "node → bucket, encrypted, sha256 of both forms in line ÷ the slowest of reading, the barest put, pyrage alone"
    )
    return [
        figure(alone, "sealed", ["down", "put", "library"], SHARE, load),
        figure("node → bucket, encrypted ÷ the same not encrypted", "sealed", ["plain"], None, load),
        figure("Encoder with sha256 from memory ÷ pyrage.encrypt_io alone", "encode", ["library"], None, lock),
        figure("decrypting from memory ÷ pyrage.encrypt_io alone", "decode", ["library"], None, lock),
    ]


def _memory(stage: Stage, shape: Shape, keys: Encryption) -> list[Figure]:
    # As in bench_memory: nodes are sent to an address where nobody answers, so the plain walk uploads as well.
    secret = keys.identity.get_secret_value() if keys.identity else ""
    sealed = {"encryption.recipients": keys.recipients, "encryption.identity": secret}
    found = []
    for name, more in (("encrypted", sealed), ("not encrypted", {})):
        settings = stage.folder / f"ferry-{name.replace(' ', '-')}.toml"
        config = stage.write_settings(settings, node_endpoint_url=NOBODY, **more)
        collection = stage.collection(shape)
        peaks, told = watch_walk(stage, config, collection)
        stage.drop(f"{collection}-walked")
        found.append((name, peaks, told["bytes"]))
    stage.drop(shape.name)
    return [walk_figure("encryption", f"{name}, of {size / 1e6:,.0f} MB", peaks) for name, peaks, size in found]
