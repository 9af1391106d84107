"""Which Qdrant version may read another's snapshots. Pure rules; their reasons are in docs/design.md."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ferry.errors import VersionError
from ferry.models import Finding, NodeInfo


class Version(NamedTuple):
    """A Qdrant version; compares as one expects. ``-dev`` and other suffixes are dropped."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


# Before, writes during a snapshot could be lost or the shard deadlock; up to 1.16.3 they only wait.
SAFE_SNAPSHOTS = Version(1, 15, 5)
# 1.16.1 began to move vectors and payloads out of RocksDB at load; 1.18.0 (qdrant#8529) can no longer read RocksDB.
WITHOUT_ROCKSDB = Version(1, 16, 1)
ROCKSDB_REMOVED = Version(1, 18, 0)


def parse(text: str) -> Version:
    """Read ``1.16.3``, ``v1.16.3`` or ``1.17.0-dev``; raises VersionError for anything else."""
    found = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)([-+].*)?", text.strip())
    if not found:
        msg = f"{text!r} is no Qdrant version that can be compared."
        raise VersionError(msg, "Run a released version of Qdrant (GET / shows it).")
    return Version(int(found[1]), int(found[2]), int(found[3]))


def compare(source: str, target: str) -> list[Finding]:
    """Whether snapshots of ``source`` may be recovered on ``target``; an ``error`` finding forbids it.

    Qdrant itself compares nothing here (1.16 to 1.19): a wrong pair fails late and leaves an unreadable shard.
    """
    made, used = parse(source), parse(target)
    findings = []
    if used < made:
        findings.append(_older_target(made, used))
    elif made < WITHOUT_ROCKSDB and used >= ROCKSDB_REMOVED:
        findings.append(
            _finding(
                "error",
                f"Snapshots of {made} may hold RocksDB files, which {used} cannot read (removed in 1.18.0).",
                f"Restore to 1.17.1 first, let it load and so convert everything, then upgrade to {used}.",
            )
        )
    elif used.major == made.major and used.minor - made.minor > 1:
        path = " → ".join([str(made), *(f"1.{minor}" for minor in range(made.minor + 1, used.minor)), str(used)])
        findings.append(
            _finding(
                "warning",
                f"The target runs {used}, {used.minor - made.minor} minor versions after the backup's {made}; "
                "Qdrant supports one at a time.",
                f"If it fails, take the path {path}, with a backup at each step.",
            )
        )
    elif used.major != made.major:
        findings.append(
            _finding("error", f"{used} is another major version than {made}.", f"Restore to {made.major}.x first.")
        )
    return findings + unsafe_snapshots(source)


def unsafe_snapshots(version: str) -> list[Finding]:
    """A warning where making snapshots under writes is not safe."""
    if parse(version) >= SAFE_SNAPSHOTS:
        return []
    return [
        _finding(
            "warning",
            f"Qdrant {version} is older than {SAFE_SNAPSHOTS}: its snapshots are not safe while points are written.",
            "Stop the writers while a backup runs, or upgrade one minor version at a time to 1.16 or newer.",
        )
    ]


def cluster_findings(nodes: Sequence[NodeInfo]) -> list[Finding]:
    """Warnings about the versions that the nodes of one cluster run: mixed ones, unsafe ones."""
    versions = sorted({node.version for node in nodes}, key=parse)
    findings = unsafe_snapshots(versions[0]) if versions else []
    if len(versions) > 1:
        which = ", ".join(f"{node.label} {node.version}" for node in nodes)
        findings.append(
            _finding(
                "warning",
                f"The nodes run different versions: {which}.",
                "Finish the upgrade; until then the newest version counts as the backup's.",
            )
        )
    return findings


def newest(versions: Sequence[str]) -> str:
    """The newest of several versions: what a backup of a mixed cluster needs at least to be restored."""
    return max(versions, key=parse)


def _older_target(made: Version, used: Version) -> Finding:
    return _finding(
        "error",
        f"The target runs {used}, older than the backup's {made}: Qdrant cannot read newer files, "
        "and would leave the shard unreadable.",
        f"Upgrade the target to {made} or newer, one minor version at a time, or restore to another cluster.",
    )


def _finding(severity: str, message: str, remedy: str) -> Finding:
    return Finding.model_validate(
        {"severity": severity, "subject": "qdrant version", "message": message, "remedy": remedy}
    )
