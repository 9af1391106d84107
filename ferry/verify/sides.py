"""The two sides of a diff: a collection in a backup, or a live one. Both give hashes of points, and fields of a few."""

from __future__ import annotations

import re
import shutil
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from ferry.archive.decimals import as_meant
from ferry.archive.digest import ContentDigest, ShardDigest, point_fields, range_of
from ferry.archive.points import Batch, Selection, read_points
from ferry.archive.reader import PlainId
from ferry.connections import Repository, connect_repository
from ferry.errors import BackupNotFoundError, ConfigurationError, LayoutError
from ferry.models import ClusterLayout, CollectionLayout, Finding, PeerId, Progress, ShardId, ShardKey, Value
from ferry.profiles import NAME_PATTERN
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.node import Node
from ferry.qdrant.points import Point, count, retrieve_pages, scroll_shard
from ferry.qdrant.view import each
from ferry.repository import readers
from ferry.repository.catalog import LATEST
from ferry.repository.manifest import CollectionManifest
from ferry.settings import load_settings
from ferry.verify.spool import SPOOL_FACTOR, require_spool
from ferry.verify.stored_points import archive_of, stored_shard

MOST_IDS = 10_000  # asked for by id; more are found by reading their sub-ranges, which needs no list of them in memory
_NAME = re.compile(f"(live:)?({NAME_PATTERN[1:-1]})/(.+)", re.DOTALL)

Note = Callable[[ShardId, Sequence[PlainId], Sequence[str]], None]
Explain = Callable[[PlainId, str, Mapping[str, str]], None]


class SideName(Value):
    """Which collection: in a backup (its id, or latest), or without one the live one. An alias is as good as a name."""

    cluster: str
    backup: str | None
    collection: str


def parse_side(text: str) -> SideName:
    """Read ``CLUSTER/BACKUP/COLLECTION`` or ``live:CLUSTER/COLLECTION``. Raises ConfigurationError."""
    found = _NAME.fullmatch(text)
    live, cluster, rest = found.groups() if found else (None, "", "")
    backup, _, collection = (None, "", rest) if live else rest.partition("/")
    if not collection:
        msg = f"{text!r} is neither CLUSTER/BACKUP/COLLECTION nor live:CLUSTER/COLLECTION; nothing was asked."
        raise ConfigurationError(msg, "Such as prod/latest/docs or live:prod/docs; see python -m ferry list.")
    return SideName(cluster=cluster, backup=backup, collection=collection)


class SideShard(Value):
    """One shard of a side. ``content`` is None where only reading all of its points would tell."""

    shard_id: ShardId
    key: ShardKey | None = None
    content: ContentDigest | None = None


class Side(ABC):
    """One side, open. ``aliases`` point at its collection; None where nobody knows."""

    def __init__(self, name: str, config: dict[str, Any], payload_schema: dict[str, Any]) -> None:
        self.name = name
        self.config, self.payload_schema = config, payload_schema
        self.aliases: tuple[str, ...] | None = None
        self.shards: tuple[SideShard, ...] = ()
        self.findings: list[Finding] = []

    @property
    @abstractmethod
    def bytes_read(self) -> int:
        """Bytes that came from the bucket or the nodes so far."""

    @abstractmethod
    def hashes(self, wanted: Mapping[ShardId, Sequence[str] | None], note: Note, progress: Progress) -> None:
        """Read the points of these sub-ranges (None: all) of these shards, and give their ids and hashes to ``note``.

        ``progress`` gets the points of each batch, and may raise to stop; it may be called by several threads.
        """

    @abstractmethod
    def fields(
        self, shard_id: ShardId, ids: Iterator[list[PlainId]], points: int, explain: Explain, progress: Progress
    ) -> None:
        """Read these so many points of a shard once more; each, and perhaps others, goes to ``explain``."""

    def afterwards(self, read: Mapping[ShardId, int], rewritten: int) -> list[Finding]:
        """What has become of the side meanwhile: ``read`` points of each shard, ``rewritten`` of the second look."""
        del read, rewritten
        return []


@contextmanager
def open_side(repository: str, name: SideName, reader: str) -> Iterator[Side]:
    """Open a side; a backup is marked as being read until the end, so that no prune takes it away.

    Raises BackupNotFoundError, LayoutError for a live shard without an Active replica, and what asking raises.
    """
    if name.backup is not None:
        with _open_stored(connect_repository(repository), name, reader) as stored:
            yield stored
        return
    with Cluster(name.cluster, load_settings().cluster(name.cluster)) as cluster:  # its own: it counts bytes
        yield open_live(cluster, name)


class StoredSide(Side):
    """A collection in a backup. What its manifest says of equal parts is relied on; only the others are fetched."""

    def __init__(self, repository: Repository, manifest: CollectionManifest, stack: ExitStack) -> None:
        name = f"{manifest.collection} of {manifest.cluster}, backup {manifest.backup_id}"
        super().__init__(name, manifest.config, manifest.payload_schema)
        self._repository, self._manifest, self._stack = repository, manifest, stack
        self._kept: dict[ShardId, Path] = {}
        self._fetched_bytes = 0
        keys = {shard.shard_id: shard.key for shard in manifest.layout}
        self.shards = tuple(
            SideShard(shard_id=shard_id, key=keys.get(shard_id), content=proof.content)
            for shard_id, proof in manifest.proofs()
        )
        if without := [str(shard.shard_id) for shard in self.shards if shard.content is None]:
            msg = f"Shards {', '.join(without)} were proven without a digest, so all of their points are read."
            remedy = "Back up with proof content: then only what differs is read."
            self.findings.append(Finding(severity="info", subject=name, message=msg, remedy=remedy))

    @property
    def bytes_read(self) -> int:
        return self._fetched_bytes

    def hashes(self, wanted: Mapping[ShardId, Sequence[str] | None], note: Note, progress: Progress) -> None:
        require_spool(self._repository.worker, max((self._disk_bytes(shard_id) for shard_id in wanted), default=0))
        for shard_id, ranges in wanted.items():
            chosen = None if ranges is None else tuple(ranges)
            for batch in self._read(shard_id, progress, ranges=chosen, hashes=True):
                note(shard_id, batch.ids, batch.hashes)

    def fields(
        self, shard_id: ShardId, ids: Iterator[list[PlainId]], points: int, explain: Explain, progress: Progress
    ) -> None:
        if points <= MOST_IDS:
            asked: dict[str, Any] = {"ids": tuple(chain.from_iterable(ids))}
        else:
            asked = {"ranges": tuple({range_of(point_id) for page in ids for point_id in page})}
        for batch in self._read(shard_id, progress, **asked, hashes=True, fields=True):
            for point_id, value, fields in zip(batch.ids, batch.hashes, batch.fields, strict=True):
                explain(point_id, value, fields)

    def _read(self, shard_id: ShardId, progress: Progress, **asked: Any) -> Iterator[Batch]:
        with self._on_disk(shard_id, progress) as path:
            yield from read_points(path, path.parent / "open", Selection(with_points=False, **asked), progress)

    @contextmanager
    def _on_disk(self, shard_id: ShardId, progress: Progress) -> Iterator[Path]:
        """A shard's archive on the spool disk; it stays for the second look where that leaves room to open any two."""
        if shard_id not in self._kept:
            archive = archive_of(self._manifest, shard_id)
            fetched = stored_shard(self._repository, self._manifest, shard_id, progress)
            largest = max(self._disk_bytes(shard.shard_id) for shard in self.shards)
            room = shutil.disk_usage(self._repository.worker.spool_dir).free - archive.bytes
            self._fetched_bytes += archive.held[0]
            if room < 2 * SPOOL_FACTOR * largest:
                with fetched as path:
                    yield path
                return
            self._kept[shard_id] = self._stack.enter_context(fetched)
        yield self._kept[shard_id]

    def _disk_bytes(self, shard_id: ShardId) -> int:
        archive = archive_of(self._manifest, shard_id)
        return archive.bytes * (1 if archive.kind == "shard" else 2)


@contextmanager
def _open_stored(repository: Repository, name: SideName, reader: str) -> Iterator[StoredSide]:
    manifest, alias = find_manifest(repository, name)
    keys, cluster, backup_id = repository.keys, manifest.cluster, manifest.backup_id
    point = keys.manifest(cluster, backup_id, manifest.collection)
    with ExitStack() as stack:
        stack.enter_context(readers.reading(repository.store, keys, cluster, backup_id, [point], reader))
        side = StoredSide(repository, manifest, stack)
        aliases = _aliases(repository, cluster, backup_id)
        if aliases is not None:
            side.aliases = tuple(sorted(alias for alias, target in aliases.items() if target == manifest.collection))
        side.findings += _alias_findings(side.name, alias, manifest.collection)
        yield side


def find_manifest(repository: Repository, name: SideName) -> tuple[CollectionManifest, str | None]:
    """The manifest, and the alias of that backup through which it was found. Raises BackupNotFoundError."""
    catalog, backup = repository.catalog, name.backup or LATEST
    try:
        return catalog.read_manifest(name.cluster, backup, name.collection), None
    except BackupNotFoundError:
        target = (_aliases(repository, name.cluster, backup) or {}).get(name.collection)
        if target is None:
            raise
        return catalog.read_manifest(name.cluster, backup, target), name.collection


def _aliases(repository: Repository, cluster: str, backup: str) -> dict[str, str] | None:
    """The aliases that a run has saved; None when it did not finish."""
    try:
        return repository.catalog.read_backup(cluster, backup).aliases
    except BackupNotFoundError:
        return None


def _alias_findings(subject: str, alias: str | None, collection: str) -> list[Finding]:
    message = f"{alias} is an alias there; it points at {collection}."
    return [] if alias is None else [Finding(severity="info", subject=subject, message=message)]


class LiveSide(Side):
    """A collection as one Active replica of each shard holds it, the fullest one. Every point is read once."""

    def __init__(self, cluster: Cluster, layout: CollectionLayout) -> None:
        super().__init__(f"{layout.name} of {cluster.name}, live", layout.config, layout.payload_schema)
        self._cluster, self._collection = cluster, layout.name
        self.shards = tuple(SideShard(shard_id=shard.shard_id, key=shard.key) for shard in layout.shards)
        self._nodes: dict[ShardId, Node] = {}
        self._counts: dict[ShardId, int] = {}
        load: dict[PeerId, int] = defaultdict(int)
        for shard_id, counts in cluster.exact_counts(layout).items():
            peer = max(counts, key=lambda peer: (counts[peer], -load[peer]))
            load[peer] += counts[peer]
            self._nodes[shard_id], self._counts[shard_id] = cluster.node(peer), counts[peer]
            if len(set(counts.values())) > 1:
                told = ", ".join(f"{points} on peer {peer}" for peer, points in sorted(counts.items()))
                message = f"The replicas of shard {shard_id} have {told} points; the fullest one is compared."
                self.findings.append(Finding(severity="warning", subject=self.name, message=message))

    @property
    def bytes_read(self) -> int:
        return sum(node.received_bytes for node in self._cluster.nodes)

    def hashes(self, wanted: Mapping[ShardId, Sequence[str] | None], note: Note, progress: Progress) -> None:
        stopped = threading.Event()

        def read(node: Node) -> None:
            try:
                for shard_id in [number for number in wanted if self._nodes[number] is node]:
                    self._read(node, shard_id, note, progress, stopped)
            except BaseException:
                stopped.set()  # the others need not read to their ends before this is raised
                raise

        each(self._cluster.nodes, read)

    def _read(self, node: Node, shard_id: ShardId, note: Note, progress: Progress, stopped: threading.Event) -> None:
        for batch in scroll_shard(node, self._collection, shard_id):
            if stopped.is_set():
                return
            note(shard_id, [point["id"] for point in batch], [_hash(point) for point in batch])
            progress(len(batch))

    def fields(
        self, shard_id: ShardId, ids: Iterator[list[PlainId]], points: int, explain: Explain, progress: Progress
    ) -> None:
        del points
        for some in ids:
            for page in retrieve_pages(self._nodes[shard_id], self._collection, shard_id, some):
                for point in page:
                    vector = as_meant(point.get("vector"))
                    explain(point["id"], _hash(point), point_fields(point["id"], point.get("payload"), vector))
                progress(len(page))

    def afterwards(self, read: Mapping[ShardId, int], rewritten: int) -> list[Finding]:
        told = [f"{rewritten} of the points that differ were written again or deleted"] if rewritten else []
        for shard_id, before in self._counts.items():
            seen = (before, read[shard_id], count(self._nodes[shard_id], self._collection, shard_id))
            if len(set(seen)) > 1:
                told.append(
                    f"shard {shard_id} had {seen[0]} points before, {seen[1]} while it was read, {seen[2]} after"
                )
        if not told:
            return []
        message = f"It was written to while it was read: {'; '.join(told)}. The list is of no single moment."
        remedy = "Stop the writers, or compare two backups."
        return [Finding(severity="warning", subject=self.name, message=message, remedy=remedy)]


def open_live(cluster: Cluster, name: SideName) -> LiveSide:
    """A live collection by the clients of its cluster. Raises ConfigurationError where it is not, and LayoutError."""
    layout = cluster.read_layout(include=())
    collection = layout.aliases.get(name.collection, name.collection)
    if collection not in layout.names:
        known = ", ".join(sorted({*layout.names, *layout.aliases})) or "none"
        msg = f"Cluster {name.cluster} has no collection and no alias {name.collection}, but: {known}."
        raise ConfigurationError(msg, "Correct the name; nothing was read.")
    layout = cluster.read_layout(include=(collection,))
    side = LiveSide(cluster, _active_only(layout, collection))
    side.aliases = tuple(sorted(alias for alias, target in layout.aliases.items() if target == collection))
    side.findings += _alias_findings(side.name, name.collection if collection != name.collection else None, collection)
    try:
        cluster.require_quiet(layout)
    except LayoutError as error:
        side.findings.append(Finding(severity="warning", subject=side.name, message=error.message))
    return side


def _active_only(layout: ClusterLayout, name: str) -> CollectionLayout:
    """The collection with its Active replicas alone. Raises LayoutError for a shard that has none."""
    [collection] = [found for found in layout.collections if found.name == name]
    shards = []
    for shard in collection.shards:
        active = tuple(replica for replica in shard.replicas if replica.state == "Active")
        if not active:
            msg = f"Shard {shard.shard_id} of {name} has no Active replica, so its points cannot be compared."
            raise LayoutError(msg, f"See GET /collections/{name}/cluster on each node of {layout.cluster}.")
        shards.append(shard.model_copy(update={"replicas": active}))
    return collection.model_copy(update={"shards": tuple(shards)})


def _hash(point: Point) -> str:
    return f"{ShardDigest().add(point['id'], point.get('payload'), as_meant(point.get('vector'))):064x}"
