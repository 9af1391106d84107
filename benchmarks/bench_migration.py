"""How fast a collection comes to another cluster: Ferry's writers, qdrant-client's migrate(), the Go tool's loop.

Each collection is moved without an index on either side first, which shows the moving alone; then with one, until the
target has indexed everything. Every way runs in a process of its own, on a target that is empty again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.bench_memory import MIB
from benchmarks.data import Shape, load
from benchmarks.figures import Figure, Target, middle, ratios
from benchmarks.harbour import FAR, Crossing, Harbour, harbour
from benchmarks.stage import Stage
from sandbox.data import WordShape, load_words

SHARDS = 1
DIMENSIONS, TEXT_BYTES = 384, 300
MEMORY = Target(300, "at most", " MiB")
BARE_WAYS = ("stream", "go", "raw")  # the build writer always makes an index
INDEXED_WAYS = ("stream", "build", "go", "migrate")
PEERS = {
    "migrate": "qdrant-client's migrate()",
    "go": "the Go tool's loop (batches of 50, offset stored with each, 4 workers, no waiting)",
    "raw": "bare upserts of ready messages",
}
Taken = dict[str, list[Crossing]]


@dataclass(frozen=True)
class Moved:
    """A collection to move, of real words or of random numbers, and how often each quick way moves it.

    ``index_kb`` is the indexing threshold of the second part.
    """

    words: bool
    points: int
    rounds: int
    index_kb: int

    @property
    def name(self) -> str:
        """Of the collection."""
        return "bench-words" if self.words else "bench-wide"

    @property
    def label(self) -> str:
        """For people."""
        what = "word vectors of 100" if self.words else f"random vectors of {DIMENSIONS}"
        return f"{self.points:,} {what} dimensions"

    @property
    def indexed_label(self) -> str:
        """For people, of the second part."""
        return f"{self.label}, indexed from {self.index_kb:,} kB a segment on"


def measure(stage: Stage, collections: Sequence[Moved]) -> list[Figure]:
    """Move each collection by every way, without an index and with one."""
    figures = []
    with harbour(stage) as port:
        for moved in collections:
            with _loaded(port, moved):
                bare = _moved_bare(port, moved)
                port.index_source(moved.name, moved.index_kb)
                indexed = {way: [port.move(way, moved.name, moved.points)] for way in INDEXED_WAYS}
            figures += [*_speeds(moved, bare), *_arrivals(moved, indexed), _target_use(moved, indexed)]
            figures += _memory(moved, bare, indexed)
    return figures


@contextmanager
def _loaded(port: Harbour, moved: Moved) -> Iterator[None]:
    url = port.source.url
    if moved.words:
        load_words(url, moved.name, moved.points, shape=WordShape(SHARDS, 1, alias="", indexing_threshold_kb=0))
    else:
        load(url, Shape(moved.name, moved.points, SHARDS, text_bytes=TEXT_BYTES, dimensions=DIMENSIONS))
    try:
        yield
    finally:
        port.drop(moved.name)


def _moved_bare(port: Harbour, moved: Moved) -> Taken:
    """The quick ways by turns; the slow ones once."""
    taken: Taken = {way: [] for way in BARE_WAYS}
    for number in range(moved.rounds):
        for way in BARE_WAYS if number % 2 else reversed(BARE_WAYS):
            taken[way].append(port.move(way, moved.name, moved.points))
    taken["migrate"] = [port.move("migrate", moved.name, moved.points)]
    for way in ("stream", "go"):
        taken[way + FAR] = [port.move(way, moved.name, moved.points, far=True)]
    return taken


def _speeds(moved: Moved, taken: Taken) -> list[Figure]:
    """Points a second of the moving alone, ours over theirs."""
    loopback, slow = "on loopback", "through a wire with a round trip of 20 ms"
    lines = [
        ("stream", "migrate", loopback, Target(10, "at least")),
        ("stream", "go", loopback, Target(1.5, "at least")),
        (f"stream{FAR}", f"go{FAR}", slow, Target(5, "at least")),
        ("stream", "raw", loopback, None),
    ]
    return [_speed(moved, taken, *line) for line in lines]


def _speed(moved: Moved, taken: Taken, ours: str, theirs: str, where: str, target: Target | None) -> Figure:
    mine, other = taken[ours], taken[theirs]
    beside = [crossing.seconds for crossing in other]
    if len(beside) != len(mine):
        beside = beside[:1] * len(mine)  # measured once, for it takes minutes
    values = ratios(beside, [crossing.seconds for crossing in mine])
    writer, peer = ours.removesuffix(FAR), PEERS[theirs.removesuffix(FAR)]
    return Figure(
        area="migration",
        name=f"{moved.label}, no index: {writer}'s points/s ÷ those of {peer}, {where}",
        ours=_rate(moved, mine),
        raw=_rate(moved, other),
        value=middle(values),
        values=values,
        target=target,
        limit=f"processor µs a point: {writer} {_costs(moved, mine)}; the other {_costs(moved, other)}",
    )


def _arrivals(moved: Moved, taken: Taken) -> list[Figure]:
    """How long it takes until the target is green and indexed."""
    [stream], [build], [go], [migrate] = (taken[way] for way in INDEXED_WAYS)
    ours, other = build.green_seconds, stream.green_seconds
    return [
        Figure(
            area="migration",
            name=f"{moved.indexed_label}: until compared, green and indexed, build ÷ stream",
            ours=f"{ours:.1f} s",
            raw=f"{other:.1f} s; the Go tool's loop, which compares nothing: {go.green_seconds:.1f} s",
            value=ours / other,
            values=(ours / other,),
            target=None,
            limit=f"filling: build {build.seconds:.1f} s, stream {stream.seconds:.1f} s; comparing every point: "
            f"build {build.comparing_seconds:.1f} s, stream {stream.comparing_seconds:.1f} s while it is indexed",
        ),
        Figure(
            area="migration",
            name=f"{moved.indexed_label}: until green and indexed, points/s of build ÷ those of {PEERS['migrate']}",
            ours=f"{moved.points / ours:,.0f} points/s, compared as well",
            raw=f"{moved.points / migrate.green_seconds:,.0f} points/s",
            value=migrate.green_seconds / ours,
            values=(migrate.green_seconds / ours,),
            target=Target(10, "at least"),
            limit=f"the index takes the processors: {build.used[0]:.1f} s of the worker for build; "
            f"{migrate.used[2]:.1f} s of the target for migrate(), which indexes while its client is busy",
        ),
    ]


def _target_use(moved: Moved, taken: Taken) -> Figure:
    """What the target's processors do until everything is there and indexed.

    Without the comparing: the build's is alone on the target, and the stream's reads the same while it is indexed.
    """
    [stream], [build], [go] = (taken[way] for way in ("stream", "build", "go"))
    compared = build.comparing_used[2]
    ours, other = (crossing.used[2] - compared for crossing in (build, stream))
    return Figure(
        area="migration",
        name=f"{moved.indexed_label}: processor seconds of the target's nodes, build ÷ stream",
        ours=f"{ours:.1f} s",
        raw=f"{other:.1f} s; the Go tool's loop: {go.used[2]:.1f} s",
        value=100 * ours / other,
        values=(100 * ours / other,),
        target=Target(10, "at most", " %"),
        limit=f"the worker's own: build {build.moving_used[0]:.1f} s, stream {stream.moving_used[0]:.1f} s; comparing, "
        f"{compared:.1f} s of the target for each, is left out",
        unit=" %",
        digits=1,
    )


def _memory(moved: Moved, *parts: Taken) -> list[Figure]:
    """The largest peak of each writer's processes."""
    figures = []
    for writer in ("stream", "build"):
        peaks = tuple(crossing.peak_bytes / MIB for taken in parts for crossing in taken.get(writer, ()))
        figures.append(
            Figure(
                area="migration",
                name=f"{moved.label}: peak anonymous memory of {writer}, the process and its workers together",
                ours=f"{max(peaks):.0f} MiB",
                raw="-",
                value=max(peaks),
                values=peaks,
                target=MEMORY,
                limit="batches of 1 MiB for each reader and upsert; a shard that is built, with its index",
                unit=" MiB",
                digits=0,
            )
        )
    return figures


def _rate(moved: Moved, crossings: Sequence[Crossing]) -> str:
    seconds = middle([crossing.seconds for crossing in crossings])
    return f"{moved.points / seconds:,.0f} points/s"


def _costs(moved: Moved, crossings: Sequence[Crossing]) -> str:
    each = zip(*(crossing.moving_used for crossing in crossings), strict=True)
    micros = [middle(seconds) * 1e6 / moved.points for seconds in each]
    return ", ".join(f"{part} {micro:.0f}" for part, micro in zip(("own", "source", "target"), micros, strict=True))
