"""The question whose answer time is measured while a snapshot is made and read: a read that costs nearly nothing."""

from typing import Any, Literal, NamedTuple, Protocol

from ferry.errors import NodeError, NodeUnreachableError
from ferry.models import ShardId
from ferry.profiles import AnswerLimits
from ferry.qdrant.http import NotFoundError, path_of
from ferry.qdrant.node import Node

_SILENT_AFTER_SECONDS = 5.0
_LONGEST_INTERVAL_SECONDS = 60.0  # asked more seldom than this it would be no watchdog
_STRICT_SHARE = 0.05  # of the reads that a collection's strict mode allows a minute; the others are its users'


class Answer(NamedTuple):
    """How a question ended. ``refused``: the node answered at once and not from the data, which measures nothing."""

    kind: Literal["answered", "silent", "refused"]
    reason: str = ""


class Question(Protocol):
    """A cheap read whose answer time is measured."""

    label: str
    collection: str
    node_url: str

    def ask(self) -> Answer:
        """Ask once and wait for the answer."""
        ...

    def least_interval_seconds(self) -> float | None:
        """How seldom it must be asked so as not to use up what is allowed to others; None: no answer came."""
        ...


class ShardQuestion:
    """The first point of one replica, without payload and vector, from the node that makes the snapshot.

    Every read that passes through a replica's segments waits for the same locks as users do, but with two replicas
    those of the whole collection go to the other one and see nothing, while upserts stall (1.16.3, measured:
    docs/never-hurts.md). This one asks no other node, costs least, is allowed by every right that suffices for
    snapshots, and works on an empty collection. Without a shard those that the node has are asked in turn; where it has
    none, or no such route, the whole collection. httpx gives it a connection of its own while a download holds another.
    """

    def __init__(self, node: Node, collection: str, shard_id: ShardId | None, limits: AnswerLimits) -> None:
        self.node_url = node.url
        self.label = f"{collection}{'' if shard_id is None else f' shard {shard_id}'} on {node.label}"
        self._node, self.collection = node, collection
        self._shards: list[ShardId] | None = None if shard_id is None else [shard_id]
        slowest_ms = max(limits.pause_above_ms or 0.0, limits.stop_above_ms or 0.0)
        self._timeout_seconds = max(_SILENT_AFTER_SECONDS, 2 * slowest_ms / 1000)

    def ask(self) -> Answer:
        """Ask once; no error of the node's is raised, for a watchdog that fails must not fail the backup."""
        try:
            self._read_one()
        except NodeUnreachableError as error:
            # Only a 429 has it: strict mode counts reads, and that it says so at once is no slow answer.
            limited = hasattr(error, "retry_after_seconds")
            return Answer("refused" if limited else "silent", error.message)
        except NodeError as error:
            return Answer("refused", error.message)
        return Answer("answered")

    def _read_one(self) -> None:
        if self._shards is None:
            found = self._request("GET", "/cluster")["local_shards"]
            self._shards = [ShardId(shard["shard_id"]) for shard in found]
        body = {"limit": 1, "with_payload": False, "with_vector": False}
        while self._shards:
            shard_id = self._shards.pop(0)
            try:
                self._request("POST", path_of("shards", shard_id) + "/points/scroll", body)
            except NotFoundError:
                continue  # it was moved away meanwhile
            except NodeError:
                self._shards.append(shard_id)
                raise
            self._shards.append(shard_id)
            return
        self._request("POST", "/points/scroll", body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        folder = path_of("collections", self.collection)
        return self._node.request(method, folder + path, json=body, timeout=self._timeout_seconds)

    def least_interval_seconds(self) -> float | None:
        """So seldom that strict mode's reads a minute stay for its users; 0 where it does not count them."""
        try:
            found = self._request("GET", "")
        except NodeUnreachableError:
            return None
        except NodeError:
            return 0.0
        strict = found["config"].get("strict_mode_config") or {}
        limit = strict.get("read_rate_limit") if strict.get("enabled") else None
        return min(60 / (limit * _STRICT_SHARE), _LONGEST_INTERVAL_SECONDS) if limit else 0.0
