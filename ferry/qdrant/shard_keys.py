"""How the shard keys of a collection come to have the same shard ids again. Pure.

Within a key of several shards Qdrant places a point by hashing its id over the shard *numbers* (a ring for each key),
so archives fit only shards of the same numbers. Qdrant chooses numbers itself: a new key gets those above the largest
there is, and the first shard of a collection is 1 (seen on 1.16.3; Qdrant 10135 tells of restores that miss this).
Numbers of dropped keys are therefore filled with keys that are dropped again at the end.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from ferry.errors import RestoreError
from ferry.models import ShardId, ShardKey, ShardLayout, Value

FIRST_ID = ShardId(1)


class ShardKeyStep(Value):
    """Create a key with so many shards and copies of each, or drop it again."""

    action: Literal["create", "drop"]
    key: ShardKey
    shards: int = 1
    replication_factor: int = 1


def shard_key_steps(layout: Sequence[ShardLayout]) -> list[ShardKeyStep]:
    """The steps, in order, that give an empty custom-sharded collection the keys and shard ids of this layout.

    Raises RestoreError when the ids of a key are not consecutive, as after resharding it: no order of creating makes
    those again.
    """
    ids: dict[ShardKey, list[ShardId]] = defaultdict(list)
    copies: dict[ShardKey, int] = defaultdict(int)
    for shard in sorted(layout, key=lambda shard: shard.shard_id):
        if shard.key is None:
            msg = f"Shard {shard.shard_id} has no key: this is not the layout of a custom-sharded collection."
            raise RestoreError(msg)
        ids[shard.key].append(shard.shard_id)
        copies[shard.key] = max(copies[shard.key], len(shard.replicas))
    steps: list[ShardKeyStep] = []
    fillers: list[ShardKeyStep] = []
    following: int = FIRST_ID
    for key, held in sorted(ids.items(), key=lambda pair: pair[1][0]):
        if held[0] < following:
            msg = f"Key {key!r} has shard {held[0]}; numbers of keyed shards begin at {FIRST_ID}."
            raise RestoreError(msg)
        if gap := held[0] - following:
            filler = ShardKeyStep(action="create", key=_unused_key(following, ids), shards=gap)
            steps.append(filler)
            fillers.append(filler)
        following = held[0] + len(held)
        if held[-1] != following - 1:
            msg = f"The shards of key {key!r} are {held}, which no creation gives: the key was resharded."
            raise RestoreError(msg, "Its archives are whole; recover each by hand into shards of the same ids.")
        steps.append(ShardKeyStep(action="create", key=key, shards=len(held), replication_factor=copies[key]))
    return steps + [filler.model_copy(update={"action": "drop"}) for filler in fillers]


def _unused_key(number: int, used: dict[ShardKey, list[ShardId]]) -> str:
    name = f"ferry-gap-{number}"
    while name in used:
        name += "-"
    return name
