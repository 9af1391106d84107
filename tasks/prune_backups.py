"""Tasks of the prune flow: delete what no rule keeps, and show why."""

from ferry import report
from ferry.connections import connect_repository
from ferry.prune.run import Pruned, look, prune
from ferry.settings import load_settings
from tasks.artifacts import show_table
from tasks.policy import progress, step
from tasks.runs import holder, run_id


@step("prune", "prune {cluster} in {repository}")
def prune_cluster(repository: str, cluster: str, policy: str, dry_run: bool) -> Pruned:
    """Judge every backup of the cluster; delete what no rule keeps, unless it is a dry run."""
    rules, opened = load_settings().policy(policy), connect_repository(repository)
    if dry_run:
        return look(opened, cluster, rules)
    tell = progress(f"prune {cluster}", 0)
    return prune(opened, cluster, rules, holder(f"prune {run_id()}"), tell)


@step("report prune", "report {cluster}")
def report_prune(cluster: str, pruned: Pruned) -> list[str]:
    """One row a backup with every reason; the ids of what was deleted, or would be."""
    show_table(("prune", cluster), report.prune_rows(pruned), report.prune_text(pruned))
    if pruned.outcomes:
        return [outcome.backup_id for outcome in pruned.outcomes if outcome.state == "deleted"]
    return [verdict.backup_id for verdict in pruned.plan.deletes]
