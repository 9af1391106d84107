"""Encrypted archives out of a store of small blocks: what is damage, what is a wrong key, and who needs a key."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyrage
import pytest
from pydantic import SecretStr

from ferry.archive.encryption import Encoder, StoredForm
from ferry.connections import Repository
from ferry.errors import ArchiveDamagedError, ConfigurationError, WrongKeyError
from ferry.models import ProofLevel
from ferry.profiles import Encryption, RepositoryProfile, WorkerSettings
from ferry.verify import spool
from ferry.verify.archive import prove_stored, require_provable, snapshot_blocks, spooled
from tests.unit.fakes import MemoryStore

IDENTITY, OTHER = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
PUBLIC = str(IDENTITY.to_public())
DATA = random.Random(2).randbytes(300_000)
KEY = "a/key"


class Bucket(MemoryStore):
    """Counts the blocks that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 0

    def where(self, key: str) -> str:
        return f"s3://b/{key}"

    def read(self, key: str, *, expected_bytes: int, etag: str | None = None) -> Iterator[bytes]:
        for block in super().read(key, expected_bytes=expected_bytes, etag=etag):
            self.blocks += 1
            yield block


@dataclass(frozen=True)
class Stored:
    """One encrypted archive."""

    bucket: Bucket
    form: StoredForm
    folder: Path

    def repository(self, identity: Any = IDENTITY, **worker: Any) -> Repository:
        """Seen by a worker with that identity."""
        secret = None if identity is None else SecretStr(str(identity))
        profile = RepositoryProfile(bucket="bucket", encryption=Encryption(recipients=[PUBLIC], identity=secret))
        settings = WorkerSettings(spool_dir=self.folder / "spool", **worker)
        return Repository(profile, settings, cast("Any", self.bucket), cast("Any", None), cast("Any", None))

    def damage(self, position: int) -> None:
        """Flip a bit of the object."""
        data, info = self.bucket.objects[KEY]
        changed = bytearray(data)
        changed[position] ^= 2
        self.bucket.objects[KEY] = (bytes(changed), info)

    def read(self, identity: Any = IDENTITY) -> bytes:
        """Out of the bucket."""
        return b"".join(snapshot_blocks(self.repository(identity), KEY, self.form))


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    bucket = Bucket()
    encoder = Encoder(Encryption(recipients=[PUBLIC]), [DATA])
    uploaded = bucket.upload(KEY, encoder.blocks())
    return Stored(bucket, encoder.form((uploaded.bytes, uploaded.sha256 or "")), tmp_path)


def test_what_is_whole_is_read(stored: Stored) -> None:
    """Decrypted, and onto the spool disk as well."""
    assert stored.read() == DATA
    with spooled(stored.repository(), KEY, stored.form) as path:
        assert path.read_bytes() == DATA
    assert list((stored.folder / "spool").iterdir()) == []


@pytest.mark.parametrize("position", [3, 60, 150, 70_000, -1])
def test_damage_is_called_damage_with_both_hashes(stored: Stored, position: int) -> None:
    """In the header too, where age itself would say that the key is wrong."""
    stored.damage(position)
    with pytest.raises(ArchiveDamagedError, match=f"s3://b/{KEY} holds .* it must be .* with {stored.form.held[1]}"):
        stored.read()


@pytest.mark.parametrize("identity", [OTHER, None])
def test_a_wrong_key_is_said_at_once(stored: Stored, identity: Any) -> None:
    """Without reading the whole archive for it, and without calling it damage."""
    with pytest.raises(WrongKeyError, match=PUBLIC):
        stored.read(identity)
    assert stored.bucket.blocks < 20


def test_another_snapshot_under_the_right_key_is_damage(stored: Stored) -> None:
    """Authentic is not enough: somebody with the public key can encrypt anything."""
    encoder = Encoder(Encryption(recipients=[PUBLIC]), [DATA[::-1]])
    stored.bucket.delete([KEY])
    uploaded = stored.bucket.upload(KEY, encoder.blocks())
    told = stored.form.model_copy(update={"stored_bytes": uploaded.bytes, "stored_sha256": uploaded.sha256})
    with pytest.raises(ArchiveDamagedError, match=f"it must be {len(DATA)} with {hashlib.sha256(DATA).hexdigest()}"):
        list(snapshot_blocks(stored.repository(), KEY, told))


@pytest.mark.parametrize("shard_ids", [None, [0, 3]])
def test_by_bytes_nobody_needs_the_secret_key(stored: Stored, shard_ids: Any) -> None:
    """The object's own size and sha256 are compared, and nothing more is claimed."""
    proofs = prove_stored(stored.repository(None), KEY, stored.form, shard_ids, "bytes")
    assert list(proofs) == (shard_ids or [None])
    assert {(proof.level, proof.points) for proof in proofs.values()} == {("bytes", None)}
    stored.damage(-1)
    with pytest.raises(ArchiveDamagedError):
        prove_stored(stored.repository(None), KEY, stored.form, shard_ids, "bytes")


def test_the_kept_copy_is_taken_when_nobody_can_read_the_object(stored: Stored) -> None:
    """So it does not fill the spool disk, and the bucket is not read."""
    repository = stored.repository(None, prove_from="spool")
    assert b"".join(spool.keeping(repository.worker, KEY, [DATA])) == DATA
    prove_stored(repository, KEY, stored.form, None, "bytes")
    assert stored.bucket.blocks == 0
    assert not spool.take_kept(repository.worker, KEY, stored.folder / "there")
    spool.drop_kept(repository.worker)


@pytest.mark.parametrize(
    ("identity", "level", "prove_from", "refused"),
    [
        (IDENTITY, "content", "bucket", False),
        (None, "content", "bucket", True),
        (None, "count", "bucket", True),
        (None, "bytes", "bucket", False),
        (None, "content", "spool", False),
        (OTHER, "bytes", "bucket", True),
    ],
)
def test_what_could_not_be_proven_is_not_begun(
    stored: Stored, identity: Any, level: ProofLevel, prove_from: str, refused: bool
) -> None:
    """By what the worker has, what the proof reads, and where from."""
    repository = stored.repository(identity, prove_from=prove_from)
    if refused:
        with pytest.raises(ConfigurationError):
            require_provable(repository, level)
    else:
        require_provable(repository, level)
