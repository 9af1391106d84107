"""Tasks of the roll back flow: say what is lost by it, then let the alias answer from its old collection."""

from ferry import switch_report
from ferry.connections import connect
from ferry.restore import roll_back as rolling
from tasks.artifacts import show_markdown
from tasks.policy import step
from tasks.runs import holder, run_id


@step("plan roll back", "plan roll back of {alias}")
def plan_roll_back(cluster: str, repository: str, alias: str, drop_new: bool) -> str:
    """Say where the alias goes and what is lost by it; the collection that it will point at. Changes nothing."""
    way = rolling.look_at_roll_back(connect(cluster, repository), alias, drop_new)
    show_markdown(("roll-back", cluster, alias), switch_report.roll_back_text(way), f"Roll back of {alias}")
    return _target(way)


@step("roll back", "roll back {alias}")
def roll_back(cluster: str, repository: str, alias: str, drop_new: bool) -> str:
    """Point the alias at its old collection in one request; that collection."""
    connections = connect(cluster, repository)
    return _target(rolling.roll_back(connections, alias, drop_new, holder(f"roll back {run_id()}")))


def _target(way: rolling.WayBack) -> str:
    return way.switch.old.collection if way.switch.old else ""
