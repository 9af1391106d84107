"""Tasks of the verify flow: read every archive of a backup back and compare it with its manifest."""

from contextlib import AbstractContextManager

from prefect.futures import wait

from ferry.connections import connect_repository
from ferry.errors import VerificationError
from ferry.repository import readers
from ferry.repository.manifest import ArchiveRecord, BackupRecord, CollectionManifest
from ferry.verify.archive import ArchiveVerdict
from ferry.verify.archive import verify_archive as verify
from tasks.artifacts import show_table
from tasks.policy import progress, raise_failures, step, stop_with_the_flow
from tasks.runs import holder


@step("find backup", "find backup {backup} of {cluster}")
def find_backup(repository: str, cluster: str, backup: str) -> tuple[BackupRecord, list[CollectionManifest]]:
    """The record of the run and the manifest of each of its collections, self-hashes compared."""
    catalog = connect_repository(repository).catalog
    record = catalog.read_backup(cluster, backup)
    return record, [catalog.read_manifest(cluster, record.backup_id, entry.collection) for entry in record.collections]


def reading(repository: str, cluster: str, record: BackupRecord) -> AbstractContextManager[None]:
    """Hold a reader's mark on the backup, so that no prune takes it away meanwhile."""
    opened = connect_repository(repository)
    point = opened.keys.backup(cluster, record.backup_id)
    who = holder(f"verify {record.backup_id}")
    return readers.reading(opened.store, opened.keys, cluster, record.backup_id, [point], who)


@step("verify archive", "verify {manifest.collection}/{archive.key}")
def verify_archive(repository: str, manifest: CollectionManifest, archive: ArchiveRecord) -> ArchiveVerdict:
    """Read one archive back, open it, and compare bytes, count and digest with its manifest."""
    tell = progress(f"verify {manifest.collection}/{archive.key}", archive.bytes)
    return verify(connect_repository(repository), manifest, archive, tell)


def verify_archives(repository: str, manifests: list[CollectionManifest]) -> list[ArchiveVerdict]:
    """Every archive of every collection; damage is in the verdicts, an unreachable bucket raises."""
    futures = [
        verify_archive.submit(repository, manifest, archive) for manifest in manifests for archive in manifest.archives
    ]
    with stop_with_the_flow(list(futures)):
        wait(list(futures))
    raise_failures(futures, "verifying")
    return [future.result() for future in futures]


def require_intact(cluster: str, record: BackupRecord, verdicts: list[ArchiveVerdict]) -> None:
    """Show the verdicts; raise VerificationError when one archive is not what its manifest says."""
    rows = [{"archive": verdict.key, "verdict": "; ".join(verdict.problems) or "intact"} for verdict in verdicts]
    show_table(("verify", cluster), rows, f"Backup {record.backup_id} read back from the bucket")
    damaged = [f"{verdict.key}: {'; '.join(verdict.problems)}" for verdict in verdicts if verdict.problems]
    if damaged:
        msg = f"Backup {record.backup_id} of {cluster} is damaged: " + "; ".join(damaged)
        raise VerificationError(msg, "Use an earlier backup (python -m ferry list) and back up again now.")
