"""The sandbox by command: python -m sandbox up, status, env, down, and the faults."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ferry.errors import FerryError
from sandbox.binaries import qdrant_binary, word_vectors_file
from sandbox.data import WordShape, load_words
from sandbox.lifecycle import WORKER_POOL, SandboxShape, start_sandbox, stop_sandbox
from sandbox.process import SandboxError
from sandbox.proxy_control import FAULTS, tell_proxy
from sandbox.qdrant import QdrantNode
from sandbox.state import SandboxState, locked

NODE_FAULTS = ("kill", "freeze", "thaw", "restart", "fill", "free")
console = Console(highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 a sandbox error, 3 (status) something does not run."""
    given = _parser().parse_args(arguments)
    try:
        return _run(given)
    except FerryError as error:
        Console(stderr=True, highlight=False).print(f"[red]{type(error).__name__}[/]", str(error), markup=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="Real Qdrant, S3 and Prefect on this host.")
    # On every command rather than before it, so that `up --folder x` works as people write it.
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--folder", type=Path, default=Path(".sandbox"), help="where it lives (default: .sandbox)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[folder], help="start everything, detached")
    up.add_argument("--source-nodes", type=int, default=3)
    up.add_argument("--target-nodes", type=int, default=2)
    up.add_argument("--api-key", help="the key that the Qdrant nodes ask for (default: none)")
    up.add_argument("--storage-limit-mb", type=int, help="give each node a disk of this size (needs root on Linux)")
    up.add_argument("--s3-proxy", action="store_true", help="put a proxy with faults in front of S3")
    up.add_argument("--prefect", action="store_true", help="start a Prefect server and a worker too")
    commands.add_parser("status", parents=[folder], help="what runs, and where")
    commands.add_parser("env", parents=[folder], help='for the shell: eval "$(python -m sandbox env)"')
    down = commands.add_parser("down", parents=[folder], help="end everything")
    down.add_argument("--delete-data", action="store_true", help="remove what the parts stored, too")
    commands.add_parser("fetch", help="fetch the Qdrant binary and the word vectors, once for all checkouts")
    load = commands.add_parser("load", parents=[folder], help="load English word vectors into the source, as `words`")
    load.add_argument("--points", type=int, default=50_000, help="how many of the 341,479 (default: 50,000)")
    for fault in NODE_FAULTS:
        node = commands.add_parser(fault, parents=[folder], help=f"{fault} one node")
        node.add_argument("cluster")
        node.add_argument("node", type=int)
    proxy = commands.add_parser("proxy", parents=[folder], help=f"switch a fault in front of S3: {', '.join(FAULTS)}")
    proxy.add_argument("order", nargs="+")
    return parser


def _run(given: argparse.Namespace) -> int:
    if given.command == "fetch":
        return _fetch()
    folder: Path = given.folder
    match given.command:
        case "up":
            return _up(given)
        case "status":
            return _status(SandboxState.load(folder))
        case "env":
            for name, value in _needed(folder).env().items():
                console.print(f"export {name}={shlex.quote(value)}", markup=False)
        case "down":
            with locked(folder):
                ended = stop_sandbox(folder, given.delete_data)
            console.print(f"Ended {ended} processes." if ended else "Nothing ran.")
        case "load":
            _load(_needed(folder), given.points)
        case "proxy":
            state = _needed(folder)
            if state.proxy is None:
                raise SandboxError("There is no proxy in front of S3", "Start one: python -m sandbox up --s3-proxy")
            console.print(tell_proxy(state.proxy["control_port"], given.order))
        case fault:
            with locked(folder):
                state = _needed(folder)
                node = state.node(given.cluster, given.node)
                console.print(f"{given.cluster} {given.node}: {_strike(node, fault)}")
                state.keep_node(given.cluster, given.node, node)
    return 0


def _up(given: argparse.Namespace) -> int:
    folder: Path = given.folder
    with locked(folder):
        state = SandboxState.load(folder)
        if state.running():
            console.print(f"A sandbox runs already in {state.folder}; end it with: python -m sandbox down")
            return _status(state)
        limit_bytes = given.storage_limit_mb << 20 if given.storage_limit_mb else None
        shape = SandboxShape(
            given.source_nodes, given.target_nodes, given.api_key, limit_bytes, given.s3_proxy, given.prefect
        )
        with console.status("Starting") as spinner:
            state = start_sandbox(folder, shape, lambda part: spinner.update(f"Starting {part}"))
    _status(state)
    console.print(f'\nSettings: {state.settings_file}\nUse them: eval "$(python -m sandbox env --folder {folder})"')
    return 0


def _fetch() -> int:
    with console.status("Fetching Qdrant") as spinner:
        binary = qdrant_binary()
        spinner.update("Fetching the word vectors")
        words = word_vectors_file()
    console.print(f"Qdrant: {binary}\nWord vectors: {words}")
    return 0


def _load(state: SandboxState, points: int) -> None:
    first = state.node("source", 0)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("Loading words", total=points)
        load_words(
            first.url,
            "words",
            points,
            api_key=first.api_key,
            shape=WordShape(alias="words-live"),
            progress=lambda done, _total: bar.update(task, completed=done),
        )
    console.print(f"{points:,} words are in collection words of the source, alias words-live.")


def _needed(folder: Path) -> SandboxState:
    state = SandboxState.load(folder)
    if not state.file.exists():
        raise SandboxError(f"No sandbox runs in {folder.absolute()}", "Start one: python -m sandbox up")
    return state


def _strike(node: QdrantNode, fault: str) -> str:
    match fault:
        case "kill":
            node.kill()
            return f"killed pid {node.pid}"
        case "freeze":
            node.freeze()
            return f"froze pid {node.pid}; it holds its connections and answers nothing"
        case "thaw":
            node.thaw()
            return f"thawed pid {node.pid}"
        case "restart":
            node.restart()
            return f"runs as pid {node.pid}"
        case "fill":
            return f"took the last {node.fill_disk():,} bytes of its disk"
        case _:
            node.free_disk()
            return "gave its disk back"


def _status(state: SandboxState) -> int:
    processes = state.processes()
    if not processes:
        console.print(f"Nothing runs in {state.folder}. Start it: python -m sandbox up")
        return 3
    table = Table("part", "address", "pid", "state", box=None, header_style="bold")
    addresses = _addresses(state)
    for process, address in zip(processes, addresses, strict=True):
        alive = process.alive()
        table.add_row(
            process.launch.name, address, str(process.pid) if alive else "-", "runs" if alive else "[red]ended[/]"
        )
    console.print(table)
    return 0 if all(process.alive() for process in processes) else 3


def _addresses(state: SandboxState) -> list[str]:
    """Return where each of `state.processes()` is reached, in their order."""
    found = [QdrantNode.from_record(node).url for nodes in state.clusters.values() for node in nodes]
    found += [str(state.s3["endpoint_url"])] if state.s3 else []
    found += [str(state.proxy["url"])] if state.proxy else []
    return found + ([str(state.prefect["ui_url"]), f"pool {WORKER_POOL}"] if state.prefect else [])


if __name__ == "__main__":
    sys.exit(main())
