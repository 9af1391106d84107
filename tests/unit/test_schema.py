"""Creation bodies and differences, without a server; the real round trip is in tests/integration."""

from copy import deepcopy
from typing import Any

import pytest

from ferry.qdrant.schema import (
    RESTORE_MARK,
    creation_body,
    patch_body,
    payload_index_bodies,
    restore_mark,
    schema_differences,
)

CONFIG: dict[str, Any] = {
    "params": {
        "vectors": {"dense": {"size": 8, "distance": "Cosine", "on_disk": True}},
        "sparse_vectors": {"plain": {}, "idf": {"modifier": "idf"}},
        "shard_number": 3,
        "replication_factor": 2,
        "write_consistency_factor": 2,
        "read_fan_out_factor": 4,
        "on_disk_payload": True,
    },
    "hnsw_config": {"m": 16, "ef_construct": 100},
    "optimizer_config": {"indexing_threshold": 10000, "max_segment_size": None},
    "wal_config": {"wal_capacity_mb": 32},
    "quantization_config": {"binary": {}},
    "strict_mode_config": {"enabled": False},
    "metadata": {"owner": "team", "nothing": None},
}
SCHEMA: dict[str, Any] = {
    "town": {"data_type": "keyword", "points": 7},
    "tenant": {"data_type": "keyword", "params": {"type": "keyword", "is_tenant": True}, "points": 9},
}


def differences(config: dict[str, Any], schema: dict[str, Any] | None = None) -> list[str]:
    return schema_differences(CONFIG, SCHEMA, config, SCHEMA if schema is None else schema)


def changed(path: str, value: Any) -> dict[str, Any]:
    config = deepcopy(CONFIG)
    *folders, last = path.split(".")
    place = config
    for folder in folders:
        place = place[folder]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return config


def test_the_body_renames_flattens_and_drops_nulls_but_not_those_of_metadata() -> None:
    """Everything of the captured configuration is in the body where PUT expects it."""
    body = creation_body(CONFIG)
    assert body["optimizers_config"] == {"indexing_threshold": 10000}
    assert body["sparse_vectors"] == {"plain": {}, "idf": {"modifier": "idf"}}
    assert body["metadata"] == {"owner": "team", "nothing": None}
    assert not {"params", "optimizer_config", "read_fan_out_factor"} & body.keys()


def test_what_the_source_does_not_have_is_not_sent() -> None:
    """A null would ask for the server's default, which is what leaving it out does too."""
    assert "quantization_config" not in creation_body(changed("quantization_config", None))
    assert "metadata" not in creation_body(changed("metadata", None))


def test_fields_of_a_newer_server_are_passed_on() -> None:
    """A field that this Ferry has never seen is not lost on the way."""
    config = changed("brand_new_config", {"a": 1})
    config["params"]["new_param"] = 5
    body = creation_body(config)
    assert body["brand_new_config"] == {"a": 1}
    assert body["new_param"] == 5


def test_fewer_replicas_need_fewer_confirmations() -> None:
    """A replication factor below the write consistency factor would make every write fail."""
    body = creation_body(CONFIG, replication_factor=1)
    assert (body["replication_factor"], body["write_consistency_factor"]) == (1, 1)


def test_what_put_ignores_is_patched() -> None:
    """Read fan-out goes through PATCH, and nothing is sent where there is none."""
    assert patch_body(CONFIG) == {"params": {"read_fan_out_factor": 4}}
    assert patch_body(changed("params.read_fan_out_factor", None)) == {}


def test_an_index_is_made_with_its_parameters_or_by_its_type() -> None:
    """Parameters are sent whole; an index without any by its bare type."""
    assert payload_index_bodies(SCHEMA) == [("tenant", {"type": "keyword", "is_tenant": True}), ("town", "keyword")]


def test_the_mark_is_set_at_creation_and_is_never_taken_from_the_source() -> None:
    """A source that is an unfinished restore itself does not pass its own mark on."""
    marked = changed("metadata", {"owner": "team", RESTORE_MARK: "old"})
    assert creation_body(marked)["metadata"] == {"owner": "team"}
    assert restore_mark({"metadata": creation_body(marked, restore_id="new")["metadata"]}) == "new"
    assert restore_mark({"metadata": None}) is None


def test_a_collection_equals_itself_and_its_marked_or_rereplicated_copy() -> None:
    """Placement, indexed points, nulls and the restore mark are no differences."""
    copy = changed("params.replication_factor", 1)
    copy["params"]["write_consistency_factor"] = 1
    copy["optimizer_config"].pop("max_segment_size")
    copy["metadata"][RESTORE_MARK] = "x"
    fewer = deepcopy(SCHEMA)
    fewer["town"]["points"] = 0
    fewer["town"]["params"] = {"type": "keyword"}
    assert differences(copy, fewer) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("params.vectors.dense.size", 9),
        ("params.vectors.dense.on_disk", None),
        ("params.sparse_vectors.plain", ...),
        ("params.sparse_vectors.idf.modifier", None),
        ("params.shard_number", 4),
        ("params.read_fan_out_factor", None),
        ("hnsw_config.m", 17),
        ("optimizer_config.indexing_threshold", 1),
        ("quantization_config", None),
        ("strict_mode_config.enabled", True),
        ("metadata.owner", "other"),
        ("metadata.nothing", ...),
        ("wal_config", None),
    ],
)
def test_every_other_change_is_named_by_its_path(path: str, value: Any) -> None:
    """A changed or missing setting is one sentence that begins with where it stands."""
    (sentence,) = differences(changed(path, value))
    assert sentence.startswith(path)


def test_metadata_keys_with_dots_do_not_hide_each_other() -> None:
    """A key that begins like another one is compared all the same."""
    ours, theirs = changed("metadata", {"a": 1, "a.b": 2}), changed("metadata", {"a": 3, "a.b": 2})
    assert schema_differences(ours, {}, theirs, {}) == ["metadata.a: [1] in the source, [3] in the target"]


def test_a_missing_or_other_index_is_named() -> None:
    """Payload indexes are compared with their parameters."""
    other = {"tenant": {"data_type": "keyword", "points": 9}}
    found = differences(CONFIG, other)
    assert [sentence.split(":")[0] for sentence in found] == [
        "payload index tenant.is_tenant",
        "payload index town.type",
    ]
