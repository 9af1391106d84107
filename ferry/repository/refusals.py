"""What a store's refusals mean to an operator: the one place where errors of boto3 and s3fs become Ferry's."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own, and not a kind of Python's
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
    TokenRetrievalError,
)

from ferry.errors import (
    ArchiveDamagedError,
    BackupNotFoundError,
    ConflictError,
    FerryError,
    RepositoryError,
    StoreRefusedError,
    StoreUnavailableError,
)
from ferry.models import now

_DOCTOR = "Correct the repository profile, then run: python -m ferry doctor"
# Codes from https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
DAMAGED_ON_THE_WAY = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "TooManyRequests",
        "IncompleteBody",
    }
)
_MISSING_CODES = frozenset({"NoSuchKey", "404", "NoSuchVersion"})
_CONFLICT_CODES = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "412", "409"})
_REGION_CODES = ("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_REFUSALS: dict[str, tuple[str, str]] = {
    "InvalidAccessKeyId": ("the store does not know this access key", _DOCTOR),
    "SignatureDoesNotMatch": ("the secret key does not go with the access key", _DOCTOR),
    "ExpiredToken": ("the temporary keys have expired", "Get new keys for the repository profile, then run it again."),
    "TokenRefreshRequired": ("the temporary keys have expired", "Get new keys, then run it again."),
    "InvalidToken": ("the store does not know this session token", _DOCTOR),
    "InvalidTokenId": ("the store does not know this session token", _DOCTOR),
    "NoSuchBucket": ("there is no such bucket", "Create the bucket or correct its name, then: python -m ferry doctor"),
    "KMS.NotFoundException": ("the store does not know sse_kms_key_id", _DOCTOR),
    "KMS.DisabledException": ("the key of sse_kms_key_id is disabled", "Enable it, then run it again."),
    "EntityTooLarge": (
        "the object is larger than this store allows",
        "Set max_object_bytes of the repository profile to the provider's limit; make more shards.",
    ),
    "ObjectLockConfigurationNotFoundError": (
        "Object Lock is not switched on for this bucket",
        "Switch it on when the bucket is made (docs/stores.md), or set lock_mode to none and lock_days to 0.",
    ),
    "NotImplemented": (
        "the store does not offer what was asked for",
        "Run: python -m ferry doctor. It shows what this store lacks; an older store may need an upgrade.",
    ),
    "403": ("the keys are wrong or have no right to do that", _DOCTOR),  # to a HEAD no store says more
} | {code: ("the bucket is in another region", f"Set its region. {_DOCTOR}") for code in _REGION_CODES}
_DENIED = (
    "the keys have no right to do that",
    "Grant List, Get, Put, Delete and AbortMultipartUpload on the bucket's prefix, then: python -m ferry doctor",
)
_ROLE = (
    "Correct role_arn, role_external_id, web_identity_token_file or sts_endpoint_url of the repository profile, or the "
    "trust policy of the role; then: python -m ferry doctor"
)
# Stores allow 15 minutes. To a HEAD they give no reason, so a clock that is nearly as far off is taken for it.
_SKEW_SECONDS = 600
_NO_KEYS = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    CredentialRetrievalError,
    NoAuthTokenError,
    TokenRetrievalError,
)


@contextmanager
def vendor_errors(action: str, where: str) -> Iterator[None]:
    """Turn whatever boto3 and s3fs raise in the body into Ferry's errors, each of which names ``where``.

    Raises StoreUnavailableError, StoreRefusedError, ConflictError, BackupNotFoundError (no such object) or
    ArchiveDamagedError (a checksum of the store's own). Answers of the store are not chained: on some servers they
    hold the access key and the string to sign.
    """
    try:
        yield
    except FerryError:
        raise
    except (BotoCoreError, ClientError, OSError) as error:
        if isinstance(answer := _answer(error), ClientError):
            _raise_for_answer(answer, action, where)
        _raise_for_failure(error, action, where)


def without_secrets(text: str) -> str:
    """The text with the query strings and the user names of all addresses in it blanked out."""
    return re.sub(r"(?<=//)[^@/\s]+@", "…@", re.sub(r"\?[^\s\"'>]+", "?…", text))


def _answer(error: BaseException) -> BaseException | None:
    """The store's own answer: s3fs raises Python's OSErrors and hangs it behind them."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ClientError):
        seen = seen.__cause__
    return seen


def _raise_for_answer(error: ClientError, action: str, where: str) -> NoReturn:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    fact = f"Cannot {action} {where}: "
    _raise_for_keys(error, code, status, fact)
    if code in _MISSING_CODES:
        raise BackupNotFoundError(fact + "there is no such object.") from None
    if code in _REFUSALS:
        explanation, remedy = _REFUSALS[code]
        raise StoreRefusedError(f"{fact}{explanation} ({code}).", remedy) from None
    if code == "NoSuchUpload":
        raise ConflictError(fact + "somebody else has ended this upload (NoSuchUpload).") from None
    if code in _CONFLICT_CODES or status in (409, 412):
        raise ConflictError(f"{fact}the condition does not hold, somebody else wrote it first ({code}).") from None
    if code in DAMAGED_ON_THE_WAY:
        raise StoreUnavailableError(f"{fact}the bytes were damaged on the way to the store ({code}).") from None
    if code in _TRANSIENT_CODES or status == 429 or status >= 500:
        raise StoreUnavailableError(f"{fact}the store is busy or failing ({code}, HTTP {status}).") from None
    if status in (401, 403):
        raise StoreRefusedError(f"{fact}{_DENIED[0]} ({code}).", _DENIED[1]) from None
    said = without_secrets(str(error.response.get("Error", {}).get("Message", "")))
    raise StoreRefusedError(f"{fact}the store refuses it ({code}, HTTP {status}): {said}") from None


def _raise_for_keys(error: ClientError, code: str, status: int, fact: str) -> None:
    """A role that is refused, and a clock that is off: both come as answers to whatever was asked for."""
    if error.operation_name.startswith("AssumeRole") and status < 500 and code not in _TRANSIENT_CODES:
        said = without_secrets(str(error.response.get("Error", {}).get("Message", "")))
        raise StoreRefusedError(f"{fact}the role was not given ({code}): {said}", _ROLE) from None
    skew = clock_skew_seconds(error.response.get("ResponseMetadata", {}))
    if code == "RequestTimeTooSkewed" or (code == "403" and skew is not None and abs(skew) > _SKEW_SECONDS):
        apart = "is too far from the store's" if skew is None else f"is {abs(skew):.0f} s {_side(skew)} the store's"
        msg = f"{fact}clock skew: this machine's clock {apart}, too far for signatures ({code})."
        raise StoreRefusedError(msg, "Set the clock of this machine by NTP (timedatectl), then run it again.") from None


def clock_skew_seconds(answer: Mapping[str, Any]) -> float | None:
    """How far this machine's clock is ahead of the store's, by the Date of an answer's ``ResponseMetadata``.

    None without that header. It is exact to a second or two: the header has whole seconds.
    """
    try:
        return (now() - parsedate_to_datetime(answer["HTTPHeaders"]["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _side(skew_seconds: float) -> str:
    return "ahead of" if skew_seconds > 0 else "behind"


def _raise_for_failure(error: Exception, action: str, where: str) -> NoReturn:
    fact = f"Cannot {action} {where}: "
    if isinstance(error, _NO_KEYS):
        raise StoreRefusedError(f"{fact}there are no keys ({type(error).__name__}).", _DOCTOR) from None
    if isinstance(error, FlexibleChecksumError):
        msg = fact + "the bytes do not match the checksum that the store keeps with them."
        raise ArchiveDamagedError(msg) from None
    if isinstance(error, SSLError):
        msg = f"{fact}the store's certificate is not trusted or its TLS is broken: {without_secrets(str(error))}"
        raise StoreRefusedError(msg, f"Set ca_file to the authority that signed it. {_DOCTOR}") from None
    if isinstance(error, FileNotFoundError):
        raise BackupNotFoundError(fact + "there is no such object.") from None
    if isinstance(error, ConnectionError | HTTPClientError | ResponseStreamingError | IncompleteReadError | OSError):
        msg = f"{fact}no full answer from the store ({type(error).__name__}: {without_secrets(str(error))})"
        raise StoreUnavailableError(msg) from None
    raise RepositoryError(f"{fact}{type(error).__name__}: {without_secrets(str(error))}") from None
