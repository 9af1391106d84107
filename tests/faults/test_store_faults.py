"""S3 that is busy, cut off, refused, wrong, or damages bytes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ferry.backup import steps
from ferry.backup.plan import BackupRequest
from ferry.backup.run import prepare, run_backup
from ferry.backup.work import StoredArchive, Work
from ferry.errors import (
    ArchiveDamagedError,
    FerryError,
    NodeUnreachableError,
    StoreRefusedError,
    StoreUnavailableError,
)
from ferry.lanes import Job
from ferry.models import now
from ferry.qdrant import snapshots
from ferry.repository.journal import Journal
from ferry.repository.layout import new_backup_id
from flows.back_up_cluster import back_up_cluster
from sandbox.fault_proxy import FaultProxy
from tests.faults.conftest import SOURCE
from tests.faults.scene import Scene, fill, together

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def store(large: Scene) -> Iterator[FaultProxy]:
    """S3 behind a proxy, and something large to send there."""
    with FaultProxy(large.shop.s3.host_port) as proxy:
        large.configure(repository={"endpoint_url": proxy.url, "part_bytes": 5 << 20, "read_timeout_seconds": 1})
        large.mark_repository()
        yield proxy


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: FerryError) -> None:
    """Let a function do its work and then raise, the first time only: an answer that was lost."""
    original: Callable[..., Any] = getattr(owner, name)
    errors = [error]

    def struck(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if errors:
            raise errors.pop()
        return result

    monkeypatch.setattr(owner, name, struck)


def test_bursts_of_slow_down_and_resets_delay_a_backup(scene: Scene, store: FaultProxy) -> None:
    """503s and broken connections in mid-upload are waited out within the run."""
    store.after(4_000_000, lambda: store.http_status(503, count=6))
    back_up_cluster(**SOURCE)
    store.after(3_000_000, together(store.cut, lambda: store.after(4_000_000, store.cut)))
    back_up_cluster(**SOURCE)
    assert len(scene.complete()) == 2
    scene.require_sound()


def test_a_store_that_is_busy_while_it_is_tried_out_is_not_called_unfit(scene: Scene) -> None:
    """The first backup tries the bucket; a burst of 503s then is a passing failure and no verdict on the store."""
    with FaultProxy(scene.shop.s3.host_port) as proxy:
        scene.configure(repository={"endpoint_url": proxy.url, "read_timeout_seconds": 1})
        proxy.http_status(503, count=1_000, match="/probe/")
        with pytest.raises(StoreUnavailableError, match="could not be tried"):
            scene.back_up(delays=())
    scene.configure()
    assert scene.shop.objects() == []
    scene.back_up()
    scene.require_sound()


def test_a_store_that_is_gone_for_good_fails_the_run_clearly(scene: Scene, store: FaultProxy) -> None:
    """When S3 refuses for the rest of the run, the error names the bucket; the next run tidies."""
    store.after(4_000_000, together(store.refuse, store.cut))
    with pytest.raises(FerryError, match=r"s3://ferry/.*no full answer"):
        scene.back_up(delays=())
    store.clear()
    assert scene.shop.leftovers() != []
    scene.require_honest()
    back_up_cluster(**SOURCE)
    assert len(scene.complete()) == 1
    scene.require_sound()


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ({"secret_key": "wrong"}, "the secret key does not go with the access key"),
        ({"access_key": "nobody"}, "the store does not know this access key"),
        ({"bucket": "missing-bucket"}, "there is no such bucket"),
    ],
    ids=["wrong secret", "unknown key", "missing bucket"],
)
def test_a_store_that_refuses_is_named_with_the_remedy(scene: Scene, profile: dict[str, str], reason: str) -> None:
    """Wrong keys and a missing bucket are found before any node is asked to change anything."""
    scene.configure(repository=profile)
    state = back_up_cluster(**SOURCE, return_state=True)
    assert state.is_failed()
    assert reason in (state.message or "")
    assert "python -m ferry doctor" in (state.message or "")
    with pytest.raises(StoreRefusedError):
        state.result()
    scene.configure()
    assert scene.shop.objects() == []
    scene.require_sound()


@pytest.mark.parametrize("after", [100_000, 4_000_000], ids=["in a whole object", "in a part"])
def test_a_bit_flipped_on_the_way_to_the_store_never_arrives(scene: Scene, store: FaultProxy, after: int) -> None:
    """The store refuses a part that is not its Content-MD5, and it is sent again in the same run."""
    store.corrupt("to_target", after)
    backup = back_up_cluster(**SOURCE)
    assert scene.complete() == [backup]
    scene.require_sound()


def test_a_bit_flipped_on_the_way_back_writes_no_manifest(
    scene: Scene, store: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup whose bytes do not come back as they were sent is found in the same run, and does not count."""
    proved = steps.prove_upload

    def damaged(connections: Any, work: Work, *others: Any) -> Any:
        if work.archive.collection == "large":
            store.corrupt("to_client", 2_000_000)
        return proved(connections, work, *others)

    monkeypatch.setattr(steps, "prove_upload", damaged)
    with pytest.raises(ArchiveDamagedError, match=r"large/shards/0\.\d+\.snapshot holds .* it must be"):
        back_up_cluster(**SOURCE)
    assert scene.complete() == []
    assert not [key for key in scene.manifests() if "/large/" in key]
    scene.require_sound()


def test_a_store_that_keeps_one_part_wrongly_is_found_in_the_same_run(
    scene: Scene, store: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes came and were acknowledged; what lies there is another. The next run makes the archive anew."""
    proved = steps.prove_upload

    def rotten(connections: Any, work: Work, stored: StoredArchive, *others: Any) -> Any:
        if work.archive.collection == "large":
            where = {"Bucket": "ferry", "Key": stored.key}
            held = scene.shop.bucket.get_object(**where)
            data = bytearray(held["Body"].read())
            data[6 << 20] ^= 1  # in the second part
            written = scene.shop.bucket.put_object(**where, Body=bytes(data), Metadata=held["Metadata"])
            # A store that rots keeps the ETag, so this must be found without it.
            stored = stored.model_copy(update={"etag": written["ETag"].strip('"')})
        return proved(connections, work, stored, *others)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "prove_upload", rotten)
        with pytest.raises(ArchiveDamagedError, match=r"large/shards/0\.\d+\.snapshot holds .* it must be"):
            back_up_cluster(**SOURCE)
    assert store.requests
    assert scene.complete() == []
    assert not [key for key in scene.manifests() if "/large/" in key]
    back_up_cluster(**SOURCE)
    assert len(scene.complete()) == 1
    scene.require_sound()


def test_a_delete_whose_answer_is_lost_does_not_fail_an_uploaded_archive(
    scene: Scene, store: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again after its object is there, an upload sees that it is done."""
    fails_once(monkeypatch, snapshots, "delete_snapshot", NodeUnreachableError("the answer was lost"))
    back_up_cluster(**SOURCE)
    assert store.connections
    scene.require_sound()


def test_a_commit_that_is_tried_again_is_the_same_commit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest or record that is there already, because only the answer was lost, is no conflict with itself."""
    catalog = type(scene.connections().catalog)
    fails_once(monkeypatch, Journal, "entries", StoreUnavailableError("busy"))
    fails_once(monkeypatch, catalog, "write_manifest", StoreUnavailableError("the answer was lost"))
    fails_once(monkeypatch, catalog, "write_backup", StoreUnavailableError("the answer was lost"))
    back_up_cluster(**SOURCE)
    assert len(scene.complete()) == 1
    scene.require_sound()


def test_a_run_that_is_retried_keeps_what_it_has_committed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's Retry is the same run again: its finished collections stay, only the rest is done."""
    fill(scene.shop.clusters["source"], "other", 50, shards=1, replicas=1)
    request = BackupRequest(backup_id=new_backup_id(now(), "retried"), cluster="source", repository="main")

    def attempt() -> None:
        connections = scene.connections()
        run_backup(connections, prepare(connections, request), "a test", Job(retry_delays_seconds=()))

    with monkeypatch.context() as patch:
        move = steps.upload_snapshot

        def refused(connections: Any, work: Work, *others: Any) -> Any:
            if work.archive.collection == "other":
                raise ArchiveDamagedError("refused for once")
            return move(connections, work, *others)

        patch.setattr(steps, "upload_snapshot", refused)
        with pytest.raises(ArchiveDamagedError):
            attempt()
    assert len(scene.manifests()) == 1
    assert scene.complete() == []
    attempt()
    assert len(scene.manifests()) == 2
    assert scene.complete() == [request.backup_id]
    attempt()
    scene.require_sound()
