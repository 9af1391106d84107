"""Asking a backup as one would ask Qdrant: count, scroll, nearest over all shards of a collection, nothing restored."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from ferry.archive.crew import Crew
from ferry.archive.filters import to_id
from ferry.archive.points import Selection, points_by
from ferry.archive.reader import PlainId, id_order
from ferry.archive.search import Search
from ferry.connections import Repository
from ferry.errors import ConfigurationError
from ferry.models import Progress, ShardId, no_progress
from ferry.qdrant.vectors import vectors_of
from ferry.repository.manifest import CollectionManifest
from ferry.verify import spool
from ferry.verify.cache import cached_shard

Point = dict[str, Any]


class StoredCollection:
    """A collection of a backup, from ``with`` to its end. Its shards are asked one after the other by one process.

    Each is fetched once and then kept on this disk; ``fetched_bytes`` came from the bucket so far. Every question
    raises what `cached_shard` and `read_points` raise.
    """

    def __init__(self, repository: Repository, manifest: CollectionManifest, progress: Progress = no_progress) -> None:
        self.fetched_bytes = 0
        self._repository, self._manifest, self._progress = repository, manifest, progress
        self._shards = [shard.shard_id for shard, _ in manifest.best_shards()]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(spool.folder(self._repository.worker))
            self._crew = stack.enter_context(Crew(1, self._folder))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def count(self, selection: Selection) -> int:
        """How many points there are, or how many are chosen."""
        return sum(self._ask(shard_id, "count", selection) for shard_id in self._shards)

    def scroll(self, selection: Selection, limit: int) -> tuple[list[Point], PlainId | None]:
        """Up to ``limit`` chosen points in Qdrant's order of ids, and the id that follows: the next ``start``."""
        found: list[Point] = []
        for shard_id in self._shards:
            found += self._first(shard_id, selection, limit + 1)
            found = sorted(found, key=lambda point: id_order(point["id"]))[: limit + 1]
        return found[:limit], found[limit]["id"] if len(found) > limit else None

    def nearest(self, search: Search) -> list[Point]:
        """The nearest points, the best first. Raises ConfigurationError for a vector that cannot be in it."""
        shapes = vectors_of(self._manifest.config)
        if search.using not in shapes:
            known = ", ".join(f"{name!r} ({shape.words})" for name, shape in shapes.items())
            msg = f"{self._manifest.collection} has no vector {search.using!r}, but: {known or 'none'}."
            raise ConfigurationError(msg, "Name one of them with --using.")
        shape = shapes[search.using]
        if wanted := shape.problem(search.vector):
            msg = f"Vector {search.using!r} of {self._manifest.collection} is {shape.words}: {wanted} are needed."
            raise ConfigurationError(msg, "Correct --vector. Nothing was read.")
        found = [point for shard_id in self._shards for point in self._ask(shard_id, "nearest", search)]
        return sorted(found, key=lambda point: point["score"], reverse=not shape.nearest_first)[: search.limit]

    def vector_of(self, point_id: PlainId, using: str) -> Any:
        """A point's vector of that name. Raises ConfigurationError when there is no such point, or none in it."""
        point_id = to_id(point_id, "like")
        for shard_id in self._shards:
            for point in self._first(shard_id, Selection(ids=(point_id,)), 1):
                vectors = point["vector"] if isinstance(point["vector"], dict) else {"": point["vector"]}
                if using in vectors:
                    return vectors[using]
                msg = f"Point {point_id} has no vector {using!r}, but: {', '.join(map(repr, vectors)) or 'none'}."
                raise ConfigurationError(msg, "Name another vector with --using.")
        msg = f"{self._manifest.collection} holds no point {point_id} in backup {self._manifest.backup_id}."
        raise ConfigurationError(msg, "Look what it holds: python -m ferry query … scroll")

    def _ask(self, shard_id: ShardId, job: str, what: Selection | Search) -> Any:
        """One question to one shard."""
        field = "search" if isinstance(what, Search) else "selection"
        with self._on_disk(shard_id) as (shard, folder):
            order = {"job": job, "archive": str(shard), "folder": str(folder), field: what.model_dump()}
            [answer] = self._crew.results([order], lambda _points: self._progress(0))
        return answer

    def _first(self, shard_id: ShardId, selection: Selection, limit: int) -> list[Point]:
        """Up to ``limit`` points of a shard; it is read no further."""
        chosen = selection.model_copy(update={"limit": limit})
        with self._on_disk(shard_id) as (shard, folder):
            batches = points_by(self._crew.workers[0], shard, folder, chosen, self._progress)
            return [point for batch in batches for point in orjson.loads(batch.body)]

    @contextmanager
    def _on_disk(self, shard_id: ShardId) -> Iterator[tuple[Path, Path]]:
        """The folder of an unpacked shard, and one for the worker's own copy of it."""
        with cached_shard(self._repository, self._manifest, shard_id, self._progress) as cached:
            self.fetched_bytes += cached.fetched_bytes
            copy = self._folder / f"shard-{shard_id}"
            yield cached.folder, copy
            self._crew.results([{"job": "close"}], lambda _points: self._progress(0))
            shutil.rmtree(copy, ignore_errors=True)
