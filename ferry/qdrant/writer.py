"""Writing points to a live collection: JSON as it comes, a few batches in flight over the cluster's nodes.

An upsert may be sent again without harm, so whatever was lost on the way is: by another node at once, by the same one
after a pause. With ``wait=true`` a node answers when it has applied a batch, and refuses what does not fit; without, it
acknowledges vectors of a wrong name or size and drops them (sources.md §0.6).
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import orjson

from ferry.archive.points import Batch
from ferry.errors import NodeRefusedError, NodeUnreachableError, StoppedError
from ferry.models import Progress, ShardKey, no_progress
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import WrongRequestError, path_of
from ferry.qdrant.node import Node
from ferry.qdrant.rota import Rota
from ferry.qdrant.rounding import half_cosine_vectors, points_json, sent_exactly

FEWEST_IN_FLIGHT, MOST_IN_FLIGHT = 2, 4  # more only wait in the nodes' queues (sources.md §1)
# A node answers for a replica that is away only after 30 s of consensus (seen on 1.16.3): listen longer than that.
WRITE_SECONDS = 60.0
HEARTBEAT_SECONDS = 0.5
# A filter that no point passes: points that are there are not updated (1.16 on; before, it is not known and ignored).
INSERT_ONLY = b',"update_filter":{"must":[{"has_id":[]}]}'

KeyedBatch = tuple[ShardKey | None, Batch]


def write_points(
    cluster: Cluster,
    collection: str,
    batches: Iterable[Batch],
    *,
    shard_key: ShardKey | None = None,
    insert_only: bool = False,
    progress: Progress = no_progress,
) -> int:
    """Upsert batches, all under one shard key where the collection has keys, and return the number of points.

    See `write_keyed_points`, which this is for batches of several keys. ``insert_only`` leaves points alone that are
    there, from Qdrant 1.16 on; it is not told which.
    """
    keyed = ((shard_key, batch) for batch in batches)
    return write_keyed_points(cluster, collection, keyed, progress, insert_only=insert_only)


def write_keyed_points(
    cluster: Cluster,
    collection: str,
    batches: Iterable[KeyedBatch],
    progress: Progress = no_progress,
    *,
    insert_only: bool = False,
) -> int:
    """Upsert batches, each under its own shard key; as many are in memory as are in flight: 2 to 4.

    ``progress`` gets the points of each acknowledged batch, or 0 twice a second, and may raise to stop. The first
    failure stops the rest; batches that were sent by then may have been applied. Raises PointRefusedError naming
    the point that a node refuses, NodeError when no node has taken a batch for two minutes, and what a node says that
    no waiting mends: no right, no such collection, no space.
    """
    writer, written = _Writer(cluster, collection, INSERT_ONLY if insert_only else b""), 0
    most = max(FEWEST_IN_FLIGHT, min(MOST_IN_FLIGHT, len(cluster.nodes)))
    pending: set[Future[int]] = set()
    with writer.threads(most) as pool:
        for key, batch in batches:
            pending.add(pool.submit(writer.write, key, batch))
            written += _taken(pending, progress, below=most)
        return written + _taken(pending, progress, below=1)


def _taken(pending: set[Future[int]], progress: Progress, below: int) -> int:
    """Wait until fewer than ``below`` batches are in flight; how many points were acknowledged meanwhile."""
    points = 0
    while True:
        patience = HEARTBEAT_SECONDS if len(pending) >= below else 0.0
        done, _ = wait(pending, timeout=patience, return_when=FIRST_COMPLETED)
        pending -= done
        counts = [future.result() for future in done]
        progress(sum(counts))
        points += sum(counts)
        if len(pending) < below:
            return points


class _Writer:
    """What the threads of one write share."""

    def __init__(self, cluster: Cluster, collection: str, condition: bytes) -> None:
        self._collection, self._condition = collection, condition
        self._path = path_of("collections", collection) + "/points"
        self._params = {"wait": "true", "ordering": "weak"}
        self._seconds = max(cluster.profile.timeout_seconds, WRITE_SECONDS)
        self._stop = threading.Event()
        self._rota = Rota(cluster.nodes, f"has taken points of {collection}")
        self._halves = half_cosine_vectors(self._config(cluster.nodes))
        self._most_points: int | None = None  # learnt: Qdrant's strict mode and size limit refuse larger batches

    @contextmanager
    def threads(self, number: int) -> Iterator[ThreadPoolExecutor]:
        """A pool whose threads are stopped when the body fails, and have ended when it is left."""
        with ThreadPoolExecutor(number, thread_name_prefix="ferry-write") as pool:
            try:
                yield pool
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def write(self, key: ShardKey | None, batch: Batch) -> int:
        """Have all points of a batch applied; their number."""
        body = sent_exactly(batch.body, self._halves) if self._halves else batch.body
        self._write(b"null" if key is None else orjson.dumps(key), body, len(batch.ids))
        return len(batch.ids)

    def _write(self, key: bytes, body: bytes, points: int) -> None:
        """Send a JSON array of points. What is refused is sent in halves, down to the point that is refused alone."""
        if points == 0:
            return  # "Empty update request"
        refused = False
        if self._most_points is None or points <= self._most_points:
            try:
                self._send(b'{"points":' + body + b',"shard_key":' + key + self._condition + b"}")
            except WrongRequestError as error:
                if points == 1:
                    raise _refused(self._collection, orjson.loads(body)[0]["id"], error) from error
                refused = True
            else:
                return
        decoded, middle = orjson.loads(body), (points + 1) // 2
        for half in (decoded[:middle], decoded[middle:]):
            self._write(key, points_json(half), len(half))
        if refused:  # and both halves were taken: there were too many
            self._most_points = min(self._most_points or middle, middle)

    def _send(self, body: bytes) -> None:
        """Send one request until a node has answered that it was applied."""
        self._rota.ask(lambda node: self._put(node, body), self._pause)

    def _put(self, node: Node, body: bytes) -> None:
        with (
            node.stream("PUT", self._path, content=body, params=self._params, timeout=self._seconds) as response,
            node.translated("PUT", self._path),
        ):
            response.read()

    def _pause(self, seconds: float) -> None:
        """Wait, unless a failure elsewhere stops all: then raise StoppedError."""
        if self._stop.wait(seconds):
            msg = f"Writing to {self._collection} was stopped: it failed elsewhere, or a cancel was asked for."
            raise StoppedError(msg)

    def _config(self, nodes: Sequence[Node]) -> dict[str, object]:
        """The collection's configuration by the first node that answers."""
        for node in nodes[:-1]:
            try:
                return dict(node.collection(self._collection)["config"])
            except NodeUnreachableError:
                continue
        return dict(nodes[-1].collection(self._collection)["config"])


class PointRefusedError(NodeRefusedError):
    """A node refuses this point whatever else is sent with it, and why."""

    point_id: int | str
    reason: str


def _refused(collection: str, point_id: int | str, error: NodeRefusedError) -> PointRefusedError:
    msg = f"Point {point_id} cannot be written to {collection}. {error.message}"
    refused = PointRefusedError(msg, error.remedy or "Correct this point or leave it out; what was written is right.")
    refused.point_id, refused.reason = point_id, error.message
    return refused
