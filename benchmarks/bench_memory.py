"""How much memory a whole walk takes, for a small archive and for a large one: it must not depend on the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

from benchmarks.data import Shape
from benchmarks.figures import Figure, Target
from benchmarks.stage import Stage
from sandbox.process import SandboxError

TARGET = Target(300, "at most", " MiB")
POLL_SECONDS = 0.02
NOBODY = "http://127.0.0.1:9"  # the port of "discard", which no machine serves any more
MIB = 1 << 20


def measure(stage: Stage, shapes: list[Shape]) -> list[Figure]:
    """Walk with each collection; one of ours and the workers that it starts, watched fifty times a second."""
    # Nodes are sent to an address where nobody answers, so Ferry must upload the archives.
    config = stage.write_settings(stage.folder / "ferry-upload.toml", node_endpoint_url=NOBODY)
    figures = []
    for shape in shapes:
        collection = stage.collection(shape)
        peaks, told = watch_walk(stage, config, collection)
        stage.drop(f"{collection}-walked")
        stage.drop(collection)
        if set(told["paths"]) != {"upload"}:
            msg = f"the walk restored by {told['paths']}, not by upload"
            raise SandboxError(msg)
        figures += _figures(peaks, told["bytes"])
    return figures


def _figures(peaks: dict[str, int], size: int) -> list[Figure]:
    archive = f"archive of {size / 1e6:,.0f} MB"
    page = "one page of points as JSON and as Python values (ferry/qdrant/points.py bounds it by bytes)"
    verify = f"the verify step after it, every point compared, {archive}"
    return [walk_figure("memory", archive, peaks), _figure("memory", verify, peaks, peaks.get("verify", 0) / MIB, page)]


def walk_figure(area: str, archive: str, peaks: dict[str, int]) -> Figure:
    """The peak of a walk from the making of an archive to its restore, without the verify step."""
    peak = max(bytes_ for phase, bytes_ in peaks.items() if phase != "verify") / MIB
    phases = ", ".join(f"{phase} {bytes_ / MIB:.0f}" for phase, bytes_ in peaks.items())
    steps = f"create → upload → prove → restore by upload, {archive}"
    return _figure(area, steps, peaks, peak, f"MiB by step: {phases}")


def _figure(area: str, steps: str, peaks: dict[str, int], peak: float, limit: str) -> Figure:
    return Figure(
        area=area,
        name=f"peak anonymous memory of {steps}",
        ours=f"{peak:.0f} MiB",
        raw=f"{peaks.get('start', 0) / MIB:.0f} MiB when it begins",
        value=peak,
        values=(peak,),
        target=TARGET,
        limit=limit,
        unit=" MiB",
        digits=0,
        notes=("the process and the workers that prove, all together",),
    )


def watch_walk(stage: Stage, config: Path, collection: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Peaks by kind of step, and what the walk said last."""
    log = stage.folder / f"walk-{collection}.log"
    env = {**os.environ, "FERRY_CONFIG": str(config)}
    with log.open("wb") as stderr:
        command = [sys.executable, "-m", "benchmarks.walk", collection]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=env, text=True)
    if process.stdout is None:
        raise SandboxError("the walk has no output")
    watcher = Watcher(process.pid)
    told = watcher.listen(process.stdout)
    if process.wait() != 0:
        raise SandboxError(f"the walk ended with {process.returncode}: {log.read_text()[-1500:]}")
    return watcher.peaks, told


class Watcher:
    """Peaks of the anonymous memory of a process and all that descends from it, by what it says that it is doing."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._phase = "start"
        self._ended = threading.Event()
        self._peaks: dict[str, int] = defaultdict(int)

    @property
    def peaks(self) -> dict[str, int]:
        """Bytes by phase, in the order in which the phases began."""
        return dict(self._peaks)

    def listen(self, lines: IO[str]) -> dict[str, Any]:
        """Watch until the process closes its output; what it said last."""
        thread = threading.Thread(target=self._poll, name="memory")
        thread.start()
        told: dict[str, Any] = {}
        try:
            for line in lines:
                told = json.loads(line)
                self._phase = told.get("phase", self._phase)
        finally:
            self._ended.set()
            thread.join()
        return told

    def _poll(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            phase = self._phase
            self._peaks[phase] = max(self._peaks[phase], family_bytes(self._pid))


def family_bytes(pid: int) -> int:
    """Anonymous bytes of a process and its descendants (RssAnon: mapped archives do not count)."""
    total = anonymous_bytes(pid)
    for task in _tasks(pid):
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        except OSError:
            continue
        total += sum(family_bytes(int(child)) for child in children)
    return total


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []  # it has just ended


def anonymous_bytes(pid: int) -> int:
    """RssAnon of one process; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0
