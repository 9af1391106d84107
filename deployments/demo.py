"""The main job from end to end on real servers: back up three nodes, prove it, restore to two, compare, switch over."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ferry.errors import FerryError
from sandbox.data import WordShape, load_words, nearest_words
from sandbox.lifecycle import SandboxShape, start_sandbox, stop_sandbox
from sandbox.prefect_server import PrefectServer
from sandbox.state import SandboxState, locked

COLLECTION, ALIAS, WORD = "words", "words-live", "king"
console = Console(highlight=False, soft_wrap=True)


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Say what happens, and how long it took."""
    console.print(f"\n[bold]▸ {title}[/]")
    started = time.monotonic()
    yield
    console.print(f"  [dim]{time.monotonic() - started:.1f} s[/]")


def urls(state: SandboxState, cluster: str) -> list[str]:
    """REST addresses of a cluster's nodes."""
    return [state.node(cluster, number).url for number in range(len(state.clusters[cluster]))]


def load(state: SandboxState, points: int) -> None:
    """Fill the source with word vectors, payload indexes and an alias."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("  loading", total=points)
        load_words(
            urls(state, "source")[0],
            COLLECTION,
            points,
            shape=WordShape(shards=3, replication=2, alias=ALIAS),
            progress=lambda done, _total: bar.update(task, completed=done),
        )


def run_flows() -> tuple[str, str]:
    """Back up and restore, as the deployments would; the ids of the backup and of the new collection."""
    from flows.back_up_cluster import back_up_cluster
    from flows.restore_collection import restore_collection

    with stage("Back up: snapshot of every shard → S3 → read back, opened, counted, digested → manifest"):
        backup: Any = back_up_cluster(cluster="source", repository="sandbox")
    with stage("Restore onto 2 nodes under a new name, compare every replica with the proof, move the alias"):
        target: Any = restore_collection(
            cluster="target",
            repository="sandbox",
            source_cluster="source",
            collection=COLLECTION,
            alias=ALIAS,
            verify="content",
        )
    return str(backup), str(target)


def show_neighbours(state: SandboxState) -> bool:
    """Ask both clusters for the nearest words, through the alias; whether they agree."""
    answers = [nearest_words(urls(state, cluster)[0], ALIAS, WORD) for cluster in ("source", "target")]
    table = Table("source, 3 nodes", "", "target, 2 nodes", "", title=f"Nearest to “{WORD}”, asked through {ALIAS}")
    for (left, left_score), (right, right_score) in zip(*answers, strict=True):
        table.add_row(left, f"{left_score:.4f}", right, f"{right_score:.4f}")
    console.print(table)
    return [word for word, _ in answers[0]] == [word for word, _ in answers[1]]


def demo(folder: Path, points: int) -> int:
    """Run everything in a folder of its own, and end the servers afterwards."""
    with locked(folder):
        try:
            with stage("Real servers: Qdrant with 3 and with 2 nodes, an S3 server, a Prefect server"):
                state = start_sandbox(folder, SandboxShape(), lambda part: console.print(f"  {part}"))
                server = PrefectServer(folder / "prefect")
                console.print("  Prefect server")
                server.start()
            os.environ.update(state.env() | server.env() | {"PREFECT_LOGGING_LEVEL": "WARNING"})
            with stage(f"Load {points} real word vectors: 3 shards, 2 replicas, payload indexes, alias {ALIAS}"):
                load(state, points)
            backup, target = run_flows()
            console.print()
            same = show_neighbours(state)
        finally:
            if "server" in locals():
                server.stop()
            stop_sandbox(folder, delete_data=True)
    if not same:
        console.print("[red]The clusters do not agree.[/]")
        return 1
    console.print(
        f"\n[green]Backup {backup} is proven, and {target} is equal to it.[/]\n\nNext:\n"
        "  make up            the same servers with the Prefect UI, a worker and the deployments\n"
        "  README.md          the button, the schedule, the curl\n"
        "  docs/repository.md what lies in the bucket, readable without Ferry\n"
    )
    return 0


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m deployments.demo", description=__doc__)
    parser.add_argument("--points", type=int, default=50_000, help="how many of the 341,479 word vectors to load")
    parser.add_argument("--folder", type=Path, default=Path(".sandbox/demo"), help="where the servers live meanwhile")
    given = parser.parse_args()
    try:
        return demo(given.folder.absolute(), given.points)
    except FerryError as error:
        console.print(f"[red]{error}[/]", markup=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
