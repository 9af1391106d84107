"""A small filesystem for one node, so that "disk full" can be had without filling the machine's disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from sandbox.process import SandboxError

STORAGE_LIMIT_REASON = "a storage limit mounts a tmpfs, which needs root on Linux with the right to mount"
_BALLAST = "ballast"


@lru_cache(maxsize=1)
def storage_limit_supported() -> bool:
    """Tell whether this machine lets us mount a small filesystem, by mounting one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory(prefix="ferry-mount-") as folder:
        try:
            mount_limited(Path(folder), 1 << 20)
        except (SandboxError, OSError):
            return False
        unmount(Path(folder))
        return True


def mount_limited(folder: Path, limit_bytes: int) -> None:
    """Mount a tmpfs of `limit_bytes` over `folder`; nothing happens when one is mounted there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={limit_bytes},mode=0700", "ferry-sandbox", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SandboxError(
            f"Could not mount {limit_bytes} bytes of tmpfs on {folder}: {answer.stderr.strip()}",
            f"Start without a storage limit: {STORAGE_LIMIT_REASON}.",
        )


def unmount(folder: Path) -> None:
    """Take the small filesystem away, with what is in it; nothing happens when none is mounted."""
    if folder.is_mount():
        # Lazy: a process that is still ending may hold a file, and the mount must not outlive the sandbox for that.
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)


def fill(folder: Path, leave_bytes: int) -> int:
    """Take all but `leave_bytes` of the small filesystem on `folder`; return the bytes taken. Refuse any other disk."""
    if not folder.is_mount():
        raise SandboxError(
            f"{folder} is on a disk of this machine, which the sandbox does not fill",
            "Start the cluster with a storage limit (storage_limit_bytes=…, or --storage-limit-mb).",
        )
    free(folder)
    room = os.statvfs(folder)
    take_bytes = max(0, room.f_bavail * room.f_frsize - leave_bytes)
    if take_bytes:
        with (folder / _BALLAST).open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, take_bytes)
    return take_bytes


def free(folder: Path) -> None:
    """Give back what `fill` took."""
    (folder / _BALLAST).unlink(missing_ok=True)
