"""What a restored collection has otherwise than its backup: shards, keys, storage; and what that means for its shards.

Pure. An archive fits a target shard when Qdrant routes the same ids there: within a key (or the whole collection,
without keys) it hashes ids over the shard *numbers*, so a ring of several shards needs the same numbers, and a ring of
one shard takes everything whatever its number (facts of 1.16.3; see ferry.qdrant.shard_keys).
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

from pydantic import Field

from ferry.errors import PreflightError, RestoreError
from ferry.models import ShardId, ShardKey, ShardLayout, Value
from ferry.qdrant.shard_keys import FIRST_ID, ShardKeyStep, shard_key_steps

# Numbers of dropped keys are filled with shards that are dropped again: each is made on real nodes.
MOST_FILLERS = 64


class Shape(Value):
    """What the new collection shall have otherwise than the backup; what is left out stays as it was."""

    shard_number: int | None = Field(
        default=None, ge=1, le=4096, description="Shards of the new collection; of each key where it has shard keys."
    )
    sharding: Literal["auto", "custom"] | None = Field(
        default=None, description="auto places points by their ids, custom by shard keys."
    )
    only_keys: tuple[ShardKey, ...] = Field(default=(), description="Restore only these shard keys of the backup.")
    rename_keys: dict[str, ShardKey] = Field(
        default_factory=dict, description="New shard key by old one; two old ones may become one."
    )
    into_key: ShardKey | None = Field(default=None, description="One shard key for all points.")
    key_field: str | None = Field(
        default=None, description="Payload field whose value becomes a point's shard key: a string or a number."
    )
    on_disk: bool | None = Field(default=None, description="Keep all dense vectors on disk, or in memory.")
    quantization: dict[str, Any] | None = Field(
        default=None, description="Another quantization_config, as Qdrant's API takes it; {} for none."
    )


class PlannedShard(Value):
    """One shard of the new collection. ``source`` is the shard of the backup it equals; None where points are sent."""

    shard_id: ShardId
    key: ShardKey | None = None
    copies: int = 1
    source: ShardId | None = None


class PlannedStream(Value):
    """One shard of the backup whose points are sent, and the shard key that they get."""

    source: ShardId
    key: ShardKey | None = None


class Topology(Value):
    """The shards of a new collection and how they come to be; ``obstacles`` says why archives do not fit them."""

    shards: tuple[PlannedShard, ...]
    streams: tuple[PlannedStream, ...]
    key_steps: tuple[ShardKeyStep, ...] = ()
    obstacles: tuple[str, ...] = ()


class Ring(Value):
    """The shards that one key's ids are spread over, as they will be, and the rings that its points come from."""

    key: ShardKey | None
    shards: int
    copies: int
    sources: tuple[tuple[ShardId, ...], ...]


def is_custom(config: Mapping[str, Any]) -> bool:
    """Whether a captured configuration places points by shard keys."""
    return bool(config["params"].get("sharding_method") == "custom")


def chosen_shards(layout: Sequence[ShardLayout], shape: Shape) -> list[ShardLayout]:
    """The shards of the backup that are wanted. Raises PreflightError for keys that it does not hold."""
    if not shape.only_keys:
        return list(layout)
    wanted = {key_named(name, layout) for name in shape.only_keys}
    return [shard for shard in layout if shard.key in wanted]


def key_named(name: ShardKey, layout: Sequence[ShardLayout]) -> ShardKey:
    """The shard key of that name: a word before a number of the same digits, for Qdrant tells ``"7"`` from ``7``.

    Raises PreflightError when the backup does not hold it.
    """
    held = {shard.key for shard in layout if shard.key is not None}
    if name in held:
        return name
    for key in held:
        if str(key) == str(name):
            return key
    there = ", ".join(sorted(map(str, held))) or "none"
    msg = f"The backup holds no shard key {name}; there are: {there}."
    raise PreflightError(msg, "Correct `only_keys` or `rename_keys`. Nothing was changed.")


def shaped_config(config: Mapping[str, Any], shape: Shape, rings: Sequence[Ring]) -> dict[str, Any]:
    """The captured configuration as the new collection shall have it."""
    new: dict[str, Any] = deepcopy(dict(config))
    params = new["params"]
    if ring := _by_id(rings):
        params.pop("sharding_method", None)
        params["shard_number"] = ring.shards
    else:
        params["sharding_method"] = "custom"
        params["shard_number"] = shape.shard_number or params.get("shard_number", 1)
    if shape.on_disk is not None:
        vectors = params.get("vectors") or {}
        for vector in [vectors] if "size" in vectors else vectors.values():
            vector["on_disk"] = shape.on_disk
    if shape.quantization is not None:
        new["quantization_config"] = shape.quantization or None
    return new


def storage_changes(config: Mapping[str, Any], shaped: Mapping[str, Any]) -> list[str]:
    """Why archives do not fit although their shards would: files of another storage than the collection's."""
    reasons = []
    if config["params"].get("vectors") != shaped["params"].get("vectors"):
        reasons.append("vectors are to be stored otherwise (on_disk)")
    if config.get("quantization_config") != shaped.get("quantization_config"):
        reasons.append("the quantization is to be another one")
    return reasons


def rings_of(
    chosen: Sequence[ShardLayout], config: Mapping[str, Any], shape: Shape, field_keys: Sequence[ShardKey] = ()
) -> list[Ring]:
    """The rings of the new collection. ``field_keys`` are the values of ``key_field`` in the backup's points.

    Copies are those of the source: of its configuration, and of each key where it has keys, which may differ. Raises
    PreflightError for wishes that contradict each other.
    """
    source_custom = is_custom(config)
    _require_sense(source_custom, shape)
    by_key: dict[ShardKey | None, list[ShardLayout]] = {}
    for shard in chosen:
        by_key.setdefault(shard.key, []).append(shard)
    sources = {key: tuple(shard.shard_id for shard in shards) for key, shards in by_key.items()}
    copies = int(config["params"].get("replication_factor", 1))
    if source_custom:
        copies = max((len(shard.replicas) for shard in chosen), default=copies)
    custom = source_custom if shape.sharding is None else shape.sharding == "custom"
    if not custom:
        shards = shape.shard_number or max(1, len(chosen))
        return [Ring(key=None, shards=shards, copies=copies, sources=tuple(sources.values()))]
    if shape.key_field is not None:
        return [Ring(key=key, shards=shape.shard_number or 1, copies=copies, sources=()) for key in field_keys]
    renamed = {key_named(name, chosen): new for name, new in shape.rename_keys.items()}
    merged: dict[ShardKey, list[ShardKey | None]] = {}
    for key in sources:
        new = shape.into_key if shape.into_key is not None or key is None else renamed.get(key, key)
        if new is not None:
            merged.setdefault(new, []).append(key)
    return [
        Ring(
            key=new,
            shards=shape.shard_number or max(len(sources[key]) for key in keys),
            copies=max(len(shard.replicas) for key in keys for shard in by_key[key]),
            sources=tuple(sources[key] for key in keys),
        )
        for new, keys in merged.items()
    ]


def _by_id(rings: Sequence[Ring]) -> Ring | None:
    """The one ring of a collection without shard keys; None with keys, of which there may be none yet."""
    return rings[0] if rings and rings[0].key is None else None


def _require_sense(source_custom: bool, shape: Shape) -> None:
    custom = source_custom if shape.sharding is None else shape.sharding == "custom"
    named = shape.into_key is not None, shape.key_field is not None
    if all(named):
        raise PreflightError("`into_key` and `key_field` both say which shard key points get.", "Name one of them.")
    if not custom and (any(named) or shape.rename_keys):
        raise PreflightError("Shard keys need custom sharding.", "Set `sharding` to custom, or name no key.")
    if any(named) and shape.rename_keys:
        msg = "`rename_keys` says which shard key points get, and `into_key` or `key_field` says it too."
        raise PreflightError(msg, "Leave one of them out.")
    if custom and not source_custom and not any(named):
        msg = "The backup has no shard keys, so nothing says which key a point gets."
        raise PreflightError(msg, "Name `into_key` (one key for all) or `key_field` (a payload field with the key).")
    if not source_custom and (shape.only_keys or shape.rename_keys):
        raise PreflightError(
            "The backup has no shard keys to choose or rename.", "Leave only_keys and rename_keys out."
        )


def topology(rings: Sequence[Ring], key_field: bool, sources: Sequence[ShardId]) -> tuple[Topology, Topology]:
    """How the rings come to be: with the archives' own shards, and with points sent. The first may have obstacles."""
    return _placed(rings, key_field), _streamed(rings, sources)


def _placed(rings: Sequence[Ring], key_field: bool) -> Topology:
    obstacles = ["points get the shard key that a payload field names"] if key_field else []
    for ring in rings:
        name = "the collection" if ring.key is None else f"key {ring.key!r}"
        if len(ring.sources) > 1:
            obstacles.append(f"{len(ring.sources)} shard keys come together in {name}")
        elif ring.sources and len(ring.sources[0]) != ring.shards:
            obstacles.append(f"{name} has {len(ring.sources[0])} shards in the backup and is to have {ring.shards}")
        elif not ring.sources and ring.key is None:
            obstacles.append("the backup has no shards")
    if obstacles:
        return Topology(shards=(), streams=(), obstacles=tuple(obstacles))
    if whole := _by_id(rings):
        return _placed_by_id(whole)
    several = any(ring.shards > 1 for ring in rings)
    layout = _layout(rings, own_numbers=several)
    try:
        steps = _steps(layout)
    except RestoreError as error:
        return Topology(shards=(), streams=(), obstacles=(error.message,))
    sources = [source for ring in rings for source in ring.sources[0]]
    shards = (_planned(shard, source) for shard, source in zip(layout, sources, strict=True))
    return Topology(shards=tuple(shards), streams=(), key_steps=tuple(steps))


def _placed_by_id(ring: Ring) -> Topology:
    ids = [ShardId(number) for number in range(ring.shards)]
    sources = sorted(ring.sources[0])
    if len(ids) > 1 and sources != ids:
        said = f"the backup's shards are numbered {sources}, those of a new collection {ids}: ids go elsewhere"
        return Topology(shards=(), streams=(), obstacles=(said,))
    pairs = zip(ids, sources, strict=True)
    shards = tuple(PlannedShard(shard_id=number, copies=ring.copies, source=source) for number, source in pairs)
    return Topology(shards=shards, streams=())


def _streamed(rings: Sequence[Ring], sources: Sequence[ShardId]) -> Topology:
    keys = {source: ring.key for ring in rings for group in ring.sources for source in group}
    streams = tuple(PlannedStream(source=source, key=keys.get(source)) for source in sources)
    if ring := _by_id(rings):
        numbers = (ShardId(number) for number in range(ring.shards))
        shards = tuple(PlannedShard(shard_id=number, copies=ring.copies) for number in numbers)
        return Topology(shards=shards, streams=streams)
    layout = _layout(rings, own_numbers=False)
    return Topology(
        shards=tuple(_planned(shard, None) for shard in layout), streams=streams, key_steps=tuple(_steps(layout))
    )


def _layout(rings: Sequence[Ring], own_numbers: bool) -> list[ShardLayout]:
    """The shards of the keys: with the numbers of the backup, or counted through. Replicas are on no peer yet."""
    shards, following = [], int(FIRST_ID)
    for ring in rings:
        numbers = ring.sources[0] if own_numbers else range(following, following + ring.shards)
        following += ring.shards
        replicas = [{"peer_id": peer, "state": "planned"} for peer in range(ring.copies)]
        shards += [
            ShardLayout.model_validate({"shard_id": number, "key": ring.key, "replicas": replicas})
            for number in numbers
        ]
    return shards


def _steps(layout: Sequence[ShardLayout]) -> list[ShardKeyStep]:
    steps = shard_key_steps(layout)
    fillers = sum(step.shards for step in steps if step.action == "create") - len(layout)
    if fillers > MOST_FILLERS:
        msg = f"{fillers} shards would have to be made and dropped again to give the keys their numbers."
        raise RestoreError(msg)
    return steps


def _planned(shard: ShardLayout, source: ShardId | None) -> PlannedShard:
    return PlannedShard(shard_id=shard.shard_id, key=shard.key, copies=len(shard.replicas), source=source)
