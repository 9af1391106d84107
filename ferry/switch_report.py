"""What a finish and a roll back found and did, as rows and Markdown: the same in the Prefect UI and in the terminal."""

from ferry.report import Row, findings_text
from ferry.restore.finish import Finished, FinishedAlias
from ferry.restore.roll_back import WayBack


def finish_rows(finished: Finished) -> list[Row]:
    """One row for each old collection that was kept, with what becomes of it and why."""
    return [
        {
            "alias": each.switch.alias,
            "old collection": verdict.collection,
            "verdict": verdict.state,
            "why": verdict.reason,
        }
        for each in finished.aliases
        for verdict in each.verdicts
    ]


def finish_text(finished: Finished, *, dry_run: bool) -> str:
    """A finish, or what one would do, in words."""
    names = ", ".join(finished.dropped)
    if dry_run:
        did = f"**Would be dropped: {names}**; nothing was changed." if names else "Nothing would be dropped."
    else:
        did = f"**Dropped: {names}.**" if names else "Nothing was dropped."
    lines = [did, *(_alias_text(each, dry_run) for each in finished.aliases)]
    return "\n\n".join([*lines, findings_text(finished.findings)])


def _alias_text(finished: FinishedAlias, dry_run: bool) -> str:
    switch = finished.switch
    told = {
        "planned": f"was to move to {switch.new.collection} and has not",
        "moved": f"points at {switch.new.collection} since {switch.moved_at:%Y-%m-%d %H:%M} UTC"
        if switch.moved_at
        else "",
        "rolled_back": f"was rolled back to {switch.old.collection if switch.old else 'nothing'}",
        "finished": f"points at {switch.new.collection}, and its old collection is gone",
        "void": f"was moved by somebody else before restore {switch.restore_id} could; both collections are yours",
    }[switch.state]
    if finished.moved:
        told += ": it would be moved now" if dry_run else ": it was moved now, for its restore had died before"
    return f"- Alias **{switch.alias}** {told}."


def roll_back_text(way: WayBack) -> str:
    """What a roll back will do, and what is lost by it; to be said before it is done."""
    switch, old = way.switch, way.switch.old.collection if way.switch.old else "nothing"
    if not way.moves:
        lines = [f"Alias **{switch.alias}** points at {old} already."]
    else:
        lines = [f"Alias **{switch.alias}** goes back from {switch.new.collection} to **{old}**.", _lost_text(way)]
    stays = f"{switch.new.collection} stays; roll back with drop_new to drop it."
    lines.append(f"{switch.new.collection} is dropped." if way.drops else stays)
    return "\n\n".join([*lines, findings_text(way.findings)])


def _lost_text(way: WayBack) -> str:
    new, lost = way.switch.new, way.lost_points
    if lost is None:
        return f"How many points {new.collection} got since the switch is not known; the old one has none of them."
    if lost == 0:
        return f"{new.collection} has {way.points} points, as many as at the switch; overwritten ones do not show."
    more = f"{abs(lost)} point{'' if abs(lost) == 1 else 's'} {'more' if lost > 0 else 'fewer'}"
    return (
        f"**{new.collection} has {more} than at the switch** ({way.points}, and {new.points} then). "
        "What was written or deleted since then is not in the old collection."
    )
