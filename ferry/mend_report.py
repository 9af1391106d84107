"""What is stuck, and what was done about it, for people: the same in the Prefect UI and in the terminal."""

from collections.abc import Sequence

from ferry.qdrant.stuck import Stuck
from ferry.report import Row
from ferry.restore.mend import Mended


def stuck_rows(found: Sequence[Stuck]) -> list[Row]:
    """One row a thing that is stuck."""
    return [
        {
            "what": stuck.kind,
            "where": stuck.subject,
            "why": stuck.diagnosis,
            "by Ferry": "goes on by itself" if stuck.under_way else "yes" if stuck.may else f"no: {_reason(stuck)}",
        }
        for stuck in found
    ]


def stuck_text(collection: str, found: Sequence[Stuck]) -> str:
    """What is stuck in words, with the exact calls."""
    if not found:
        return f"Nothing is stuck in {collection}: every replica is Active on every node's view, and can be read."
    return f"{len(found)} things are stuck in {collection}; nothing was changed.\n\n{_calls(found)}"


def mended_text(mended: Mended) -> str:
    """How a mend ended, as Markdown."""
    lines = [
        f"- {each.stuck.subject} was {each.stuck.kind}: "
        + (f"refused, {each.refused}" if each.refused else "done")
        + (f"\n  `{each.stuck.call.curl}`" if each.stuck.call else "")
        for each in mended.made
    ]
    made = "\n".join(lines) or "No call was made."
    if not mended.left:
        return (
            f"## {mended.collection} is well\n\nEvery replica is Active on every node's view, after "
            f"{mended.seconds:.0f} s.\n\n{made}"
        )
    return f"## {mended.collection} is stuck\n\n{made}\n\nLeft for you:\n\n{_calls(mended.left)}"


def _calls(found: Sequence[Stuck]) -> str:
    lines = []
    for stuck in found:
        lines.append(f"- **{stuck.subject}**: {stuck.diagnosis}")
        if stuck.remedy:
            lines.append(f"  → {stuck.remedy}")
        if stuck.call:
            lines.append(f"  → `{stuck.call.curl}`")
    return "\n".join(lines)


def _reason(stuck: Stuck) -> str:
    return stuck.withheld or "there is no call for it"
