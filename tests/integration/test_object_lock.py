"""Object Lock and the store's own encryption on real servers: what is kept cannot be deleted, what is not is not."""

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from ferry.errors import StoreRefusedError
from ferry.models import now
from ferry.repository.journal import Journal
from ferry.repository.layout import Keys
from ferry.repository.lease import acquire
from ferry.repository.probe import probe, require_conforming
from ferry.repository.store import Store
from tests.integration.keyed_s3 import KeyedS3
from tests.integration.stores import PART, AnyServer, blocks_of, payload, profile, read_all

pytestmark = pytest.mark.servers
LOCK = {"lock_days": 2}


@pytest.fixture(scope="module", params=["keyed", "moto"])
def server(request: pytest.FixtureRequest) -> AnyServer:
    """Both real servers, with a bucket that has Object Lock."""
    running: AnyServer = request.getfixturevalue(request.param)
    if request.param == "moto":
        running.client().create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    return running


def locked(server: AnyServer, mode: str, **changes: Any) -> Store:
    bucket = "ferry" if isinstance(server, KeyedS3) else "locked"
    return Store(profile(server, **{"bucket": bucket, "lock_mode": mode, **LOCK, **changes}))


def refused(server: AnyServer, store: Store, key: str, **more: Any) -> bool:
    """Whether the store refuses to delete the very bytes, even to all rights."""
    client = server.client()
    version = client.head_object(Bucket=store.bucket, Key=key)["VersionId"]
    try:
        client.delete_object(Bucket=store.bucket, Key=key, VersionId=version, **more)
    except ClientError as error:
        return error.response["Error"]["Code"] == "AccessDenied"
    return False


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_what_is_kept_is_locked(server: AnyServer, folder: str, mode: str) -> None:
    """Archives in one piece and in parts, and documents that are never written again."""
    store = locked(server, mode)
    sizes = {"small": 10, "large": 2 * PART + 1}
    if not isinstance(server, KeyedS3):
        del sizes["large"]  # see test_a_store_that_does_not_lock_objects_in_parts_is_refused
    for name, size in sizes.items():
        assert store.upload(folder + name, blocks_of(payload(size)), expected_bytes=size).bytes == size
    store.put_document(folder + "manifest.json", b"{}", if_absent=True, keep=True)
    for name in (*sizes, "manifest.json"):
        info = store.head(folder + name)
        assert info is not None
        assert info.locked_until is not None
        assert abs(info.locked_until - now() - timedelta(days=2)) < timedelta(minutes=1)
        assert refused(server, store, folder + name)
    if mode == "COMPLIANCE":
        assert refused(server, store, folder + "small", BypassGovernanceRetention=True)
    for name, size in sizes.items():
        assert read_all(store, folder + name, size) == payload(size)


def test_what_is_written_again_is_not_locked(server: AnyServer, folder: str) -> None:
    """Leases, notes and other documents: a lock on each renewal would fill the bucket for days."""
    store, keys = locked(server, "COMPLIANCE"), Keys(folder.strip("/"))
    entry = Journal(store, keys, "c", "20261122T020000Z-aaaaaa").note("archive", "a", {})
    acquire(store, keys.lease("c"), "holder", 1.0).release()
    store.put_document(keys.repository, b"{}", if_absent=True)
    for key in (entry.key, keys.lease("c"), keys.repository):
        info = store.head(key)
        assert info is not None
        assert info.locked_until is None
        assert not refused(server, store, key)


def test_a_delete_hides_what_is_locked_and_its_bytes_stay(server: AnyServer, folder: str) -> None:
    """As docs/stores.md says: take the delete marker away, and it is there again."""
    store = locked(server, "GOVERNANCE")
    store.put_document(folder + "manifest.json", b"{}", if_absent=True, keep=True)
    store.delete([folder + "manifest.json"])
    assert store.head(folder + "manifest.json") is None
    client = server.client()
    (marker,) = client.list_object_versions(Bucket=store.bucket, Prefix=folder)["DeleteMarkers"]
    client.delete_object(Bucket=store.bucket, Key=marker["Key"], VersionId=marker["VersionId"])
    assert store.get_document(folder + "manifest.json")[0] == b"{}"


def test_a_bucket_that_can_lock_passes_the_trials(keyed: KeyedS3, folder: str) -> None:
    """Their locked objects are not seen afterwards."""
    store = locked(keyed, "GOVERNANCE", prefix=folder.strip("/"))
    results = {result.name: result for result in probe(store)}
    assert [result for result in results.values() if not result.ok] == []
    assert results["object lock"].detail.startswith("GOVERNANCE, 2 days")
    assert list(store.list(folder)) == []


def test_a_store_that_does_not_lock_objects_in_parts_is_refused(moto: AnyServer) -> None:
    """moto takes the header of a multipart upload and does nothing: the largest archives would not be kept."""
    moto.client().create_bucket(Bucket="locked-parts", ObjectLockEnabledForBucket=True)
    with pytest.raises(StoreRefusedError, match="locked, in parts, the store says: mode None"):
        require_conforming(Store(profile(moto, bucket="locked-parts", lock_mode="COMPLIANCE", **LOCK)))


@pytest.fixture(params=["shared_s3", "moto"])
def plain(request: pytest.FixtureRequest) -> AnyServer:
    """Servers whose bucket has no Object Lock."""
    running: AnyServer = request.getfixturevalue(request.param)
    return running


def test_a_bucket_without_object_lock_is_refused_with_what_to_do(plain: AnyServer) -> None:
    """It can only be switched on when a bucket is made, so better now than after the first year."""
    with pytest.raises(StoreRefusedError, match="object lock") as caught:
        require_conforming(Store(profile(plain, lock_mode="COMPLIANCE", **LOCK)))
    assert "--object-lock-enabled-for-bucket" in (caught.value.remedy or "")


# Encryption by the store


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("keyed", {"sse": "AES256"}),
        ("moto", {"sse": "AES256"}),
        ("moto", {"sse": "aws:kms", "sse_kms_key_id": "alias/ferry"}),
    ],
)
def test_everything_is_written_with_the_encryption_of_the_profile(
    request: pytest.FixtureRequest, folder: str, name: str, settings: dict[str, str]
) -> None:
    """Documents, archives in one piece and in parts; nothing ever carries an ACL."""
    server: AnyServer = request.getfixturevalue(name)
    store = Store(profile(server, prefix=folder.strip("/"), **settings))
    sent: list[Any] = []
    for client in (store.client, store._boto_once):
        client.meta.events.register("before-sign.s3", lambda request, **_: sent.append(request))
    store.put_document(folder + "document", b"1")
    store.upload(folder + "small", [b"2"])
    uploaded = store.upload(folder + "large", blocks_of(payload(2 * PART)))
    assert uploaded.sha256 == hashlib.sha256(payload(2 * PART)).hexdigest()
    assert read_all(store, folder + "large", 2 * PART) == payload(2 * PART)
    assert [result for result in probe(store) if not result.ok] == []
    for written in ("document", "small", "large"):
        found = server.client().head_object(Bucket="ferry", Key=folder + written)
        assert found["ServerSideEncryption"] == settings["sse"]
        assert found.get("SSEKMSKeyId", "").endswith(settings.get("sse_kms_key_id", ""))
    assert len(sent) > 10
    for asked in sent:
        assert not [header for header in asked.headers if header.lower().startswith(("x-amz-acl", "x-amz-grant"))]


def test_a_store_that_does_not_encrypt_is_refused(moto: AnyServer, folder: str) -> None:
    """Some take the header and do nothing."""
    store = Store(profile(moto, prefix=folder.strip("/"), sse="AES256"))

    def forget(parsed: dict[str, Any], **_: Any) -> None:
        parsed.pop("ServerSideEncryption", None)

    store.client.meta.events.register("after-call.s3.HeadObject", forget)
    with pytest.raises(StoreRefusedError, match="encryption none, not AES256"):
        require_conforming(store)
