"""What only the upkeep of a repository asks of a store: its clock, the lock on an object, the end of one upload."""

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ferry.errors import BackupNotFoundError, ConflictError, RepositoryError
from ferry.models import Value
from ferry.repository.refusals import vendor_errors
from ferry.repository.store import Store, UnfinishedUpload


class ObjectLock(Value):
    """Until when, and by which rule, an object may not be deleted."""

    until: datetime | None = None
    legal_hold: bool = False


def store_time(store: Store, key: str) -> datetime:
    """The store's clock, to the second, from the Date header of its answer (RFC 9110 §6.6.1); writes nothing.

    ``key`` is any key; there need be no such object. Raises RepositoryError when the answer tells no time.
    """
    answer: Any
    with vendor_errors("look at", store.where(key)):
        try:
            answer = store.client.head_object(Bucket=store.bucket, Key=key)
        except store.client.exceptions.ClientError as error:
            answer = error.response
            if answer["ResponseMetadata"].get("HTTPStatusCode") != 404:
                raise
    said = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    if said is None:
        msg = f"The store does not say what time it is: {store.where(key)} was answered without a Date."
        raise RepositoryError(msg, "Ages cannot be told without it. A proxy in front of the store may have removed it.")
    return parsedate_to_datetime(said).astimezone(UTC)


def lock_of(store: Store, key: str) -> ObjectLock:
    """The Object Lock of an object; none where the bucket has none, the object is gone, or the keys may not ask."""
    try:
        with vendor_errors("look at", store.where(key)):
            found = store.client.head_object(Bucket=store.bucket, Key=key)
    except BackupNotFoundError:
        return ObjectLock()
    return ObjectLock(
        until=found.get("ObjectLockRetainUntilDate"), legal_hold=found.get("ObjectLockLegalHoldStatus") == "ON"
    )


def abort_upload(store: Store, upload: UnfinishedUpload) -> None:
    """End one multipart upload; one that has ended already is fine."""
    with suppress(ConflictError, BackupNotFoundError), vendor_errors("abort the upload of", store.where(upload.key)):
        store.client.abort_multipart_upload(Bucket=store.bucket, Key=upload.key, UploadId=upload.upload_id)
