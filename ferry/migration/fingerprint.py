"""What must not change between the runs of a migration, and the sentence that says what has. Pure.

Readers, the size of batches, the alias, and what becomes of refused or surplus points may be others in every run.
"""

import hashlib
from typing import Any

import orjson

from ferry.errors import PreflightError
from ferry.migration.plan import MigrationPlan, MigrationRequest
from ferry.migration.source import SourceDescription
from ferry.qdrant.schema import schema_differences

# Of a source's configuration, what its points depend on; how it is indexed or stored may change at any time.
_OF_POINTS = ("vectors", "sparse_vectors", "sharding_method")


def fingerprint_of(request: MigrationRequest, source: SourceDescription) -> dict[str, str]:
    """A short digest for each thing that must stay, by the name that an operator knows it by."""
    asked = request.model_dump(mode="json")
    parts = {
        "source": source.identity,
        "schema": _schema(source),
        "shard keys": sorted(_keys(source)),
        **{name: asked[name] for name in ("filter", "changes", "shape", "replication_factor")},
    }
    return {name: _digest(part) for name, part in parts.items()}


def require_unchanged(saved: MigrationPlan, request: MigrationRequest, source: SourceDescription) -> None:
    """Raise PreflightError that names everything which is otherwise than when the migration was begun."""
    now = fingerprint_of(request, source)
    changed = [_sentence(name, saved, request, source) for name, was in saved.fingerprint.items() if now[name] != was]
    if request.writer is not None and request.writer != saved.writer:
        changed.append(f"the writer: {saved.writer} then, {request.writer} now")
    if not changed:
        return
    msg = (
        f"Migration {saved.migration_id} into {saved.target}, begun at {saved.created_at:%Y-%m-%d %H:%M} UTC, cannot "
        f"be gone on with, for this is otherwise now: {'; '.join(changed)}. Nothing was changed."
    )
    raise PreflightError(msg, "Ask for the same as then, or begin anew: restart (drops what it has copied).")


def _sentence(name: str, saved: MigrationPlan, request: MigrationRequest, source: SourceDescription) -> str:
    if name == "source":
        return f"the source: {saved.source.identity} then, {source.identity} now"
    if name == "schema":
        found = schema_differences(*_schema(saved.source), *_schema(source), ("then", "now"))
        return f"the source's schema: {', '.join(found)}"
    if name == "shard keys":
        then, now = _keys(saved.source), _keys(source)
        gone, new = sorted(then - now), sorted(now - then)
        return f"the source's shard keys: {', '.join(gone) or 'none'} went, {', '.join(new) or 'none'} came"
    asked = (each.model_dump(mode="json", exclude_defaults=True).get(name) for each in (saved.request, request))
    then_asked, now_asked = (orjson.dumps(each).decode() for each in asked)
    return f"{name}: {then_asked} then, {now_asked} now"


def _keys(source: SourceDescription) -> set[str]:
    return {str(shard.key) for shard in source.shards if shard.key is not None}


def _schema(source: SourceDescription) -> tuple[dict[str, Any], dict[str, Any]]:
    params = source.config["params"]
    kept = {name: params[name] for name in _OF_POINTS if params.get(name) is not None}
    indexes = {field: {"data_type": info["data_type"]} for field, info in source.payload_schema.items()}
    return {"params": kept}, indexes


def _digest(part: Any) -> str:
    return hashlib.sha256(orjson.dumps(part, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
