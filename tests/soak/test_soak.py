"""`make soak`: hundreds of kills over real servers. Not part of `make test`, which has a short slice of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.qdrant import QdrantCluster
from sandbox.s3 import S3Server
from tests.soak.soak import Soak, seed_from
from tests.workshop import Workshop

pytestmark = [
    pytest.mark.soak,
    pytest.mark.servers,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
KILLS = int(os.environ.get("SOAK_KILLS") or 200)


@pytest.fixture
def soak(shared_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Soak]:
    """A source and a bucket of our own; the seed is SOAK_SEED or a new one."""
    with (
        QdrantCluster(nodes=3) as cluster,
        Workshop(tmp_path, monkeypatch, shared_s3, {"source": cluster}) as shop,
        Soak(shop, seed_from("SOAK_SEED"), own_nodes=True) as made,
    ):
        yield made


def test_a_long_bad_life_loses_nothing_and_leaves_nothing(soak: Soak) -> None:
    """Kills at random moments of backup and prune: what is committed stays and reads back; the end leaves no trace."""
    soak.say(soak.diary[0])
    soak.prepare()
    soak.go_on(KILLS)
    soak.finish()
    assert soak.killed >= KILLS
