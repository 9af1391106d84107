"""``list``: the backups in a repository, the newest first."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.text import Text

from ferry import report
from ferry.cli import terminal
from ferry.connections import Repository, connect_repository
from ferry.errors import FerryError
from ferry.repository.catalog import BackupSummary

_READERS = 16  # small documents, read beside each other


def run(given: argparse.Namespace) -> int:
    """Print one row a backup."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    clusters = [given.cluster] if given.cluster else repository.catalog.clusters()
    found = [summary for cluster in clusters for summary in repository.catalog.backups(cluster)]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="ferry-list") as pool:
        proofs = list(pool.map(lambda summary: _proof(repository, summary), found))
    if given.json:
        terminal.print_json(
            [{**summary.model_dump(mode="json"), "proof": proof} for summary, proof in zip(found, proofs, strict=True)]
        )
        return 0
    terminal.print_rows(_row(summary, proof) for summary, proof in zip(found, proofs, strict=True))
    if not found:
        what = f" of {given.cluster}" if given.cluster else ""
        terminal.out().print(Text(f"No backups{what} in s3://{repository.profile.bucket}/{repository.profile.prefix}."))
    return 0


def _row(summary: BackupSummary, proof: str) -> dict[str, Any]:
    return {
        "cluster": summary.cluster,
        "backup": summary.backup_id,
        "state": Text("complete", style="green") if summary.complete else Text("incomplete", style="yellow"),
        "proof": proof,
        "points": "" if summary.points is None else f"{summary.points:,}",
        "bytes": "" if summary.bytes is None else report.size(summary.bytes),
        "collections": summary.problem or ", ".join(summary.collections),
    }


def _proof(repository: Repository, summary: BackupSummary) -> str:
    """The proof level of a complete backup, from one of its manifests: a run proves all its archives alike."""
    if not summary.complete or not summary.collections:
        return ""
    try:
        manifest = repository.catalog.read_manifest(summary.cluster, summary.backup_id, summary.collections[0])
    except FerryError:
        return "damaged"
    return ", ".join(sorted({str(proof.level) for _, proof in manifest.proofs()}))
