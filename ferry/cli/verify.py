"""``verify``: read every archive of a backup back, open it, and compare it with its manifest."""

import argparse
from contextlib import AbstractContextManager

from ferry.cli import terminal
from ferry.cli.stored import StoredBackup, find_backup
from ferry.connections import Repository, connect_repository
from ferry.errors import VerificationError
from ferry.lanes import Job, raise_failures
from ferry.repository import readers
from ferry.repository.manifest import ArchiveRecord, CollectionManifest
from ferry.verify.archive import ArchiveVerdict, verify_archive

Stored = tuple[CollectionManifest, ArchiveRecord]


def run(given: argparse.Namespace) -> int:
    """Print one row an archive; raises VerificationError when one is damaged."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    found = find_backup(repository, given.cluster, given.backup, given.collection)
    stored = [(manifest, archive) for manifest in found.manifests for archive in manifest.archives]
    with _reading(repository, found), terminal.progress_bars() as tell:
        verdicts = _verify(repository, stored, Job(tell))
    terminal.print_rows(
        ({"archive": verdict.key, "verdict": "; ".join(verdict.problems) or "intact"} for verdict in verdicts),
        f"Backup {found.backup_id} of {given.cluster}",
    )
    damaged = [verdict for verdict in verdicts if verdict.problems]
    if damaged:
        msg = f"{len(damaged)} of {len(verdicts)} archives of backup {found.backup_id} are damaged."
        raise VerificationError(msg, "Use an earlier backup (python -m ferry list) and back up again now.")
    return 0


def _reading(repository: Repository, found: StoredBackup) -> AbstractContextManager[None]:
    """A reader's mark on the backup, so that no prune takes it away meanwhile."""
    keys = repository.keys
    points = [keys.manifest(found.cluster, found.backup_id, manifest.collection) for manifest in found.manifests]
    if found.record is not None:
        points = [keys.backup(found.cluster, found.backup_id)]  # a prune takes it away before any manifest
    who = "verify by python -m ferry"
    return readers.reading(repository.store, keys, found.cluster, found.backup_id, points, who)


def _verify(repository: Repository, stored: list[Stored], job: Job) -> list[ArchiveVerdict]:
    """As many lanes as the worker proves archives at a time; an unreachable bucket raises."""

    def verify(pair: Stored) -> ArchiveVerdict:
        manifest, archive = pair
        points = sum(shard.proof.points or 0 for shard in archive.shards)
        label = f"verify {manifest.collection}/{archive.key}"
        return job.step(label, points, lambda tell: verify_archive(repository, manifest, archive, tell))

    number = max(1, min(repository.worker.parallel_proofs, len(stored)))
    futures = job.run([stored[lane::number] for lane in range(number)], verify)
    raise_failures(futures, "verifying")
    return sorted((future.result() for future in futures), key=lambda verdict: verdict.key)
