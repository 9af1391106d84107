"""Finishing switches: old collections whose time is over go, and what a dead restore has left is settled."""

import time
from datetime import datetime

from ferry.connections import Connections
from ferry.errors import ConfigurationError, FerryError, PreflightError
from ferry.models import Finding, Progress, Value, no_progress
from ferry.qdrant.schema import restore_mark
from ferry.repository.upkeep import store_time
from ferry.restore.switch import DRAIN_SECONDS, HeldAlias, count_of, held, look, require_healthy
from ferry.restore.switch_record import (
    FinishWishes,
    Kept,
    Seen,
    Switch,
    SwitchPlace,
    Verdict,
    is_due,
    judge,
    switches,
    where,
)


class FinishedAlias(Value):
    """What became of one alias: its switch as it is now, and a verdict on each old collection that was kept.

    ``moved``: the alias went to the new collection now, because the restore had died before it could.
    """

    switch: Switch
    verdicts: tuple[Verdict, ...] = ()
    moved: bool = False


class Finished(Value):
    """What a finish did, or in a dry run would do, and what an operator should know."""

    aliases: tuple[FinishedAlias, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def dropped(self) -> list[str]:
        """The collections that were dropped, or would be."""
        verdicts = (verdict for alias in self.aliases for verdict in alias.verdicts)
        return [verdict.collection for verdict in verdicts if verdict.state in ("drop", "dropped")]


def look_at_finish(connections: Connections, alias: str | None, wishes: FinishWishes) -> Finished:
    """What a finish would do now; changes nothing. Raises what ``finish`` raises before it begins."""
    _require_sense(alias, wishes)
    at = store_time(connections.store, connections.keys.repository)
    found, findings = _find(connections, alias)
    seen = look(connections.cluster)
    foreseen = [_foreseen(connections, switch, seen, wishes, at) for switch in found]
    if alias is not None:
        foreseen = [_foreseen_move(each, seen) for each in foreseen]
    findings += [finding for each in foreseen for finding in _to_be_told(each)]
    return Finished(aliases=tuple(foreseen), findings=tuple(findings))


def finish(
    connections: Connections,
    alias: str | None,
    wishes: FinishWishes,
    holder: str,
    progress: Progress = no_progress,
) -> Finished:
    """Drop the old collections of that alias, or of all aliases, whose time is over and that nobody uses.

    A planned switch whose restore died is made only where its alias is named. With all aliases, what cannot be done is
    a finding and the others go on. ``progress`` may raise to stop between aliases. Raises ConfigurationError for wishes
    that need an alias, PreflightError when the named alias has no switch or its collection must not be dropped,
    LeaseHeldError when somebody else works on the named alias.
    """
    _require_sense(alias, wishes)
    at = store_time(connections.store, connections.keys.repository)
    found, findings = _find(connections, alias)
    done = []
    for switch in found:
        if alias is None and not _has_work(switch, wishes, at):
            continue
        progress(0)
        try:
            finished = _finish_alias(connections, switch.alias, wishes, holder, named=alias is not None)
        except FerryError as error:
            if alias is not None or error.transient:
                raise
            findings.append(_finding(switch.alias, error.message, error.remedy))
            continue
        if alias is not None:
            _require_none_refused(finished)
        done.append(finished)
        findings += _to_be_told(finished)
    return Finished(aliases=tuple(done), findings=tuple(findings))


def unknown_switch(connections: Connections, alias: str) -> PreflightError:
    """The error for an alias that no restore of this repository has moved."""
    msg = f"No restore has moved alias {alias} on cluster {connections.cluster.name}, as far as this repository knows."
    known = [switch.alias for switch in switches(connections.store, connections.keys, connections.cluster.name)[0]]
    return PreflightError(msg, f"Nothing was changed. Known are: {', '.join(sorted(known)) or 'none'}.")


def _require_sense(alias: str | None, wishes: FinishWishes) -> None:
    if alias is None and (wishes.now or wishes.drop_changed):
        msg = "Dropping before its time, or although changed, is for one alias at a time."
        raise ConfigurationError(msg, "Name it: --alias NAME (parameter `alias`). Nothing was changed.")


def _find(connections: Connections, alias: str | None) -> tuple[list[Switch], list[Finding]]:
    store, keys, cluster = connections.store, connections.keys, connections.cluster.name
    if alias is None:
        found, problems = switches(store, keys, cluster)
        return found, [_finding("record of a switch", problem, None) for problem in problems]
    switch = SwitchPlace(store, keys, cluster, alias).read()
    if switch is None:
        raise unknown_switch(connections, alias)
    return [switch], []


def _has_work(switch: Switch, wishes: FinishWishes, at: datetime) -> bool:
    return switch.state == "planned" or any(is_due(kept, wishes, at) for kept in switch.kept)


def _foreseen(
    connections: Connections, switch: Switch, seen: Seen, wishes: FinishWishes, at: datetime
) -> FinishedAlias:
    """The same as ``_finish_alias`` will find, if nothing changes until then."""
    place = where(switch, seen)
    if place == "new" and switch.state in ("planned", "rolled_back"):
        switch = switch.moved(at, count_of(connections.cluster, switch.old))
    elif place == "old" and switch.state == "moved":
        switch = switch.ended("rolled_back", at)
    verdicts = [
        judge(kept, seen, count_of(connections.cluster, kept) if _counts(kept, seen, wishes, at) else None, wishes, at)
        for kept in switch.kept
    ]
    return FinishedAlias(switch=switch, verdicts=tuple(verdicts))


def _foreseen_move(foreseen: FinishedAlias, seen: Seen) -> FinishedAlias:
    """The same where the alias was named, so that a planned move is made."""
    planned = foreseen.switch.state == "planned"
    return foreseen.model_copy(update={"moved": planned and where(foreseen.switch, seen) == "old"})


def _counts(kept: Kept, seen: Seen, wishes: FinishWishes, at: datetime) -> bool:
    """Whether its points matter; counting reads a large collection for a while."""
    return is_due(kept, wishes, at) and seen.holds(kept)


def _finish_alias(
    connections: Connections, alias: str, wishes: FinishWishes, holder: str, *, named: bool
) -> FinishedAlias:
    with held(connections, alias, holder) as work:
        seen, at = work.seen(), work.at()
        known = work.place.read()
        if known is None:
            raise unknown_switch(connections, alias)
        switch = work.settled(known, seen)
        if switch.state == "planned" and named:
            return _go_forward(work, switch, seen)
        verdicts = [_finish_one(work, switch, kept, wishes, seen) for kept in switch.kept]
        gone = {verdict.collection for verdict in verdicts if verdict.state in ("dropped", "gone")}
        after = switch.without(gone)
        if switch.state == "moved" and (switch.old is None or switch.old.collection in gone):
            after = after.ended("finished", at)
        if after != switch:
            work.place.write(after)
        return FinishedAlias(switch=after, verdicts=tuple(verdicts))


def _finish_one(work: HeldAlias, switch: Switch, kept: Kept, wishes: FinishWishes, seen: Seen) -> Verdict:
    """Drop one old collection, or say why not. It is looked at once more right before."""
    at = work.at()
    if not _counts(kept, seen, wishes, at):
        return judge(kept, seen, None, wishes, at)
    if switch.moved_at is not None:
        time.sleep(max(0.0, DRAIN_SECONDS - (at - switch.moved_at).total_seconds()))
    counted = count_of(work.connections.cluster, kept)
    verdict = judge(kept, work.seen(), counted, wishes, at)
    if verdict.state != "drop":
        return verdict
    work.drop(kept.collection)
    return verdict.model_copy(update={"state": "dropped"})


def _go_forward(work: HeldAlias, switch: Switch, seen: Seen) -> FinishedAlias:
    """Make the move that a restore has planned and not made. Where somebody else moved the alias it is void."""
    if where(switch, seen) == "elsewhere":
        return FinishedAlias(switch=work.place.write(switch.ended("void", work.at())))
    cluster, new = work.connections.cluster, switch.new
    back = f"Give the switch up: python -m ferry roll-back --cluster {cluster.name} --alias {switch.alias}"
    if not seen.holds(new):
        msg = f"Alias {switch.alias} was to move to {new.collection}, which is gone. Nothing was changed."
        raise PreflightError(msg, back)
    if restore_mark(cluster.nodes[0].collection(new.collection)["config"]) is not None:
        msg = f"{new.collection} still belongs to restore {switch.restore_id}. Nothing was changed."
        raise PreflightError(msg, f"Wait for that restore; if it is dead, run it again. {back}")
    require_healthy(cluster, new.collection)
    counted = count_of(cluster, new)
    if counted != new.points:
        msg = f"{new.collection} has {counted} points and had {new.points} when it was to be put into service."
        raise PreflightError(f"{msg} Nothing was changed.", f"Restore again. {back}")
    work.point_at(new.collection, switch.old.collection if switch.old else None)
    return FinishedAlias(switch=work.note_moved(switch), moved=True)


def _to_be_told(finished: FinishedAlias) -> list[Finding]:
    """What was refused, and a planned switch that nobody has made."""
    refused = [verdict for verdict in finished.verdicts if verdict.state == "refused"]
    findings = [_finding(each.collection, f"It is not dropped: {each.reason}.", each.remedy) for each in refused]
    switch = finished.switch
    if switch.state == "planned" and not finished.moved:
        message = (
            f"Restore {switch.restore_id} was to move alias {switch.alias} to {switch.new.collection} at "
            f"{switch.planned_at:%Y-%m-%d %H:%M} UTC and did not; nothing was dropped."
        )
        remedy = f"Make it with `finish --alias {switch.alias}`, or give it up with `roll-back --alias {switch.alias}`."
        findings.append(_finding(switch.alias, message, remedy))
    return findings


def _require_none_refused(finished: FinishedAlias) -> None:
    refused = [verdict for verdict in finished.verdicts if verdict.state == "refused"]
    if refused:
        dropped = [verdict.collection for verdict in finished.verdicts if verdict.state == "dropped"]
        told = "; ".join(f"{verdict.collection} was not dropped: {verdict.reason}" for verdict in refused)
        raise PreflightError(f"{told}. {', '.join(dropped) or 'Nothing'} was dropped.", refused[0].remedy)


def _finding(subject: str, message: str, remedy: str | None) -> Finding:
    return Finding(severity="warning", subject=subject, message=message, remedy=remedy)
