"""One Qdrant node's REST calls. Snapshots and points, which need more than one call each, have their own modules."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import httpx

from ferry.errors import LayoutError, NodeRefusedError
from ferry.models import NodeInfo, PeerId
from ferry.profiles import ClusterProfile
from ferry.qdrant.http import Transport, path_of

# Qdrant without cluster mode names no peer in /cluster. Its own number, which /collections/{c}/cluster shows, can only
# be had once there is a collection, so a single node is peer 0 everywhere in Ferry.
STANDALONE_PEER = PeerId(0)


class Node:
    """One node by its own REST address. ``peer_id`` is who must answer there; None until it has been learnt.

    Every call raises NodeUnreachableError (transient) or NodeRefusedError; both name the node and say what Qdrant said.
    """

    def __init__(self, url: str, profile: ClusterProfile, peer_id: PeerId | None = None) -> None:
        self.profile = profile
        self.peer_id = peer_id
        self._transport = Transport(url, profile)
        self.url = self._transport.url
        self.label = self._transport.label
        self.request = self._transport.request
        self.patient_request = self._transport.patient_request
        self.translated = self._transport.translated

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def received_bytes(self) -> int:
        """Bytes of all answers so far, those of `stream` left out."""
        return self._transport.received_bytes

    def stream(
        self,
        method: str,
        path: str,
        *,
        content: bytes | Iterable[bytes] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AbstractContextManager[httpx.Response]:
        """An answer with its body still to be read, inside ``translated``."""
        return self._transport.stream(method, path, content=content, params=params, headers=headers, timeout=timeout)

    def identify(self) -> NodeInfo:
        """Who answers at this address, and what it runs (``GET /`` and ``GET /cluster``)."""
        about = self.request("GET", "/")
        return NodeInfo(
            url=self.url, peer_id=self._answering_peer(), version=about["version"], commit=about.get("commit")
        )

    def require_identity(self) -> None:
        """Raise LayoutError when another peer answers here than ``peer_id``; the first call learns it.

        To be called before and after every step whose bytes belong to one peer.
        """
        answered = self._answering_peer()
        if self.peer_id is None:
            self.peer_id = answered
        elif answered != self.peer_id:
            msg = f"{self.label} answered as peer {answered}, and as peer {self.peer_id} before."
            raise LayoutError(msg, "Configure the address of every node itself, never one that is balanced over them.")

    def fresh_identity(self) -> str:
        """Who answers on a connection of its own: the peer id, or the id of the process without cluster mode."""
        with Node(self.url, self.profile) as node:
            peer_id = node._answering_peer()
            return str(peer_id) if peer_id != STANDALONE_PEER else f"process {node.telemetry(0)['id']}"

    def _answering_peer(self) -> PeerId:
        return PeerId(int(self.cluster_info().get("peer_id", STANDALONE_PEER)))

    def cluster_info(self) -> dict[str, Any]:
        """``GET /cluster``: peers, consensus; only ``{"status": "disabled"}`` without cluster mode."""
        return self._document("/cluster")

    def collections(self) -> list[str]:
        """Names of all collections, sorted."""
        return sorted(entry["name"] for entry in self.request("GET", "/collections")["collections"])

    def collection(self, name: str) -> dict[str, Any]:
        """``GET /collections/{name}``, unchanged.

        Not this node's view alone: it asks another one about shards that it has no replica of, and may then show that
        one's configuration (seen on 1.16.3 for some 20 ms after a PATCH).
        """
        return self._document(path_of("collections", name))

    def collection_cluster(self, name: str) -> dict[str, Any]:
        """``GET /collections/{name}/cluster``: shards and replicas as this node sees them.

        It waits while a shard of the node is being loaded (seen on 1.16.3), so callers that poll expect timeouts.
        """
        return self._document(path_of("collections", name) + "/cluster")

    def aliases(self) -> dict[str, str]:
        """Collection name by alias, of the whole cluster."""
        return {entry["alias_name"]: entry["collection_name"] for entry in self.request("GET", "/aliases")["aliases"]}

    def telemetry(self, level: int = 1) -> dict[str, Any]:
        """``GET /telemetry`` of this node alone; 1 adds the system, 2 snapshots, 3 shards."""
        document: dict[str, Any] = self.request("GET", "/telemetry", params={"details_level": level})
        return document

    def metrics(self) -> str:
        """``GET /metrics``: Prometheus text."""
        return str(self.request("GET", "/metrics"))

    def create_collection(self, name: str, body: Mapping[str, Any]) -> None:
        """Create a collection; returns when consensus has it, which is before its replicas are Active."""
        self.request("PUT", path_of("collections", name), json=body, **self._by_consensus())

    def delete_collection(self, name: str) -> None:
        """Delete a collection; one that is not there is fine."""
        self.request("DELETE", path_of("collections", name), **self._by_consensus())

    def patch_collection(self, name: str, body: Mapping[str, Any]) -> None:
        """Change a collection's parameters; ``metadata`` is merged key by key, and null removes a key."""
        self.request("PATCH", path_of("collections", name), json=body, **self._by_consensus())

    def create_payload_index(self, name: str, field: str, schema: str | Mapping[str, Any]) -> None:
        """Create a payload index and wait until it is built, at most ``snapshot_timeout_seconds``."""
        body = {"field_name": field, "field_schema": schema}
        path = path_of("collections", name) + "/index"
        self.request("PUT", path, json=body, params={"wait": "true"}, timeout=self.profile.snapshot_timeout_seconds)

    def create_shard_key(self, name: str, body: Mapping[str, Any]) -> None:
        """Create a shard key: ``{shard_key, shards_number, replication_factor, placement}``."""
        self.request("PUT", path_of("collections", name) + "/shards", json=body, **self._by_consensus())

    def drop_shard_key(self, name: str, key: str | int) -> None:
        """Drop a shard key with its shards."""
        path = path_of("collections", name) + "/shards/delete"
        self.request("POST", path, json={"shard_key": key}, **self._by_consensus())

    def update_aliases(self, actions: list[dict[str, Any]]) -> None:
        """Apply alias actions, one after the other: those before one that is refused stay done (seen on 1.16.3).

        ``create_alias`` alone replaces what is there.
        """
        self.request("POST", "/collections/aliases", json={"actions": actions}, **self._by_consensus())

    def exists(self, name: str) -> bool:
        """Whether this node knows a collection of that name, or an alias."""
        return bool(self.request("GET", path_of("collections", name) + "/exists")["exists"])

    def _by_consensus(self) -> dict[str, Any]:
        # Qdrant waits so long for consensus, then answers with an error; ours must be the longer one to hear it.
        seconds = max(1, int(self.profile.timeout_seconds))
        return {"params": {"timeout": seconds}, "timeout": seconds + 5.0}

    def _document(self, path: str) -> dict[str, Any]:
        document = self.request("GET", path)
        if not isinstance(document, dict):
            msg = f"Node {self.label} answered GET {path} with something else than a document; is it Qdrant?"
            raise NodeRefusedError(msg)
        return document
