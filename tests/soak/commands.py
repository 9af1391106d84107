"""Ferry's command line in processes that may be killed: each one is a fork of a process that has imported everything.

Importing takes longer than a small backup, and a soak makes hundreds of them. What runs in the fork is
``python -m ferry …`` with its arguments, its settings and its output in a file; nothing of it is patched but, where
asked for, the clock that Ferry reads (never the one that signs requests to S3).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from tests.workshop import AS_IN_A_TERMINAL

MODULES = ("backup", "verify", "restore", "prune", "gc", "listing")
LONGEST_RUN_SECONDS = 240.0


class Run:
    """One process of ``python -m ferry``."""

    def __init__(self, commands: "Commands", pid: int, arguments: list[str], log: Path) -> None:
        self._commands = commands
        self.pid = pid
        self.arguments = arguments
        self.log = log
        self.started = time.monotonic()
        self._ended: str | None = None
        self._asking = threading.Lock()

    def __str__(self) -> str:
        return f"ferry {' '.join(self.arguments)} (process {self.pid}): {self.ended or 'runs'}\n{self.output[-3000:]}"

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    @property
    def ended(self) -> str | None:
        """How it ended, ``exit N`` or ``signal N``; None while it runs or is stopped."""
        with self._asking:  # once ended, its process id is no longer known
            if self._ended is None:
                self._ended = self._commands.ask({"poll": self.pid})
            return self._ended

    def wait(self, seconds: float = LONGEST_RUN_SECONDS) -> str:
        """Wait until it has ended."""
        deadline = time.monotonic() + seconds
        while (how := self.ended) is None:
            assert time.monotonic() < deadline, f"after {seconds:g} s it has not ended: {self}"
            time.sleep(0.02)
        return how

    def within(self, seconds: float) -> bool:
        """Whether it ended before so long had passed since its start."""
        while self.ended is None:
            left = self.started + seconds - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, 0.02))
        return True

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with self._asking:
            if self._ended is None:  # it may have ended by itself, but is not forgotten by the kernel before we ask
                os.kill(self.pid, number)

    def kill(self) -> bool:
        """SIGKILL; whether it was that which ended it."""
        self.send(signal.SIGKILL)
        return self.wait() == f"signal {int(signal.SIGKILL)}"


class Commands:
    """Starts commands; ends what still runs when it is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: list[Run] = []
        self._lock = threading.Lock()  # a proxy's thread kills while another waits

    def __enter__(self) -> Self:
        command = [*AS_IN_A_TERMINAL, sys.executable, "-m", "tests.soak.commands"]
        env = {name: value for name, value in os.environ.items() if name != "FERRY_CONFIG"}
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs:
            if run.ended is None:
                os.kill(run.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, *arguments: str, shift_seconds: float = 0) -> Run:
        """Start ``python -m ferry`` with these arguments under the settings of FERRY_CONFIG, its clock moved."""
        log = self.folder / f"run-{len(self._runs)}.log"
        order = {"run": arguments, "config": os.environ["FERRY_CONFIG"], "out": str(log), "shift": shift_seconds}
        run = Run(self, self.ask(order), list(arguments), log)
        self._runs.append(run)
        return run

    def ask(self, order: dict[str, Any]) -> Any:
        """Give an order to the process that forks; its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the process that runs commands has ended"
        return json.loads(answer)


def shift_clock(seconds: float) -> None:
    """Move the clock that Ferry reads, wherever it was imported to; botocore's own goes on."""
    from ferry import models

    honest = models.now

    def now() -> Any:
        return honest() + timedelta(seconds=seconds)

    for name, module in list(sys.modules.items()):
        if name.startswith("ferry") and vars(module).get("now") is honest:
            module.now = now  # type: ignore[attr-defined]


def _run(order: dict[str, Any]) -> None:
    """In the fork: never returns."""
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.setsid()
    os.environ["FERRY_CONFIG"] = order["config"]
    sys.argv = ["ferry", *order["run"]]
    code = 70
    try:
        from ferry.__main__ import main

        if order["shift"]:
            shift_clock(order["shift"])
        code = main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, the fork must not go on reading orders
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _poll(pid: int) -> str | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        return None
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def _import_everything() -> None:
    import importlib
    from contextlib import suppress

    import boto3.session
    import s3fs

    for name in MODULES:
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"ferry.cli.{name}")
    importlib.import_module("ferry.archive.proof")
    boto3.session.Session()
    assert s3fs


def serve() -> None:
    """Obey until stdin ends."""
    _import_everything()
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            answer: Any = _poll(order["poll"])
        else:
            answer = os.fork()
            if not answer:
                _run(order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
