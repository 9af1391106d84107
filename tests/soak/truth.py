"""The oracle of the soak: what the bucket holds, read with boto3 and qdrant-edge alone, compared with what was written.

Ferry's own reading (`python -m ferry verify`) is asked too, elsewhere; the two must agree.
"""

import hashlib
import json
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from qdrant_edge import CountRequest, EdgeShard, ScrollRequest

from tests.soak.content import Content, Hashes, point_hash, total
from tests.workshop import Workshop, node_snapshots

PAGE_POINTS = 500


@dataclass(frozen=True)
class Held:
    """One object as a listing shows it."""

    etag: str
    bytes: int


@dataclass
class Bucket:
    """The bucket at one moment: every object, every manifest and record, and the fences that stand in their places."""

    objects: dict[str, Held]
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    fences: dict[str, dict[str, Any]] = field(default_factory=dict)

    def committed(self) -> dict[str, str]:
        """ETags of all manifests and records."""
        return {key: self.objects[key].etag for key in (*self.manifests, *self.records)}

    def complete(self) -> list[str]:
        """Ids of backups with a record, the newest first."""
        return sorted((key.split("/")[2] for key in self.records), reverse=True)

    def named(self) -> dict[str, str]:
        """Keys of the archives that a manifest names, with the key of that manifest."""
        return {
            key.rpartition("/")[0] + "/" + archive["key"]: key
            for key, manifest in self.manifests.items()
            for archive in manifest["archives"]
        }

    def archives(self) -> list[str]:
        """Keys of all archives, named or not."""
        return [key for key in self.objects if key.startswith("backups/") and key.endswith(".snapshot")]


class Truth:
    """What was ever seen committed, and whether it still is and reads back."""

    def __init__(self, shop: Workshop, content: Content) -> None:
        self.shop = shop
        self.content = content
        self.known: dict[str, str] = {}  # ETag of everything that was committed, by key
        self.read: dict[tuple[str, str], str] = {}  # digest of archives that were read, by key and ETag
        self.pruned: set[str] = set()
        self._client = shop.bucket
        self._prefix = shop.folder.name + "/"

    def look(self) -> Bucket:
        """List the bucket and read its documents; every document must be whole."""
        found: dict[str, Held] = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket="ferry", Prefix=self._prefix):
            for entry in page.get("Contents", []):
                found[entry["Key"].removeprefix(self._prefix)] = Held(entry["ETag"].strip('"'), entry["Size"])
        bucket = Bucket(found)
        for key in found:
            if key.startswith("backups/") and key.endswith(("/manifest.json", "/backup.json")):
                document = json.loads(self.get(key))
                kind = bucket.manifests if key.endswith("/manifest.json") else bucket.records
                (bucket.fences if "fence" in document else kind)[key] = document
        return bucket

    def get(self, key: str) -> bytes:
        """An object's bytes."""
        with closing(self._client.get_object(Bucket="ferry", Key=self._prefix + key)["Body"]) as body:
            return bytes(body.read())

    def uploads(self) -> list[Any]:
        """Multipart uploads that were begun and neither completed nor aborted."""
        return list(self._client.list_multipart_uploads(Bucket="ferry", Prefix=self._prefix).get("Uploads", []))

    def readers(self) -> list[str]:
        """Marks of those who read a backup."""
        found = self._client.list_objects_v2(Bucket="ferry", Prefix=self._prefix + "readers/").get("Contents", [])
        return [entry["Key"] for entry in found]

    def parts(self, upload: Any) -> list[Any]:
        """The parts of one of them that the store has."""
        found = self._client.list_parts(Bucket="ferry", Key=upload["Key"], UploadId=upload["UploadId"])
        return list(found.get("Parts", []))

    def require_kept(self, bucket: Bucket, newest: int) -> None:
        """Whatever was committed is as it was; nothing is gone of the newest so many complete backups that ever were.

        Nor of a run that did not end: it is younger than what a prune leaves alone.
        """
        committed = bucket.committed()
        ever = {key.split("/")[2] for key in (*self.known, *committed) if key.endswith("/backup.json")}
        prunable = set(sorted(ever)[:-newest])
        for key, etag in list(self.known.items()):
            if committed.get(key) == etag:
                continue
            assert key not in committed, f"{key} was committed and is another document now"
            backup_id = key.split("/")[2]
            why = f"{key} was committed and is lost: {bucket.fences.get(key, 'nothing there')}"
            assert backup_id in prunable | self.pruned, why
            self.pruned.add(backup_id)
            del self.known[key]
        self.known.update(committed)

    def require_readable(self, bucket: Bucket, anew: bool = False) -> int:
        """Every manifest and record is true; how many archives were read. ``anew``: also those read before."""
        names = bucket.named()
        for key in names:
            assert key in bucket.objects, f"{names[key]} names {key}, which is not there"
        number = 0
        for key, manifest in bucket.manifests.items():
            self._require_true(key, manifest)
            folder = key.rpartition("/")[0]
            for archive in manifest["archives"]:
                place = f"{folder}/{archive['key']}"
                if anew or (place, bucket.objects[place].etag) not in self.read:
                    self._read_archive(place, archive, manifest["collection"])
                    self.read[place, bucket.objects[place].etag] = archive["sha256"]
                    number += 1
                assert self.read[place, bucket.objects[place].etag] == archive["sha256"], place
        for key, record in bucket.records.items():
            self._require_record(key, record, bucket)
        return number

    def left_behind(self, bucket: Bucket) -> list[str]:
        """What must not be there when nothing runs and the last run was not disturbed."""
        named = set(bucket.named())
        condemned = {key.rpartition("/")[0] for key, fence in bucket.fences.items() if fence["fence"] == "condemned"}
        found = [f"{fence['fence']} {key}" for key, fence in bucket.fences.items() if fence["fence"] != "condemned"]
        found += [
            f"archive {key}"
            for key in bucket.archives()
            if key not in named and not any(key.startswith(folder + "/") for folder in condemned)
        ]
        found += [
            f"journal {key}" for key in bucket.objects if key.startswith(("runs/", "readers/", "probe/", "prunes/"))
        ]
        found += [
            f"lease {key}"
            for key in bucket.objects
            if key.startswith("leases/") and not json.loads(self.get(key))["released"]
        ]
        found += [f"upload {upload['Key']}" for upload in self.uploads()]
        spool = self.shop.folder / "spool"
        found += [f"spool {path.name}" for path in (spool.iterdir() if spool.exists() else [])]
        return found + [f"snapshot {path}" for path in node_snapshots(self.content.cluster)]

    def require_latest(self, bucket: Bucket, backup_id: str | None = None) -> None:
        """That backup, or the newest, holds, shard by shard, what the source holds now."""
        newest = backup_id or bucket.complete()[0]
        manifests = {m["collection"]: m for m in bucket.manifests.values() if m["backup_id"] == newest}
        assert set(manifests) == set(self.content.shapes)
        for name, manifest in manifests.items():
            for archive in manifest["archives"]:
                for shard in archive["shards"]:
                    wanted = self.content.latest(name, shard["shard_id"])
                    assert shard["proof"]["content"]["digest"] == wanted, f"{newest}: {name}/{shard['shard_id']}"

    def _require_true(self, key: str, manifest: dict[str, Any]) -> None:
        _require_self_hash(key, manifest)
        _, cluster, backup_id, collection, _ = key.split("/")
        assert (manifest["cluster"], manifest["backup_id"], manifest["collection"]) == (cluster, backup_id, collection)
        shards = {shard["shard_id"] for archive in manifest["archives"] for shard in archive["shards"]}
        assert shards == set(range(self.content.shapes[collection].shards)), f"{key} holds shards {shards}"

    def _require_record(self, key: str, record: dict[str, Any], bucket: Bucket) -> None:
        _require_self_hash(key, record)
        for entry in record["collections"]:
            manifest = key.removesuffix("backup.json") + entry["collection"] + "/manifest.json"
            assert manifest in bucket.manifests, f"{key} counts {entry['collection']}, which has no manifest"
            assert hashlib.sha256(self.get(manifest)).hexdigest() == entry["manifest_sha256"], manifest

    def _read_archive(self, key: str, archive: dict[str, Any], collection: str) -> None:
        """Bytes, sha256, count and content of an archive of one shard, and that the source once held just that."""
        data = self.get(key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (archive["bytes"], archive["sha256"]), key
        [shard] = archive["shards"]
        points = _points(data)
        proof, digest = shard["proof"], total(points)
        assert (len(points), digest) == (proof["points"], proof["content"]["digest"]), key
        assert digest in self.content.digests(collection, shard["shard_id"]), f"{key}: the source never held that"


def _require_self_hash(key: str, document: dict[str, Any]) -> None:
    rest = {name: value for name, value in document.items() if name != "self_sha256"}
    found = hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()
    assert found == document["self_sha256"], f"{key} does not match its own hash"


def _points(data: bytes) -> Hashes:
    """The points of a shard archive, by Qdrant's own engine."""
    found: Hashes = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        path.write_bytes(data)
        EdgeShard.unpack_snapshot(str(path), f"{folder}/shard")
        shard = EdgeShard.load(f"{folder}/shard")
        try:
            count, following = shard.count(CountRequest(exact=True)), None
            while True:
                request = ScrollRequest(offset=following, limit=PAGE_POINTS, with_payload=True, with_vector=True)
                records, following = shard.scroll(request)
                found |= {record.id: point_hash(record.id, record.payload, record.vector) for record in records}
                if following is None:
                    break
        finally:
            shard.close()
    assert len(found) == count
    return found
