"""Bring up a sandbox with a Prefect server and a worker, and register the deployments of prefect.yaml."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ferry.errors import FerryError
from sandbox.lifecycle import SandboxShape, start_sandbox
from sandbox.process import SandboxError
from sandbox.state import SandboxState, locked

ROOT = Path(__file__).parents[1]
console = Console(highlight=False, soft_wrap=True)


def deploy(state: SandboxState) -> None:
    """Register every deployment; names of clusters and repositories become choices in the forms here."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = {**os.environ, **state.env(), "FERRY_HOME": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SandboxError(f"prefect deploy failed: {(done.stderr or done.stdout)[-1500:]}")


def show(state: SandboxState) -> None:
    """Print the addresses and the next commands."""
    prefect = state.prefect or {}
    table = Table("what", "where", box=None, header_style="bold")
    table.add_row("Prefect UI", prefect["ui_url"])
    for name in state.clusters:
        for number in range(len(state.clusters[name])):
            table.add_row(f"Qdrant {name} {number}", state.node(name, number).url)
    table.add_row("S3", str(state.s3_url()))
    table.add_row("settings", str(state.settings_file))
    console.print(table)
    api = prefect["api_url"]
    console.print(
        f'\nFor the shell:     eval "$({Path(sys.executable).name} -m sandbox env --folder {state.folder})"\n'
        f"Demo data:         python -m sandbox load\n"
        f"Back up now:       prefect deployment run back-up-cluster/nightly\n"
        f"By the API:        curl -s {api}/deployments/name/back-up-cluster/nightly\n"
        f"Stop everything:   make down"
    )


def main() -> int:
    """Start what does not run, deploy, print."""
    parser = argparse.ArgumentParser(prog="python -m deployments.up", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".sandbox"), help="where the sandbox lives")
    folder = parser.parse_args().folder.absolute()
    try:
        with locked(folder):
            state = SandboxState.load(folder)
            if not state.running():
                with console.status("Starting") as spinner:
                    shape = SandboxShape(prefect=True)
                    state = start_sandbox(folder, shape, lambda part: spinner.update(f"Starting {part}"))
            with console.status("Registering the deployments"):
                deploy(state)
    except FerryError as error:
        console.print(f"[red]{error}[/]")
        return 1
    show(state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
