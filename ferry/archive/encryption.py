"""Archives as they lie in the bucket: Qdrant's own bytes, or the same encrypted in the format of age.

age (age-encryption.org/v1) is streaming and authenticated: ChaCha20-Poly1305 over chunks of 64 KiB, under a new key for
each file that every recipient can unwrap. The `age` command reads it without Ferry. pyrage is the Rust implementation.
"""

import hashlib
import importlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import SecretStr

from ferry.archive.pipe import Pump, piped
from ferry.errors import ArchiveDamagedError, ConfigurationError, WrongKeyError
from ferry.models import Value
from ferry.profiles import Encryption

Encoding = Literal["plain", "age"]

INSTALL = "Install the extra that holds it: pip install 'ferry[encryption]'"
# age's header is at least 184 bytes and about 100 more for each recipient. rage adds a stanza of random length, so the
# exact size of an encrypted archive is not known before (seen with pyrage 1.4: 216 to 393 bytes for one recipient).
HEADER_BYTES = 1024
RECIPIENT_BYTES = 128
CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
HEAD_BYTES = 64 * 1024  # of an archive, more than any header: enough to see whether a key opens it
_NO_MATCH = "No matching keys"  # how pyrage 1.4 says it; a class of its own it has not


class StoredForm(Value):
    """What an archive is and how it lies in the bucket, as its record in the manifest says it too."""

    bytes: int
    sha256: str
    encoding: Encoding = "plain"
    key_id: str | None = None
    stored_bytes: int | None = None
    stored_sha256: str | None = None

    @property
    def held(self) -> tuple[int, str]:
        """Bytes and sha256 of the object in the bucket."""
        return self.stored_bytes or self.bytes, self.stored_sha256 or self.sha256


class Encoder:
    """One archive on its way to the bucket. Without ``encryption`` its blocks pass as they are and cost nothing.

    Raises ConfigurationError when pyrage is missing or a recipient is no key, before a block is asked for.
    """

    def __init__(self, encryption: Encryption | None, blocks: Iterable[bytes]) -> None:
        self.encoding: Encoding = "age" if encryption else "plain"
        self.key_id = encryption.recipients[0] if encryption else None
        self._recipients = _recipients(encryption) if encryption else []
        self._source = blocks
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def blocks(self) -> Iterator[bytes]:
        """What goes to the bucket, once; about four of them in memory. Errors of the source pass through.

        Encrypting is done in a thread, which ends with the iterator, read to its end or closed before.
        """
        if self.encoding == "plain":
            return iter(self._source)
        pyrage = _pyrage()
        return piped(lambda reader, writer: pyrage.encrypt_io(reader, writer, self._recipients), self._counted())

    def form(self, sent: tuple[int, str]) -> StoredForm:
        """What the archive is, after ``blocks`` has ended; ``sent`` are bytes and sha256 that the upload has counted.

        Each byte is hashed once for each form: a plain archive's only by the upload.
        """
        if self.encoding == "plain":
            return StoredForm(bytes=sent[0], sha256=sent[1])
        return StoredForm(
            bytes=self._bytes,
            sha256=self._sha256.hexdigest(),
            encoding=self.encoding,
            key_id=self.key_id,
            stored_bytes=sent[0],
            stored_sha256=sent[1],
        )

    def _counted(self) -> Iterator[bytes]:
        for block in self._source:
            self._sha256.update(block)
            self._bytes += len(block)
            yield block


def stored_bytes_at_most(encryption: Encryption | None, plain_bytes: int) -> int:
    """Bytes of the object for an archive of that size: exact when plain, else at most, since age's header varies."""
    if encryption is None:
        return plain_bytes
    header = HEADER_BYTES + RECIPIENT_BYTES * len(encryption.recipients)
    return header + plain_bytes + TAG_BYTES * max(1, -(-plain_bytes // CHUNK_BYTES))


def decoded(identity: SecretStr | None, form: StoredForm, where: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The snapshot's bytes out of the object's; ``where`` is its name in messages.

    Every byte that is given out was authenticated. Raises WrongKeyError when ``identity`` is missing or does not open
    it, ArchiveDamagedError when a byte is wrong, missing or too many; errors of ``blocks`` pass through.
    """
    if form.encoding == "plain":
        return iter(blocks)
    keys = _identities(require_identity(identity, form.key_id, where))
    return _opened(keys, form, where, blocks)


def _opened(keys: list[Any], form: StoredForm, where: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    pyrage = _pyrage()

    def work(reader: Pump, writer: Pump) -> None:
        try:
            pyrage.decrypt_io(reader, writer, keys)
        except (pyrage.DecryptError, OSError) as error:  # behind the header it raises OSError (seen with pyrage 1.4)
            if _NO_MATCH in str(error):
                raise wrong_key(form.key_id, where, [str(key.to_public()) for key in keys]) from None
            msg = (
                f"{where} cannot be decrypted: {error}. Its bytes are not those that were encrypted for {form.key_id}."
            )
            raise ArchiveDamagedError(msg, "Use another backup, and make one now.") from None

    return piped(work, blocks)


def require_identity(identity: SecretStr | None, key_id: str | None, where: str) -> SecretStr:
    """The identity; raises WrongKeyError when there is none."""
    if identity is None:
        msg = f"{where} is encrypted for {key_id}, and no identity is configured."
        raise WrongKeyError(msg, _remedy(key_id))
    return identity


def wrong_key(key_id: str | None, where: str, have: list[str]) -> WrongKeyError:
    """The error for an archive that none of the identities opens, by their public keys."""
    msg = f"{where} is encrypted for {key_id}; the identity that is configured, of {', '.join(have)}, does not open it."
    return WrongKeyError(msg, _remedy(key_id))


def _remedy(key_id: str | None) -> str:
    return f"Set repositories.NAME.encryption.identity to the secret key of {key_id}, or to that of another recipient."


def opens(identity: SecretStr, head: bytes) -> bool:
    """Whether that identity unwraps the key of the archive that begins with ``head`` (its first 64 KiB, or all)."""
    pyrage = _pyrage()
    try:
        pyrage.decrypt(head[:HEAD_BYTES], _identities(identity))
    except pyrage.DecryptError as error:
        return _NO_MATCH not in str(error)  # any other: the head alone is no whole archive
    return True


def public_keys(identity: SecretStr) -> list[str]:
    """The public keys (age1…) of an identity, in its order. Raises ConfigurationError when it is none."""
    return [str(key.to_public()) for key in _identities(identity)]


def require_keys(encryption: Encryption, identity: SecretStr | None, *, reads_back: bool) -> None:
    """Raise ConfigurationError when a backup with these keys could not be written, or not be proven.

    ``reads_back`` says whether its proof decrypts what lies in the bucket: then an identity must be there, of one of
    the recipients. A proof of the level ``bytes``, or of the spool's copy, needs none.
    """
    _recipients(encryption)
    if identity is None:
        if reads_back:
            msg = "Only public keys are configured, so what is written could not be read back and proven."
            remedy = (
                "Set repositories.NAME.encryption.identity, or back up with proof `bytes`, or worker.prove_from spool."
            )
            raise ConfigurationError(msg, remedy)
        return
    have = public_keys(identity)
    if not set(have) & set(encryption.recipients):
        msg = f"encryption.identity is of {', '.join(have)}, which is no recipient: nothing could be read back."
        raise ConfigurationError(msg, f"Add {have[0]} to repositories.NAME.encryption.recipients, or set its identity.")


def _recipients(encryption: Encryption) -> list[Any]:
    pyrage, found = _pyrage(), []
    for number, key in enumerate(encryption.recipients, 1):
        try:
            found.append(pyrage.x25519.Recipient.from_str(key))
        except pyrage.RecipientError:
            # Not shown: somebody may have put the secret key there.
            msg = f"Recipient {number} of encryption.recipients is no public key of age (age1…)."
            raise ConfigurationError(msg) from None
    return found


def _identities(identity: SecretStr) -> list[Any]:
    """One secret key a line, as age's own files have it; lines that begin with # are remarks."""
    pyrage, found = _pyrage(), []
    lines = [line.strip() for line in identity.get_secret_value().splitlines()]
    for line in lines:
        if not line or line.startswith("#"):
            continue
        try:
            found.append(pyrage.x25519.Identity.from_str(line))
        except pyrage.IdentityError:
            msg = f"Key {len(found) + 1} of encryption.identity is damaged: it is no secret key of age."
            raise ConfigurationError(msg) from None
    if not found:
        msg = "encryption.identity holds no secret key of age (AGE-SECRET-KEY-1…)."
        raise ConfigurationError(msg)
    return found


def _pyrage() -> Any:  # it ships no types
    try:
        return importlib.import_module("pyrage")
    except ImportError:
        msg = "Encrypted archives need the package pyrage, which is not installed here."
        raise ConfigurationError(msg, INSTALL) from None
