"""What a diff has found, as plain rows and Markdown (see `ferry.report`)."""

from ferry.report import Row, findings_text, size
from ferry.verify.diff import Comparison, SideReading
from ferry.verify.ledger import Difference


def difference_rows(found: Comparison) -> list[Row]:
    """One row a point: the first of each kind."""
    return [
        {"point": _named(each), "what": each.what, "fields": ", ".join(each.fields)}
        for each in sorted(found.first, key=lambda each: each.what)
    ]


def comparison_text(found: Comparison) -> str:
    """The verdict in words: how many points differ and how, the schema, and what an operator should know."""
    schema = (
        "\n".join(f"- {line}" for line in found.schema_differences) or "Settings, indexes and aliases are the same."
    )
    return (
        f"## {_verdict(found)}\n\n- First: {_reading(found.a)}\n- Second: {_reading(found.b)}\n\n"
        f"Added in the second: **{found.added}**. Removed: **{found.removed}**. Changed: **{found.changed}** "
        f"({found.changed_payload} in the payload, {found.changed_vector} in vectors).\n\n"
        f"{schema}\n\n{findings_text(found.findings)}"
    )


def _verdict(found: Comparison) -> str:
    if found.points == 0:
        return "The points are equal"
    return "1 point differs" if found.points == 1 else f"{found.points} points differ"


def _reading(side: SideReading) -> str:
    return (
        f"{side.name}. Read: {side.points_read} of {side.points} points in {side.shards_read} of {side.shards} shards, "
        f"{size(side.bytes_read)}."
    )


def _named(difference: Difference) -> str:
    return str(difference.id) if difference.shard_key is None else f"{difference.id} of {difference.shard_key}"
