"""Archives on their way out of the bucket: one stream, taken up again where it broke, never from another object."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ferry.errors import ArchiveDamagedError, BackupNotFoundError, ConflictError, StoreUnavailableError
from ferry.repository.refusals import vendor_errors

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

BLOCK_BYTES = 1024 * 1024
ATTEMPTS_WITHOUT_PROGRESS = 5
_FIRST_PAUSE_SECONDS = 0.25


@dataclass
class ArchiveDownload:
    """One archive being read; the boto3 client sends each request once, so that this is the only layer of retries."""

    client: "S3Client"
    bucket: str
    key: str
    expected_bytes: int
    etag: str | None

    @property
    def where(self) -> str:
        """The object as messages name it."""
        return f"s3://{self.bucket}/{self.key}"

    def blocks(self) -> Iterator[bytes]:
        """The bytes in blocks of at most 1 MiB. See Store.read for what is promised and raised."""
        offset, fruitless = 0, 0
        while offset < self.expected_bytes or self.etag is None:
            try:
                body = self._open(offset)
                try:
                    while block := self._next(body, offset):
                        offset, fruitless = offset + len(block), 0
                        yield block
                finally:
                    body.close()
                self._whole(offset)
            except StoreUnavailableError:
                fruitless += 1
                if fruitless >= ATTEMPTS_WITHOUT_PROGRESS:
                    raise
                time.sleep(_FIRST_PAUSE_SECONDS * 2**fruitless * random.uniform(0.5, 1.5))  # noqa: S311

    def _open(self, offset: int) -> "StreamingBody":
        request: GetObjectRequestTypeDef = {"Bucket": self.bucket, "Key": self.key}
        if offset:
            request["Range"] = f"bytes={offset}-"
        if self.etag:
            request["IfMatch"] = f'"{self.etag}"'
        try:
            with vendor_errors("read", self.where):
                answer = self.client.get_object(**request)
        except BackupNotFoundError:
            msg = f"{self.where} is missing from the bucket; {self.expected_bytes} bytes were expected."
            raise ArchiveDamagedError(msg) from None
        except ConflictError:
            msg = f"{self.where} is not the object that was expected (ETag {self.etag}): it was written anew."
            raise ArchiveDamagedError(msg) from None
        self.etag = answer["ETag"].strip('"')
        total = offset + answer["ContentLength"]
        if total != self.expected_bytes or (offset and answer["ResponseMetadata"]["HTTPStatusCode"] != 206):
            answer["Body"].close()
            msg = f"{self.where} has {total} bytes in the bucket; {self.expected_bytes} were expected."
            raise ArchiveDamagedError(msg)
        return answer["Body"]

    def _next(self, body: "StreamingBody", offset: int) -> bytes:
        with vendor_errors("read", f"{self.where} at byte {offset}"):
            return body.read(BLOCK_BYTES)

    def _whole(self, offset: int) -> None:
        if offset < self.expected_bytes:
            msg = f"{self.where} ended after {offset} of {self.expected_bytes} bytes."
            raise StoreUnavailableError(msg)
