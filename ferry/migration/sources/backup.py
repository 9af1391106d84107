"""A collection in a backup as the source of a migration: its archives, opened on the spool disk; no cluster is needed.

Each shard is fetched and unpacked once and stays while there is room, for the ranges of it that are read beside each
other and for the comparison afterwards. Worker processes read, since the engine stops the threads of its process.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from ferry.archive.crew import Worker, error_of
from ferry.archive.paged import Paging
from ferry.archive.points import Selection
from ferry.archive.proof import Proof, link_folder
from ferry.archive.reader import PlainId, id_order
from ferry.connections import Repository
from ferry.errors import FerryError
from ferry.migration.batch import Column, Dense, Multi, PointBatch, PointId, Sparse
from ferry.migration.plan import BackupSource
from ferry.migration.source import Ask, Cursor, Read, SourceDescription, SourceRange
from ferry.models import Finding, Progress, ShardId, ShardKey, no_progress
from ferry.repository import readers
from ferry.repository.manifest import CollectionManifest
from ferry.verify.sides import SideName, find_manifest
from ferry.verify.spool import SPOOL_FACTOR, require_spool
from ferry.verify.stored_points import archive_of, stored_shard

RANGE_POINTS = 20_000  # fewer are read in less time than another process takes to load the shard
SAMPLED_IDS = 4  # of a proof's sample for each range, at least: ranges of a few per cent more or less than others
POLL_SECONDS = 0.5


class QdrantBackup:
    """A collection of a backup, open. The backup is marked as being read until the end: no prune takes it away."""

    def __init__(self, repository: Repository, name: BackupSource) -> None:
        self._repository, self._name = repository, name
        self._stack = ExitStack()
        self._found: CollectionManifest | None = None
        self._shards: dict[ShardId, _OpenShard] = {}
        self._fetching, self._counting = threading.Lock(), threading.Lock()

    def __enter__(self) -> Self:
        """Raises BackupNotFoundError."""
        side = SideName(cluster=self._name.cluster, backup=self._name.backup, collection=self._name.collection)
        found, _ = find_manifest(self._repository, side)
        keys, store = self._repository.keys, self._repository.store
        point = keys.manifest(found.cluster, found.backup_id, found.collection)
        self._stack.enter_context(readers.reading(store, keys, found.cluster, found.backup_id, [point], "a migration"))
        self._found = found
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for shard in self._shards.values():
                shard.close()
            self._shards.clear()
        finally:
            self._stack.close()

    @property
    def manifest(self) -> CollectionManifest:
        """The manifest of the collection. Raises FerryError before the source is opened."""
        if self._found is None:
            raise FerryError("The backup was not opened before it was read.")
        return self._found

    def describe(self) -> SourceDescription:
        """What the manifest says; nothing else is read."""
        manifest = self.manifest
        where = f"{manifest.cluster}/{manifest.backup_id}/{manifest.collection}"
        return SourceDescription(
            kind="backup",
            name=where,
            identity=f"backup:{where}",
            config=manifest.config,
            payload_schema=manifest.payload_schema,
            consistency="frozen",
            points=manifest.points,
            bytes=manifest.bytes,
            shards=manifest.layout,
            versions=tuple(sorted({node.version for node in manifest.nodes})),
            findings=self._findings(),
        )

    def plan_ranges(self, wanted: int) -> list[SourceRange]:
        """At least one range for each shard; more where a shard holds many points. Reads no archive for that.

        They end at ids of the proof's sample, which is a random one.
        """
        manifest = self.manifest
        keys = {shard.shard_id: shard.key for shard in manifest.layout}
        total = manifest.points or 0
        ranges: list[SourceRange] = []
        for shard_id, proof in manifest.proofs():
            cuts = _cuts(proof, wanted, total)
            for start, end in pairwise([None, *cuts, None]):
                ranges.append(
                    SourceRange(
                        number=len(ranges),
                        label=f"shard {shard_id}" + (f" from {start or 'its first id'}" if cuts else ""),
                        key=keys.get(shard_id),
                        part=str(shard_id),
                        shard_id=shard_id,
                        start=start,
                        end=end,
                        points=None if proof.points is None else proof.points // (len(cuts) + 1),
                    )
                )
        return ranges

    def read(
        self, part: SourceRange, cursor: Cursor | None, ask: Ask, progress: Progress = no_progress
    ) -> Iterator[Read]:
        """The points of a range in Qdrant's order of ids; a cursor is the next id.

        Raises what `stored_shard` raises, ConfigurationError for a filter that archives do not know, HeadroomError
        when the spool disk cannot hold the shard, and FerryError when a reading process was killed.
        """
        selection = Selection(filter=ask.filter, start=part.start if cursor is None else cursor)
        paging = _paging(ask, part.end)
        if part.shard_id is None:
            raise FerryError(f"The range {part.label} names no shard, so it is none of a backup.")
        for head, batch in self._pages(part.shard_id, part.key, selection, paging, progress):
            yield Read(batch, head["following"])

    def retrieve(self, ids: Sequence[PointId], key: ShardKey | None, ask: Ask) -> Iterator[PointBatch]:
        """These points out of the shards of that key. Raises as `read`."""
        keys = {shard.shard_id: shard.key for shard in self.manifest.layout}
        selection = Selection(filter=ask.filter, ids=tuple(ids))
        for shard_id, _ in self.manifest.proofs():
            if keys.get(shard_id) == key:
                for _head, batch in self._pages(shard_id, key, selection, _paging(ask, None), no_progress):
                    yield batch

    def _pages(
        self, shard_id: ShardId, key: ShardKey | None, selection: Selection, paging: Paging, progress: Progress
    ) -> Iterator[tuple[dict[str, Any], PointBatch]]:
        with self._open(shard_id, progress) as shard, shard.reader(progress) as (worker, folder):
            asked = {"selection": selection.model_dump(), "paging": paging.model_dump()}
            job = {"job": "pages", "archive": str(folder), "folder": str(folder), **asked}
            for head, body in _answers(worker, job, progress):
                yield head, batch_of(head, body, key)

    @contextmanager
    def _open(self, shard_id: ShardId, progress: Progress) -> Iterator[_OpenShard]:
        """The shard on the spool disk; at most one is fetched at a time, so that the room for it can be known."""
        shard = self._held(shard_id) or self._fetched(shard_id, progress)
        try:
            yield shard
        finally:
            with self._counting:
                shard.users -= 1

    def _held(self, shard_id: ShardId) -> _OpenShard | None:
        with self._counting:
            shard = self._shards.get(shard_id)
            if shard is not None:
                shard.users += 1
            return shard

    def _fetched(self, shard_id: ShardId, progress: Progress) -> _OpenShard:
        while not self._fetching.acquire(timeout=POLL_SECONDS):
            progress(0)
        try:
            if (shard := self._held(shard_id)) is not None:
                return shard
            self._make_room(shard_id, progress)
            shard = _OpenShard(self._repository, self.manifest, shard_id, progress)
            with self._counting:
                self._shards[shard_id] = shard
            return shard
        finally:
            self._fetching.release()

    def _make_room(self, shard_id: ShardId, progress: Progress) -> None:
        """Close shards that nobody reads until this one fits; wait for others that are read. Raises HeadroomError."""
        archive = archive_of(self.manifest, shard_id)
        needed = archive.bytes * (1 if archive.kind == "shard" else 2)
        worker = self._repository.worker
        worker.spool_dir.mkdir(parents=True, exist_ok=True)
        while shutil.disk_usage(worker.spool_dir).free < needed * SPOOL_FACTOR:
            with self._counting:
                idle = next((held for held, shard in self._shards.items() if not shard.users), None)
                closing = None if idle is None else self._shards.pop(idle)
            if closing is not None:
                closing.close()
            elif not self._shards:
                break
            else:
                _wait(progress)
        require_spool(worker, needed)

    def _findings(self) -> tuple[Finding, ...]:
        manifest = self.manifest
        subject = f"{manifest.collection} in {manifest.backup_id}"
        found = list(manifest.findings)
        if manifest.skew_seconds:
            message = (
                f"Its shards were taken within {manifest.skew_seconds:.1f} s: Qdrant has no point in time for all."
            )
            found.append(Finding(severity="info", subject=subject, message=message))
        return tuple(found)


class _OpenShard:
    """An unpacked shard and the processes that have it loaded, each with a folder of its own (hard links)."""

    def __init__(
        self, repository: Repository, manifest: CollectionManifest, shard_id: ShardId, progress: Progress
    ) -> None:
        self.users = 1
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._workers: list[Worker] = []
        self._idle: list[tuple[Worker, Path]] = []
        self._made = 0
        try:
            archive = self._stack.enter_context(stored_shard(repository, manifest, shard_id, progress))
            self._folder = archive.parent
            first = self._folder / "open-0"
            worker = self._start()
            job = {"job": "open", "archive": str(archive), "folder": str(first), "parts": 1, "sample": 0}
            for _ in _answers(worker, job, progress):
                pass  # it has none before its result
            archive.unlink()  # unpacked: nobody needs it twice
            self._first = first
            self._idle.append((worker, first))
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reader(self, progress: Progress) -> Iterator[tuple[Worker, Path]]:
        """A process with the shard, for one reading; it ends when the reading was not finished."""
        progress(0)
        with self._lock:
            pair = self._idle.pop() if self._idle else None
            if pair is None:
                folder = self._folder / f"open-{self._made}"
                link_folder(self._first, folder)
                pair = self._start(), folder
        try:
            yield pair
        except BaseException:
            with self._lock:
                if pair[0] in self._workers:  # else the source was closed before this reading was
                    self._workers.remove(pair[0])
            pair[0].end()
            raise
        with self._lock:
            self._idle.append(pair)

    def close(self) -> None:
        """End the processes and remove the folder."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._stack.close()

    def _start(self) -> Worker:
        worker = Worker(self._folder / f"worker-{self._made}.log")
        self._made += 1
        self._workers.append(worker)
        return worker


def _answers(worker: Worker, job: dict[str, Any], progress: Progress) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What a worker gives before its result. Raises what it raised."""
    for head, body in worker.pages(job, progress):
        if "error" in head:
            raise error_of(head)
        if "result" in head:
            return
        yield head, body


def batch_of(head: dict[str, Any], body: bytes, key: ShardKey | None = None) -> PointBatch:
    """A page of `ferry.archive.paged` as a batch; its vectors are views of the body and cannot be written to."""
    columns: dict[str, Column] = {}
    place = 0
    for described in head["columns"]:
        columns[described["name"]], place = _column_of(described, body, place)
    payloads = orjson.loads(memoryview(body)[place:]) if place < len(body) else [{} for _ in head["ids"]]
    return PointBatch(head["ids"], payloads, columns, key)


def _column_of(described: dict[str, Any], body: bytes, place: int) -> tuple[Column, int]:
    rows = None if described["rows"] is None else np.array(described["rows"], dtype=np.intp)
    vectors, entries, dimensions = described["vectors"], described["entries"], described["dimensions"]
    starts = np.zeros(vectors + 1, dtype=np.int64)
    if described["kind"] != "dense":
        np.cumsum(np.frombuffer(body, "<u4", vectors, place), out=starts[1:])
        place += 4 * vectors
    indices = np.frombuffer(body, "<u4", entries if described["kind"] == "sparse" else 0, place)
    place += indices.nbytes
    values = np.frombuffer(body, "<f4", entries * dimensions, place)
    place += values.nbytes
    if described["kind"] == "sparse":
        return Sparse(starts, indices, values, rows), place
    shaped = values.reshape(entries, dimensions)
    return (Dense(shaped, rows) if described["kind"] == "dense" else Multi(starts, shaped, rows)), place


def _cuts(proof: Proof, wanted: int, total: int) -> list[PlainId]:
    """The ids at which a shard's ranges end: quantiles of the sample that its proof holds."""
    points = proof.points or 0
    ids = sorted((sample.id for sample in proof.sample), key=id_order)
    share = round(wanted * points / total) if total else 1
    parts = min(share, points // RANGE_POINTS, len(ids) // SAMPLED_IDS)
    return [ids[len(ids) * part // parts] for part in range(1, parts)]


def _paging(ask: Ask, stop: PlainId | None) -> Paging:
    return Paging(stop=stop, vectors=ask.vectors, payload=ask.payload, page_bytes=ask.batch_bytes)


def _wait(progress: Progress) -> None:
    progress(0)
    threading.Event().wait(POLL_SECONDS)
