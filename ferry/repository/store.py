"""The bytes of a repository in its bucket: conditional puts, multipart archives, listings, signed addresses.

Two clients with disjoint roles. boto3: everything that names one object exactly (put, head, delete, multipart, archive
streams, signed addresses). s3fs: listings and the reading of small documents. Neither keeps a cache.
"""

import base64
import hashlib
import logging
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from ferry.errors import (
    BackupNotFoundError,
    ConfigurationError,
    ConflictError,
    FerryError,
    StoreRefusedError,
    StoreUnavailableError,
)
from ferry.models import Progress, Value, no_progress, now
from ferry.profiles import RepositoryProfile
from ferry.repository.clients import boto_client, s3fs_client
from ferry.repository.credentials import find_credentials
from ferry.repository.download import ArchiveDownload
from ferry.repository.parts import PartPlan, plan_parts
from ferry.repository.refusals import vendor_errors
from ferry.repository.upload import ArchiveUpload, Uploaded

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

_log = logging.getLogger(__name__)

REQUEST_ATTEMPTS = 4  # of one request for a document or a listing, by botocore, with its own pauses
Names = list[str]  # within the classes below, list is a method

_DOCUMENT_READS = 5  # of a document that is replaced between its HEAD and its GET


class ObjectInfo(Value):
    """One object: its whole key, size, ETag without quotes, when it was written.

    Only ``head`` tells its own metadata, and until when the store itself keeps it from being deleted (Object Lock).
    """

    key: str
    bytes: int
    etag: str
    modified: datetime
    metadata: dict[str, str] = Field(default_factory=dict)
    locked_until: datetime | None = None


class UnfinishedUpload(Value):
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    begun: datetime


class ObjectStore(Protocol):
    """What catalog, lease and journal need of a store; the real one and the tests' own in memory both are one."""

    @property
    def can_delete(self) -> bool:
        """False with keys that may not delete: then ``delete`` does nothing."""

    def put_document(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None, keep: bool = False
    ) -> str:
        """Write a small object, on a condition when one is given; its ETag. ``keep``: under the profile's lock."""

    def get_document(self, key: str) -> tuple[bytes, str]:
        """A small object and its ETag."""

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says about one object, or None."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with the folder ``prefix``."""

    def list_folders(self, prefix: str) -> Names:
        """Names of the folders directly under the folder ``prefix``."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects in that order."""


def _require_certificate(file: Path) -> None:
    """Before any client is made: boto3 would say only "OSError", and try again."""
    if not file.is_file():
        msg = f"ca_file names {file}, which is no file."
        raise ConfigurationError(msg)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:
        msg = f"ca_file names {file}, which holds no certificate that can be read: {error}"
        raise ConfigurationError(msg) from None


class Store:
    """One bucket as a repository profile describes it. Safe to share between threads."""

    def __init__(self, profile: RepositoryProfile) -> None:
        """Nothing is asked of the store yet. Raises ConfigurationError when ``ca_file`` holds no certificate."""
        if profile.ca_file is not None:
            _require_certificate(profile.ca_file)
        self.profile = profile
        self.bucket = profile.bucket

    @property
    def can_delete(self) -> bool:
        """Whether the keys may delete, as the profile says."""
        return self.profile.can_delete

    @cached_property
    def credentials(self) -> "Credentials | None":
        """The keys of all clients below, renewed in one place."""
        with vendor_errors("find the keys for", f"s3://{self.bucket}"):
            return find_credentials(self.profile)

    @cached_property
    def client(self) -> "S3Client":
        """The boto3 client, for what only the probe asks of a store."""
        with vendor_errors("set up access to", f"s3://{self.bucket}"):
            return boto_client(self.profile, self.credentials, REQUEST_ATTEMPTS)

    @cached_property
    def _boto_once(self) -> "S3Client":
        """For archives: it sends each request once, because upload and download repeat parts and ranges themselves."""
        with vendor_errors("set up access to", f"s3://{self.bucket}"):
            return boto_client(self.profile, self.credentials, attempts=1)

    @cached_property
    def _boto_for_nodes(self) -> "S3Client":
        with vendor_errors("set up access to", f"s3://{self.bucket}"):
            return boto_client(self.profile, self.credentials, REQUEST_ATTEMPTS, self.profile.node_endpoint_url)

    @cached_property
    def _files(self) -> Any:  # s3fs has no types
        with vendor_errors("set up access to", f"s3://{self.bucket}"):
            return s3fs_client(self.profile, self.credentials, REQUEST_ATTEMPTS)

    def where(self, key: str) -> str:
        """The object as messages name it."""
        return f"s3://{self.bucket}/{key}"

    def protection(self, *, keep: bool) -> dict[str, Any]:
        """What each request that makes an object carries: the store's own encryption, and the lock when it is kept.

        Never an ACL: buckets made since April 2023 refuse them (S3 Object Ownership).
        """
        profile, arguments = self.profile, dict[str, Any]()
        if profile.sse != "none":
            arguments["ServerSideEncryption"] = profile.sse
        if profile.sse_kms_key_id is not None:
            arguments["SSEKMSKeyId"] = profile.sse_kms_key_id
        if keep and profile.lock_mode != "none":
            arguments["ObjectLockMode"] = profile.lock_mode
            arguments["ObjectLockRetainUntilDate"] = now() + timedelta(days=profile.lock_days)
        return arguments

    def put_document(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None, keep: bool = False
    ) -> str:
        """Write a small object with its Content-MD5, on a condition when one is given; returns the new ETag.

        ``keep`` puts it under the profile's Object Lock, as archives are: for what is never written again.
        Raises ConflictError when the object exists (``if_absent``), is missing or has another ETag (``if_match``).
        Raises StoreUnavailableError when no answer came: then it may have been written all the same.
        """
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        request: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "Body": data, "ContentMD5": digest}
        request |= {"ContentType": "application/json"} | self.protection(keep=keep)
        if if_absent:
            request["IfNoneMatch"] = "*"
        if if_match is not None:
            request["IfMatch"] = f'"{if_match}"'
        try:
            with vendor_errors("write", self.where(key)):
                return self._put(request, key, data)
        except BackupNotFoundError:  # how AWS answers If-Match where nothing is; SeaweedFS says 412
            msg = f"Cannot write {self.where(key)}: the condition does not hold, somebody else has deleted it."
            raise ConflictError(msg) from None

    def _put(self, request: dict[str, Any], key: str, data: bytes) -> str:
        try:
            return self.client.put_object(**request)["ETag"].strip('"')
        except self.client.exceptions.ClientError as error:
            # The first attempt may have been obeyed and only its answer lost; then the second meets our own bytes.
            repeated = error.response["ResponseMetadata"].get("RetryAttempts", 0)
            if repeated and (etag := self._if_held(key, data)) is not None:
                return etag
            raise

    def _if_held(self, key: str, data: bytes) -> str | None:
        try:
            held, etag = self.get_document(key)
        except FerryError:
            return None
        return etag if held == data else None

    def get_document(self, key: str) -> tuple[bytes, str]:
        """A small object and its ETag, which belong together. Raises BackupNotFoundError when there is none."""
        for _ in range(_DOCUMENT_READS):
            try:
                # s3fs asks for size and ETag first and then for the bytes of just that ETag.
                with vendor_errors("read", self.where(key)), self._files.open(f"{self.bucket}/{key}", "rb") as file:
                    return file.read(), file.details["ETag"].strip('"')
            except ConflictError:
                continue
        msg = f"{self.where(key)} was replaced {_DOCUMENT_READS} times while it was read."
        raise StoreUnavailableError(msg)

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says about one object, or None when it is not there."""
        try:
            with vendor_errors("look at", self.where(key)):
                found = self.client.head_object(Bucket=self.bucket, Key=key)
        except BackupNotFoundError:
            return None
        return ObjectInfo(
            key=key,
            bytes=found["ContentLength"],
            etag=found["ETag"].strip('"'),
            modified=found["LastModified"],
            metadata=found["Metadata"],
            locked_until=found.get("ObjectLockRetainUntilDate"),
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with the folder ``prefix`` (with its ``/``), in order of keys."""
        with vendor_errors("list", self.where(prefix)):
            found = self._files.find(f"{self.bucket}/{prefix}", detail=True)
        for path, info in found.items():
            key = path.removeprefix(f"{self.bucket}/")
            if key.startswith(prefix):
                etag = info["ETag"].strip('"')
                yield ObjectInfo(key=key, bytes=info["size"], etag=etag, modified=info["LastModified"])

    def list_folders(self, prefix: str) -> Names:
        """Names of the folders directly under the folder ``prefix`` (with its ``/``), in order; none is no error.

        A store that keeps objects as files may name a folder for a while after its last object was deleted
        (SeaweedFS 4.48 does).
        """
        try:
            with vendor_errors("list", self.where(prefix)):
                found = self._files.ls(f"{self.bucket}/{prefix}", detail=True)
        except BackupNotFoundError:
            return []
        return sorted(info["name"].rsplit("/", 1)[-1] for info in found if info["type"] == "directory")

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects one by one in that order; one that is not there is fine.

        With keys that may not delete (``can_delete``) nothing is asked, and nothing raised: what stays is for whoever
        prunes. In a bucket with Object Lock the object is hidden, and its bytes stay until the lock has ended.
        Raises StoreRefusedError after trying all when some may not be deleted (object lock, no right). One request
        each, because the request for many carries a checksum that stores other than AWS do not all know.
        """
        if not self.can_delete:
            for key in keys:
                _log.info("%s stays: the keys may not delete.", self.where(key))
            return
        refused: list[StoreRefusedError] = []
        for key in keys:
            try:
                with vendor_errors("delete", self.where(key)):
                    self.client.delete_object(Bucket=self.bucket, Key=key)
            except BackupNotFoundError:
                continue
            except StoreRefusedError as error:
                refused.append(error)
        if refused:
            msg = f"{len(refused)} objects were not deleted; the first: {refused[0].message}"
            raise StoreRefusedError(msg, refused[0].remedy)

    def upload(
        self,
        key: str,
        blocks: Iterable[bytes],
        *,
        metadata: Mapping[str, str] | None = None,
        progress: Progress = no_progress,
        expected_bytes: int | None = None,
        longest_bytes: int | None = None,
    ) -> Uploaded:
        """Write an archive to a new key, hashing it on the way, under the profile's lock.

        Memory is at most part_bytes x parts_in_flight, or two parts where a large archive needs larger ones.

        Every part carries a Content-MD5 that the store verifies. ``progress`` gets the bytes of each finished part
        and 0 about once a second while waiting; what it raises, and what ``blocks`` raises, ends the upload.
        On any failure nothing stays behind: no upload, no object. The caller closes ``blocks``.

        Parts are cut for ``expected_bytes``, or for ``longest_bytes`` where the exact size is not known before.

        Raises RepositoryError, before a byte is read, when it is larger than the provider allows. Raises
        ConflictError when the key exists: an archive is never overwritten, delete it first. Raises
        ArchiveDamagedError when the source gave other than ``expected_bytes``, or the store holds another size.
        """
        plan = self._plan_parts(key, longest_bytes or expected_bytes)
        patience = 2 * self.profile.read_timeout_seconds
        protection = self.protection(keep=True)
        upload = ArchiveUpload(self._boto_once, self.bucket, key, plan, patience, progress, protection)
        return upload.send(blocks, dict(metadata or {}), expected_bytes)

    def _plan_parts(self, key: str, expected_bytes: int | None) -> PartPlan:
        profile = self.profile
        limits = PartPlan(profile.part_bytes, profile.parts_in_flight, profile.max_parts)
        return plan_parts(self.where(key), limits, expected_bytes, profile.max_object_bytes)

    def continue_upload(
        self,
        unfinished: UnfinishedUpload,
        blocks_from: Callable[[int], Iterable[bytes]],
        *,
        expected_bytes: int,
        progress: Progress = no_progress,
    ) -> Uploaded:
        """Continue an archive's upload that a dead run left, after the parts that the store has of it.

        ``blocks_from`` gives the blocks from a byte on. No sha256 comes back: reading the archive back fixes it. On any
        failure the upload is aborted; ConflictError also when somebody else has ended it.
        """
        plan, patience = self._plan_parts(unfinished.key, expected_bytes), 2 * self.profile.read_timeout_seconds
        upload = ArchiveUpload(self._boto_once, self.bucket, unfinished.key, plan, patience, progress)
        return upload.go_on(unfinished.upload_id, blocks_from, expected_bytes)

    def read(self, key: str, *, expected_bytes: int, etag: str | None = None) -> Iterator[bytes]:
        """An archive's bytes in blocks of at most 1 MiB, taken up again where a stall, reset or short body ended them.

        Raises ArchiveDamagedError when it is missing, has another size or ETag, or is replaced meanwhile; raises
        StoreUnavailableError after five attempts that brought no byte. The caller compares the sha256.
        """
        return ArchiveDownload(self._boto_once, self.bucket, key, expected_bytes, etag).blocks()

    def presign(self, key: str) -> str:
        """An address that lets a node read one object for presign_seconds; a secret, for no log and no result."""
        with vendor_errors("sign an address for", self.where(key)):
            return self._boto_for_nodes.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket, "Key": key},
                ExpiresIn=self.profile.presign_seconds,
            )

    def uploads(self, prefix: str) -> tuple[UnfinishedUpload, ...]:
        """Multipart uploads under ``prefix``, neither completed nor aborted, ours or not, in order of keys."""
        found: list[UnfinishedUpload] = []
        with vendor_errors("list the uploads of", self.where(prefix)):
            for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix):
                found += [
                    UnfinishedUpload(key=upload["Key"], upload_id=upload["UploadId"], begun=upload["Initiated"])
                    for upload in page.get("Uploads", [])
                ]
        return tuple(sorted(found, key=lambda upload: (upload.key, upload.begun)))  # SeaweedFS sorts by upload id

    def abort_uploads(self, prefix: str) -> int:
        """Abort every multipart upload under the folder ``prefix``; how many. Only for who holds the lease of it."""
        found = self.uploads(prefix)
        for upload in found:
            with (
                suppress(ConflictError),
                self._if_allowed(),
                vendor_errors("abort the upload of", self.where(upload.key)),
            ):
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.upload_id)
        return len(found)

    @contextmanager
    def _if_allowed(self) -> Iterator[None]:
        """Of keys that may not delete, some providers withhold this too; the bucket's lifecycle then ends uploads."""
        try:
            yield
        except StoreRefusedError as error:
            if self.can_delete:
                raise
            _log.warning("An unfinished upload stays: %s", error.message)
