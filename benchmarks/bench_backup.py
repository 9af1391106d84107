"""How fast a snapshot moves from its node to the bucket, against reading it alone and writing it alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
import httpx
from botocore.config import Config

from benchmarks.data import Shape
from benchmarks.figures import Figure, Target, middle, ratios, timed
from benchmarks.load import Load
from benchmarks.stage import Stage
from ferry.backup import steps
from ferry.backup.work import Work
from ferry.qdrant.http import path_of
from ferry.qdrant.snapshots import delete_snapshot
from sandbox.s3 import REGION

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TARGET = Target(0.95, "at least")
RAW_KEY = "bench/raw.snapshot"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Round:
    """Seconds for the same bytes, measured beside each other."""

    ferry: float
    down: float
    put: float
    script: float


def measure(stage: Stage, points: int, rounds: int, warm_rounds: int = 1) -> list[Figure]:
    """Upload one shard's snapshot some times over; the three ways change places from round to round."""
    collection = stage.collection(Shape("bench-backup", points))
    work = stage.only_work(collection)
    watch = stage.load_watch()
    results = []
    try:
        data = first_copy(stage, work)
        client = raw_client(stage)
        for number in range(-warm_rounds, rounds):
            done = _round(stage, work, data, client, number, watch if number >= 0 else stage.load_watch())
            results += [done] if number >= 0 else []  # those before warm connections and caches
    finally:
        stage.drop(collection)
    return _figures(len(data), results, watch)


def _round(stage: Stage, work: Work, data: bytes, client: S3Client, number: int, watch: Load) -> Round:
    connections = stage.connect()
    work = work.model_copy(update={"backup_id": stage.new_id()})
    made = steps.create_snapshot(connections, work)
    url = snapshot_url(work, made.name)

    def ferry() -> float:
        with watch:
            return timed(lambda: steps.upload_snapshot(connections, work, made))[0]

    def down() -> float:
        return timed(lambda: download_alone(url))[0]

    def put() -> float:
        part_bytes, in_flight = connections.profile.part_bytes, connections.profile.parts_in_flight
        return timed(lambda: put_alone(client, data, part_bytes, in_flight))[0]

    def script() -> float:
        return timed(lambda: put_by_script(stage, data))[0]

    # Ferry's step deletes the node's file, so the reading alone comes before it; the writing alone changes its place.
    order: list[Callable[[], float]] = [down, put, script, ferry] if number % 2 else [down, ferry, script, put]
    seconds = {way.__name__: way() for way in order}
    journal = connections.journal(work.backup_id)
    for entry in journal.entries():
        connections.store.delete([entry.detail["key"]])
        journal.settle(entry)
    connections.store.delete([RAW_KEY])
    return Round(**seconds)


def first_copy(stage: Stage, work: Work) -> bytes:
    """The bytes of one snapshot, which is deleted again."""
    connections = stage.connect()
    work = work.model_copy(update={"backup_id": stage.new_id()})
    made = steps.create_snapshot(connections, work)
    data = httpx.get(snapshot_url(work, made.name), headers=_PLAIN, timeout=300, trust_env=False).content
    node = connections.cluster.node(work.archive.node.peer_id)
    delete_snapshot(node, work.archive.collection, work.archive.shard_id, made.name)
    connections.journal(work.backup_id).drop("node_snapshot", work.noted)
    return data


_PLAIN = {"Accept-Encoding": "identity"}


def download_alone(url: str) -> int:
    """Read an address to the end and keep nothing, as curl to /dev/null would; how many bytes came."""
    with httpx.stream("GET", url, headers=_PLAIN, timeout=300, trust_env=False) as answer:
        answer.raise_for_status()
        return sum(len(block) for block in answer.iter_raw(BLOCK_BYTES))


def put_alone(client: S3Client, data: bytes, part_bytes: int, in_flight: int) -> None:
    """Write bytes from memory as multipart: no checksum, no signature over the body, nothing asked afterwards."""
    view = memoryview(data)
    upload = client.create_multipart_upload(Bucket="ferry", Key=RAW_KEY)["UploadId"]

    def put(number: int) -> str:
        part = bytes(view[(number - 1) * part_bytes : number * part_bytes])
        answer = client.upload_part(Bucket="ferry", Key=RAW_KEY, UploadId=upload, PartNumber=number, Body=part)
        return answer["ETag"]

    numbers = range(1, -(-len(data) // part_bytes) + 1)
    with ThreadPoolExecutor(in_flight) as pool:
        etags = list(pool.map(put, numbers))
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in zip(numbers, etags, strict=True)]
    client.complete_multipart_upload(
        Bucket="ferry",
        Key=RAW_KEY,
        UploadId=upload,
        MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
    )


def put_by_script(stage: Stage, data: bytes) -> None:
    """Write the same bytes as a script of the operator's own would: boto3's upload_fileobj, all settings its own."""
    client = boto3.client(
        "s3",
        endpoint_url=stage.s3.endpoint_url,
        region_name=REGION,
        aws_access_key_id=stage.s3.access_key,
        aws_secret_access_key=stage.s3.secret_key,
    )
    client.upload_fileobj(io.BytesIO(data), "ferry", RAW_KEY)


def raw_client(stage: Stage) -> S3Client:
    """The fastest plain boto3 client: it neither hashes nor signs bodies, so nothing is easier than it."""
    config = Config(
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path", "payload_signing_enabled": False},
        retries={"total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=120,
        proxies={},
    )
    return boto3.client(
        "s3",
        endpoint_url=stage.s3.endpoint_url,
        aws_access_key_id=stage.s3.access_key,
        aws_secret_access_key=stage.s3.secret_key,
        region_name=REGION,
        config=config,
    )


def snapshot_url(work: Work, name: str) -> str:
    """Where a node gives a snapshot of its shard out."""
    archive = work.archive
    folder = path_of("collections", archive.collection, "shards", archive.shard_id or 0, "snapshots", name)
    return archive.node.url + folder


def _figures(size: int, results: list[Round], watch: Load) -> list[Figure]:
    def speed(seconds: float) -> str:
        return f"{size / 1e6 / seconds:,.0f} MB/s"

    ferry = [done.ferry for done in results]
    down = middle([done.down for done in results])
    notes = (f"one archive of {size / 1e6:,.0f} MB; the whole step: move, compare, delete the node's file",)

    def figure(name: str, writing: list[float], limit: str) -> Figure:
        slower = [max(done.down, seconds) for done, seconds in zip(results, writing, strict=True)]
        values = ratios(slower, ferry)  # of speeds, so the seconds stand the other way round
        raw = f"read {speed(down)}, write {speed(middle(writing))}"
        return Figure(
            area="backup",
            name=name,
            ours=speed(middle(ferry)),
            raw=raw,
            value=middle(values),
            values=values,
            target=TARGET,
            limit=limit,
            notes=notes,
        )

    bare = "node → bucket, sha256 and md5 in line ÷ the slower of reading alone and the barest put, without any hash"
    usual = "node → bucket, sha256 and md5 in line ÷ the slower of reading alone and boto3's upload_fileobj as it comes"
    return [
        figure(usual, [done.script for done in results], f"{watch}; {watch.per_megabytes(size * len(results) / 1e6)}"),
        figure(bare, [done.put for done in results], "the processors, shared with the store: hashing is what differs."),
    ]
