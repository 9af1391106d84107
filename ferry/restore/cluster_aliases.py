"""The last step of a restore of many collections: all its aliases move in one request, and each is remembered.

As with a single one (``ferry.restore.switch``): what is meant is noted first, and where an alias is, the cluster says.
"""

from contextlib import ExitStack

from ferry.connections import Connections
from ferry.errors import RestoreError
from ferry.restore.switch import LEASE_PATIENCE_SECONDS, HeldAlias, Intent, ended, held, look, point, ready
from ferry.restore.switch_record import Seen, Switch
from ferry.restore.whole_cluster import ClusterRestorePlan


def move_aliases(connections: Connections, plan: ClusterRestorePlan, holder: str) -> list[Switch]:
    """Point every alias of the plan at its new collection; refused for all when somebody moved one meanwhile.

    May be called again after any failure or kill. Raises RestoreError, LeaseHeldError when somebody else works on one
    of them for longer than a minute, and what ``switch.point`` raises.
    """
    intents = [
        Intent(
            alias=move.alias,
            old=move.was,
            new=move.collection,
            restore_id=plan.request.restore_id,
            backup_id=plan.backup_id,
            keep_days=plan.request.keep_days,
        )
        for move in sorted(plan.aliases, key=lambda move: move.alias)  # two that take leases meet in the same order
    ]
    with ExitStack() as stack:
        aliases = [
            stack.enter_context(held(connections, intent.alias, holder, LEASE_PATIENCE_SECONDS)) for intent in intents
        ]
        return _moved(connections, aliases, intents) if intents else []


def _moved(connections: Connections, aliases: list[HeldAlias], intents: list[Intent]) -> list[Switch]:
    seen = look(connections.cluster)
    _require_in_place(intents, seen)
    switches = [ready(alias, intent, seen) for alias, intent in zip(aliases, intents, strict=True)]
    ahead = {intent.alias: intent.new for intent in intents if seen.aliases.get(intent.alias) != intent.new}
    for alias in aliases:
        alias.lease.confirm()
    if ahead:
        _require_in_place(intents, look(connections.cluster))
        point(connections.cluster, ahead)
    return [
        switch if switch.state == "moved" else ended(alias, switch)
        for alias, switch in zip(aliases, switches, strict=True)
    ]


def _require_in_place(intents: list[Intent], seen: Seen) -> None:
    """Raise RestoreError with every alias that is neither where it was planned nor at its new collection."""
    now = {intent.alias: seen.aliases.get(intent.alias) for intent in intents}
    moved = [
        f"{intent.alias} (at {intent.old or 'nothing'} when planned, at {now[intent.alias] or 'nothing'} now)"
        for intent in intents
        if now[intent.alias] not in (intent.old, intent.new)
    ]
    if moved:
        msg = f"Somebody has moved aliases meanwhile: {', '.join(moved)}. Ferry moved none."
        raise RestoreError(
            msg, "Everything is restored and equal; the same command again shows and plans the aliases anew."
        )
