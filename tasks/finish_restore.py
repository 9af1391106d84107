"""Tasks of the finish flow: drop old collections whose time is over, and show why each stays or goes."""

from ferry import switch_report
from ferry.connections import connect
from ferry.restore.finish import Finished, finish, look_at_finish
from ferry.restore.switch_record import FinishWishes
from tasks.artifacts import show_markdown, show_table
from tasks.policy import progress, step
from tasks.runs import holder, run_id


@step("finish", "finish restores on {cluster}")
def finish_switches(
    cluster: str, repository: str, alias: str | None, wishes: FinishWishes, *, dry_run: bool
) -> Finished:
    """Look at every old collection that is kept; drop what is due and not in use, unless it is a dry run."""
    connections = connect(cluster, repository)
    if dry_run:
        return look_at_finish(connections, alias, wishes)
    return finish(connections, alias, wishes, holder(f"finish {run_id()}"), progress(f"finish {cluster}", 0))


@step("report finish", "report {cluster}")
def report_finish(cluster: str, finished: Finished, *, dry_run: bool) -> list[str]:
    """One row for each old collection; the names of those that were dropped, or would be."""
    text = switch_report.finish_text(finished, dry_run=dry_run)
    show_table(("finish", cluster), switch_report.finish_rows(finished), f"Old collections kept on {cluster}")
    show_markdown(("finished", cluster), text, f"Finish of restores on {cluster}")
    return finished.dropped


def wishes(now: bool, drop_changed: str | None) -> FinishWishes:
    """What the form asks for."""
    return FinishWishes(now=now, drop_changed=drop_changed)
