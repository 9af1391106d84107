"""The secret key that opens encrypted archives: from the settings, or decrypted by a KMS, and nowhere but in memory."""

import base64
import binascii
import threading

import boto3
from botocore.config import Config
from pydantic import SecretStr

from ferry.errors import ConfigurationError, StoreRefusedError
from ferry.profiles import RepositoryProfile
from ferry.repository.clients import CONNECT_TIMEOUT_SECONDS
from ferry.repository.credentials import boto_session, find_credentials
from ferry.repository.refusals import vendor_errors

_SETTING = "encryption.identity_kms_ciphertext"
_REMEDIES = {
    "AccessDeniedException": "Grant kms:Decrypt on that key to the credentials of this worker.",
    "InvalidCiphertextException": "Encrypt the identity once more with that KMS key; see docs/encryption.md.",
    "IncorrectKeyException": "Encrypt the identity once more with that KMS key; see docs/encryption.md.",
    "NotFoundException": "The KMS key is gone. Take the identity from where else you keep it, or another recipient's.",
    "DisabledException": "Enable the KMS key again.",
    "KMSInvalidStateException": "Enable the KMS key again, or cancel its deletion.",
}

_decrypted: dict[str, SecretStr] = {}  # by ciphertext, for the life of the process
_lock = threading.Lock()


def find_identity(profile: RepositoryProfile) -> SecretStr | None:
    """The secret key of a repository's profile, or None when it has only public ones or no encryption at all.

    The KMS is asked once in a process. Raises ConfigurationError, StoreRefusedError when the KMS does not decrypt it,
    StoreUnavailableError when it does not answer; none of them shows a key.
    """
    encryption = profile.encryption
    if encryption is None or encryption.identity_kms_ciphertext is None:
        return encryption.identity if encryption else None
    with _lock:
        ciphertext = encryption.identity_kms_ciphertext
        if ciphertext not in _decrypted:
            _decrypted[ciphertext] = _decrypt(profile, ciphertext)
        return _decrypted[ciphertext]


def _decrypt(profile: RepositoryProfile, ciphertext: str) -> SecretStr:
    try:
        blob = base64.b64decode("".join(ciphertext.split()), validate=True)
    except binascii.Error:
        msg = f"{_SETTING} is not base64."
        raise ConfigurationError(msg) from None
    endpoint_url = profile.encryption.kms_endpoint_url if profile.encryption else None
    where = f"the KMS ({endpoint_url or profile.region})"
    # The keys of a store other than AWS say nothing to AWS: then those of the worker's own environment count.
    ours = profile if profile.endpoint_url is None else profile.model_copy(update=_NO_KEYS)
    with vendor_errors(f"decrypt {_SETTING} by", where):
        session = boto3.session.Session(botocore_session=boto_session(ours, find_credentials(ours)))
        client = session.client("kms", region_name=profile.region, endpoint_url=endpoint_url, config=_config(profile))
        try:
            return SecretStr(client.decrypt(CiphertextBlob=blob)["Plaintext"].decode())
        except client.exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            if code not in _REMEDIES:
                raise
            msg = f"{where} does not decrypt {_SETTING} ({code})."
            raise StoreRefusedError(msg, _REMEDIES[code]) from None
        except UnicodeDecodeError:
            msg = f"{_SETTING} decrypts to something that is no secret key of age."
            raise ConfigurationError(msg) from None
        finally:
            client.close()


_NO_KEYS = {"access_key": None, "secret_key": None, "session_token": None, "aws_profile": None, "role_arn": None}


def _config(profile: RepositoryProfile) -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=profile.read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": 4},
    )
