"""What differs by environment: one frozen model read from ferry.toml, FERRY_… variables and a secrets directory."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError
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
from ferry.profiles import ClusterProfile, PolicyProfile, Profile, ProfileName, RepositoryProfile, WorkerSettings

PREFIX = "FERRY_"
# Variables that steer where settings are read from, or parts around Ferry; they are not settings themselves.
STEERING_VARIABLES = frozenset({"FERRY_CONFIG", "FERRY_SECRETS_DIR", "FERRY_HOME", "FERRY_QDRANT_BINARY"})
P = TypeVar("P", bound=Profile)


class Settings(BaseSettings):
    """All of Ferry's settings. Flow parameters name profiles; secrets live only here."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    clusters: dict[ProfileName, ClusterProfile] = Field(default_factory=dict, description="Qdrant clusters by name.")
    repositories: dict[ProfileName, RepositoryProfile] = Field(default_factory=dict, description="Buckets by name.")
    policies: dict[ProfileName, PolicyProfile] = Field(
        default_factory=dict, description="How backups are made and kept, by name."
    )
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

    def policy(self, name: str | None) -> PolicyProfile:
        """The policy of that name, the usual one for None, or a ConfigurationError that lists those there are."""
        return PolicyProfile() if name is None else _profile(self.policies, "policies", name)


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
