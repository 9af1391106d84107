"""The plan of a restore for its own sake: the restore flow's own planning task, and its plan as a document."""

from collections.abc import Mapping
from typing import Any

from ferry.restore.plan_document import plan_document
from tasks.restore_collection import plan_restore, request_restore


def planned(cluster: str, repository: str, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Plan, show the plan as a table, and give it as a JSON document; changes nothing."""
    return plan_document(plan_restore(request_restore(cluster, repository, wishes)))
