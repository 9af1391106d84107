"""Every error that Ferry raises, in one tree split by what the operator does next.

FerryError
├── ConfigurationError        a setting or a parameter is wrong; nothing was asked of any server
├── PreflightError            it would not work; nothing was changed
│   ├── LayoutError           the nodes disagree, one is missing, an address rotates, a replica is not Active
│   ├── VersionError          the version rule forbids it
│   └── HeadroomError         not enough disk or RAM, or nobody can tell
├── NodeError                 a Qdrant node answered wrongly
│   ├── NodeUnreachableError  no answer, a 5xx or a 429 (transient)
│   ├── NodeRefusedError      a 4xx: the request is wrong or forbidden
│   └── SnapshotError         a snapshot could not be made, read or recovered
├── RepositoryError           the bucket or what is in it
│   ├── StoreUnavailableError no answer, 5xx, slow down (transient)
│   ├── StoreRefusedError     wrong key, no right, no such bucket
│   ├── ConflictError         a conditional put was refused: somebody else was first
│   ├── LeaseHeldError        another run is at work on the same cluster
│   ├── BackupNotFoundError   no such backup, or it has no manifest
│   ├── ArchiveDamagedError   bytes, count or digest are not what the manifest says
│   └── WrongKeyError         an archive is encrypted for a key that is not configured
├── RestoreError              a restore could not be finished; the live collection is untouched
├── InPlaceError              a restore over a live collection stopped half-way; it may be mixed or unreadable
├── MigrationError            a migration could not be finished; the source is untouched, and it can be gone on with
├── VerificationError         two things that must be equal are not
├── StuckError                replicas of a collection are stuck, and Ferry may not mend them by itself
├── LimitError                a limit of the policy was passed: the backup stopped itself to spare the cluster
└── StoppedError              a cancel was asked for and obeyed
"""

from typing import ClassVar


class FerryError(Exception):
    """A fact (node, shard, object, numbers), whether data changed, and the next command.

    All arguments go to ``super().__init__`` so that the error survives pickling between processes.
    """

    transient: ClassVar[bool] = False
    default_remedy: ClassVar[str | None] = None

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy or self.default_remedy

    def __str__(self) -> str:
        return f"{self.message}\n→ {self.remedy}" if self.remedy else self.message


class ConfigurationError(FerryError):
    """A setting or a parameter is wrong; nothing was asked of any server."""

    default_remedy = "Correct the setting, then run: python -m ferry doctor"


class PreflightError(FerryError):
    """It would not work; nothing was changed."""


class LayoutError(PreflightError):
    """The nodes disagree, one is missing, an address rotates over peers, or a replica is not Active."""


class VersionError(PreflightError):
    """The version rule forbids this source on this target."""


class HeadroomError(PreflightError):
    """Not enough disk or RAM on a node or on the worker, or nobody can tell."""


class NodeError(FerryError):
    """A Qdrant node answered wrongly."""


class NodeUnreachableError(NodeError):
    """No answer in time, a 5xx, or a 429: trying again may help."""

    transient = True


class NodeRefusedError(NodeError):
    """A 4xx: the request is wrong, forbidden, or names what does not exist."""


class SnapshotError(NodeError):
    """A snapshot could not be made, read or recovered."""


class RepositoryError(FerryError):
    """The bucket, or what is in it."""


class StoreUnavailableError(RepositoryError):
    """No answer in time, a 5xx, or a request to slow down: trying again may help."""

    transient = True


class StoreRefusedError(RepositoryError):
    """Wrong key, missing right, or no such bucket."""


class ConflictError(RepositoryError):
    """A conditional put was refused by the store: somebody else wrote first."""


class LeaseHeldError(RepositoryError):
    """Another run is at work on the same cluster and repository."""


class BackupNotFoundError(RepositoryError):
    """No such backup, or one without its manifest, which is no backup."""

    default_remedy = "See what there is: python -m ferry list"


class ArchiveDamagedError(RepositoryError):
    """Bytes, count or digest of an archive are not what they must be."""


class WrongKeyError(RepositoryError):
    """An archive is encrypted, and the key that opens it is not configured. That is no damage."""


class RestoreError(FerryError):
    """A restore could not be finished; the live collection and its alias are untouched."""


class InPlaceError(FerryError):
    """A restore over a live collection stopped half-way: some of its replicas are overwritten, or cannot be read."""


class MigrationError(FerryError):
    """A migration could not be finished; source and alias are untouched, and the same call goes on with it."""


class VerificationError(FerryError):
    """Two things that must be equal are not."""


class StuckError(FerryError):
    """Replicas of a collection are stuck, and what is left to do is not Ferry's to do; the remedy has the calls."""


class LimitError(FerryError):
    """A limit of the policy was passed, and the backup stopped itself to spare the cluster; its data is unchanged.

    Not transient: trying again at once would do what the limit forbids.
    """

    default_remedy = (
        "Run the same backup again when there is less load, and it goes on where it stopped; "
        "or change the limits in the policy (docs/never-hurts.md)."
    )


class StoppedError(FerryError):
    """A cancel was asked for and obeyed at the next part."""
