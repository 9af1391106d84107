"""What differs between two collections, in backups or live: the points by id, and the schema.

Digests by sub-range say where a difference can be, whatever the number of shards: sums add up. Only the shards and
sub-ranges that can hold one are read, first as hashes of points, which `ferry.verify.ledger` joins on disk, and then
the points that changed once more, field by field.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import orjson

from ferry.archive.digest import ContentDigest, ShardDigest
from ferry.archive.reader import PlainId
from ferry.errors import ConfigurationError, VerificationError
from ferry.models import Finding, Progress, ShardId, ShardKey, Value, no_progress
from ferry.profiles import WorkerSettings
from ferry.qdrant.schema import schema_differences
from ferry.settings import load_settings
from ferry.verify import spool
from ferry.verify.ledger import Difference, Ledger, Letter
from ferry.verify.sides import Side, SideShard, open_side, parse_side

FIRST = 20  # named in the report, of each kind


class SideReading(Value):
    """What was read of one side. Points of ranges that are equal by their digests are not read.

    ``digest`` is of all of its points, whatever their shards.
    """

    name: str
    points: int
    digest: str
    points_read: int
    shards: int
    shards_read: int
    bytes_read: int


class Comparison(Value):
    """How two collections differ. A changed point may have changed in its payload, in vectors, or in both."""

    a: SideReading
    b: SideReading
    added: int
    removed: int
    changed: int
    changed_payload: int
    changed_vector: int
    first: tuple[Difference, ...]
    schema_differences: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def points(self) -> int:
        """How many points differ."""
        return self.added + self.removed + self.changed


@dataclass(frozen=True)
class Reads:
    """Which sub-ranges of which shards can hold a difference. ``keys`` are the shard keys by place (see Ledger)."""

    ranges: dict[Letter, dict[ShardId, list[str]]]
    places: dict[Letter, dict[ShardId, int]]
    keys: tuple[ShardKey | None, ...]


def plan_reads(a: Sequence[SideShard], b: Sequence[SideShard]) -> Reads:
    """Choose what to read, from the digests of every shard.

    Shards of the same ids and keys are compared one by one. Otherwise all shards of a key are compared with those of
    the same key, and where the keys differ, too, all with all.
    """
    sides: dict[Letter, Sequence[SideShard]] = {"a": a, "b": b}
    keys_of = {letter: {shard.key for shard in side} for letter, side in sides.items()}
    keys = tuple(sorted(keys_of["a"], key=str)) if keys_of["a"] == keys_of["b"] else (None,)
    by_key = {key: place for place, key in enumerate(keys)}
    places = {letter: {each.shard_id: by_key.get(each.key, 0) for each in side} for letter, side in sides.items()}
    one_by_one = {(each.shard_id, each.key) for each in a} == {(each.shard_id, each.key) for each in b}
    sums: dict[Letter, dict[int, ShardDigest]] = {"a": defaultdict(ShardDigest), "b": defaultdict(ShardDigest)}
    ranges: dict[Letter, dict[ShardId, list[str]]] = {"a": {}, "b": {}}

    def group(letter: Letter, shard: SideShard) -> int:
        return shard.shard_id if one_by_one else places[letter][shard.shard_id]

    for letter, side in sides.items():
        for shard in side:
            sums[letter][group(letter, shard)].merge(_content(shard))
    for letter, side in sides.items():
        for shard in side:
            number = group(letter, shard)
            differing = sums["a"][number].value().differing_ranges(sums["b"][number].value())
            if wanted := [name for name in differing if name in _content(shard).ranges]:
                ranges[letter][shard.shard_id] = wanted
    return Reads(ranges, places, keys)


def _content(shard: SideShard) -> ContentDigest:
    if shard.content is None:
        msg = f"Shard {shard.shard_id} has no digest."
        raise ValueError(msg)
    return shard.content


def diff(
    repository: str, names: tuple[str, str], reader: str, out: Path | None = None, progress: Progress = no_progress
) -> Comparison:
    """Compare two collections by name (see `parse_side`), the first as the older one; changes nothing.

    ``out`` is a new file, with a line of JSON for each point that differs. ``progress`` gets the points of each batch
    read, and may raise to stop. Raises ConfigurationError for a wrong name or a file that exists, and what `open_side`
    and reading raise; ArchiveDamagedError where the bucket holds other than a manifest says.
    """
    first, second = (parse_side(name) for name in names)
    with _lines(out) as write, ExitStack() as stack:
        a, b = (stack.enter_context(open_side(repository, name, reader)) for name in (first, second))
        return compare(a, b, load_settings().worker, write, progress)


def compare(
    a: Side,
    b: Side,
    worker: WorkerSettings,
    write: Callable[[Difference], None],
    progress: Progress = no_progress,
    *,
    explain: bool = True,
) -> Comparison:
    """Compare two open sides; every difference goes to ``write``, and without ``explain`` without its fields.

    Disk: for each point that is read about 150 bytes on the spool disk, and the archives. Memory: a batch of points.
    """
    with spool.folder(worker) as folder, Ledger(folder / "points.sqlite") as ledger:
        readings = (_Reading("a", a, ledger, progress), _Reading("b", b, ledger, progress))
        reads = plan_reads(*(reading.contents() for reading in readings))
        for reading in readings:
            reading.read(reads)
        ledger.drop_equal()
        for reading in readings if explain else ():
            reading.explain(reads)
        tally = _Tally()
        for difference in ledger.differences(reads.keys):
            tally.add(difference)
            write(difference)
        return Comparison(
            a=readings[0].result(),
            b=readings[1].result(),
            **tally.numbers,
            first=tuple(tally.first),
            schema_differences=tuple(_schema_differences(a, b)),
            findings=tuple(finding for reading in readings for finding in reading.findings()),
        )


@contextmanager
def _lines(out: Path | None) -> Iterator[Callable[[Difference], None]]:
    """A new file of JSON lines; it is there under its name when it is whole."""
    if out is None:
        yield lambda _difference: None
        return
    if out.exists():
        msg = f"{out} exists already; nothing was compared."
        raise ConfigurationError(msg, "Name a file that does not.")
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            yield partial(_write_line, file)
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)


def _write_line(file: BinaryIO, difference: Difference) -> None:
    file.write(orjson.dumps(difference.model_dump(exclude_none=True)) + b"\n")


class _Tally:
    """Differences by kind, and the first of each."""

    def __init__(self) -> None:
        self.numbers = dict.fromkeys(("added", "removed", "changed", "changed_payload", "changed_vector"), 0)
        self.first: list[Difference] = []

    def add(self, difference: Difference) -> None:
        self.numbers[difference.what] += 1
        for kind in {name.partition(".")[0] for name in difference.fields}:
            self.numbers[f"changed_{kind}"] += 1
        if self.numbers[difference.what] <= FIRST:
            self.first.append(difference)


class _Reading:
    """One side while it is compared."""

    def __init__(self, letter: Letter, side: Side, ledger: Ledger, progress: Progress) -> None:
        self._letter, self._side, self._ledger, self._progress = letter, side, ledger, progress
        self._digests: dict[ShardId, ShardDigest] = defaultdict(ShardDigest)
        self._shards: tuple[SideShard, ...] = ()
        self._rewritten = 0

    def contents(self) -> tuple[SideShard, ...]:
        """The shards with their digests; those that have none yet are read."""
        unread: dict[ShardId, None] = {shard.shard_id: None for shard in self._side.shards if shard.content is None}
        self._side.hashes(unread, self._note, self._progress)
        self._shards = tuple(
            shard.model_copy(update={"content": self._digests[shard.shard_id].value()})
            if shard.content is None
            else shard
            for shard in self._side.shards
        )
        return self._shards

    def read(self, reads: Reads) -> None:
        """Put the hashes of what can differ into the ledger; what was not read by then is."""
        wanted = reads.ranges[self._letter]
        proven = {shard.shard_id: shard.content for shard in self._side.shards if shard.content is not None}
        self._side.hashes({each: wanted[each] for each in wanted if each in proven}, self._note, self._progress)
        for shard_id, ranges in wanted.items():
            found, content = self._digests[shard_id].value(), proven.get(shard_id)
            if content is not None and any(found.ranges.get(name) != content.ranges[name] for name in ranges):
                msg = f"The points read of shard {shard_id} of {self._side.name} are not those of its proof."
                raise VerificationError(msg, "See whether it is intact: python -m ferry verify. Nothing was changed.")
            self._ledger.join(self._letter, shard_id, reads.places[self._letter][shard_id], ranges)

    def explain(self, reads: Reads) -> None:
        """Read the points that changed once more, field by field."""
        for shard_id, points in self._ledger.changed(self._letter).items():
            keep = partial(self._explain, reads.places[self._letter][shard_id])
            self._rewritten += points
            self._side.fields(shard_id, self._ledger.changed_ids(self._letter, shard_id), points, keep, self._progress)

    def result(self) -> SideReading:
        """What was read."""
        read = {shard_id: digest.points for shard_id, digest in self._digests.items()}
        whole = ShardDigest()
        for shard in self._shards:
            whole.merge(_content(shard))
        return SideReading(
            name=self._side.name,
            points=whole.points,
            digest=whole.hexdigest,
            points_read=sum(read.values()),
            shards=len(self._shards),
            shards_read=len(read),
            bytes_read=self._side.bytes_read,
        )

    def findings(self) -> list[Finding]:
        """What an operator should know of this side."""
        read = {shard_id: digest.points for shard_id, digest in self._digests.items()}
        found = self._side.findings + self._side.afterwards(read, self._rewritten)
        if doubles := self._ledger.doubles[self._letter]:
            message = (
                f"{doubles} times an id is in several shards; its points are compared as one, without their fields."
            )
            found.append(Finding(severity="warning", subject=self._side.name, message=message))
        return found

    def _note(self, shard_id: ShardId, ids: Sequence[PlainId], hashes: Sequence[str]) -> None:
        digest = self._digests[shard_id]
        for point_id, value in zip(ids, hashes, strict=True):
            digest.add_hash(point_id, int(value, 16))
        self._ledger.note(self._letter, shard_id, ids, hashes)

    def _explain(self, place: int, point_id: PlainId, value: str, fields: Mapping[str, str]) -> None:
        if self._ledger.explain(self._letter, place, (point_id, value), fields):
            self._rewritten -= 1  # it is as it was noted


def _schema_differences(a: Side, b: Side) -> Iterator[str]:
    """Settings, shard keys and aliases that differ, as sentences. Where copies lie is no content and not compared."""
    called = ("in the first", "in the second")
    yield from schema_differences(a.config, a.payload_schema, b.config, b.payload_schema, called)
    if (keys := _keys(a)) != (others := _keys(b)):
        yield f"shard keys: {keys} {called[0]}, {others} {called[1]}"
    if a.aliases is not None and b.aliases is not None and a.aliases != b.aliases:
        shown = [", ".join(side.aliases or ()) or "none" for side in (a, b)]
        yield f"aliases: {shown[0]} {called[0]}, {shown[1]} {called[1]}"


def _keys(side: Side) -> str:
    """Shard keys with the number of shards of each."""
    numbers = Counter(shard.key for shard in side.shards if shard.key is not None)
    return ", ".join(f"{key!r} ({numbers[key]})" for key in sorted(numbers, key=str)) or "none"
