"""How fast earlier restores into a cluster were, and how long a planned one will take by that.

Only restores are asked. The times in a manifest are of making snapshots and of reading archives without a server: no
restore is as fast, so nothing is expected of them.
"""

import logging
from collections.abc import Iterable, Sequence
from math import ceil
from statistics import median
from typing import get_args

from pydantic import Field

from ferry.connections import Connections
from ferry.errors import FerryError
from ferry.models import Value, VerifyLevel
from ferry.repository.layout import Keys
from ferry.repository.store import ObjectStore
from ferry.restore.plan import RestorePlan, archive_bytes
from ferry.restore.records import RestoreRecord, Way, last_records
from ferry.restore.source import by_url

log = logging.getLogger(__name__)

_BY_BYTES: tuple[Way, ...] = ("url", "upload")


class Rates(Value):
    """Middle rates of earlier restores into one cluster; what was never measured is missing, or None."""

    restores: int = 0
    bytes_per_second: dict[Way, float] = Field(default_factory=dict, description="Of one node: url, upload.")
    sent_points_per_second: float | None = Field(default=None, description="Of all lanes together.")
    compared_points_per_second: dict[VerifyLevel, float] = Field(default_factory=dict, description="Of one node.")
    other_seconds: float = Field(default=0.0, description="Creating, settling, moving the alias.")


class Load(Value):
    """What decides how long a restore takes; of nodes, the one with the most to do.

    ``ways`` are those that archives may go, the likelier first; empty where points are sent.
    """

    ways: tuple[Way, ...] = ()
    node_bytes: int = 0
    sent_points: int = 0
    verify: VerifyLevel
    node_compared_points: int = 0


def rates(store: ObjectStore, keys: Keys, cluster: str) -> Rates:
    """The rates of the last restores into a cluster; empty where there was none. Raises RepositoryError."""
    return rates_of(last_records(store, keys, cluster))


def rates_of(records: Iterable[RestoreRecord]) -> Rates:
    """The middle rates of these restores. What failed was not measured. Pure."""
    ended = [record for record in records if record.verdict == "equal"]
    moved = [moved for record in ended for moved in record.moved]
    by_way = {way: _middle([(each.bytes, each.seconds) for each in moved if each.way == way]) for way in _BY_BYTES}
    by_level = {
        level: _middle([(each.compared_points, each.compare_seconds) for each in ended if each.verify == level])
        for level in get_args(VerifyLevel)
    }
    return Rates(
        restores=len(ended),
        bytes_per_second={way: rate for way, rate in by_way.items() if rate},
        sent_points_per_second=_middle([(each.points, each.seconds) for each in moved if each.way == "points"]),
        compared_points_per_second={level: rate for level, rate in by_level.items() if rate},
        other_seconds=median([record.other_seconds for record in ended] or [0.0]),
    )


def _middle(measured: Sequence[tuple[float, float]]) -> float | None:
    """The median rate of (amount, seconds), each as heavy as its amount: half of all that was moved went no faster.

    Without the weights a few restores of tiny collections, which mostly wait, would slow a large one.
    """
    known = sorted((amount / seconds, amount) for amount, seconds in measured if amount > 0 and seconds > 0)
    left = sum(amount for _, amount in known) / 2
    for rate, amount in known:
        left -= amount
        if left <= 0:
            return rate
    return None


def load_of(plan: RestorePlan) -> Load:
    """What a plan loads its fullest node with: Qdrant places replicas evenly, so a rounded-up share of them. Pure."""
    sizes, proofs = archive_bytes(plan.manifest), dict(plan.manifest.proofs())
    nodes = len(plan.layout.nodes)
    copies = [shard.source for shard in plan.shards for _ in range(shard.copies)]
    placed = sorted((sizes[source] for source in copies if source is not None), reverse=True)
    sampled = plan.request.verify == "sample"
    read = sum(len(proofs[source].sample) if sampled else proofs[source].points or 0 for source in plan.sources)
    fetched = all(by_url(archive) for archive in plan.manifest.archives)
    return Load(
        ways=() if plan.path == "points" else ("url", "upload") if fetched else ("upload",),
        node_bytes=sum(placed[: ceil(len(copies) / nodes)]),
        sent_points=sum(proofs[stream.source].points or 0 for stream in plan.streams),
        verify=plan.request.verify,
        node_compared_points=ceil(read * plan.replication_factor / nodes),
    )


def expected_seconds(measured: Rates, load: Load) -> float | None:
    """How long a restore will take, at the rates of earlier ones; None where moving was never measured. Pure.

    An address is tried before an upload; a cluster that has only ever been uploaded to will not fetch this time.
    Comparing every point takes as long as moving, so without its rate nothing is said; the other levels are quick.
    """
    if load.ways:
        speeds = [measured.bytes_per_second[way] for way in load.ways if way in measured.bytes_per_second]
        moving = load.node_bytes / speeds[0] if speeds else None
    else:
        speed = measured.sent_points_per_second
        moving = load.sent_points / speed if speed else None
    comparing = measured.compared_points_per_second.get(load.verify)
    if moving is None or (comparing is None and load.verify == "content"):
        return None
    return measured.other_seconds + moving + (load.node_compared_points / comparing if comparing else 0.0)


def with_expectation(connections: Connections, plan: RestorePlan) -> RestorePlan:
    """The plan with the time that it will take, and whence that is known. A store's refusal is only logged."""
    return with_expectations(connections, [plan])[0]


def with_expectations(connections: Connections, plans: Sequence[RestorePlan]) -> list[RestorePlan]:
    """The same for several plans into one cluster, whose records are read once."""
    try:
        measured = rates(connections.store, connections.keys, plans[0].request.cluster)
    except FerryError as error:
        log.warning("the records of earlier restores cannot be read: %s", error.message)
        measured = Rates()
    return [_expecting(plan, measured) for plan in plans]


def _expecting(plan: RestorePlan, measured: Rates) -> RestorePlan:
    seconds = expected_seconds(measured, load_of(plan))
    if seconds is None:
        why = f"expected time unknown: no earlier restore into {plan.request.cluster} of this kind"
    else:
        why = f"expected time {seconds:.0f} s, by the last {measured.restores} restores into {plan.request.cluster}"
    return plan.model_copy(update={"expected_seconds": seconds, "reasons": (*plan.reasons, why)})
