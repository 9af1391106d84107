"""Trying out a bucket: does it keep every promise that a repository relies on? For ``ferry doctor`` and preflights."""

import base64
import hashlib
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import ClientError

from ferry.errors import ConflictError, FerryError, StoreRefusedError, StoreUnavailableError
from ferry.models import Value, now
from ferry.repository.layout import Keys
from ferry.repository.refusals import DAMAGED_ON_THE_WAY, clock_skew_seconds, vendor_errors
from ferry.repository.store import Store

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_FIRST_PART_BYTES = 5 * 1024 * 1024  # the smallest that S3 allows for a part that is not the last
_ADDRESS_TIMEOUT_SECONDS = 10.0
_LOCK_TRIAL = timedelta(hours=1)  # longer than clocks may be apart; the trial's objects stay for so long
_CONDITIONAL = (
    "Two runs could overwrite each other on this store. Use one with conditional puts "
    "(AWS S3, MinIO since 2024, Ceph since Squid, SeaweedFS)."
)

_LOCK = (
    "Object Lock is switched on when the bucket is made: aws s3api create-bucket --bucket NAME "
    "--object-lock-enabled-for-bucket. The keys need s3:PutObjectRetention and s3:GetObjectRetention. "
    "See docs/stores.md, or set lock_mode to none and lock_days to 0."
)


class ProbeResult(Value):
    """What one trial showed; ``remedy`` says what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None
    passing: bool = False  # it failed for a reason that may pass, such as a busy store


class _Failed(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail, remedy)
        self.detail = detail
        self.remedy = remedy


def probe(store: Store) -> list[ProbeResult]:
    """Try every promise once, in about ten requests and 10 MiB; leaves nothing behind.

    With keys that may not delete it leaves its objects, always the same ones; with Object Lock two that are locked for
    an hour. A trial that fails is a result and no error. When the bucket cannot even be listed, nothing else is tried.
    """
    folder = uuid4().hex if store.can_delete else "kept"
    trials = _Trials(store, f"{Keys(store.profile.prefix).probe_prefix}{folder}/")
    results = [_run(trials.listing, "reach and list")]
    if results[0].ok:
        try:
            results += [_run(trial, name) for name, trial in trials.in_order().items()]
        finally:
            results.append(_run(trials.clear, "delete"))
    return results


def require_conforming(store: Store) -> list[ProbeResult]:
    """Raise StoreRefusedError when a bucket fails a trial: before the first backup goes there, not after.

    Returns what the trials showed. Raises StoreUnavailableError when the store was busy or away meanwhile, which says
    nothing about what it can do.
    """
    results = probe(store)
    if failed := [result for result in results if not result.ok]:
        told = "; ".join(f"{result.name}: {result.detail}" for result in failed)
        if any(result.passing for result in failed):
            msg = f"Bucket {store.bucket} could not be tried out. {told}"
            raise StoreUnavailableError(msg, "Nothing was changed. When the store answers again, run it again.")
        msg = f"Bucket {store.bucket} is not fit for backups. {told}"
        raise StoreRefusedError(msg, failed[0].remedy)
    return results


def _run(trial: Callable[[], str], name: str) -> ProbeResult:
    try:
        return ProbeResult(name=name, ok=True, detail=trial())
    except _Failed as failed:
        return ProbeResult(name=name, ok=False, detail=failed.detail, remedy=failed.remedy)
    except FerryError as error:
        return ProbeResult(name=name, ok=False, detail=error.message, remedy=error.remedy, passing=error.transient)


class _Trials:
    """The trials, all on keys under one folder that nobody else uses."""

    def __init__(self, store: Store, folder: str) -> None:
        self.store = store
        self.folder = folder
        self.document = folder + "document.json"
        self.archive = folder + "archive.bin"
        self.locked = (folder + "locked.bin", folder + "locked-parts.bin")
        self.profile = store.profile

    def in_order(self) -> dict[str, Callable[[], str]]:
        """Each trial by its name; later ones use what earlier ones wrote."""
        trials: dict[str, Callable[[], str]] = {
            "put and get": self.put_and_get,
            "put only when absent": self.refuse_when_present,
            "put only when unchanged": self.refuse_when_changed,
            "refuse damaged bytes": self.refuse_damaged,
            "multipart": self.multipart,
            "archives are written once": self.refuse_second_archive,
            "abort uploads": self.abort,
            "signed address": self.signed_address,
        }
        if self.profile.sse != "none":
            trials["encryption by the store"] = self.encryption
        if self.profile.lock_mode != "none":
            trials["object lock"] = self.object_lock
        return trials

    def listing(self) -> str:
        """List an empty folder: address, keys, clock, bucket and the right to list, in one request."""
        list(self.store.list(self.folder))
        with vendor_errors("list", self.store.where(self.folder)):
            answer = self.store.client.list_objects_v2(Bucket=self.store.bucket, Prefix=self.folder, MaxKeys=1)
        skew = clock_skew_seconds(answer["ResponseMetadata"])
        clocks = "" if skew is None else f"; clocks {abs(skew):.0f} s apart"
        return f"s3://{self.store.bucket}/{self.profile.prefix}{clocks}"

    def put_and_get(self) -> str:
        """What is put comes back at once, equal, and is listed at once."""
        data = os.urandom(64)
        etag = self.store.put_document(self.document, data)
        if self.store.get_document(self.document) != (data, etag):
            raise _Failed("A document came back otherwise than it was put.", "Do not use this store for backups.")
        if self.document not in [found.key for found in self.store.list(self.folder)]:
            msg = "A document that was just put is not listed."
            raise _Failed(msg, "The listing of this store lags behind: backups would be overlooked. Use another one.")
        return "equal, and listed at once"

    def refuse_when_present(self) -> str:
        """If-None-Match on an object that exists must be refused, and must change nothing."""
        return self._refused(lambda: self.store.put_document(self.document, b"second", if_absent=True), "If-None-Match")

    def refuse_when_changed(self) -> str:
        """If-Match with another ETag must be refused, with the right one obeyed."""
        right = self.store.get_document(self.document)[1]
        self.store.put_document(self.document, b"renewed", if_match=right)
        return self._refused(lambda: self.store.put_document(self.document, b"late", if_match=right), "If-Match")

    def refuse_damaged(self) -> str:
        """Bytes that do not match their Content-MD5 must be refused: that is what guards each part of an archive."""
        before = self.store.get_document(self.document)
        wrong = base64.b64encode(hashlib.md5(b"what was meant", usedforsecurity=False).digest()).decode()
        request: dict[str, Any] = {"Bucket": self.store.bucket, "Key": self.document, "ContentMD5": wrong}
        request |= self.store.protection(keep=False)
        with vendor_errors("write", self.store.where(self.document)):
            try:
                self.store.client.put_object(**request, Body=b"what arrived")
            except ClientError as error:
                if error.response["Error"]["Code"] not in DAMAGED_ON_THE_WAY:
                    raise
        if self.store.get_document(self.document) == before:
            return "Content-MD5 is verified"
        msg = "The store accepted bytes that do not match their Content-MD5."
        raise _Failed(msg, "It would keep damaged archives; set worker.prove_from to bucket, or use another store.")

    def multipart(self) -> str:
        """Two parts become one object that reads back equal."""
        data = os.urandom(_FIRST_PART_BYTES + 1024)
        self._upload(data)
        if b"".join(self.store.read(self.archive, expected_bytes=len(data))) != data:
            raise _Failed("An archive of two parts came back otherwise.", "Do not use this store for backups.")
        return "two parts, read back equal"

    def refuse_second_archive(self) -> str:
        """If-None-Match must hold at the end of a multipart upload too."""
        if self.store.head(self.archive) is None:
            raise _Failed("Not tried, because there is no first one.", "See what multipart says.")
        return self._refused(
            lambda: self._upload(b"second", once=True), "If-None-Match at the end of a multipart upload"
        )

    def abort(self) -> str:
        """An unfinished upload is listed, and gone after it is aborted."""
        with vendor_errors("begin the upload of", self.store.where(self.archive)):
            where: dict[str, Any] = {"Bucket": self.store.bucket, "Key": self.archive}
            self.store.client.create_multipart_upload(**where, **self.store.protection(keep=False))
        if self.store.abort_uploads(self.folder) == 0:
            msg = "An unfinished upload is not listed."
            raise _Failed(msg, "Add a lifecycle rule to the bucket that ends unfinished uploads after 7 days.")
        if self.store.uploads(self.folder):
            msg = "An unfinished upload is still there after it was aborted."
            raise _Failed(msg, "Grant AbortMultipartUpload, or add a lifecycle rule that ends unfinished uploads.")
        return "listed and aborted"

    def signed_address(self) -> str:
        """A signed address gives the object without keys; the address itself is never shown."""
        address, apart = self.store.presign(self.document), self.store.profile.node_endpoint_url
        tls = ssl.create_default_context(cafile=self.store.profile.ca_file) if address.startswith("https") else None
        try:
            with urllib.request.urlopen(address, timeout=_ADDRESS_TIMEOUT_SECONDS, context=tls) as answer:  # noqa: S310
                got = answer.read()
        except urllib.error.HTTPError as error:
            msg = f"The store refuses a signed address (HTTP {error.code})."
            raise _Failed(
                msg, "Set endpoint_url and node_endpoint_url to names that the store knows as its own."
            ) from None
        except OSError as error:
            if apart:
                return "signed for node_endpoint_url, which this machine does not reach; the nodes may"
            msg = f"A signed address was not answered ({type(error).__name__})."
            raise StoreUnavailableError(msg) from None
        if got != self.store.get_document(self.document)[0]:
            raise _Failed(
                "A signed address gave other bytes.", "Set node_endpoint_url to the store that has the bucket."
            )
        return "answered without keys"

    def encryption(self) -> str:
        """What was put was encrypted as the profile says, in one piece and in parts."""
        for key in (self.document, self.archive):
            with vendor_errors("look at", self.store.where(key)):
                found = self.store.client.head_object(Bucket=self.store.bucket, Key=key)
            if (got := found.get("ServerSideEncryption", "none")) != self.profile.sse:
                msg = f"{self.store.where(key)} was stored with encryption {got}, not {self.profile.sse}."
                raise _Failed(msg, "Use a store that offers it, or set sse to none and encryption (docs/stores.md).")
        return f"{self.profile.sse}, key {found.get('SSEKMSKeyId', 'of the store')}"

    def object_lock(self) -> str:
        """Objects in one piece and in parts can be locked, and the store says that they are."""
        data, until = b"locked", now() + _LOCK_TRIAL
        lock = self.store.protection(keep=True) | {"ObjectLockRetainUntilDate": until}
        whole, parted = self.locked
        request: dict[str, Any] = {"Bucket": self.store.bucket, "Key": whole, "Body": data}
        request["ContentMD5"] = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        try:
            with vendor_errors("write a locked object", self.store.where(whole)):
                self.store.client.put_object(**request, **lock)
            self._upload(data, key=parted, protection=lock)
        except StoreRefusedError as error:
            raise _Failed(error.message, _LOCK) from None
        for key, how in ((whole, "one piece"), (parted, "parts")):
            with vendor_errors("look at", self.store.where(key)):
                found = self.store.client.head_object(Bucket=self.store.bucket, Key=key)
            mode, held = found.get("ObjectLockMode"), found.get("ObjectLockRetainUntilDate")
            if mode != self.profile.lock_mode or held is None or abs((held - until).total_seconds()) > 1:
                raise _Failed(f"Of an object that was locked, in {how}, the store says: mode {mode}, {held}.", _LOCK)
        return f"{mode}, {self.profile.lock_days} days for archives and manifests"

    def clear(self) -> str:
        """Take away all that was tried; deleting is a right of its own."""
        self.store.abort_uploads(self.folder)
        if not self.store.can_delete:
            return f"not tried, can_delete is false; the objects under {self.store.where(self.folder)} stay"
        try:
            self.store.delete([self.document, self.archive, *self.locked])
        except StoreRefusedError as error:
            remedy = "Grant s3:DeleteObject, or set can_delete = false when these keys are not to delete."
            raise _Failed(error.message, f"{remedy} See docs/stores.md.") from None
        if left := [found.key for found in self.store.list(self.folder)]:
            msg = f"{len(left)} objects are still there after they were deleted."
            raise _Failed(
                msg, f"Delete s3://{self.store.bucket}/{self.folder} by hand; retention would not work either."
            )
        return "nothing left"

    def _refused(self, put: Callable[[], Any], what: str) -> str:
        try:
            put()
        except ConflictError:
            return f"{what} is obeyed"
        raise _Failed(f"The store ignores {what}.", _CONDITIONAL)

    def _upload(
        self, data: bytes, *, once: bool = False, key: str | None = None, protection: dict[str, Any] | None = None
    ) -> None:
        """By hand, because a part of a profile may be larger than what a trial should move."""
        where: dict[str, Any] = {"Bucket": self.store.bucket, "Key": key or self.archive}
        protection = protection or self.store.protection(keep=False)
        client = self.store.client
        with vendor_errors("write", self.store.where(where["Key"])):
            upload_id = client.create_multipart_upload(**where, **protection)["UploadId"]
            parts: list[CompletedPartTypeDef] = []
            for number, start in enumerate(range(0, len(data), _FIRST_PART_BYTES), 1):
                part = data[start : start + _FIRST_PART_BYTES]
                md5 = base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
                done = client.upload_part(**where, UploadId=upload_id, PartNumber=number, Body=part, ContentMD5=md5)
                parts.append({"PartNumber": number, "ETag": done["ETag"]})
            where |= {"IfNoneMatch": "*"} if once else {}
            client.complete_multipart_upload(**where, UploadId=upload_id, MultipartUpload={"Parts": parts})
