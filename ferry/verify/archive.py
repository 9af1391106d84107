"""Reading an archive back from the bucket and fixing, or comparing, what is in it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferry.archive.node_archive import split_shard
from ferry.archive.proof import Proof, prove_archive
from ferry.connections import Repository
from ferry.errors import ArchiveDamagedError
from ferry.models import Progress, ProofLevel, ShardId, Value, no_progress
from ferry.repository.manifest import ArchiveRecord, CollectionManifest
from ferry.verify import spool


class ArchiveVerdict(Value):
    """What reading an archive back has shown; ``problems`` is empty when all is as the manifest says."""

    key: str
    problems: tuple[str, ...] = ()


@contextmanager
def spooled(
    repository: Repository, key: str, expected: tuple[int, str], progress: Progress = no_progress
) -> Iterator[Path]:
    """The archive as a file in a folder of its own on the spool disk, sha256 compared on the way, removed afterwards.

    ``expected`` is its size in bytes and sha256. Raises ArchiveDamagedError when the bucket holds something else.
    """
    with spool.folder(repository.worker) as folder:
        path = folder / "archive.snapshot"
        if not spool.take_kept(repository.worker, key, path):
            _fetch(repository, key, expected, path, progress)
        yield path


def _fetch(repository: Repository, key: str, expected: tuple[int, str], path: Path, progress: Progress) -> None:
    size, sha256 = expected
    digest, written = hashlib.sha256(), 0
    with path.open("wb") as file:
        for block in repository.store.read(key, expected_bytes=size):
            digest.update(block)
            written += file.write(block)
            progress(0)
    if (written, digest.hexdigest()) != (size, sha256):
        msg = f"{key} holds {written} bytes with sha256 {digest.hexdigest()}; it must be {size} with {sha256}."
        raise ArchiveDamagedError(msg, "The bucket has damaged or changed it: use another backup, and make one now.")


def prove_stored(
    repository: Repository,
    key: str,
    expected: tuple[int, str],
    shard_ids: list[ShardId] | None,
    level: ProofLevel,
    progress: Progress = no_progress,
) -> dict[ShardId | None, Proof]:
    """Prove an archive from the bucket: by shard id for a node's archive, under None for the archive of one shard."""
    with spooled(repository, key, expected, progress) as path:
        if shard_ids is None:
            return {None: _prove(repository, path, level, progress)}
        proofs: dict[ShardId | None, Proof] = {}
        for shard_id in shard_ids:
            part = path.with_name(f"shard-{shard_id}.snapshot")
            split_shard(path, shard_id, part)
            proofs[shard_id] = _prove(repository, part, level, progress)
            part.unlink()
        return proofs


def _prove(repository: Repository, path: Path, level: ProofLevel, progress: Progress) -> Proof:
    sample = repository.worker.sample_points
    return prove_archive(path, path.parent / "open", level, sample=sample, progress=progress)


def verify_archive(
    repository: Repository, manifest: CollectionManifest, archive: ArchiveRecord, progress: Progress = no_progress
) -> ArchiveVerdict:
    """Prove an archive once more and compare with its manifest; damage is in the verdict, not an exception."""
    folder = repository.keys.collection_prefix(manifest.cluster, manifest.backup_id, manifest.collection)
    key = folder + archive.key
    if repository.store.head(key) is None:
        return ArchiveVerdict(key=key, problems=("the object is missing",))
    shard_ids = [shard.shard_id for shard in archive.shards] if archive.kind == "node" else None
    levels = {shard.proof.level for shard in archive.shards}
    level: ProofLevel = "content" if "content" in levels else "count" if "count" in levels else "bytes"
    try:
        proofs = prove_stored(repository, key, (archive.bytes, archive.sha256), shard_ids, level, progress)
    except ArchiveDamagedError as error:
        return ArchiveVerdict(key=key, problems=(error.message,))
    problems = []
    for shard in archive.shards:
        proof = proofs[None if shard_ids is None else shard.shard_id]
        problems += [f"shard {shard.shard_id}: {problem}" for problem in differences(shard.proof, proof)]
    return ArchiveVerdict(key=key, problems=tuple(problems))


def differences(expected: Proof, found: Proof) -> list[str]:
    """What two proofs of the same shard disagree on, in words."""
    problems = []
    if expected.points is not None and expected.points != found.points:
        problems.append(f"{found.points} points, the proof says {expected.points}")
    if expected.content and found.content and expected.content.digest != found.content.digest:
        ranges = expected.content.differing_ranges(found.content)
        problems.append(f"content digest differs in {len(ranges)} of 256 sub-ranges: {', '.join(ranges[:8])}")
    return problems
