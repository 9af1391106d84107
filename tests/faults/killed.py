"""Runs flows in processes that end themselves at one named step. Orders come as JSON lines on stdin.

The flows are imported once and every run is a fork of that, because Prefect takes two seconds to import. An order:
``{"start": "flows.back_up_cluster:back_up_cluster", "with": {parameters}, "env": {…}, "out": path,
"at": "ferry.backup.steps:_release_snapshot", "when": "before", "nth": 1, "signal": 9}`` is answered by the pid;
``{"wait": pid}`` by how it went: ``exit N``, ``signal N`` or ``stopped N``.
"""

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

DELAYS = [0.2, 0.5, 1.0, 2.0]
TASK_MODULES = (
    "tasks.back_up_cluster",
    "tasks.migrate_collection",
    "tasks.restore_cluster",
    "tasks.restore_collection",
    "tasks.restore_in_place",
    "tasks.verify_backup",
)


def quicken(delays: list[float]) -> None:
    """Let the tasks of Ferry's flows be tried again sooner."""
    from prefect import Task

    for name in TASK_MODULES:
        for task in vars(importlib.import_module(name)).values():
            if isinstance(task, Task):
                task.retry_delay_seconds = delays


def strike(at: str, when: str, nth: int, number: int) -> None:
    """Patch a function (``module:name`` or ``module:Class.name``) so that its nth call ends or stops this process."""
    module, _, path = at.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)
    calls, lock = [0], threading.Lock()

    def fatal() -> bool:
        with lock:
            calls[0] += 1
            return calls[0] == nth

    def struck(*arguments: Any, **named: Any) -> Any:
        if when == "before" and fatal():
            os.kill(os.getpid(), number)
        result = original(*arguments, **named)
        if when == "after" and fatal():
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, struck)


def run(order: dict[str, Any]) -> None:
    """In the fork: run the flow with its output in a file; 0 done, 1 the flow has failed."""
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us in the background has it ignored
    os.environ.update(order["env"])
    if "at" in order:
        strike(order["at"], order.get("when", "after"), order.get("nth", 1), order.get("signal", signal.SIGKILL))
    quicken(order.get("delays", DELAYS))
    module, _, name = order["start"].partition(":")
    getattr(importlib.import_module(module), name)(**order["with"])


def start(order: dict[str, Any]) -> int:
    """Fork a run; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run(order)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the fork must not go on reading orders
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int) -> str:
    """Wait until a run has ended or was stopped."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return f"stopped {os.WSTOPSIG(status)}"
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def main() -> None:
    """Obey until stdin ends."""
    for name in (
        "flows.back_up_cluster",
        "flows.restore_cluster",
        "flows.restore_collection",
        "ferry.restore.run",
        *TASK_MODULES,
    ):
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.write(json.dumps(start(order) if "start" in order else ended(order["wait"])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
