"""The break-glass command line: how it is called, how it fails, and that its reference of settings is up to date."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ferry.__main__ import main, parser
from ferry.cli import listing, show, terminal, trials, verify
from ferry.cli.settings_page import settings_markdown
from ferry.connections import Repository
from ferry.errors import ConfigurationError, FerryError
from ferry.models import BackupId
from ferry.profiles import RepositoryProfile, WorkerSettings
from ferry.repository.catalog import Catalog
from ferry.repository.layout import Keys
from ferry.repository.manifest import ArchiveRecord, BackupRecord, CollectionEntry
from ferry.repository.probe import ProbeResult
from ferry.repository.store import Store
from ferry.settings import load_settings, read_settings
from ferry.verify.archive import ArchiveVerdict
from tests.unit import builders
from tests.unit.fakes import MemoryStore

DIED = BackupId("20261123T120000Z-abcdef")
ROOT = Path(__file__).parents[2]
TWO_REPOSITORIES = '[repositories.one]\nbucket = "one"\n[repositories.two]\nbucket = "two"\n'


@pytest.fixture(autouse=True)
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that writes ferry.toml into an empty current folder; no FERRY_ variable is set."""
    for name in [name for name in os.environ if name.upper().startswith("FERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    load_settings.cache_clear()

    def write(text: str) -> None:
        (tmp_path / "ferry.toml").write_text(text)
        load_settings.cache_clear()

    return write


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("doctor --cluster a --json", {"command": "doctor", "cluster": "a", "repository": None, "json": True}),
        ("list", {"command": "list", "repository": None, "cluster": None, "json": False}),
        ("show prod", {"cluster": "prod", "backup": "latest"}),
        ("verify prod 20261122T020000Z-7f3a9c --collection docs", {"collection": "docs", "verbose": False}),
        ("backup prod --include a --include b --dry-run", {"include": ["a", "b"], "exclude": [], "dry_run": True}),
        (
            "restore --cluster t --repository r --source-cluster s --into n --alias a --replication-factor 2 docs",
            {"collection": "docs", "backup": "latest", "replication_factor": 2, "verify": "sample", "dry_run": False},
        ),
    ],
)
def test_command_lines_are_understood(line: str, expected: dict[str, Any]) -> None:
    """Every command takes what the documentation shows."""
    assert vars(parser().parse_args(line.split())).items() >= expected.items()


@pytest.mark.parametrize(
    "line",
    ["", "restore docs", "backup", "verify", "restore --cluster t docs", "restore --verify maybe docs", "unknown"],
)
def test_wrong_command_lines_end_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line is answered with the right one."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_error_is_its_message_and_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """A FerryError ends with 1 and without a traceback, on stderr alone."""
    assert main(["verify", "prod", "--repository", "nowhere"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "There is no profile repositories.nowhere" in shown.err
    assert "→ Name one of them" in shown.err
    assert "Traceback" not in shown.err


def test_square_brackets_in_an_error_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A message with [repositories.x] in it is text, not markup of rich's."""
    terminal.print_error(FerryError("add [red]docs[/] and [/x]", "see [repositories.main]"))
    assert capsys.readouterr().err == "add [red]docs[/] and [/x]\n→ see [repositories.main]\n"


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C is no failure and no traceback."""

    def interrupted(_given: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "run", interrupted)
    assert main(["list"]) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_the_only_repository_need_not_be_named(configure: Callable[[str], None]) -> None:
    """With one repository its name may be left out; with none or two it may not, and those there are are listed."""
    configure('[repositories.one]\nbucket = "one"\n')
    assert terminal.chosen_repository(None) == "one"
    configure(TWO_REPOSITORIES)
    assert terminal.chosen_repository("two") == "two"
    with pytest.raises(ConfigurationError, match="one, two"):
        terminal.chosen_repository(None)
    configure("")
    with pytest.raises(ConfigurationError, match="none is configured"):
        terminal.chosen_repository(None)


def test_doctor_without_any_profile_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing configured is not "all is well": it is the wrong folder."""
    assert main(["doctor"]) == 1
    assert "ferry.example.toml" in capsys.readouterr().out


def test_doctor_tries_everything_although_one_profile_breaks(
    configure: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error, expected or not, stays in its own row; the text of an unexpected one is not shown."""

    def probe(store: Any) -> list[ProbeResult]:
        if store.bucket == "one":
            raise RuntimeError("s3cr3t")
        return [ProbeResult(name="reach and list", ok=False, detail="refused", remedy="see to it")]

    monkeypatch.setattr(trials, "probe", probe)
    three = '[repositories.three]\nbucket = "three"\nca_file = "/none"\n'
    configure(TWO_REPOSITORIES + three + '[clusters.c]\nnodes = ["http://127.0.0.1:9"]\nca_file = "/no/such/file"\n')
    assert main(["doctor", "--json"]) == 1
    shown = capsys.readouterr().out
    failed = {trial["profile"]: trial for trial in json.loads(shown)["trials"] if not trial["ok"]}
    assert set(failed) == {"repositories.one", "repositories.two", "repositories.three", "clusters.c"}
    assert "RuntimeError" in failed["repositories.one"]["detail"]
    assert "/none" in failed["repositories.three"]["detail"]
    assert "/no/such/file" in failed["clusters.c"]["detail"]
    assert all(trial["remedy"] for trial in failed.values())
    assert "s3cr3t" not in shown


def test_settings_page_is_up_to_date() -> None:
    """docs/settings.md is what the model says; make docs writes it."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_markdown()


def test_settings_page_names_every_key() -> None:
    """Every key stands there with its variable, whose name the loader understands."""
    page = settings_markdown()
    for key in ("FERRY_CLUSTERS__<NAME>__API_KEY", "FERRY_CLUSTERS__<NAME>__HEADROOM__KIND", "FERRY_WORKER__SPOOL_DIR"):
        assert f"| `{key}` |" in page
    assert "| `api_key` | secret | none |" in page
    assert "| `part_bytes` | whole number, 5242880 to 536870912 | `16777216` |" in page


def test_example_settings_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that everybody copies is right."""
    monkeypatch.setenv("FERRY_CONFIG", str(ROOT / "deployments" / "ferry.example.toml"))
    settings = read_settings()
    assert sorted(settings.clusters) == ["prod", "staging"]
    assert settings.repository("main").bucket == "example-qdrant-backups"


def test_no_command_imports_prefect() -> None:
    """Breaking the glass must work when Prefect is what broke."""
    modules = "ferry.__main__, " + ", ".join(
        f"ferry.cli.{path.stem}" for path in (ROOT / "ferry/cli").glob("[a-z]*.py")
    )
    script = f"import {modules}, sys; sys.exit(any(name.split('.')[0] == 'prefect' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def stored(configure: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository in memory with one complete backup of docs, and one whose run died after docs was committed."""
    configure('[repositories.main]\nbucket = "main"\n')
    store, keys = MemoryStore(), Keys("ferry")
    catalog = Catalog(store, keys)
    profile = RepositoryProfile(bucket="main")
    repository = Repository(profile, WorkerSettings(), cast("Store", store), keys, catalog)
    source = builders.collection("docs", [builders.shard(0, [1])])
    manifest = builders.manifest(source, [builders.archive(0, points=12)])
    catalog.write_manifest(manifest)
    entry = CollectionEntry(
        collection="docs", manifest_sha256=hashlib.sha256(manifest.to_bytes()).hexdigest(), points=12, bytes=1000
    )
    catalog.write_backup(
        BackupRecord(
            backup_id=builders.BACKUP_ID,
            cluster="test",
            kind="shard",
            collections=(entry,),
            aliases={"live": "docs"},
            started_at=builders.NOON,
            finished_at=builders.NOON,
            tool_versions={},
        )
    )
    catalog.write_manifest(manifest.model_copy(update={"backup_id": DIED}))
    for module in (listing, show, verify):
        monkeypatch.setattr(module, "connect_repository", lambda _name: repository)
    return repository


def test_list_tells_complete_from_incomplete(stored: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest first, with points, bytes and proof of the complete one; the other says that it is not."""
    assert main(["list", "--json"]) == 0
    newest, oldest = json.loads(capsys.readouterr().out)
    assert (newest["backup_id"], newest["complete"], newest["proof"]) == (DIED, False, "")
    assert (oldest["complete"], oldest["points"], oldest["bytes"], oldest["proof"]) == (True, 12, 1000, "count")
    assert main(["list", "--cluster", "test"]) == 0
    table = capsys.readouterr().out
    assert f"{builders.BACKUP_ID}  complete" in table
    assert f"{DIED}  incomplete" in table
    assert main(["list", "--cluster", "other"]) == 0
    assert "No backups of other" in capsys.readouterr().out
    key = stored.keys.manifest("test", builders.BACKUP_ID, "docs")
    stored.store.put_document(key, b"{}")
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["proof"] == "damaged"


def test_show_has_all_of_a_backup(stored: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    """latest is the newest complete one; shards, digests and aliases stand in it."""
    assert main(["show", "test", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["backup_id"], document["complete"]) == (builders.BACKUP_ID, True)
    assert document["record"]["aliases"] == {"live": "docs"}
    assert document["collections"][0]["archives"][0]["sha256"] == "0" * 64
    assert main(["show", "test"]) == 0
    text = capsys.readouterr().out
    assert "live → docs" in text
    assert "000000000000" in text


def test_show_knows_a_backup_whose_run_died(stored: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    """What was committed before the run died counts, and is shown; an id that is nowhere is an error."""
    assert main(["show", "test", DIED, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["complete"], [each["collection"] for each in document["collections"]]) == (False, ["docs"])
    assert main(["show", "test", DIED]) == 0
    assert "is incomplete" in capsys.readouterr().out
    assert main(["show", "test", "20200101T000000Z-000000"]) == 1
    assert "There is no backup 20200101T000000Z-000000 of test" in capsys.readouterr().err


@pytest.mark.parametrize(("problems", "code"), [((), 0), (("11 points, the proof says 12",), 1)])
def test_verify_ends_with_1_on_damage(
    stored: Repository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problems: tuple[str, ...],
    code: int,
) -> None:
    """Each archive has its row; one that is damaged makes the exit code 1 and says so."""

    def verdict(_repository: Repository, _manifest: object, archive: ArchiveRecord, _tell: object) -> ArchiveVerdict:
        return ArchiveVerdict(key=archive.key, problems=problems)

    monkeypatch.setattr(verify, "verify_archive", verdict)
    assert main(["verify", "test", "--collection", "docs"]) == code
    shown = capsys.readouterr()
    assert (problems[0] if problems else "intact") in shown.out
    assert ("1 of 1 archives" in shown.err) == bool(problems)
    assert main(["verify", "test", "--collection", "other"]) == 1
    assert "holds no collection other, but: docs" in capsys.readouterr().err
