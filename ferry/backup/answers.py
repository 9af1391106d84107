"""The question whose answer time is measured while a snapshot is made and read: a read that costs nearly nothing."""

from typing import Literal, NamedTuple, Protocol

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
    node_url: str

    def ask(self) -> Answer:
        """Ask once and wait for the answer."""
        ...

    def least_interval_seconds(self) -> float | None:
        """How seldom it must be asked so as not to use up what is allowed to others; None: no answer came."""
        ...


class ShardQuestion:
    """The first point of one replica, without payload and vector, from the node that makes the snapshot.

    Every read that passes through the segments of the replica waits for the same locks as searches do (measured on
    1.16.3, docs/never-hurts.md), and this one costs least, asks no other node, is allowed by every right that suffices
    for snapshots, and works on an empty collection. Without a shard, or where the node has no such route, the same is
    asked of the whole collection. httpx gives it a connection of its own while the download holds another.
    """

    def __init__(self, node: Node, collection: str, shard_id: ShardId | None, limits: AnswerLimits) -> None:
        self.node_url = node.url
        self.label = f"{collection}{'' if shard_id is None else f' shard {shard_id}'} on {node.label}"
        self._node, self._collection = node, collection
        folder = path_of("collections", collection)
        self._paths = [folder + "/points/scroll"]
        if shard_id is not None:
            self._paths.insert(0, folder + path_of("shards", shard_id) + "/points/scroll")
        slowest_ms = max(limits.pause_above_ms or 0.0, limits.stop_above_ms or 0.0)
        self._timeout_seconds = max(_SILENT_AFTER_SECONDS, 2 * slowest_ms / 1000)

    def ask(self) -> Answer:
        """Ask once; nothing is raised, for a watchdog that fails must not fail the backup."""
        body = {"limit": 1, "with_payload": False, "with_vector": False}
        try:
            self._node.request("POST", self._paths[0], json=body, timeout=self._timeout_seconds)
        except NotFoundError as error:
            if len(self._paths) > 1:
                del self._paths[0]
                return self.ask()
            return Answer("refused", error.message)
        except NodeUnreachableError as error:
            # Only a 429 has it: strict mode counts reads, and that it says so at once is no slow answer.
            limited = hasattr(error, "retry_after_seconds")
            return Answer("refused" if limited else "silent", error.message)
        except NodeError as error:
            return Answer("refused", error.message)
        return Answer("answered")

    def least_interval_seconds(self) -> float | None:
        """So seldom that strict mode's reads a minute stay for its users; 0 where it does not count them."""
        path = path_of("collections", self._collection)
        try:
            found = self._node.request("GET", path, timeout=self._timeout_seconds)
        except NodeUnreachableError:
            return None
        except NodeError:
            return 0.0
        strict = found["config"].get("strict_mode_config") or {}
        limit = strict.get("read_rate_limit") if strict.get("enabled") else None
        return min(60 / (limit * _STRICT_SHARE), _LONGEST_INTERVAL_SECONDS) if limit else 0.0
