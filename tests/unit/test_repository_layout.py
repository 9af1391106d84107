"""Names become keys and come back; ids sort by time."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.errors import ConfigurationError
from ferry.models import BackupId, PeerId, ShardId
from ferry.repository.layout import Keys, archive_file, decode_name, encode_name, new_backup_id, parse_backup_id

KEYS = Keys("team/ferry")
ID = BackupId("20261122T020000Z-7f3a9c")
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


@given(NAMES)
def test_a_name_comes_back_from_its_key_unchanged(name: str) -> None:
    """Whatever a collection is called, composed or decomposed unicode included."""
    encoded = encode_name(name)
    assert decode_name(encoded) == name
    assert encoded.isascii()
    assert not set(encoded) & set("/\\?#&\" '<>+")
    assert not encoded.startswith(".")
    assert encoded != "backup.json"


@given(NAMES, NAMES)
def test_two_names_never_share_a_key(one: str, other: str) -> None:
    """Otherwise one collection's backup would overwrite another's."""
    assert (encode_name(one) == encode_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        (".", "%2E"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("a/b", "a%2Fb"),
        ("%2F", "%252F"),
        ("ü", "%C3%BC"),
        ("u\u0308", "u%CC%88"),
        ("-lead", "-lead"),
        ("backup.json", "%62ackup.json"),
        ("manifest.json", "manifest.json"),
    ],
)
def test_odd_names_have_these_keys(name: str, encoded: str) -> None:
    """The format is documented: a change of it would orphan backups."""
    assert encode_name(name) == encoded
    assert decode_name(encoded) == name


@pytest.mark.parametrize("foreign", ["", ".hidden", "a b", "%zz", "%2f", "%FF", "ü", "backup.json", "a/b", "%61"])
def test_what_ferry_did_not_write_is_refused(foreign: str) -> None:
    """A folder of somebody else's is no cluster and no collection."""
    with pytest.raises(ConfigurationError):
        decode_name(foreign)


def test_an_empty_name_is_refused() -> None:
    """It would make two slashes in a row."""
    with pytest.raises(ConfigurationError):
        encode_name("")


def test_keys_are_those_of_the_documented_format() -> None:
    """The layout of version 1."""
    base = "team/ferry/backups/prod/20261122T020000Z-7f3a9c/"
    assert KEYS.repository == "team/ferry/ferry.json"
    assert KEYS.backup("prod", ID) == base + "backup.json"
    assert KEYS.manifest("prod", ID, "a/b") == base + "a%2Fb/manifest.json"
    shard, node = archive_file(ShardId(3), "shard", 12), archive_file(PeerId(77), "node", 1, "age")
    assert KEYS.archive("prod", ID, "docs", shard) == base + "docs/shards/3.12.snapshot"
    assert KEYS.archive("prod", ID, "docs", node) == base + "docs/nodes/77.1.snapshot.age"
    assert KEYS.lease("prod") == "team/ferry/leases/prod.json"
    assert KEYS.lease("prod.restore.a/b") == "team/ferry/leases/prod.restore.a%2Fb.json"
    assert KEYS.journal_prefix("prod", ID) == f"team/ferry/runs/prod/{ID}/"


def test_a_collection_called_backup_json_has_a_folder_beside_the_record() -> None:
    """Stores that keep objects as files cannot have a folder and an object of one name."""
    record = KEYS.backup("prod", ID)
    assert not KEYS.manifest("prod", ID, "backup.json").startswith(record)


def test_a_key_longer_than_s3_allows_is_refused_before_anything_is_sent() -> None:
    """255 characters of three bytes each, percent-encoded, have 2,295."""
    with pytest.raises(ConfigurationError, match="1024"):
        KEYS.manifest("prod", ID, "日" * 255)


def test_an_id_is_the_same_for_the_same_run_and_differs_for_another() -> None:
    """A retried run must find its own archives again."""
    moment = datetime(2026, 11, 22, 2, tzinfo=UTC)
    assert new_backup_id(moment, "run-1") == new_backup_id(moment, "run-1")
    assert new_backup_id(moment, "run-1") != new_backup_id(moment, "run-2")
    assert new_backup_id(moment, "run-1").startswith("20261122T020000Z-")


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1)), st.integers(1, 10**9), st.text())  # noqa: DTZ001
def test_ids_sort_by_time(moment: datetime, later_seconds: int, seed: str) -> None:
    """The newest backup is found by name, in whatever zone the worker lives."""
    early = moment.replace(tzinfo=UTC)
    late = min(early + timedelta(seconds=later_seconds), datetime(2101, 1, 1, tzinfo=UTC))
    assert new_backup_id(early, seed) < new_backup_id(late, seed)
    assert parse_backup_id(new_backup_id(early, seed)) == early.replace(microsecond=0)


@pytest.mark.parametrize("text", ["", "latest", "20261122T020000Z", "20261322T020000Z-7f3a9c", "../x", f"{ID}/"])
def test_what_is_no_id_is_refused(text: str) -> None:
    """An operator types these, and they become part of a key."""
    with pytest.raises(ConfigurationError, match="backup id"):
        KEYS.manifest("prod", BackupId(text), "docs")
