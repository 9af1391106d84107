"""Stores to try: profiles of real servers, data to move, and servers that know several kinds of keys."""

import random
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from ferry.profiles import RepositoryProfile
from ferry.repository.store import Store
from sandbox.moto_s3 import MotoServer
from sandbox.s3 import S3Server
from tests.unit.fakes import MemoryStore

MIB = 1024 * 1024
PART = 5 * MIB
AnyStore = Store | MemoryStore
AnyServer = S3Server | MotoServer


def profile(server: AnyServer, endpoint_url: str | None = None, **changes: Any) -> RepositoryProfile:
    """A repository in the server's one bucket, with small parts and little patience."""
    values = {
        "bucket": "ferry",
        "endpoint_url": endpoint_url or server.endpoint_url,
        "access_key": SecretStr(server.access_key),
        "secret_key": SecretStr(server.secret_key),
        "part_bytes": PART,
        "read_timeout_seconds": 2.0,
    }
    return RepositoryProfile.model_validate(values | changes)


def payload(size: int, seed: int = 0) -> bytes:
    """Random bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def blocks_of(data: bytes, size: int = MIB) -> Iterator[bytes]:
    """Data as a source gives it."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read_all(store: AnyStore, key: str, size: int) -> bytes:
    """An archive in one piece."""
    return b"".join(store.read(key, expected_bytes=size))
