"""What differs by environment: one frozen model read from ferry.toml, FERRY_… variables and a secrets directory."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from ferry.errors import ConfigurationError

PREFIX = "FERRY_"
# Variables that steer where settings are read from, or parts around Ferry; they are not settings themselves.
STEERING_VARIABLES = frozenset({"FERRY_CONFIG", "FERRY_SECRETS_DIR", "FERRY_HOME", "FERRY_QDRANT_BINARY"})
# Lower case, because a variable cannot tell FERRY_CLUSTERS__PROD from FERRY_CLUSTERS__prod.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
MIB = 1024 * 1024

ProfileName = Annotated[str, Field(pattern=NAME_PATTERN)]
HttpUrl = Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/[^\s@]*)?$")]


class Profile(BaseModel):
    """A settings table: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StaticHeadroom(Profile):
    """What one node has free, when the operator knows it and nothing measures it."""

    disk_free_bytes: int = Field(ge=0, description="Free bytes on the node's storage and snapshots disk.")
    ram_free_bytes: int | None = Field(default=None, ge=0, description="Free bytes of memory on the node.")


class Headroom(Profile):
    """Where the free disk and memory of each node are read from. Qdrant tells it from 1.19 on, not before."""

    kind: Literal["auto", "quotas", "prometheus", "local", "static", "unknown"] = Field(
        default="auto",
        description="auto: /quotas where Qdrant has it (1.19), else what is configured here, else unknown.",
    )
    paths: list[Path] = Field(
        default_factory=list, description="local: each node's storage folder on this host, in the order of nodes."
    )
    prometheus_url: HttpUrl | None = Field(default=None, description="prometheus: base address of its HTTP API.")
    disk_query: str | None = Field(
        default=None, description="prometheus: query for free bytes; {host} is replaced by the node's host name."
    )
    ram_query: str | None = Field(default=None, description="prometheus: the same for available memory.")
    static: list[StaticHeadroom] = Field(
        default_factory=list, description="static: one entry for each node, in the order of nodes."
    )
    when_unknown: Literal["refuse", "warn"] = Field(
        default="refuse", description="What a preflight does when the free disk of a node cannot be told."
    )


class ClusterProfile(Profile):
    """One Qdrant cluster: the address of every node, and how to read each node's headroom."""

    nodes: list[HttpUrl] = Field(
        min_length=1, description="REST address of every node itself; never one address that is balanced over them."
    )
    api_key: SecretStr | None = Field(default=None, description="Key with the right to manage (snapshots need it).")
    ca_file: Path | None = Field(default=None, description="Certificate authority of the nodes, when it is private.")
    timeout_seconds: float = Field(default=30.0, gt=0, description="Deadline of one ordinary request to a node.")
    snapshot_timeout_seconds: float = Field(
        default=3600.0, gt=0, description="Deadline of making or recovering one snapshot on a node."
    )
    stall_seconds: float = Field(default=60.0, gt=0, description="Without a byte for so long a transfer starts anew.")
    headroom: Headroom = Field(default_factory=Headroom, description="Where free disk and memory are read from.")

    @field_validator("nodes")
    @classmethod
    def _nodes_differ(cls, nodes: list[str]) -> list[str]:
        cleaned = [node.rstrip("/") for node in nodes]
        if len(set(cleaned)) != len(cleaned):
            msg = "the same address stands twice; every node needs its own"
            raise ValueError(msg)
        return cleaned

    @model_validator(mode="after")
    def _one_entry_a_node(self) -> "ClusterProfile":
        for name, entries in (("paths", self.headroom.paths), ("static", self.headroom.static)):
            if entries and len(entries) != len(self.nodes):
                msg = f"headroom.{name} has {len(entries)} entries for {len(self.nodes)} nodes; it needs one for each"
                raise ValueError(msg)
        return self


class RepositoryProfile(Profile):
    """One bucket and prefix that hold backups."""

    bucket: str = Field(min_length=3, max_length=63, description="Bucket name.")
    prefix: str = Field(default="ferry", description="Folder in the bucket under which everything of Ferry's lies.")
    endpoint_url: HttpUrl | None = Field(default=None, description="Address of an S3 server other than AWS.")
    node_endpoint_url: HttpUrl | None = Field(
        default=None, description="The same server as the Qdrant nodes see it, when that differs; used to sign URLs."
    )
    region: str = Field(default="us-east-1", description="Region of the bucket.")
    access_key: SecretStr | None = Field(default=None, description="Access key; absent: the AWS default chain.")
    secret_key: SecretStr | None = Field(default=None, description="Secret key that goes with access_key.")
    session_token: SecretStr | None = Field(default=None, description="Session token of temporary keys.")
    aws_profile: str | None = Field(default=None, description="Profile of the AWS configuration files.")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="path is what most servers other than AWS need."
    )
    checksums: Literal["auto", "when_required", "when_supported"] = Field(
        default="auto",
        description="boto3's default checksums break some stores; auto: when_required with an endpoint_url.",
    )
    ca_file: Path | None = Field(default=None, description="Certificate authority of the store, when it is private.")
    part_bytes: int = Field(default=16 * MIB, ge=5 * MIB, le=512 * MIB, description="Bytes of one multipart part.")
    parts_in_flight: int = Field(
        default=4, ge=1, le=32, description="Parts of one archive in memory: one is filled, the others are sent."
    )
    read_timeout_seconds: float = Field(
        default=60.0, gt=0, description="Without an answer for so long a request to the store is sent again."
    )
    presign_seconds: int = Field(
        default=6 * 3600, ge=60, le=7 * 24 * 3600, description="How long a signed address for a node stays valid."
    )
    lease_seconds: float = Field(
        default=60.0, ge=1, description="A run that does not renew its lease for so long counts as dead."
    )

    @field_validator("prefix")
    @classmethod
    def _plain_prefix(cls, prefix: str) -> str:
        cleaned = prefix.strip("/")
        if not cleaned or any(part in ("", ".", "..") for part in cleaned.split("/")):
            msg = "must be a plain folder name such as ferry or team/ferry"
            raise ValueError(msg)
        return cleaned

    @model_validator(mode="after")
    def _keys_in_pairs(self) -> "RepositoryProfile":
        if (self.access_key is None) != (self.secret_key is None):
            msg = "access_key and secret_key go together"
            raise ValueError(msg)
        return self

    @property
    def checksum_mode(self) -> Literal["when_required", "when_supported"]:
        """The checksum mode for boto3 and s3fs, with ``auto`` resolved."""
        if self.checksums == "auto":
            return "when_required" if self.endpoint_url else "when_supported"
        return self.checksums


class WorkerSettings(Profile):
    """The machine that runs the flows."""

    spool_dir: Path = Field(
        default=Path("/tmp/ferry-spool"),  # noqa: S108 - a default that exists on every worker; settable
        description="Disk for opening archives: needs about 2.2 times the largest one for each proof at a time.",
    )
    prove_from: Literal["bucket", "spool"] = Field(
        default="bucket",
        description="bucket reads every archive back before it counts; spool trusts the copy on this disk instead.",
    )
    parallel_nodes: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Nodes worked on at a time; each may hold part_bytes × parts_in_flight in memory.",
    )
    parallel_proofs: int = Field(default=1, ge=1, le=16, description="Archives proven at a time on this worker.")
    sample_points: int = Field(default=64, ge=1, le=1000, description="Points a shard kept for the sample comparison.")


P = TypeVar("P", bound=Profile)


class Settings(BaseSettings):
    """All of Ferry's settings. Flow parameters name profiles; secrets live only here."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    clusters: dict[ProfileName, ClusterProfile] = Field(default_factory=dict, description="Qdrant clusters by name.")
    repositories: dict[ProfileName, RepositoryProfile] = Field(default_factory=dict, description="Buckets by name.")
    worker: WorkerSettings = Field(default_factory=WorkerSettings, description="The machine that runs the flows.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """First wins: arguments (tests), environment, secrets files, ferry.toml. No dotenv: it holds others' keys."""
        return (init_settings, *(source for _, source in named_sources(settings_cls)))

    def cluster(self, name: str) -> ClusterProfile:
        """The cluster profile of that name, or a ConfigurationError that lists those there are."""
        return _profile(self.clusters, "clusters", name)

    def repository(self, name: str) -> RepositoryProfile:
        """The repository profile of that name, or a ConfigurationError that lists those there are."""
        return _profile(self.repositories, "repositories", name)


def _profile(profiles: dict[str, P], table: str, name: str) -> P:
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none is configured"
        msg = f"There is no profile {table}.{name}. Known: {known}."
        raise ConfigurationError(msg, f"Name one of them, or add [{table}.{name}] to {config_path()}.")
    return profiles[name]


def config_path() -> Path:
    """The settings file: FERRY_CONFIG, else ferry.toml in the current folder. It need not exist."""
    return Path(os.environ.get("FERRY_CONFIG", "ferry.toml"))


def named_sources(settings_cls: type[BaseSettings]) -> list[tuple[str, PydanticBaseSettingsSource]]:
    """Every source with the name that ``doctor`` shows for it, the strongest first."""
    env = EnvSettingsSource(settings_cls)
    sources: list[tuple[str, PydanticBaseSettingsSource]] = [("environment", env)]
    if secrets_dir := os.environ.get("FERRY_SECRETS_DIR"):
        # The same names as the variables, one file each: FERRY_CLUSTERS__PROD__API_KEY.
        files = EnvSettingsSource(settings_cls)
        sources.append((secrets_dir, NestedSecretsSettingsSource(files, secrets_dir=secrets_dir)))
    sources.append((str(config_path()), TomlConfigSettingsSource(settings_cls, config_path())))
    return sources


def _refuse_unknown_variables() -> None:
    fields = tuple(PREFIX + name.upper() for name in Settings.model_fields)
    for name in os.environ:
        if not name.upper().startswith(PREFIX) or name.upper() in STEERING_VARIABLES:
            continue
        if not any(name.upper() == field or name.upper().startswith(field + "__") for field in fields):
            msg = f"The environment variable {name} is no setting of Ferry's."
            raise ConfigurationError(msg, "Correct its name or unset it; all settings stand in docs/settings.md.")


def _refuse_unknown_secrets() -> None:
    folder = os.environ.get("FERRY_SECRETS_DIR")
    if folder is None:
        return
    if not Path(folder).is_dir():
        msg = f"FERRY_SECRETS_DIR names {folder}, which is no folder."
        raise ConfigurationError(msg)
    fields = tuple((PREFIX + name).upper() for name in Settings.model_fields)
    for path in Path(folder).iterdir():
        # Kubernetes puts its own bookkeeping beside the files, with leading dots.
        if not path.name.startswith(".") and not path.name.upper().startswith(fields):
            msg = f"The file {path} in FERRY_SECRETS_DIR is no setting of Ferry's."
            raise ConfigurationError(msg, "Files are named like the variables: FERRY_CLUSTERS__PROD__API_KEY.")


def read_settings(**overrides: Any) -> Settings:
    """Read the settings afresh. Raises ConfigurationError, which never shows a value, only where it stands."""
    _refuse_unknown_variables()
    _refuse_unknown_secrets()
    if "FERRY_CONFIG" in os.environ and not config_path().is_file():
        msg = f"FERRY_CONFIG names {config_path()}, which is no file."
        raise ConfigurationError(msg)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        msg = "Settings are wrong: " + "; ".join(lines)
        raise ConfigurationError(msg) from None  # the original holds the input, which may be a secret
    except SettingsError as error:
        msg = f"A variable that must hold JSON does not: {error}."
        raise ConfigurationError(msg) from None  # its cause holds the value, which may be a secret
    except ValueError as error:  # a file that is not TOML
        msg = f"{config_path()} cannot be read as TOML: {error}"
        raise ConfigurationError(msg) from error


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """The settings of this process, read once."""
    return read_settings()
