"""Reading an archive back from the bucket and fixing, or comparing, what is in it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ferry.archive.encryption import StoredForm, decoded, public_keys, require_keys
from ferry.archive.node_archive import split_shard
from ferry.archive.proof import Proof, prove_archive
from ferry.connections import Repository
from ferry.errors import ArchiveDamagedError, WrongKeyError
from ferry.models import Progress, ProofLevel, ShardId, Value, no_progress
from ferry.repository.bandwidth import from_buckets, limited
from ferry.repository.kms import find_identity
from ferry.repository.manifest import ArchiveRecord, CollectionManifest
from ferry.verify import spool


class ArchiveVerdict(Value):
    """What reading an archive back has shown; ``problems`` is empty when all is as the manifest says."""

    key: str
    problems: tuple[str, ...] = ()


Expected = tuple[int, str] | StoredForm  # bytes and sha256 of a plain archive, or all that is known of any


def form_of(archive: ArchiveRecord) -> StoredForm:
    """How an archive lies in the bucket, by its record in a manifest."""
    return StoredForm.model_validate(archive.model_dump(include=set(StoredForm.model_fields)))


def snapshot_blocks(
    repository: Repository, key: str, form: StoredForm, progress: Progress = no_progress
) -> Iterator[bytes]:
    """The snapshot's bytes out of the bucket, decrypted where need be, no faster than worker.download_mb_per_second.

    Size and sha256 are compared, of the object and of the snapshot. Raises ArchiveDamagedError at the latest after the
    last block when they are others, and WrongKeyError when the archive is whole and the identity does not open it.
    """
    held = _held_blocks(repository, key, form, progress)
    if form.encoding == "plain":
        yield from held
        return
    identity, where = find_identity(repository.profile), repository.store.where(key)
    try:
        yield from _compared(decoded(identity, form, where, held), where, (form.bytes, form.sha256))
    except (ArchiveDamagedError, WrongKeyError):
        if identity is not None and form.key_id in public_keys(identity):
            for _ in held:  # it should open: whatever was said, damage in the bucket is the reason that counts
                progress(0)
        raise


def _held_blocks(repository: Repository, key: str, form: StoredForm, progress: Progress) -> Iterator[bytes]:
    """The object's own bytes, compared."""
    blocks = repository.store.read(key, expected_bytes=form.held[0])
    paced = limited(blocks, from_buckets(repository.worker), progress)
    return _compared(paced, repository.store.where(key), form.held)


def _compared(blocks: Iterator[bytes], where: str, expected: tuple[int, str]) -> Iterator[bytes]:
    digest, passed = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        passed += len(block)
        yield block
    if (passed, digest.hexdigest()) != expected:
        size, sha256 = expected
        msg = f"{where} holds {passed} bytes with sha256 {digest.hexdigest()}; it must be {size} with {sha256}."
        raise ArchiveDamagedError(msg, "The bucket has damaged or changed it: use another backup, and make one now.")


@contextmanager
def spooled(repository: Repository, key: str, expected: Expected, progress: Progress = no_progress) -> Iterator[Path]:
    """The snapshot as a file in a folder of its own on the spool disk, compared on the way, removed afterwards.

    Raises ArchiveDamagedError when the bucket holds something else, and WrongKeyError (see `snapshot_blocks`).
    """
    with spool.folder(repository.worker) as folder:
        path = folder / "archive.snapshot"
        if not spool.take_kept(repository.worker, key, path):
            with path.open("wb") as file:
                for block in snapshot_blocks(repository, key, _form(expected), progress):
                    file.write(block)
                    progress(0)
        yield path


def require_provable(repository: Repository, level: ProofLevel) -> None:
    """Raise ConfigurationError, before a backup begins, when its archives could not be encrypted, or not be proven."""
    encryption, worker = repository.profile.encryption, repository.worker
    if encryption is not None:
        reads_back = level != "bytes" and worker.prove_from == "bucket"
        require_keys(encryption, find_identity(repository.profile), reads_back=reads_back)


def _form(expected: Expected) -> StoredForm:
    return expected if isinstance(expected, StoredForm) else StoredForm(bytes=expected[0], sha256=expected[1])


def prove_stored(
    repository: Repository,
    key: str,
    expected: Expected,
    shard_ids: list[ShardId] | None,
    level: ProofLevel,
    progress: Progress = no_progress,
) -> dict[ShardId | None, Proof]:
    """Prove an archive from the bucket: by shard id for a node's archive, under None for the archive of one shard.

    An encrypted one needs its `StoredForm`. At level ``bytes`` it needs no identity: then only the object's own bytes
    are compared.
    """
    form = _form(expected)
    if level == "bytes" and form.encoding != "plain" and find_identity(repository.profile) is None:
        return _prove_sealed(repository, key, form, shard_ids or [None], progress)
    with spooled(repository, key, form, progress) as path:
        if shard_ids is None:
            return {None: _prove(repository, path, level, progress)}
        proofs: dict[ShardId | None, Proof] = {}
        for shard_id in shard_ids:
            part = path.with_name(f"shard-{shard_id}.snapshot")
            split_shard(path, shard_id, part)
            proofs[shard_id] = _prove(repository, part, level, progress)
            part.unlink()
        return proofs


def _prove_sealed(
    repository: Repository, key: str, form: StoredForm, names: Sequence[ShardId | None], progress: Progress
) -> dict[ShardId | None, Proof]:
    with spool.folder(repository.worker) as folder:
        if not spool.take_kept(repository.worker, key, folder / "archive.snapshot"):
            for _ in _held_blocks(repository, key, form, progress):
                progress(0)
        return {name: _prove(repository, folder, "bytes", progress) for name in names}


def _prove(repository: Repository, path: Path, level: ProofLevel, progress: Progress) -> Proof:
    sample = repository.worker.sample_points
    return prove_archive(path, path.parent / "open", level, sample=sample, progress=progress)


def verify_archive(
    repository: Repository, manifest: CollectionManifest, archive: ArchiveRecord, progress: Progress = no_progress
) -> ArchiveVerdict:
    """Prove an archive once more and compare with its manifest; damage is in the verdict, not an exception.

    Raises WrongKeyError when it is encrypted and the identity does not open it: that is no damage.
    """
    folder = repository.keys.collection_prefix(manifest.cluster, manifest.backup_id, manifest.collection)
    key = folder + archive.key
    if repository.store.head(key) is None:
        return ArchiveVerdict(key=key, problems=("the object is missing",))
    shard_ids = [shard.shard_id for shard in archive.shards] if archive.kind == "node" else None
    levels = {shard.proof.level for shard in archive.shards}
    level: ProofLevel = "content" if "content" in levels else "count" if "count" in levels else "bytes"
    try:
        proofs = prove_stored(repository, key, form_of(archive), shard_ids, level, progress)
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
