"""One child process: started with a log, ready when it answers, ended by pid and never by name."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ferry.errors import FerryError

LOOPBACK = "127.0.0.1"
# Below the range the kernel takes for outgoing connections (32768 on Linux): a port picked here cannot be
# taken by somebody's client socket between the picking and the server's bind.
PORT_RANGE = range(20_000, 32_000)
POLL_SECONDS = 0.03
_handed_out: set[int] = set()
_CLAIMS = Path(tempfile.gettempdir()) / f"ferry-ports-{os.getuid()}.lock"


class SandboxError(FerryError):
    """A sandbox part did not start, does not run, or cannot do what was asked of it."""

    default_remedy = "See the log named above, then run: python -m sandbox down && python -m sandbox up"


def free_port(preferred: int | None = None) -> int:
    """Return a loopback port that nobody listens on and that no living process of this user was given before."""
    for port in [*([preferred] if preferred else []), *random.sample(PORT_RANGE, k=min(500, len(PORT_RANGE)))]:
        if port in _handed_out:
            continue
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        if _claimed(port):
            _handed_out.add(port)
            return port
    raise SandboxError(f"No free port found on {LOOPBACK} in {PORT_RANGE}", "End what holds them: ss -ltnp")


def _claimed(port: int) -> bool:
    """Keep other processes from the port until this one ends: Prefect's server takes ten seconds to bind its own.

    A record lock on the port's byte of one file; the kernel forgets it with the process.
    """
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@lru_cache(maxsize=1)
def _claims() -> int:
    return os.open(_CLAIMS, os.O_RDWR | os.O_CREAT, 0o600)


def process_started(pid: int) -> str | None:
    """Return when a process started, as the kernel tells it, or None when it has ended (a zombie has ended).

    Pid and start together name one process for ever; a pid alone may be reused.
    """
    if sys.platform == "linux":
        stat = _proc_stat(pid)
        return None if stat is None or stat[0] in "ZX" else stat[19]
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def _proc_stat(pid: int | str) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat after the command name: 0 state, 3 session, 19 start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _session_members(pid: int) -> list[tuple[int, str]]:
    """Return (pid, start) of the processes in the session led by `pid`, without the leader."""
    if sys.platform != "linux":
        return []
    members = []
    for entry in os.listdir("/proc"):
        stat = _proc_stat(entry) if entry.isdigit() and int(entry) != pid else None
        if stat is not None and stat[3] == str(pid):
            members.append((int(entry), stat[19]))
    return members


def _bound_to_parent(command: tuple[str, ...]) -> tuple[str, ...]:
    """Have the kernel kill the command when we die, where it can (Linux).

    setpriv sets that and becomes the command, under the same pid. A preexec_fn would do it too, but is not safe in
    a program with threads, and our callers have gRPC's and Prefect's.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return (setpriv, "--pdeathsig", "KILL", "--", *command) if setpriv else command


@dataclass(frozen=True)
class Launch:
    """Everything needed to start a process, and to start it again."""

    name: str
    command: tuple[str, ...]
    log: str
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    detached: bool = False


class Process:
    """A child process, or one that an earlier `up` started and that is known by pid and start time.

    Every process leads its own session, so that Ctrl-C reaches only the parent, which then stops its children in
    order. One that is not detached is killed by the kernel when the parent dies. That signal is bound to the
    *thread* that started it, so it is set only when the main thread starts the process.
    """

    def __init__(self, launch: Launch, pid: int | None = None, started: str | None = None) -> None:
        self.launch = launch
        self._pid = pid
        self._started = started
        self._child: subprocess.Popen[bytes] | None = None
        self.on_start: Callable[[], None] | None = None  # to write the pid down before anything can fail

    @property
    def pid(self) -> int:
        if self._pid is None:
            raise SandboxError(f"{self.launch.name} has not been started")
        return self._pid

    @property
    def log(self) -> Path:
        return Path(self.launch.log)

    def alive(self) -> bool:
        """Tell whether this very process still runs; a frozen one does, a zombie or a reused pid does not."""
        return self._pid is not None and self._started is not None and process_started(self._pid) == self._started

    def start(self) -> None:
        """Start the process; it may not answer yet. Starting what runs already is an error."""
        if self.alive():
            raise SandboxError(f"{self.launch.name} runs already as pid {self._pid}")
        self._reap()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        bound = not self.launch.detached and threading.current_thread() is threading.main_thread()
        command = _bound_to_parent(self.launch.command) if bound else self.launch.command
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**inherited_env(), **self.launch.env}, cwd=self.launch.cwd, start_new_session=True,
            )  # fmt: skip
        self._pid = self._child.pid
        self._started = process_started(self._pid)
        if command != self.launch.command:
            self._wait_bound()
        if self.on_start is not None:
            self.on_start()

    def wait_ready(self, answers: Callable[[], bool], timeout_seconds: float = 30) -> None:
        """Ask until `answers` is true; fail with the log's end when the process dies or the time is over."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            if not self.alive():
                self._reap()
                raise SandboxError(
                    f"{self.launch.name} ended before it was ready; its log {self.log}:\n{self.log_end()}"
                )
            if answers():
                return
            if time.monotonic() > deadline:
                raise SandboxError(
                    f"{self.launch.name} (pid {self._pid}) did not answer within {timeout_seconds:g} s; "
                    f"its log {self.log}:\n{self.log_end()}"
                )
            time.sleep(POLL_SECONDS)

    def stop(self, grace_seconds: float = 5) -> None:
        """End the process and what it started: SIGTERM, then SIGKILL after the grace. Ending it twice is fine."""
        members = _session_members(self._pid) if self._pid is not None and self.alive() else []
        if self.alive():
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a frozen process would sit on its SIGTERM
            self._wait_dead(grace_seconds)
        self.kill()
        for pid, started in members:
            if process_started(pid) == started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """End this process at once with SIGKILL, as a power cut would; its own children are left alone."""
        self._signal(signal.SIGKILL)
        self._wait_dead(10)
        self._reap()

    def freeze(self) -> None:
        """Stop it from running (SIGSTOP): its sockets stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process run on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def log_end(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return "(no log)"

    def record(self) -> dict[str, Any]:
        """Return what another process needs to know this one again; it may hold secrets (the environment)."""
        return {"launch": asdict(self.launch), "pid": self._pid, "started": self._started}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Process:
        launch = {**record["launch"], "command": tuple(record["launch"]["command"])}
        return cls(Launch(**launch), record["pid"], record["started"])

    def _signal(self, number: signal.Signals) -> None:
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _wait_bound(self) -> None:
        """Wait the millisecond until setpriv has become the command: before that, our death would not reach it."""
        deadline = time.monotonic() + 1
        while self.alive() and time.monotonic() < deadline:
            with suppress(OSError):
                if b"--pdeathsig" not in Path(f"/proc/{self._pid}/cmdline").read_bytes().split(b"\0"):
                    return
            time.sleep(POLL_SECONDS / 30)

    def _wait_dead(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _reap(self) -> None:
        if self._child is not None and not self.alive():
            self._child.wait()
            self._child = None


def inherited_env() -> dict[str, str]:
    """Return our environment without what would silently reconfigure a part (a QDRANT__ or PREFECT_ of the shell)."""
    ours = ("QDRANT__", "PREFECT_", "AWS_", "WEED_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def stop_all(parts: Sequence[Process]) -> None:
    """End several processes, all asked first and then awaited, so that the slowest decides how long it takes."""
    for part in parts:
        part._signal(signal.SIGTERM)
        part.thaw()
    for part in parts:
        part.stop()
