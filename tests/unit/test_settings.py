"""Settings: which source wins, what is refused, and that no secret is ever shown."""

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from ferry.cli.origins import HIDDEN, read_origins
from ferry.errors import ConfigurationError
from ferry.settings import Settings, read_settings

SECRET = "s3cr3t-that-nobody-may-see"
TOML = """
[clusters.prod]
nodes = ["http://10.0.0.1:6333", "http://10.0.0.2:6333"]
api_key = "from-toml"
timeout_seconds = 1

[repositories.main]
bucket = "backups"

[worker]
parallel_nodes = 2
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that writes ferry.toml into an empty current folder; no FERRY_ variable is set."""
    for name in [name for name in os.environ if name.upper().startswith("FERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def put(text: str) -> Path:
        path = tmp_path / "ferry.toml"
        path.write_text(text)
        return path

    put(TOML)
    return put


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[str], Path]) -> Path:
    """An empty secrets directory."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("FERRY_SECRETS_DIR", str(folder))
    return folder


def refusal() -> str:
    """What read_settings says when it refuses; in nothing of it is the secret."""
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    error = caught.value
    shown = "".join(traceback.format_exception(error))
    for text in (str(error), repr(error), shown, repr(pickle.dumps(error))):
        assert SECRET not in text
    return error.message


def test_environment_beats_secrets_beat_file_beats_default(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source overrides single keys of the weaker ones and leaves the rest, and doctor can tell who gave what."""
    (secrets / "FERRY_CLUSTERS__PROD__API_KEY").write_text("from-secrets\n")
    (secrets / "FERRY_CLUSTERS__PROD__TIMEOUT_SECONDS").write_text("2")
    monkeypatch.setenv("FERRY_CLUSTERS__PROD__TIMEOUT_SECONDS", "3")
    settings = read_settings()
    prod = settings.cluster("prod")
    assert prod.api_key is not None
    assert prod.api_key.get_secret_value() == "from-secrets"
    assert (prod.timeout_seconds, prod.stall_seconds, settings.worker.parallel_nodes) == (3.0, 60.0, 2)
    sources = {origin.key: origin.source for origin in read_origins(settings)}
    assert sources["clusters.prod.timeout_seconds"] == "environment"
    assert sources["clusters.prod.api_key"] == str(secrets)
    assert sources["clusters.prod.nodes"] == "ferry.toml"
    assert sources["clusters.prod.stall_seconds"] == "default"


def test_origins_show_no_secret(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is shown as stars, one that is not set as nothing."""
    monkeypatch.setenv("FERRY_CLUSTERS__PROD__API_KEY", SECRET)
    settings = read_settings()
    values = {origin.key: origin.value for origin in read_origins(settings)}
    assert values["clusters.prod.api_key"] == HIDDEN
    assert values["repositories.main.secret_key"] == ""
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json() + repr(values)


def test_file_may_be_absent_but_not_when_it_is_named(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ferry.toml there are defaults; FERRY_CONFIG that names nothing is an error."""
    (tmp_path / "ferry.toml").unlink()
    assert read_settings() == Settings()
    monkeypatch.setenv("FERRY_CONFIG", str(tmp_path / "elsewhere.toml"))
    assert "elsewhere.toml" in refusal()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FERRY_CLUSTER__PROD__API_KEY", SECRET),
        ("FERRY_API_KEY", SECRET),
        ("FERRY_WORKERS__PARALLEL_NODES", "2"),
    ],
)
def test_unknown_variable_is_refused(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A misspelt variable is named, where pydantic-settings would ignore it."""
    monkeypatch.setenv(name, value)
    assert name in refusal()


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("FERRY_CLUSTERS__PROD__APIKEY", SECRET, "clusters.prod.apikey"),
        ("FERRY_CLUSTERS__PROD__HEADROOM__SORT", SECRET, "clusters.prod.headroom.sort"),
        ("FERRY_CLUSTERS__PROD__NODES", f'["http://user:{SECRET}@10.0.0.1:6333"]', "clusters.prod.nodes.0"),
        ("FERRY_CLUSTERS__PROD__NODES", '["10.0.0.1:6333"]', "clusters.prod.nodes.0"),
        ("FERRY_CLUSTERS__PROD__NODES", '["http://a:1", "http://a:1/"]', "clusters.prod.nodes"),
        ("FERRY_CLUSTERS__PROD__NODES", "[]", "clusters.prod.nodes"),
        ("FERRY_CLUSTERS__PROD__HEADROOM__PATHS", '["/only/one"]', "clusters.prod"),
        ("FERRY_CLUSTERS__PROD__HEADROOM__STATIC", '[{"disk_free_bytes": 1}]', "clusters.prod"),
        ("FERRY_CLUSTERS__PROD", SECRET, "clusters.prod"),
        ("FERRY_CLUSTERS__PROD__TIMEOUT_SECONDS", SECRET, "clusters.prod.timeout_seconds"),
        ("FERRY_REPOSITORIES__MAIN__SECRET_KEY", SECRET, "repositories.main"),
        ("FERRY_REPOSITORIES__MAIN__PREFIX", "../elsewhere", "repositories.main.prefix"),
        ("FERRY_REPOSITORIES__MAIN__ENDPOINT_URL", f"http://u:{SECRET}@s3:9000", "repositories.main.endpoint_url"),
        ("FERRY_REPOSITORIES__MAIN__PART_BYTES", "1024", "repositories.main.part_bytes"),
        ("FERRY_CLUSTERS__PROD__NODES", f"http://{SECRET}:6333", "clusters"),
    ],
)
def test_wrong_value_is_refused_by_its_place_alone(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, value: str, place: str
) -> None:
    """The message says which key is wrong and never what was in it."""
    monkeypatch.setenv(name, value)
    assert place in refusal()


def test_unknown_key_in_the_file_is_refused(write: Callable[[str], Path]) -> None:
    """A key that no table has is an error, and what stands in it is not shown."""
    write(TOML.replace("api_key", "apikey").replace("from-toml", SECRET))
    assert "clusters.prod.apikey" in refusal()


def test_file_that_is_no_toml_is_refused(write: Callable[[str], Path]) -> None:
    """A broken file is named with the line, without what stands there."""
    write(f"[clusters.prod]\napi_key = {SECRET}")
    assert "ferry.toml cannot be read as TOML" in refusal()


def test_unknown_secret_file_is_refused(secrets: Path) -> None:
    """A misspelt key in the secrets directory is an error like anywhere else."""
    (secrets / "FERRY_CLUSTERS__PROD__APIKEY").write_text(SECRET)
    assert "clusters.prod.apikey" in refusal()


def test_unknown_profile_lists_those_there_are(write: Callable[[str], Path]) -> None:
    """Who names a profile that is not there is told the names of those that are."""
    with pytest.raises(ConfigurationError, match=r"clusters\.staging.*prod"):
        read_settings().cluster("staging")


def test_checksums_follow_the_endpoint() -> None:
    """boto3's new default checksums are for AWS alone, unless somebody asks for them."""
    aws = Settings.model_validate({"repositories": {"a": {"bucket": "abc"}}}).repository("a")
    other = aws.model_copy(update={"endpoint_url": "http://s3:9000"})
    assert (aws.checksum_mode, other.checksum_mode) == ("when_supported", "when_required")
    assert other.model_copy(update={"checksums": "when_supported"}).checksum_mode == "when_supported"
