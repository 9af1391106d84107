"""The bytes of a repository in its bucket: conditional puts, multipart archives, listings, signed addresses.

Two clients with disjoint roles. boto3: everything that names one object exactly (put, head, delete, multipart, archive
streams, signed addresses). s3fs: listings and the reading of small documents. Neither keeps a cache.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from ferry.errors import BackupNotFoundError, ConflictError, FerryError, StoreRefusedError, StoreUnavailableError
from ferry.models import Progress, Value, no_progress
from ferry.profiles import RepositoryProfile
from ferry.repository.clients import boto_client, s3fs_client
from ferry.repository.download import ArchiveDownload
from ferry.repository.parts import plan_parts
from ferry.repository.refusals import vendor_errors
from ferry.repository.upload import ArchiveUpload, Uploaded

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import PutObjectRequestTypeDef

REQUEST_ATTEMPTS = 4  # of one request for a document or a listing, by botocore, with its own pauses
Names = list[str]  # within the classes below, list is a method

_DOCUMENT_READS = 5  # of a document that is replaced between its HEAD and its GET


class ObjectInfo(Value):
    """One object: its whole key, size, ETag without quotes, when it was written, and its own metadata (head only)."""

    key: str
    bytes: int
    etag: str
    modified: datetime
    metadata: dict[str, str] = Field(default_factory=dict)


class UnfinishedUpload(Value):
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    begun: datetime


class ObjectStore(Protocol):
    """What catalog, lease and journal need of a store; the real one and the tests' own in memory both are one."""

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


class Store:
    """One bucket as a repository profile describes it. Safe to share between threads."""

    def __init__(self, profile: RepositoryProfile) -> None:
        self.profile = profile
        self.bucket = profile.bucket

    @cached_property
    def client(self) -> "S3Client":
        """The boto3 client, for what only the probe asks of a store."""
        with vendor_errors("set up access to", f"s3://{self.bucket}"):
            return boto_client(self.profile, REQUEST_ATTEMPTS)

    @cached_property
    def _boto_once(self) -> "S3Client":
        """For archives: it sends each request once, because upload and download repeat parts and ranges themselves."""
        with vendor_errors("set up access to", f"s3://{self.bucket}"):
            return boto_client(self.profile, attempts=1)

    @cached_property
    def _boto_for_nodes(self) -> "S3Client":
        with vendor_errors("set up access to", f"s3://{self.bucket}"):
            return boto_client(self.profile, REQUEST_ATTEMPTS, self.profile.node_endpoint_url)

    @cached_property
    def _files(self) -> Any:  # s3fs has no types
        return s3fs_client(self.profile, REQUEST_ATTEMPTS)

    def where(self, key: str) -> str:
        """The object as messages name it."""
        return f"s3://{self.bucket}/{key}"

    def put_document(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None, keep: bool = False
    ) -> str:
        """Write a small object with its Content-MD5, on a condition when one is given; returns the new ETag.

        ``keep`` puts it under the profile's object lock, as archives and manifests are.

        Raises ConflictError when the object exists (``if_absent``), is missing or has another ETag (``if_match``).
        Raises StoreUnavailableError when no answer came: then it may have been written all the same.
        """
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        request: PutObjectRequestTypeDef = {
            "Bucket": self.bucket,
            "Key": key,
            "Body": data,
            "ContentMD5": digest,
            "ContentType": "application/json",
        }
        if if_absent:
            request["IfNoneMatch"] = "*"
        if if_match is not None:
            request["IfMatch"] = f'"{if_match}"'
        with vendor_errors("write", self.where(key)):
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

        Raises StoreRefusedError after trying all when some may not be deleted (object lock, no right). One request
        each, because the request for many carries a checksum that stores other than AWS do not all know.
        """
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
    ) -> Uploaded:
        """Write an archive to a new key, hashing it on the way; memory is at most part_bytes x parts_in_flight.

        Every part carries a Content-MD5 that the store verifies. ``progress`` gets the bytes of each finished part
        and 0 about once a second while waiting; what it raises, and what ``blocks`` raises, ends the upload.
        On any failure nothing stays behind: no upload, no object. The caller closes ``blocks``.

        Raises ConflictError when the key exists: an archive is never overwritten, delete it first. Raises
        ArchiveDamagedError when the source gave other than ``expected_bytes``, or the store holds another size.
        """
        profile = self.profile
        plan = plan_parts(profile.part_bytes, profile.parts_in_flight, expected_bytes)
        upload = ArchiveUpload(self._boto_once, self.bucket, key, plan, 2 * profile.read_timeout_seconds, progress)
        return upload.send(blocks, dict(metadata or {}), expected_bytes)

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
            with suppress(ConflictError), vendor_errors("abort the upload of", self.where(upload.key)):
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.upload_id)
        return len(found)
