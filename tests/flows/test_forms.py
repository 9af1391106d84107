"""What the forms of the flows show, without a server: names as choices, help text on every field."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def load(entrypoint: str) -> Any:
    """The flow as a worker loads it; a flow that cannot be imported would deploy as an empty shell."""
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_field_has_its_help_and_a_plain_kind(deployment: dict[str, Any]) -> None:
    """Each parameter is described, and every default that the deployment sets is a parameter."""
    from prefect.utilities.callables import parameter_schema

    fields = parameter_schema(load(deployment["entrypoint"])).properties
    for name, field in fields.items():
        assert field.get("description"), name
        assert "title" in field, name
    assert set(deployment["parameters"]) <= set(fields)


def test_names_of_profiles_become_choices(tmp_path: Path) -> None:
    """The form offers the configured clusters and repositories, also when there is only one."""
    import json
    import subprocess
    import sys

    config = tmp_path / "ferry.toml"
    config.write_text(
        '[clusters.b]\nnodes=["http://b:1"]\n[clusters.a]\nnodes=["http://a:1"]\n[repositories.r]\nbucket="bucket"\n'
    )
    code = (
        "import json; from prefect.utilities.callables import parameter_schema as p; "
        "from flows.restore_collection import restore_collection as f; "
        "s = p(f).properties; print(json.dumps([s['cluster']['enum'], s['repository']['enum']]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"FERRY_CONFIG": str(config), "PATH": "", "HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [["a", "b"], ["r"]]


def test_the_readme_tells_the_tasks_of_each_flow_in_order() -> None:
    """The table of flows in the README is what the flows do."""
    from prefect import Task

    import tasks.back_up_cluster
    import tasks.compare_backups
    import tasks.finish_restore
    import tasks.hold_backup
    import tasks.mend_collection
    import tasks.migrate_collection
    import tasks.prune_backups
    import tasks.recover_points
    import tasks.restore_cluster
    import tasks.restore_collection
    import tasks.restore_in_place
    import tasks.roll_back_restore
    import tasks.verify_backup

    readme = (ROOT / "README.md").read_text()
    modules = (tasks.back_up_cluster, tasks.restore_collection, tasks.restore_cluster, tasks.verify_backup)
    modules = (*modules, tasks.restore_in_place, tasks.mend_collection, tasks.finish_restore, tasks.roll_back_restore)
    modules = (*modules, tasks.migrate_collection)
    for module in (*modules, tasks.compare_backups, tasks.recover_points, tasks.prune_backups, tasks.hold_backup):
        flow = module.__name__.removeprefix("tasks.")
        [row] = re.findall(rf"^\| `{flow}` \| ([^|]+) \|", readme, re.MULTILINE)
        told = [name.strip() for name in row.split(",")]
        assert told == [value.name for value in vars(module).values() if isinstance(value, Task)]
