"""Turn a captured collection into the requests that make the same one again, and say where two of them differ."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ferry.errors import NodeRefusedError
from ferry.qdrant.node import Node

Json = Any
PayloadSchema = str | dict[str, Any]

# Set through PATCH only: PUT ignores them (Qdrant 1.16 to 1.19, collection_meta_ops.rs).
_PATCH_ONLY = ("read_fan_out_factor", "read_fan_out_delay_ms")
# Where copies lie, and how many, belongs to the cluster and not to the collection's content.
_PLACEMENT = frozenset({"params.replication_factor", "params.write_consistency_factor"})
# GET names it in the singular, PUT and PATCH in the plural.
_RENAMED = {"optimizer_config": "optimizers_config"}

# Key in a collection's metadata that says: a restore of Ferry's has not finished here. Metadata exists since 1.16.
RESTORE_MARK = "ferry_restore"
# The same of a migration: its id.
MIGRATION_MARK = "ferry_migration"
_MARKS = frozenset({RESTORE_MARK, MIGRATION_MARK})
_READS_IN_A_ROW = 5


def creation_body(
    config: Mapping[str, Any],
    *,
    replication_factor: int | None = None,
    write_consistency_factor: int | None = None,
    restore_id: str | None = None,
    migration_id: str | None = None,
) -> dict[str, Any]:
    """The body of ``PUT /collections/{c}`` for the ``config`` of a captured ``GET /collections/{c}``.

    Everything is passed on, fields of newer versions too, save nulls (which mean "the server's default") and what only
    PATCH can set (``patch_body``). ``restore_id`` or ``migration_id`` marks it as unfinished from the first moment.
    """
    params = {key: value for key, value in config["params"].items() if key not in _PATCH_ONLY}
    rest = {_RENAMED.get(key, key): value for key, value in config.items() if key not in ("params", "metadata")}
    body = {key: _without_nulls(value) for key, value in (params | rest).items() if value is not None}
    if replication_factor is not None:
        body["replication_factor"] = replication_factor
        # More confirmations than copies would make every write fail.
        body["write_consistency_factor"] = min(int(body.get("write_consistency_factor", 1)), replication_factor)
    if write_consistency_factor is not None:
        body["write_consistency_factor"] = write_consistency_factor
    metadata = _own_metadata(config)
    for mark, its_id in ((RESTORE_MARK, restore_id), (MIGRATION_MARK, migration_id)):
        if its_id is not None:
            metadata = {**(metadata or {}), mark: its_id}
    return body if metadata is None else {**body, "metadata": metadata}


def patch_body(config: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``PATCH /collections/{c}`` for what PUT ignores; empty when there is nothing to set."""
    params = {key: config["params"][key] for key in _PATCH_ONLY if config["params"].get(key) is not None}
    return {"params": params} if params else {}


def payload_index_bodies(payload_schema: Mapping[str, Any]) -> list[tuple[str, PayloadSchema]]:
    """Field and ``field_schema`` of every payload index: its parameters where it has any, else the name of its type."""
    return [
        (field, _without_nulls(info["params"]) if info.get("params") else str(info["data_type"]))
        for field, info in sorted(payload_schema.items())
    ]


def schema_differences(
    source_config: Mapping[str, Any],
    source_payload_schema: Mapping[str, Any],
    target_config: Mapping[str, Any],
    target_payload_schema: Mapping[str, Any],
    called: tuple[str, str] = ("in the source", "in the target"),
) -> list[str]:
    """Every setting in which two collections differ, as sentences; empty when they are the same.

    Replication and placement, marks of Ferry's and the number of indexed points are not compared; null and missing
    are the same.
    """
    source = _comparable(source_config, source_payload_schema)
    target = _comparable(target_config, target_payload_schema)
    paths = source.keys() | target.keys()
    # An empty document is told by what the other side has in it, not once more by itself.
    filled = {
        path
        for path in paths
        if {} in (source.get(path), target.get(path)) and any(other.startswith(f"{path}.") for other in paths)
    }
    return [
        f"{path}: {_shown(source, path)} {called[0]}, {_shown(target, path)} {called[1]}"
        for path in sorted(paths - filled)
        if source.get(path) != target.get(path)
    ]


def mark_restore(node: Node, name: str, restore_id: str) -> None:
    """Mark a collection as an unfinished restore. Raises NodeRefusedError where metadata is unknown (before 1.16)."""
    node.patch_collection(name, {"metadata": {RESTORE_MARK: restore_id}})
    if not _comes_true(node, name, lambda config: restore_mark(config) == restore_id):
        msg = f"Node {node.label} does not keep the metadata of collection {name}."
        raise NodeRefusedError(msg, "Qdrant keeps metadata of collections from 1.16 on.")


def unmark_restore(node: Node, name: str, source_metadata: Mapping[str, Any] | None) -> None:
    """Take the mark away, and leave the metadata as the source's; again is fine.

    PATCH merges key by key and null removes a key (seen on 1.16.3), so nothing else is touched. A source without any
    metadata ends with ``{}`` in its place, which a node that asks another one shows as null; readers see no
    difference. Raises NodeRefusedError when something else is left than the source had.
    """
    _unmark(node, name, RESTORE_MARK, source_metadata)


def unmark_migration(node: Node, name: str, source_metadata: Mapping[str, Any] | None) -> None:
    """The same for the mark of a migration that has finished in this collection."""
    _unmark(node, name, MIGRATION_MARK, source_metadata)


def _unmark(node: Node, name: str, mark: str, source_metadata: Mapping[str, Any] | None) -> None:
    node.patch_collection(name, {"metadata": {mark: None}})
    wanted = _own_metadata({"metadata": source_metadata}) or {}
    if not _comes_true(node, name, lambda config: (config.get("metadata") or {}) == wanted):
        msg = f"After the mark {mark} was taken from {name} its metadata is not the source's."
        raise NodeRefusedError(msg, f"Somebody changed it meanwhile: compare GET /collections/{name} and the manifest.")


def _comes_true(node: Node, name: str, seen: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether the configuration shows it, several times in a row, before ``timeout_seconds`` have passed.

    A cluster answers PATCH before every node has applied it, and a node may show the configuration of another one that
    is behind: on 1.16.3 the same node said new, then old, then new.
    """
    deadline = time.monotonic() + node.profile.timeout_seconds
    in_a_row = 0
    while in_a_row < _READS_IN_A_ROW:
        in_a_row = in_a_row + 1 if seen(node.collection(name)["config"]) else 0
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def restore_mark(config: Mapping[str, Any]) -> str | None:
    """The id of the restore that has not finished in this collection, or None."""
    mark = (config.get("metadata") or {}).get(RESTORE_MARK)
    return None if mark is None else str(mark)


def migration_mark(config: Mapping[str, Any]) -> str | None:
    """The id of the migration that has not finished in this collection, or None."""
    mark = (config.get("metadata") or {}).get(MIGRATION_MARK)
    return None if mark is None else str(mark)


def _own_metadata(config: Mapping[str, Any]) -> dict[str, Any] | None:
    metadata = config.get("metadata")
    if metadata is None:
        return None
    return {key: value for key, value in metadata.items() if key not in _MARKS}


def _comparable(config: Mapping[str, Any], payload_schema: Mapping[str, Any]) -> dict[str, Json]:
    """Every leaf by its path. Metadata is one leaf for each key: its nulls are the user's own."""
    indexes = {
        # A type without parameters and one with only its type are the same index.
        field: {"type": info["data_type"], **(info.get("params") or {})}
        for field, info in payload_schema.items()
    }
    settings = {key: value for key, value in config.items() if key != "metadata"}
    leaves = dict(_leaves(_without_nulls(settings), ""))
    if indexes:
        leaves |= dict(_leaves(_without_nulls(indexes), "payload index "))
    leaves |= {f"metadata.{key}": [value] for key, value in (_own_metadata(config) or {}).items()}
    return {path: value for path, value in leaves.items() if path not in _PLACEMENT}


def _leaves(value: Json, path: str) -> Iterator[tuple[str, Json]]:
    # An empty document is a leaf too: a sparse vector or a binary quantization with every setting at its default is {}.
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            separator = "." if path and not path.endswith(" ") else ""
            yield from _leaves(inner, f"{path}{separator}{key}")
    else:
        yield path, value


def _shown(leaves: Mapping[str, Json], path: str) -> str:
    return repr(leaves[path]) if path in leaves else "nothing"


def _without_nulls(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value
