"""Archives on their way into the bucket: parts in parallel, sha256 in line, in bounded memory.

One layer of retries: the boto3 client used here sends each request once, and this module repeats a part, with a fresh
signature each time, until ``patience_seconds`` have passed without success.
"""

import base64
import hashlib
import io
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from ferry.errors import (
    ArchiveDamagedError,
    BackupNotFoundError,
    ConflictError,
    FerryError,
    RepositoryError,
    StoreUnavailableError,
)
from ferry.models import Progress
from ferry.repository.parts import PartPlan
from ferry.repository.refusals import vendor_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0  # how often a waiting upload asks whether to stop
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 8.0
_ABORT_ATTEMPTS = 3
_MD5 = re.compile(r"[0-9a-f]{32}")

T = TypeVar("T")


@dataclass(frozen=True)
class Uploaded:
    """What an upload left in the bucket: its size, the store's ETag, and the sha256 of the bytes that were sent.

    The sha256 of an upload that was continued is None: its first parts were sent by a run that is dead.
    """

    bytes: int
    sha256: str | None
    etag: str


class _Body(io.RawIOBase):
    """A part as a file that needs no copy of it.

    botocore sends a bare bytearray in one call, for which Python sets one time limit in all, and urllib3 makes that the
    *connect* limit: on a slow line a part would fail after 10 s. Of a file each block of 16 KiB has it for itself.
    """

    def __init__(self, data: bytearray | bytes) -> None:
        super().__init__()
        self._data = memoryview(data)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._at + size
        block = bytes(self._data[self._at : end])
        self._at += len(block)
        return block

    def __len__(self) -> int:
        return len(self._data)


@dataclass
class ArchiveUpload:
    """One archive being written to one new key: parts in parallel, sha256 in line, nothing left behind on failure."""

    client: "S3Client"
    bucket: str
    key: str
    plan: PartPlan
    patience_seconds: float
    progress: Progress
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of every request that makes an object: SSE, lock
    _stopping: threading.Event = field(default_factory=threading.Event)
    _sha256: Any = field(default_factory=hashlib.sha256)
    _sent_bytes: int = 0
    _own_etag: str | None = None
    _mark: str = field(default_factory=lambda: uuid4().hex)
    _begun: int = 0
    _spare: list[bytearray] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The object as messages name it."""
        return f"s3://{self.bucket}/{self.key}"

    def send(self, blocks: Iterable[bytes], metadata: dict[str, str], expected_bytes: int | None) -> Uploaded:
        """Send all blocks. See Store.upload for what is promised and raised."""
        self._require_absent()
        metadata = metadata | {"upload": self._mark}
        parts = self._cut(blocks)
        first = next(parts, bytearray())
        if len(first) < self.plan.part_bytes:
            self._compare_with_expected(len(first), expected_bytes)
            self._put_whole(first, metadata)
        else:
            upload_id = self._persist(lambda: self._create(metadata))
            self._put_parts(upload_id, [], chain([first], parts), expected_bytes)
        return self._confirmed_by_store()

    def go_on(self, upload_id: str, blocks_from: Callable[[int], Iterable[bytes]], expected_bytes: int) -> Uploaded:
        """Continue an upload of a dead run after the parts that the store has. See Store.continue_upload."""
        self._require_absent()
        sent = self._parts_there(upload_id, expected_bytes)
        if sent:
            self.plan = replace(self.plan, part_bytes=sent[0].bytes)
        self._sent_bytes = sum(part.bytes for part in sent)
        self._sha256 = None
        self.progress(self._sent_bytes)
        rest = self._cut(blocks_from(self._sent_bytes)) if self._sent_bytes < expected_bytes else iter(())
        self._put_parts(upload_id, sent, rest, expected_bytes)
        return self._confirmed_by_store()

    def _parts_there(self, upload_id: str, expected_bytes: int) -> list["_SentPart"]:
        """The first parts in a row that have one size, and the last one too where they are all there is."""
        found: list[_SentPart] = []
        with vendor_errors("list the parts of", self.where):
            pages = self.client.get_paginator("list_parts")
            for page in pages.paginate(Bucket=self.bucket, Key=self.key, UploadId=upload_id):
                for part in page.get("Parts", []):
                    etag = part["ETag"]
                    md5 = bytes.fromhex(etag.strip('"')) if _MD5.fullmatch(etag.strip('"')) else b""
                    found.append(_SentPart(part["PartNumber"], etag, md5, part["Size"], None))
        found.sort(key=lambda part: part.number)
        row = [part for number, part in enumerate(found, 1) if part.number == number]
        if sum(part.bytes for part in row) == expected_bytes:
            return row
        return list(takewhile(lambda part: part.bytes == row[0].bytes, row))

    def _cut(self, blocks: Iterable[bytes]) -> Iterator[bytearray]:
        """Gather blocks into parts, hashing each block once, as it comes."""
        size = self.plan.part_bytes
        part, filled = self._buffer(), 0
        for block in blocks:
            if self._sha256 is not None:
                self._sha256.update(block)
            view = memoryview(block)
            while view:
                taken = min(size - filled, len(view))
                part[filled : filled + taken] = view[:taken]
                filled, view = filled + taken, view[taken:]
                if filled == size:
                    yield part
                    part, filled = self._buffer(), 0
        if filled:
            yield part[:filled]

    def _buffer(self) -> bytearray:
        return self._spare.pop() if self._spare else bytearray(self.plan.part_bytes)

    def _put_whole(self, data: bytearray, metadata: dict[str, str]) -> None:
        digest = hashlib.md5(data, usedforsecurity=False)

        def put() -> None:
            with vendor_errors("write", self.where):
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.key,
                    Body=cast("IO[bytes]", _Body(data)),
                    ContentLength=len(data),
                    ContentMD5=base64.b64encode(digest.digest()).decode(),
                    Metadata=metadata,
                    IfNoneMatch="*",
                    **self.arguments,
                )

        self._written_once(put, digest.hexdigest())
        self._sent_bytes = len(data)
        self.progress(len(data))

    def _put_parts(
        self, upload_id: str, sent: list["_SentPart"], parts: Iterator[bytearray], expected_bytes: int | None
    ) -> None:
        pool = ThreadPoolExecutor(self.plan.parts_in_flight, thread_name_prefix="ferry-part")
        try:
            sent = self._send_parts(pool, upload_id, sent, parts)
            self._compare_with_expected(self._sent_bytes, expected_bytes)
            own_etag = hashlib.md5(b"".join(part.md5 for part in sent), usedforsecurity=False).hexdigest()
            own_etag += f"-{len(sent)}"
            self._written_once(lambda: self._complete(upload_id, sent), own_etag)
            if all(part.etag.strip('"') == part.md5.hex() for part in sent):
                self._own_etag = own_etag
        except BaseException:  # KeyboardInterrupt and StoppedError too: no upload may stay behind
            self._stopping.set()
            pool.shutdown(cancel_futures=True)  # a part that arrives after an abort may stay; so these end first
            self._abort(upload_id)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._abort_strays()

    def _send_parts(
        self, pool: ThreadPoolExecutor, upload_id: str, sent: list["_SentPart"], parts: Iterator[bytearray]
    ) -> list["_SentPart"]:
        pending: set[Future[_SentPart]] = set()
        for number, part in enumerate(parts, len(sent) + 1):
            if number > self.plan.max_parts:
                msg = f"{self.where} is larger than {self.plan.max_parts} parts of {self.plan.part_bytes} bytes."
                raise RepositoryError(msg, "Raise part_bytes of the repository profile.")
            pending.add(pool.submit(self._send_part, upload_id, number, part))
            # The part that is being filled counts, so one place is kept for it.
            pending = self._reap(pending, sent, at_most=max(self.plan.parts_in_flight - 1, 0))
        self._reap(pending, sent, at_most=0)
        return sorted(sent, key=lambda done: done.number)

    def _reap(
        self, pending: set["Future[_SentPart]"], sent: list["_SentPart"], at_most: int
    ) -> set["Future[_SentPart]"]:
        """Collect finished parts until no more than ``at_most`` are under way; asks for a stop each second."""
        while pending:
            limit = _POLL_SECONDS if len(pending) > at_most else 0
            finished, pending = wait(pending, timeout=limit, return_when=FIRST_COMPLETED)
            for future in finished:
                part = future.result()
                sent.append(part)
                if part.buffer is not None:
                    self._spare.append(part.buffer)
                self._sent_bytes += part.bytes
                self.progress(part.bytes)
            if not finished:
                if len(pending) <= at_most:
                    break
                self.progress(0)
        return pending

    def _send_part(self, upload_id: str, number: int, data: bytearray) -> "_SentPart":
        digest = hashlib.md5(data, usedforsecurity=False).digest()

        def put() -> str:
            with vendor_errors("write", f"part {number} of {self.where}"):
                answer = self.client.upload_part(
                    Bucket=self.bucket,
                    Key=self.key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=cast("IO[bytes]", _Body(data)),
                    ContentLength=len(data),
                    ContentMD5=base64.b64encode(digest).decode(),
                )
            return answer["ETag"]

        return _SentPart(number, self._persist(put), digest, len(data), data)

    def _persist(self, request: Callable[[], T]) -> T:
        """Repeat a request that fails for passing reasons until the patience is used up or a stop is asked for."""
        deadline: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return request()
            except StoreUnavailableError:
                deadline = deadline or time.monotonic() + self.patience_seconds
                if time.monotonic() >= deadline or self._stopping.wait(pause * random.uniform(0.5, 1.5)):  # noqa: S311
                    raise
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _create(self, metadata: dict[str, str]) -> str:
        self._begun += 1
        with vendor_errors("begin the upload of", self.where):
            answer = self.client.create_multipart_upload(
                Bucket=self.bucket, Key=self.key, Metadata=metadata, **self.arguments
            )
        return answer["UploadId"]

    def _complete(self, upload_id: str, sent: list["_SentPart"]) -> None:
        parts: list[CompletedPartTypeDef] = [{"PartNumber": part.number, "ETag": part.etag} for part in sent]
        # botocore turns the 200 with an error in its body, which S3 may answer here, into a 500 (handlers.py).
        with vendor_errors("complete the upload of", self.where):
            self.client.complete_multipart_upload(
                Bucket=self.bucket,
                Key=self.key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )

    def _written_once(self, write: Callable[[], None], own_etag: str) -> None:
        """Write; when the store says that the object or the end of the upload is there already, see whose it is.

        A first attempt may have been obeyed although its answer was lost. Our own mark tells our object from that of
        another run; where an upload was continued, its mark is the dead run's, and an ETag made of MD5s tells it.
        """
        try:
            self._persist(write)
        except ConflictError:
            with suppress(BackupNotFoundError):
                _, etag, mark = self._persist(self._look)
                if mark == self._mark or etag == own_etag:
                    return
            raise

    def _abort(self, upload_id: str) -> None:
        for attempt in range(_ABORT_ATTEMPTS):
            try:
                with suppress(ConflictError), vendor_errors("abort the upload of", self.where):
                    self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.key, UploadId=upload_id)
            except FerryError as error:
                if not error.transient or attempt + 1 == _ABORT_ATTEMPTS:
                    _log.warning("An unfinished upload stays until the next start: %s", error.message)
                    return
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
            else:
                return

    def _abort_strays(self) -> None:
        """Where beginning took several attempts, an earlier one may have been obeyed although its answer was lost."""
        if self._begun < 2:
            return
        try:
            with vendor_errors("list the uploads of", self.where):
                found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.key).get("Uploads", [])
        except FerryError as error:
            _log.warning("An unfinished upload may stay until the next start: %s", error.message)
            return
        for upload in found:
            if upload["Key"] == self.key:
                self._abort(upload["UploadId"])

    def _compare_with_expected(self, sent_bytes: int, expected_bytes: int | None) -> None:
        if expected_bytes is not None and sent_bytes != expected_bytes:
            msg = f"{self.where}: the source gave {sent_bytes} bytes where {expected_bytes} were announced."
            raise ArchiveDamagedError(msg, "Nothing was written to that key; run the backup again.")

    def _look(self) -> tuple[int, str, str | None]:
        with vendor_errors("look at", self.where):
            found = self.client.head_object(Bucket=self.bucket, Key=self.key)
        return found["ContentLength"], found["ETag"].strip('"'), found["Metadata"].get("upload")

    def _require_absent(self) -> None:
        """Before any byte is moved; the store is asked to refuse it once more at the end."""
        with suppress(BackupNotFoundError):
            held_bytes, *_ = self._persist(self._look)
            msg = f"{self.where} exists already with {held_bytes} bytes; an archive is never overwritten."
            raise ConflictError(msg, "Another run wrote it. If it has no manifest, it may be deleted.")

    def _confirmed_by_store(self) -> Uploaded:
        """Ask the store what it holds now: the size, and the ETag where all parts showed that it is made of MD5s.

        Not so with SSE-KMS, and on some servers other than AWS; each part has a Content-MD5 anyway.
        """

        held_bytes, etag, _ = self._persist(self._look)
        if held_bytes != self._sent_bytes:
            msg = f"{self.where} has {held_bytes} bytes in the bucket; {self._sent_bytes} were sent."
            raise ArchiveDamagedError(msg)
        if self._own_etag and etag != self._own_etag:
            msg = f"{self.where} was put together wrongly by the store: its ETag is {etag}, not {self._own_etag}."
            raise ArchiveDamagedError(msg)
        sha256 = self._sha256.hexdigest() if self._sha256 is not None else None
        return Uploaded(self._sent_bytes, sha256, etag)


@dataclass(frozen=True)
class _SentPart:
    number: int
    etag: str
    md5: bytes
    bytes: int
    buffer: bytearray | None
