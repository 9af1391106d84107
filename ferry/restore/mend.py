"""Mending a collection: what stays stuck is mended by the calls that cannot lose the last good copy, one at a time.

Every call is decided on a reading made right before it: the replica that is given up holds no more points than the
ones that stay, which are Active on every node's view and were counted, each on its own node. What Ferry may not do
itself is reported with the exact call. Nothing is left behind: killed at any point, the next run reads and goes on.
"""

import logging
import time
from collections.abc import Mapping

from ferry.connections import Connections
from ferry.errors import HeadroomError, NodeRefusedError, NodeUnreachableError, StuckError
from ferry.models import ClusterLayout, PeerId, Progress, ShardId, Value, no_progress, now
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.condition import read_condition
from ferry.qdrant.resources import Need, read_headroom, require_headroom
from ferry.qdrant.stuck import Stuck, find_stuck

log = logging.getLogger(__name__)
# Qdrant fills a Dead replica again by itself, on 1.16.3 within 2 s of being able to; a node just started is given more.
PATIENCE_SECONDS = 30.0
RESTORE_PATIENCE_SECONDS = 10.0
AWAY_SECONDS = 120.0  # a node that is restarted or stopped for a minute is waited for, as in the rest of a restore
TIMEOUT_SECONDS = 3600.0
POLL_SECONDS = 0.5
_TRIES = 2  # a call that changed nothing twice will not the third time


class MendRequest(Value):
    """What is to be mended. ``copies`` are wanted of each shard; None: what the collection's configuration says.

    A thing is stuck when it has been seen unchanged for ``patience_seconds``, a node when it was away for
    ``away_seconds``. Shard transfers that go on are waited for until ``timeout_seconds``.
    """

    collection: str
    copies: dict[ShardId, int] | int | None = None
    restore_id: str | None = None
    patience_seconds: float = PATIENCE_SECONDS
    away_seconds: float = PATIENCE_SECONDS
    timeout_seconds: float = TIMEOUT_SECONDS


class MadeCall(Value):
    """A call that was made, and what the node said: None when it accepted it."""

    stuck: Stuck
    refused: str | None = None


class Mended(Value):
    """What was done to a collection, and what is stuck still; ``left`` is empty when all is well."""

    collection: str
    made: tuple[MadeCall, ...]
    left: tuple[Stuck, ...]
    seconds: float


def stuck_replicas(cluster: Cluster, request: MendRequest) -> tuple[Stuck, ...]:
    """What is stuck or under way at this moment, with the exact call for each; changes nothing.

    Raises PreflightError for a collection that no node knows, NodeUnreachableError when no node answers.
    """
    condition = read_condition(cluster, request.collection, copies=request.copies)
    return find_stuck(condition, request.restore_id)


def mend(cluster: Cluster, request: MendRequest, progress: Progress = no_progress) -> Mended:
    """Mend what may be mended and wait until every replica is Active on every node's view.

    Ends when all is well, when nothing is left that Ferry may do, or after ``timeout_seconds``. ``progress`` is called
    with 0 at every look and may raise StoppedError. Raises what `stuck_replicas` raises, never for a single call.
    """
    work = _Mending(cluster, request)
    while True:
        progress(0)
        found = work.look()
        if not found or work.is_over(found):
            return Mended(
                collection=request.collection,
                made=tuple(work.made),
                left=found,
                seconds=time.monotonic() - work.began,
            )
        if not work.act(found):
            time.sleep(POLL_SECONDS)


def mend_restored(
    connections: Connections,
    collection: str,
    copies: Mapping[ShardId, int],
    restore_id: str,
    progress: Progress = no_progress,
) -> Mended:
    """Mend a collection that a restore has just filled: to be called before it waits for Active replicas and verifies.

    ``copies`` of each shard were planned. Takes one look where all is well. Raises StuckError with the exact calls when
    something stays stuck.
    """
    request = MendRequest(
        collection=collection,
        copies=dict(copies),
        restore_id=restore_id,
        patience_seconds=RESTORE_PATIENCE_SECONDS,
        away_seconds=AWAY_SECONDS,
    )
    mended = mend(connections.cluster, request, progress)
    require_mended(mended)
    return mended


def require_mended(mended: Mended) -> None:
    """Raise StuckError with what is left and the exact calls, unless all is well."""
    if not mended.left:
        return
    told = "; ".join(f"{stuck.subject}: {stuck.diagnosis}" for stuck in mended.left)
    made = f"{len(mended.made)} calls were made" if mended.made else "Nothing was changed"
    msg = f"{mended.collection} is stuck. {told} {made}."
    remedies = [
        " ".join(
            part for part in (stuck.remedy, stuck.call and f"`{stuck.call.curl}`", _because(stuck.withheld)) if part
        )
        for stuck in mended.left
    ]
    raise StuckError(msg, "\n".join(dict.fromkeys(remedy for remedy in remedies if remedy)))


def _because(withheld: str | None) -> str:
    return f"(Ferry does not do it itself: {withheld}.)" if withheld else ""


class _Mending:
    """One run: since when each thing has been seen, and which calls were made."""

    def __init__(self, cluster: Cluster, request: MendRequest) -> None:
        self.cluster, self.request = cluster, request
        self.began = time.monotonic()
        self.made: list[MadeCall] = []
        self._since: dict[tuple[object, ...], float] = {}

    def look(self) -> tuple[Stuck, ...]:
        """What is stuck now; what is not seen any more is forgotten."""
        found = stuck_replicas(self.cluster, self.request)
        moment = time.monotonic()
        self._since = {stuck.key: self._since.get(stuck.key, moment) for stuck in found}
        return found

    def is_over(self, found: tuple[Stuck, ...]) -> bool:
        """Whether waiting is of no use: nothing goes on, and what was seen long enough is not ours to mend."""
        if time.monotonic() - self.began >= self.request.timeout_seconds:
            return True
        return not any(stuck.under_way or self._may(stuck) or not self._is_ripe(stuck) for stuck in found)

    def act(self, found: tuple[Stuck, ...]) -> bool:
        """Make one call whose time has come; whether there was one."""
        stuck = next((stuck for stuck in found if self._may(stuck) and self._is_ripe(stuck)), None)
        if stuck is None or stuck.call is None:
            return False
        log.info("%s: %s %s", stuck.subject, stuck.diagnosis, stuck.call.curl)
        self.made.append(MadeCall(stuck=stuck, refused=self._make(stuck)))
        # Consensus takes a moment to apply it: the shard is judged anew, from the beginning.
        self._since = {key: since for key, since in self._since.items() if key[1] != stuck.shard_id}
        return True

    def _make(self, stuck: Stuck) -> str | None:
        """Send the call; what the node said against it."""
        call = stuck.call
        assert call is not None  # noqa: S101 - `act` has looked
        try:
            if stuck.kind == "missing":
                _require_room(self.cluster, stuck)
            node = next(node for node in self.cluster.nodes if node.url == call.node)
            node.require_identity()
            node.request(call.method, call.path, json=call.body)
        except (HeadroomError, NodeRefusedError, NodeUnreachableError) as error:
            log.warning("%s: %s", stuck.subject, error.message)
            return error.message
        return None

    def _may(self, stuck: Stuck) -> bool:
        return stuck.may and not stuck.under_way and sum(each.stuck.key == stuck.key for each in self.made) < _TRIES

    def _is_ripe(self, stuck: Stuck) -> bool:
        limit = self.request.away_seconds if stuck.kind == "away" else self.request.patience_seconds
        return time.monotonic() - self._since[stuck.key] >= limit


def _require_room(cluster: Cluster, stuck: Stuck) -> None:
    """Raise HeadroomError unless the node that is to get a copy has room for it, by Qdrant's estimate of its source.

    Twice its bytes: the copy, and once more while it is indexed.
    """
    assert stuck.call is not None  # noqa: S101 - the caller has looked
    ids = (stuck.call.body or {})["replicate_shard"]
    source, target = cluster.node(PeerId(ids["from_peer_id"])), cluster.node(PeerId(ids["to_peer_id"]))
    held = 0
    for entry in (source.telemetry(3).get("collections") or {}).get("collections") or []:
        for shard in entry.get("shards") or []:
            if (entry["id"], shard["id"]) == (stuck.collection, stuck.shard_id):
                local = shard.get("local") or {}
                held = int(local.get("vectors_size_bytes") or 0) + int(local.get("payloads_size_bytes") or 0)
    info = target.identify()
    layout = ClusterLayout(cluster=cluster.name, taken_at=now(), nodes=(info,), collections=(), aliases={})
    need = {info.peer_id: Need(disk_bytes=2 * held, ram_bytes=held)}
    headroom = read_headroom(cluster, layout)
    require_headroom(headroom, need, cluster.profile.headroom.when_unknown, {info.peer_id: info.label})
