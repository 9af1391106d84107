"""Unpacked shards kept on the worker's disk: what is dropped, what is not, and what a process that dies leaves."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ferry.archive.points import Selection, read_points
from ferry.errors import ArchiveDamagedError, StoppedError
from ferry.models import Progress, ShardId, no_progress
from ferry.profiles import WorkerSettings
from ferry.repository.layout import Keys
from ferry.repository.manifest import CollectionManifest
from ferry.verify import cache
from ferry.verify.cache import CachedShard, cached_shard
from tests.unit import builders
from tests.unit.shard_archives import build_archive, points

SHARDS = 3


class Bucket:
    """A repository with an archive for each shard of a collection; it counts how often they are fetched."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.archive = build_archive(folder, points(60))
        self.fetched: list[int] = []
        self.spool = folder / "spool"
        self.encoding = "plain"
        store = SimpleNamespace(where=lambda key: f"s3://bucket/{key}")
        self.repository: Any = SimpleNamespace(store=store, keys=Keys(""))
        self.limit(1 << 30)
        monkeypatch.setattr(cache, "stored_shard", self._stored)

    @contextmanager
    def _stored(self, _repository: Any, _manifest: Any, shard_id: int, _progress: Any) -> Iterator[Path]:
        self.fetched.append(shard_id)
        yield self.archive

    def limit(self, cache_bytes: int) -> None:
        """Set worker.cache_bytes."""
        self.repository.worker = WorkerSettings(spool_dir=self.spool, cache_bytes=cache_bytes)

    @property
    def manifest(self) -> CollectionManifest:
        """Of a collection of three shards."""
        source = builders.collection("docs", [builders.shard(number, [1]) for number in range(SHARDS)])
        archives = [builders.archive(number).model_copy(update={"encoding": self.encoding}) for number in range(SHARDS)]
        return builders.manifest(source, archives)

    def shard(self, number: int, progress: Progress = no_progress) -> AbstractContextManager[CachedShard]:
        """One of them."""
        return cached_shard(self.repository, self.manifest, ShardId(number), progress)

    def kept(self) -> list[Path]:
        """What lies in the cache."""
        return list((self.spool / "cache").iterdir())


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket(tmp_path, monkeypatch)


def use(bucket: Bucket, *shards: int) -> None:
    for number in shards:
        with bucket.shard(number) as shard:
            assert list(shard.folder.glob("segments/*"))


def test_a_shard_is_fetched_once(bucket: Bucket) -> None:
    """The second time it is there, unpacked and whole; nothing else stays on the spool disk."""
    use(bucket, 0, 1, 0)
    with bucket.shard(1) as shard:
        found = read_points(shard.folder, bucket.spool, Selection(with_points=False))
        assert sum(len(batch.ids) for batch in found) == 60
    assert (bucket.fetched, len(bucket.kept())) == ([0, 1], 2)
    assert [path.name for path in bucket.spool.iterdir()] == ["cache"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in bucket.kept())


def test_what_was_used_longest_ago_goes_first(bucket: Bucket) -> None:
    """There is room for two: the third takes the place of the one that was not used again."""
    use(bucket, 0)
    bucket.limit(cache._disk_bytes(bucket.kept()[0]) * 5 // 2)
    for number in (1, 0, 2):
        time.sleep(0.01)
        use(bucket, number)
    assert len(bucket.kept()) == 2
    use(bucket, 0, 2)
    assert bucket.fetched == [0, 1, 2]


def test_what_is_in_use_is_not_dropped(bucket: Bucket) -> None:
    """However small the cache: a shard goes when its last reader leaves it."""
    bucket.limit(0)
    with bucket.shard(0) as first:
        use(bucket, 1)
        with bucket.shard(0) as again:
            assert again == CachedShard(first.folder, 0)
        assert list(first.folder.iterdir())
    assert (bucket.kept(), bucket.fetched) == ([], [0, 1])


def test_encrypted_ones_do_not_stay(bucket: Bucket) -> None:
    """Also when the reader fails."""
    bucket.encoding = "age"
    use(bucket, 0)
    assert bucket.kept() == []
    with pytest.raises(KeyError), bucket.shard(0):
        raise KeyError
    assert bucket.kept() == []


def test_two_at_once_fetch_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and can be stopped while it waits."""
    unpacking, go_on, unpack = threading.Event(), threading.Event(), cache._unpack

    def slowly(*arguments: Any) -> None:
        unpacking.set()
        assert go_on.wait(10)
        unpack(*arguments)

    monkeypatch.setattr(cache, "_unpack", slowly)
    first = threading.Thread(target=use, args=(bucket, 0))
    first.start()
    assert unpacking.wait(10)

    def stop(_done: int) -> None:
        raise StoppedError("stop")

    with pytest.raises(StoppedError), bucket.shard(0, stop):
        pass
    second = threading.Thread(target=use, args=(bucket, 0))
    second.start()
    go_on.set()
    first.join(30)
    second.join(30)
    assert (bucket.fetched, len(bucket.kept())) == ([0], 1)


def test_what_fails_or_dies_in_mid_fetch_is_made_anew(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without its shard is nobody's: it goes, or is filled by the next."""
    good, bucket.archive = bucket.archive, bucket.archive.with_name("broken")
    bucket.archive.write_bytes(good.read_bytes()[:5000])
    with pytest.raises(ArchiveDamagedError), bucket.shard(0):
        pass
    assert bucket.kept() == []
    bucket.archive = good
    place = cache._place(bucket.repository, bucket.manifest, ShardId(1))
    place.mkdir()  # as SIGKILL leaves it
    use(bucket, 0)
    assert place not in bucket.kept()
    place.mkdir()
    use(bucket, 1)
    assert bucket.fetched == [0, 0, 1]


def test_a_dropped_folder_is_not_taken_for_the_new_one(bucket: Bucket) -> None:
    """Who waited for the lock of a folder that was dropped meanwhile holds that of the one in its place."""
    use(bucket, 0)
    [place] = bucket.kept()
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with bucket.shard(0):
            inside.set()
            assert leave.wait(10)

    waiting = threading.Thread(target=stay)
    waiting.start()
    time.sleep(0.3)
    aside = place.rename(place.with_name("aside"))  # another process drops it, and a third one fills it anew
    place.mkdir()
    (aside / "shard").rename(place / "shard")
    aside.rmdir()
    os.close(handle)
    assert inside.wait(10)
    assert not cache._drop(place)
    leave.set()
    waiting.join(30)
    assert cache._drop(place)
    assert bucket.fetched == [0]
