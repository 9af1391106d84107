"""The steps that give shard keys their ids again; that a real cluster obeys is in tests/integration."""

import pytest

from ferry.errors import RestoreError
from ferry.models import ShardKey, ShardLayout
from ferry.qdrant.shard_keys import shard_key_steps
from tests.unit.builders import shard


def keyed(**ids_by_key: list[int]) -> list[ShardLayout]:
    """Shards of these ids, one replica each; k7 stands for the number 7."""
    keys: dict[str, ShardKey] = {"k7": 7}
    return [
        shard(number, [1]).model_copy(update={"key": keys.get(key, key)})
        for key, ids in ids_by_key.items()
        for number in ids
    ]


def told(layout: list[ShardLayout]) -> list[tuple[str, ShardKey, int]]:
    return [(step.action, step.key, step.shards) for step in shard_key_steps(layout)]


def test_keys_are_made_in_the_order_of_their_ids_and_gaps_are_filled() -> None:
    """Fillers go last: dropped earlier, their numbers would be given to the next key."""
    layout = keyed(a=[8], b=[2, 3], k7=[5, 6, 7])
    assert told(layout) == [
        ("create", "ferry-gap-1", 1),
        ("create", "b", 2),
        ("create", "ferry-gap-4", 1),
        ("create", 7, 3),
        ("create", "a", 1),
        ("drop", "ferry-gap-1", 1),
        ("drop", "ferry-gap-4", 1),
    ]


def test_obeying_the_steps_as_qdrant_does_gives_the_ids() -> None:
    """A model of Qdrant's own rule (largest + 1) ends with the layout's ids."""
    layout = keyed(z=[3], b=[4, 5], a=[9, 10], **{"ferry-gap-6": [12]})
    made: dict[int, ShardKey] = {}
    for step in shard_key_steps(layout):
        if step.action == "create":
            assert step.key not in made.values()
            first = max(made, default=0) + 1
            made |= dict.fromkeys(range(first, first + step.shards), step.key)
        else:
            made = {number: key for number, key in made.items() if key != step.key}
    assert made == {shard.shard_id: shard.key for shard in layout}


def test_copies_are_those_of_the_fullest_shard() -> None:
    """One replica may be lost at the moment of the backup."""
    first = shard(1, [1, 2]).model_copy(update={"key": "a"})
    second = shard(2, [1]).model_copy(update={"key": "a"})
    assert [step.replication_factor for step in shard_key_steps([first, second])] == [2]


def test_a_resharded_key_and_one_without_keys_are_refused() -> None:
    """No order of creating gives a key shards 1 and 4."""
    with pytest.raises(RestoreError, match="resharded"):
        shard_key_steps(keyed(a=[1, 4], b=[2, 3]))
    with pytest.raises(RestoreError, match="has no key"):
        shard_key_steps([shard(0, [1])])
    assert shard_key_steps([]) == []
