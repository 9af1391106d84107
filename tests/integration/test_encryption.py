"""Encrypted backups on real servers: nothing readable in the bucket, everything back at the target, and wrong keys."""

import base64
import logging
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyrage
import pytest
from botocore.credentials import Credentials
from botocore.session import Session
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from ferry.archive.encryption import Encoder
from ferry.cli import trials
from ferry.errors import (
    ArchiveDamagedError,
    ConfigurationError,
    FerryError,
    PreflightError,
    StoreRefusedError,
    StoreUnavailableError,
    WrongKeyError,
)
from ferry.profiles import Encryption, RepositoryProfile
from ferry.repository.credentials import boto_session
from ferry.repository.kms import find_identity
from ferry.repository.manifest import ArchiveRecord, BackupRecord
from ferry.restore import preflight
from ferry.settings import load_settings
from ferry.verify.archive import ArchiveVerdict, require_provable, verify_archive
from sandbox.qdrant import QdrantCluster
from tests.integration.crossings import SERVERS, back_up, manifest_of, proven_everywhere, restore, restore_request
from tests.integration.samples import SAMPLES, Api, few
from tests.workshop import Workshop

pytestmark = SERVERS

IDENTITY, SECOND, STRANGER = (pyrage.x25519.Identity.generate() for _ in range(3))
PUBLIC, SECOND_PUBLIC = str(IDENTITY.to_public()), str(SECOND.to_public())


@pytest.fixture
def source(three_nodes: QdrantCluster) -> Iterator[Api]:
    with Api(three_nodes.urls[0]) as api:
        yield api


@pytest.fixture
def target(two_nodes: QdrantCluster) -> Iterator[Api]:
    with Api(two_nodes.urls[0]) as api:
        yield api


def configure(shop: Workshop, *recipients: str, identity: object = None, **more: object) -> None:
    """Settings with these public keys, and the secret key if there is one."""
    encryption = {"recipients": list(recipients)} | more
    if identity is not None:
        encryption["identity"] = str(identity)
    shop.configure(repository={"encryption": encryption})


def archives(shop: Workshop, record: BackupRecord, collection: str) -> list[tuple[ArchiveRecord, str]]:
    """Each archive with its key in the bucket."""
    repository = shop.connect()
    folder = repository.keys.collection_prefix("source", record.backup_id, collection)
    found = manifest_of(repository, record, collection).archives
    return [(archive, folder + archive.key) for archive in found]


def object_bytes(shop: Workshop, key: str) -> bytes:
    return bytes(shop.bucket.get_object(Bucket="ferry", Key=key)["Body"].read())


def verify(shop: Workshop, record: BackupRecord, collection: str) -> list[ArchiveVerdict]:
    repository = shop.connect()
    manifest = manifest_of(repository, record, collection)
    return [verify_archive(repository, manifest, archive) for archive in manifest.archives]


@pytest.mark.parametrize("kind", ["shard", "node"])
def test_an_encrypted_backup_comes_back_point_by_point(workshop: Workshop, source: Api, target: Api, kind: str) -> None:
    """The digest of every replica is that of the source; in the bucket lies what `age` alone can read."""
    configure(workshop, PUBLIC, SECOND_PUBLIC, identity=IDENTITY)
    source.make("dense", SAMPLES["dense"]())
    record = back_up(workshop, include=("dense",), kind=kind)
    found = archives(workshop, record, "dense")
    assert found
    for archive, key in found:
        stored = object_bytes(workshop, key)
        assert stored.startswith(b"age-encryption.org/v1\n")
        assert (archive.encoding, archive.key_id) == ("age", PUBLIC)
        assert archive.held[0] == len(stored) > archive.bytes
        for identity in (IDENTITY, SECOND):
            assert len(pyrage.decrypt(stored, [identity])) == archive.bytes
    assert [verdict.problems for verdict in verify(workshop, record, "dense")] == [()] * len(found)
    restored = restore(workshop, record, "dense")
    assert proven_everywhere(restored)
    assert {replica.path for replica in restored.recovered} == {"upload"}
    assert all(replica.findings == () for replica in restored.recovered)
    assert any(PUBLIC in reason and "uploads" in reason for reason in restored.plan.reasons)
    assert workshop.leftovers() == []
    assert target.collections() == {restored.plan.target}


def test_a_wrong_key_is_said_before_anything_is_made(workshop: Workshop, source: Api, target: Api) -> None:
    """Restore and verification name the key that is needed; the other recipient's key works as well."""
    configure(workshop, PUBLIC, SECOND_PUBLIC, identity=IDENTITY)
    source.make("few", few("few"))
    record = back_up(workshop, include=("few",))
    requests_to_target = target.collections()
    for identity in (STRANGER, None):
        configure(workshop, PUBLIC, SECOND_PUBLIC, identity=identity)
        with pytest.raises(WrongKeyError, match=PUBLIC) as caught:
            preflight.prepare(workshop.connect("target"), restore_request(record, "few"))
        assert "AGE-SECRET-KEY" not in str(caught.value)
        with pytest.raises(WrongKeyError, match=PUBLIC):
            verify(workshop, record, "few")
    assert target.collections() == requests_to_target
    # Its public key is not the one in the manifest, so a look into the archive decides.
    configure(workshop, str(STRANGER.to_public()), identity=SECOND)
    assert [verdict.problems for verdict in verify(workshop, record, "few")] == [()]
    assert proven_everywhere(restore(workshop, record, "few"))
    assert workshop.leftovers() == []


def test_plain_and_encrypted_backups_live_in_one_repository(workshop: Workshop, source: Api) -> None:
    """Encryption can be switched on, and off again: each backup is read as its manifest says."""
    source.make("few", few("few"))
    plain = back_up(workshop, include=("few",))
    configure(workshop, PUBLIC, identity=IDENTITY)
    sealed = back_up(workshop, include=("few",))
    for record, path in ((plain, "url"), (sealed, "upload")):
        restored = restore(workshop, record, "few")
        assert proven_everywhere(restored)
        assert {(replica.path, replica.findings) for replica in restored.recovered} == {(path, ())}


def test_damage_is_found_and_is_not_called_a_wrong_key(workshop: Workshop, source: Api, target: Api) -> None:
    """By verification and by a restore, which leaves nothing; authenticated or not, the sha256 speaks first."""
    configure(workshop, PUBLIC, identity=IDENTITY)
    source.make("dense", SAMPLES["dense"]())
    record = back_up(workshop, include=("dense",))
    (archive, key), (_, other), *_ = archives(workshop, record, "dense")
    data = object_bytes(workshop, key)
    damaged = {
        "a bit of the header": data[:60] + bytes([data[60] ^ 1]) + data[61:],
        "cut short": data[:-1],
        "swapped": object_bytes(workshop, other),
        "a bit": data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:],
    }
    for what, content in damaged.items():
        workshop.bucket.put_object(Bucket="ferry", Key=key, Body=content)
        problems = {verdict.key: verdict.problems for verdict in verify(workshop, record, "dense")}
        assert [found for found in problems if problems[found]] == [key], what
        assert str(archive.held[0]) in problems[key][0], what
        if not what.startswith("a bit"):
            continue
        with pytest.raises(FerryError) as caught:
            restore(workshop, record, "dense")
        assert key in str(caught.value)
        assert not isinstance(caught.value, WrongKeyError)
    assert target.collections() == set()
    assert workshop.leftovers() == []


def test_a_worker_that_may_only_write(workshop: Workshop, source: Api) -> None:
    """Public keys alone: refused where the proof would have to read, or else proven by bytes, or from the spool."""
    source.make("few", few("few"))
    configure(workshop, PUBLIC)
    with pytest.raises(ConfigurationError, match="could not be read back"):
        back_up(workshop, include=("few",))
    assert workshop.leftovers() == []
    by_bytes = back_up(workshop, include=("few",), proof="bytes")
    assert [verdict.problems for verdict in verify(workshop, by_bytes, "few")] == [()]
    [(_, key)] = archives(workshop, by_bytes, "few")
    stored = object_bytes(workshop, key)
    workshop.bucket.put_object(Bucket="ferry", Key=key, Body=stored[:-1] + bytes([stored[-1] ^ 1]))
    assert "sha256" in verify(workshop, by_bytes, "few")[0].problems[0]
    workshop.configure(repository={"encryption": {"recipients": [PUBLIC]}}, worker={"prove_from": "spool"})
    from_spool = back_up(workshop, include=("few",))
    assert manifest_of(workshop.connect(), from_spool, "few").points == 12
    assert workshop.leftovers() == []
    configure(workshop, PUBLIC, identity=IDENTITY)
    assert proven_everywhere(restore(workshop, from_spool, "few"))


def test_a_swapped_key_id_breaks_the_manifest_s_own_hash(workshop: Workshop, source: Api) -> None:
    """Nobody can make an operator decrypt with, or ask for, another key by editing the manifest."""
    configure(workshop, PUBLIC, identity=IDENTITY)
    source.make("few", few("few"))
    record = back_up(workshop, include=("few",))
    key = workshop.connect().keys.collection_prefix("source", record.backup_id, "few") + "manifest.json"
    edited = object_bytes(workshop, key).replace(PUBLIC.encode(), SECOND_PUBLIC.encode())
    workshop.bucket.put_object(Bucket="ferry", Key=key, Body=edited)
    with pytest.raises(ArchiveDamagedError, match="its own hash"):
        restore(workshop, record, "few")


def test_a_preflight_shows_that_archives_will_be_uploaded(workshop: Workshop, source: Api) -> None:
    """What a plan says is what happens; an object that is gone is said before anything is made."""
    configure(workshop, PUBLIC, identity=IDENTITY)
    source.make("few", few("few"))
    record = back_up(workshop, include=("few",))
    plan = preflight.prepare(workshop.connect("target"), restore_request(record, "few"))
    assert any("decrypts" in reason for reason in plan.reasons)
    [(_, key)] = archives(workshop, record, "few")
    workshop.bucket.delete_object(Bucket="ferry", Key=key)
    with pytest.raises(PreflightError, match="is missing"):
        restore(workshop, record, "few")


@pytest.fixture(scope="module")
def kms() -> Iterator[str]:
    """A KMS: that of moto's server, which encrypts in earnest."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys for the KMS as a worker's environment has them; the store has others."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "kms-only")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "kms-only-secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def sealed_by(kms: str, secret: str) -> str:
    client = boto3.client("kms", endpoint_url=kms, region_name="us-east-1")
    key = client.create_key()["KeyMetadata"]["KeyId"]
    blob = client.encrypt(KeyId=key, Plaintext=secret.encode())["CiphertextBlob"]
    client.close()
    return base64.b64encode(blob).decode()


@pytest.mark.usefixtures("aws")
def test_the_identity_may_come_from_a_kms(
    workshop: Workshop, source: Api, kms: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only its ciphertext stands in the settings; the key is in no log, at no level."""
    caplog.set_level(logging.DEBUG)
    sealed = sealed_by(kms, f"# of ferry\n{IDENTITY}\n")
    configure(workshop, PUBLIC, identity_kms_ciphertext=sealed, kms_endpoint_url=kms)
    source.make("few", few("few"))
    record = back_up(workshop, include=("few",))
    assert proven_everywhere(restore(workshop, record, "few"))
    told = "\n".join(record.getMessage() for record in caplog.records) + repr(load_settings())
    assert str(IDENTITY) not in told
    assert str(IDENTITY)[20:40] not in told


@pytest.mark.usefixtures("aws")
def test_a_kms_that_does_not_help_is_named(workshop: Workshop, kms: str) -> None:
    """Not base64, not its ciphertext, no key inside, nobody there: each before anything is begun."""
    away = "http://127.0.0.1:9"
    for ciphertext, endpoint, kind, said in (
        ("not base64!", kms, ConfigurationError, "not base64"),
        (base64.b64encode(b"x" * 80).decode(), kms, StoreRefusedError, "does not decrypt"),
        (sealed_by(kms, "something else"), kms, ConfigurationError, "no secret key of age"),
        (sealed_by(kms, str(STRANGER)), kms, ConfigurationError, "is no recipient"),
        (sealed_by(kms, str(IDENTITY)), away, StoreUnavailableError, "127.0.0.1:9"),
    ):
        configure(workshop, PUBLIC, identity_kms_ciphertext=ciphertext, kms_endpoint_url=endpoint)
        with pytest.raises(kind, match=said) as caught:
            require_provable(workshop.connect(), "content")
        assert caught.value.remedy or kind is StoreUnavailableError
        assert "AGE-SECRET-KEY" not in str(caught.value)


def test_doctor_tries_the_keys(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right, wrong and write-only keys, each told in one row."""
    monkeypatch.setattr(trials, "probe", lambda _store: [])  # the bucket has tests of its own
    for identity, ok, said in (
        (IDENTITY, True, "opens"),
        (None, True, "only proof"),
        (STRANGER, False, "no recipient"),
    ):
        configure(workshop, PUBLIC, identity=identity)
        [trial] = [t for t in trials.try_everything(load_settings(), None, "main") if t.test == "encryption keys"]
        assert (trial.ok, said in trial.detail) == (ok, True)


@pytest.mark.usefixtures("aws")
def test_the_kms_gets_the_keys_of_the_bucket_only_where_that_is_aws_s(
    workshop: Workshop, kms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys of another store are for nobody else's eyes, and AWS would not know them."""
    shown: list[str | None] = []

    def noting(profile: RepositoryProfile, credentials: Credentials | None) -> Session:
        shown.append(credentials.access_key if credentials else None)
        return boto_session(profile, credentials)

    monkeypatch.setattr("ferry.repository.kms.boto_session", noting)
    for endpoint_url, keys in ((workshop.s3.endpoint_url, "kms-only"), (None, workshop.s3.access_key)):
        sealed = sealed_by(kms, str(IDENTITY))
        configure(workshop, PUBLIC, identity_kms_ciphertext=sealed, kms_endpoint_url=kms)
        profile = workshop.connect().profile.model_copy(update={"endpoint_url": endpoint_url})
        for _ in range(2):
            assert find_identity(profile) == SecretStr(str(IDENTITY))
        assert shown.pop() == keys
        assert shown == []  # asked once


def test_an_identity_from_the_settings_needs_no_kms(workshop: Workshop) -> None:
    """And a repository without encryption has none."""
    configure(workshop, PUBLIC, identity=IDENTITY)
    profile = workshop.connect().profile
    assert find_identity(profile) == SecretStr(str(IDENTITY))
    assert find_identity(profile.model_copy(update={"encryption": None})) is None
    assert Encoder(Encryption(recipients=[PUBLIC]), []).key_id == PUBLIC
