"""The kinds of parameters that flows take. Profile names become choices in the form, from the settings at deploy."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ferry.errors import ConfigurationError
from ferry.migration.plan import Changes, WriterKind
from ferry.profiles import NAME_PATTERN
from ferry.restore.shape import Shape
from ferry.settings import read_settings


def _choices(table: Literal["clusters", "repositories", "policies"]) -> Any:
    """A choice of the configured profiles; any proper name while there are no settings, so that imports never fail.

    An ``enum`` even for a single name: pydantic would write a ``const``, which the form shows as free text.
    """
    try:
        names = sorted(getattr(read_settings(), table))
    except ConfigurationError:
        names = []
    return Annotated[str, Field(pattern=NAME_PATTERN, json_schema_extra={"enum": names} if names else None)]


if TYPE_CHECKING:
    ClusterName = str
    RepositoryName = str
    PolicyName = str
else:
    ClusterName = _choices("clusters")
    RepositoryName = _choices("repositories")
    PolicyName = _choices("policies")

__all__ = [
    "Changes",
    "ClusterName",
    "KeepDays",
    "Name",
    "Pattern",
    "PolicyName",
    "Readers",
    "Replication",
    "RepositoryName",
    "Seconds",
    "Shape",
    "SourceKind",
    "WriterKind",
]

# Plain bounds survive into the form; descriptions come from the flow's docstring (facts/prefect.md §2).
Replication = Annotated[int, Field(ge=1, le=64)]
Readers = Annotated[int, Field(ge=1, le=64)]
SourceKind = Literal["live collection", "backup", "parquet"]
Seconds = Annotated[float, Field(ge=0, le=86400)]
KeepDays = Annotated[int, Field(ge=0, le=3650)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
Pattern = Annotated[str, Field(min_length=1, max_length=255)]
