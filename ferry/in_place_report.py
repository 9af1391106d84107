"""How a restore in place ended, as Markdown."""

from ferry import report
from ferry.restore.overwrite import Overwritten

_COMPARED = {
    "count": "exact counts",
    "sample": "counts and sampled points field by field",
    "content": "every point",
}


def in_place_verdict(done: Overwritten) -> str:
    """What was overwritten and compared, where the state of before is, and what is worth knowing."""
    plan = done.plan
    before = (
        f"The state before is backup {done.before}, proven by every point."
        if done.before
        else "The state before was **not backed up**: that was waived."
    )
    return (
        f"## {plan.target} is overwritten and equal to its proof\n\n{len(done.verdicts)} replicas compared by "
        f"{_COMPARED[plan.request.verify]} with backup {plan.manifest.backup_id}. {before}\n\n"
        f"{report.findings_text(plan.findings + done.findings)}"
    )
