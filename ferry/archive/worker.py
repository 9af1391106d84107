"""A process that opens and reads archives for `ferry.archive.crew`, apart from the process that asks.

The engine holds Python's lock while it works and could take its whole process down, so the process with the lease's
heartbeat must not be the one that opens archives. One JSON job a line on stdin; on stdout lines of ``progress``, then
one ``result`` or ``error``. The worker ends when stdin closes, and dies of a broken pipe when nobody reads any more.

Jobs: ``{"job": "open", "archive": path, "folder": path, "parts": n, "sample": n}`` unpacks, loads and counts;
``{"job": "scan", "folder": path, "start": id, "stop": id, "sample": n}`` reads a part of an unpacked folder;
``{"job": "read", "archive": path, "folder": path, "selection": {…}}`` gives points: for each batch a line of ids and
hashes and a line with the points themselves. It writes no faster than it is read: the pipe holds it back;
``{"job": "pages", …, "paging": {…}}`` gives the same points in columns (`ferry.archive.paged`);
``count`` with the same fields counts them; ``{"job": "nearest", "archive": …, "folder": …, "search": {…}}`` searches.
``{"job": "close"}`` lets go of the folder that is open. ``archive`` may be a file, or the folder that one was unpacked
to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ferry.archive import reader
from ferry.archive.digest import point_sample
from ferry.archive.paged import Paging, pages
from ferry.archive.points import Selection
from ferry.archive.proof import link_folder
from ferry.archive.scan import Part, scan
from ferry.archive.search import Search, nearest
from ferry.archive.selected import batches, chosen_by
from ferry.errors import FerryError


class Desk:
    """Answers jobs one after another and keeps the last folder open, since loading it again would read it again."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._stack = ExitStack()
        self._archive: reader.OpenArchive | None = None
        self._jobs: dict[str, Callable[[dict[str, Any]], Any]] = {
            "open": self._open,
            "scan": self._scan,
            "read": self._read,
            "pages": self._pages,
            "close": self._close,
            "count": lambda job: self._at(job).count(chosen_by(Selection(**job["selection"]))),
            "nearest": lambda job: nearest(self._at(job), Search(**job["search"])),
        }

    def answer(self, job: dict[str, Any]) -> None:
        """Do a job and write its result or error."""
        try:
            self._write({"result": self._jobs[job["job"]](job)})
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

    def _read(self, job: dict[str, Any]) -> int:
        points = 0
        for batch in batches(self._at(job), Selection(**job["selection"])):
            points += len(batch.ids)
            carried = [*batch.carried.items()]
            self._write({"ids": batch.ids, "hashes": batch.hashes, "fields": batch.fields, "carried": carried})
            self._out.write(batch.body + b"\n")
        return points

    def _pages(self, job: dict[str, Any]) -> int:
        points = 0
        for page in pages(self._at(job), Selection(**job["selection"]), Paging(**job["paging"])):
            points += len(page.head["ids"])
            self._write(page.head)
            self._out.writelines(page.body)
        return points

    def _close(self, job: dict[str, Any]) -> bool:
        """Let go of the open folder, so that it may be removed."""
        self._stack.close()
        self._archive = None
        return True

    def _at(self, job: dict[str, Any]) -> reader.OpenArchive:
        """The archive of a job, loaded from ``folder``: unpacked there, or linked where it is unpacked already."""
        archive, folder = Path(job["archive"]), Path(job["folder"])
        if not folder.exists():
            (link_folder if archive.is_dir() else reader.unpack)(archive, folder)
        return self._load(folder)

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
