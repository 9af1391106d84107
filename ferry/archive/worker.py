"""A process that opens and reads archives for `ferry.archive.crew`, apart from the process that asks.

The engine holds Python's lock while it works and could take its whole process down, so the process with the lease's
heartbeat must not be the one that opens archives. One JSON job a line on stdin; on stdout lines of ``progress``, then
one ``result`` or ``error``. The worker ends when stdin closes, and dies of a broken pipe when nobody reads any more.

Jobs: ``{"job": "open", "archive": path, "folder": path, "parts": n, "sample": n}`` unpacks, loads and counts;
``{"job": "scan", "folder": path, "start": id, "stop": id, "sample": n}`` reads a part of an unpacked folder.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ferry.archive import reader
from ferry.archive.digest import point_sample
from ferry.archive.scan import Part, scan
from ferry.errors import FerryError


class Desk:
    """Answers jobs one after another and keeps the last folder open, since loading it again would read it again."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._stack = ExitStack()
        self._archive: reader.OpenArchive | None = None

    def answer(self, job: dict[str, Any]) -> None:
        """Do a job and write its result or error."""
        try:
            done = self._open(job) if job["job"] == "open" else self._scan(job)
            self._write({"result": done})
        except (FerryError, ValueError) as error:
            kind = type(error).__name__ if isinstance(error, FerryError) else "ArchiveDamagedError"
            fact = error.message if isinstance(error, FerryError) else str(error)
            self._write({"error": kind, "message": fact, "remedy": getattr(error, "remedy", None)})

    def _open(self, job: dict[str, Any]) -> dict[str, Any]:
        folder = Path(job["folder"])
        reader.unpack(Path(job["archive"]), folder)
        archive = self._load(folder)
        archive.flush()
        sample = [point_sample(point.id, point.payload, point.vector) for point in archive.sample(job["sample"])]
        return {
            "points": archive.count(),
            "boundaries": archive.boundaries(job["parts"]),
            "sample": [point.model_dump() for point in sample],
        }

    def _scan(self, job: dict[str, Any]) -> dict[str, Any]:
        archive = self._load(Path(job["folder"]))
        part = Part(job["start"], job["stop"])
        scanned = scan(archive, part, job["sample"], lambda points: self._write({"progress": points}))
        sample = [(f"{value:x}", point.model_dump()) for value, point in scanned.sample]
        return {"content": scanned.content.model_dump(), "sample": sample}

    def _load(self, folder: Path) -> reader.OpenArchive:
        if self._archive is None or self._archive.folder != folder:
            self._stack.close()
            self._archive = self._stack.enter_context(reader.load(folder))
        return self._archive

    def _write(self, message: dict[str, Any]) -> None:
        self._out.write(orjson.dumps(message) + b"\n")
        self._out.flush()


def main() -> None:
    """Answer jobs until stdin closes. Descriptor 1 is taken away from everybody else: the engine may print."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    desk = Desk(out)
    try:
        for line in sys.stdin.buffer:
            desk.answer(orjson.loads(line))
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # nobody reads any more, or the terminal's Ctrl-C reached the whole group: whoever asked cleans up
    finally:
        os._exit(0)  # the folder is about to be removed: no flush of mapped pages, no interpreter tear-down


if __name__ == "__main__":
    main()
