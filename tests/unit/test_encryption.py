"""Encrypted archives: what goes in comes out, nothing else ever does, and a wrong key is not called damage."""

import base64
import hashlib
import hmac
import random
import sys
import threading
from collections.abc import Iterator

import pyrage
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from ferry.archive.encryption import (
    Encoder,
    StoredForm,
    decoded,
    opens,
    public_keys,
    require_keys,
    stored_bytes_at_most,
)
from ferry.errors import ArchiveDamagedError, ConfigurationError, FerryError, StoppedError, WrongKeyError
from ferry.profiles import Encryption

MIB = 1 << 20
IDENTITY, OTHER = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
SECRET, OTHER_SECRET = SecretStr(str(IDENTITY)), SecretStr(str(OTHER))
PUBLIC, OTHER_PUBLIC = str(IDENTITY.to_public()), str(OTHER.to_public())
KEYS = Encryption(recipients=[PUBLIC], identity=SECRET)
DATA = random.Random(0).randbytes(3 * MIB + 4711)


def cut(data: bytes, size: int = MIB) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def encoded(data: bytes = DATA, keys: Encryption | None = KEYS) -> tuple[bytes, StoredForm]:
    encoder = Encoder(keys, cut(data))
    stored = b"".join(encoder.blocks())
    return stored, encoder.form((len(stored), hashlib.sha256(stored).hexdigest()))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "ferry-pipe"]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 2 * MIB, 2 * MIB + 1, len(DATA)])
def test_what_was_encrypted_comes_back(size: int) -> None:
    """At every size around age's chunks and our blocks, with the hashes of both forms, and never larger than said."""
    data = DATA[:size]
    stored, form = encoded(data)
    assert (form.bytes, form.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert form.held == (len(stored), hashlib.sha256(stored).hexdigest())
    assert (form.encoding, form.key_id) == ("age", PUBLIC)
    assert size < len(stored) <= stored_bytes_at_most(KEYS, size)
    assert b"".join(decoded(SECRET, form, "it", cut(stored, 70_001))) == data
    assert threads() == []


def test_a_large_archive_is_no_larger_than_said() -> None:
    """Every chunk of 64 KiB has a tag of 16 bytes, which no header makes up for."""
    gib = 1 << 30
    assert 0 <= stored_bytes_at_most(KEYS, gib) - gib - 16 * (gib // 65_536) <= 2048


def test_without_keys_the_blocks_pass_untouched() -> None:
    """No copy, no hash, no thread: the very same objects."""
    blocks = list(cut(DATA))
    encoder = Encoder(None, blocks)
    assert all(one is other for one, other in zip(encoder.blocks(), blocks, strict=True))
    form = encoder.form((7, "0" * 64))
    assert form == StoredForm(bytes=7, sha256="0" * 64)
    assert (form.held, stored_bytes_at_most(None, 7)) == ((7, "0" * 64), 7)
    assert all(one is other for one, other in zip(decoded(None, form, "it", blocks), blocks, strict=True))


def unbech32(text: str) -> bytes:
    """The bytes in a key of age, whose checksum is left to others."""
    digits = ["qpzry9x8gf2tvdw0s3jn54khce6mua7l".index(letter) for letter in text.lower().rpartition("1")[2][:-6]]
    bits = "".join(f"{digit:05b}" for digit in digits)
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits) // 8 * 8, 8))


def unbase64(line: bytes) -> bytes:
    return base64.b64decode(line + b"=" * (-len(line) % 4))


def derived(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(key)


def read_by_the_specification(stored: bytes, identity: str) -> bytes:
    """What age-encryption.org/v1 says, in other hands: the X25519 stanza, the MAC of the header, chunks of 64 KiB."""
    head, _, rest = stored.partition(b"\n--- ")
    mac, _, payload = rest.partition(b"\n")
    lines = head.split(b"\n")
    at = next(number for number, line in enumerate(lines) if line.startswith(b"-> X25519 "))
    secret = X25519PrivateKey.from_private_bytes(unbech32(identity))
    share = unbase64(lines[at].split()[2])
    salt = share + secret.public_key().public_bytes_raw()
    wrap = derived(secret.exchange(X25519PublicKey.from_public_bytes(share)), salt, b"age-encryption.org/v1/X25519")
    file_key = ChaCha20Poly1305(wrap).decrypt(bytes(12), unbase64(lines[at + 1]), None)
    own = hmac.new(derived(file_key, b"", b"header"), head + b"\n---", hashlib.sha256).digest()
    assert unbase64(mac) == own
    stream = ChaCha20Poly1305(derived(file_key, payload[:16], b"payload"))
    chunks = list(cut(payload[16:], 64 * 1024 + 16))
    return b"".join(
        stream.decrypt(number.to_bytes(11, "big") + bytes([number == len(chunks) - 1]), chunk, None)
        for number, chunk in enumerate(chunks)
    )


def test_others_read_it_without_ferry() -> None:
    """What is in the bucket is age's format and nothing of ours: by its library, and by its specification alone."""
    stored, _ = encoded()
    assert stored.startswith(b"age-encryption.org/v1\n")
    assert pyrage.decrypt(stored, [IDENTITY]) == DATA
    assert read_by_the_specification(stored, str(IDENTITY)) == DATA


def test_every_recipient_can_read_it() -> None:
    """Two recipients, either identity; and one identity setting may hold several keys, as after a change of keys."""
    stored, form = encoded(keys=Encryption(recipients=[PUBLIC, OTHER_PUBLIC]))
    rotated = SecretStr(f"# since 2027\n{pyrage.x25519.Identity.generate()}\n\n# before\n  {OTHER}\n")
    assert len(public_keys(rotated)) == 2
    for secret in (SECRET, OTHER_SECRET, rotated):
        assert opens(secret, stored)
        assert b"".join(decoded(secret, form, "it", cut(stored))) == DATA


@pytest.mark.parametrize("position", [0, 30, 60, 150, -1, -20, 400 + 65_536, MIB, 2 * MIB + 77])
def test_a_flipped_bit_is_never_passed_on(position: int) -> None:
    """Header or body: what comes out before the error is a true beginning of the snapshot."""
    stored, form = encoded()
    damaged = bytearray(stored)
    damaged[position] ^= 4
    out: list[bytes] = []
    with pytest.raises((ArchiveDamagedError, WrongKeyError)) as caught:
        out.extend(decoded(SECRET, form, "s3://b/k", cut(bytes(damaged))))
    assert sum(map(len, out)) < len(DATA)
    assert DATA.startswith(b"".join(out))
    assert caught.value.message.startswith("s3://b/k ")
    assert threads() == []


@pytest.mark.parametrize("kept", [0, 10, 200, 500, 65_536, MIB, 3 * MIB, -1])
def test_a_shortened_archive_is_damage(kept: int) -> None:
    """Cut anywhere, at a chunk's end too: age marks its last chunk."""
    stored, form = encoded()
    chunk_end = len(stored) - len(DATA) % 65_536 - 16
    for end in (kept, chunk_end):
        with pytest.raises(ArchiveDamagedError, match="cannot be decrypted"):
            list(decoded(SECRET, form, "it", cut(stored[:end])))


def test_a_byte_too_many_is_damage() -> None:
    """Nothing may hang behind the end."""
    stored, form = encoded()
    with pytest.raises(ArchiveDamagedError):
        list(decoded(SECRET, form, "it", cut(stored + b"x")))


def test_a_wrong_or_missing_identity_is_told_with_the_key_that_is_needed() -> None:
    """Not as damage, without any secret, and saying which key it was encrypted for."""
    stored, form = encoded()
    for secret in (OTHER_SECRET, None):
        with pytest.raises(WrongKeyError, match=PUBLIC) as caught:
            list(decoded(secret, form, "s3://b/k", cut(stored)))
        assert PUBLIC in (caught.value.remedy or "")
        assert "SECRET" not in str(caught.value)
        assert not isinstance(caught.value, ArchiveDamagedError)
    assert opens(SECRET, stored[: 64 * 1024])
    assert not opens(OTHER_SECRET, stored[: 64 * 1024])


def test_the_source_s_error_comes_through_and_the_thread_ends() -> None:
    """A node that fails in mid-archive is that node's error, on both ways."""

    def failing(data: bytes) -> Iterator[bytes]:
        yield data[:MIB]
        raise StoppedError("cancelled")

    stored, form = encoded()
    for blocks in (Encoder(KEYS, failing(DATA)).blocks(), decoded(SECRET, form, "it", failing(stored))):
        with pytest.raises(StoppedError):
            list(blocks)
        assert threads() == []


def test_an_iterator_that_is_given_up_leaves_no_thread() -> None:
    """Half way, and before the first block."""
    stored, form = encoded()
    for make in (lambda: Encoder(KEYS, cut(DATA)).blocks(), lambda: decoded(SECRET, form, "it", cut(stored))):
        started, unstarted = make(), make()
        next(started)
        assert threads() == ["ferry-pipe"]
        del started, unstarted
        assert threads() == []


def test_the_source_is_asked_for_no_more_than_is_needed() -> None:
    """Bounded memory: when the first block comes out, not the whole archive has gone in."""
    asked = []

    def watched() -> Iterator[bytes]:
        for number, block in enumerate(cut(DATA * 10)):
            asked.append(number)
            yield block

    blocks = Encoder(KEYS, watched()).blocks()
    assert len(next(blocks)) < 2 * MIB
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("keys", "identity", "reads_back", "said"),
    [
        ([PUBLIC], SECRET, True, None),
        ([PUBLIC], None, False, None),
        ([OTHER_PUBLIC, PUBLIC], SECRET, True, None),
        ([PUBLIC], None, True, "Only public keys"),
        ([PUBLIC], OTHER_SECRET, True, "which is no recipient"),
        ([PUBLIC, "age1nonsense"], SECRET, True, "Recipient 2"),
        ([str(IDENTITY)], SECRET, True, "Recipient 1"),
        ([PUBLIC], SecretStr("AGE-SECRET-KEY-1NONSENSE"), True, "damaged"),
        ([PUBLIC], SecretStr("# only a remark"), True, "holds no secret key"),
    ],
)
def test_keys_that_cannot_work_are_refused_before_a_backup(
    keys: list[str], identity: SecretStr | None, reads_back: bool, said: str | None
) -> None:
    """What could not be proven or restored afterwards is not begun; no message shows a secret key."""
    encryption = Encryption(recipients=keys)
    if said is None:
        require_keys(encryption, identity, reads_back=reads_back)
        return
    with pytest.raises(ConfigurationError, match=said) as caught:
        require_keys(encryption, identity, reads_back=reads_back)
    assert "AGE-SECRET-KEY-1" not in str(caught.value).replace("(AGE-SECRET-KEY-1…)", "")


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyrage nothing but encryption fails, and that before a byte is asked for."""
    _, form = encoded()
    monkeypatch.setitem(sys.modules, "pyrage", None)

    def untouched() -> Iterator[bytes]:
        pytest.fail("a block was asked for")
        yield b""

    assert list(Encoder(None, [b"x"]).blocks()) == [b"x"]
    for attempt in (lambda: Encoder(KEYS, untouched()), lambda: list(decoded(SECRET, form, "it", untouched()))):
        with pytest.raises(FerryError) as caught:
            attempt()
        assert isinstance(caught.value, ConfigurationError)
        assert "pip install 'ferry[encryption]'" in str(caught.value)
