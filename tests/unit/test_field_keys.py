"""Shard keys that a payload field names."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from ferry.archive.points import Batch, Selection
from ferry.errors import PreflightError, RestoreError
from ferry.models import Progress, ShardId
from ferry.repository.manifest import CollectionManifest
from ferry.restore import field_keys
from ferry.restore.field_keys import by_field, keys_by_field
from tests.unit.builders import archive, collection, manifest, shard

BACKUP = manifest(collection("docs", [shard(0, [1]), shard(1, [1])]), [archive(0), archive(1)])
NOTHING: Any = object()


def batch_of(first: int, values: list[Any], filling: str = "") -> Batch:
    """Points with these values of field ``who``; ``NOTHING`` leaves it out."""
    payloads = [{} if value is NOTHING else {"who": value} for value in values]
    rows = [{"id": first + n, "payload": {"fill": filling} | payload} for n, payload in enumerate(payloads)]
    return Batch(list(range(first, first + len(values))), [], orjson.dumps(rows))


@pytest.fixture(name="stored")
def _stored(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Batch]]:
    """What the archives of both shards hold."""
    held: dict[int, list[Batch]] = {0: [], 1: []}

    def stored_points(
        _repository: Any, _manifest: CollectionManifest, shard_id: ShardId, _selection: Selection, tell: Progress
    ) -> Iterator[Batch]:
        for each in held[shard_id]:
            tell(len(each.ids))
            yield each

    monkeypatch.setattr(field_keys, "stored_points", stored_points)
    return held


def keys(field: str = "who", **asked: Any) -> Any:
    repository: Any = None
    return keys_by_field(repository, BACKUP, field, **asked)


def test_the_keys_are_the_values_of_all_points(stored: dict[int, list[Batch]]) -> None:
    """Numbers first, then text, each once, from every shard or those that are asked for; progress is told."""
    stored[0] = [batch_of(0, ["b", 7, "b"]), batch_of(3, ["a"])]
    stored[1] = [batch_of(4, [0, "7", ""])]
    told: list[int] = []
    assert keys(progress=told.append) == [0, 7, "", "7", "a", "b"]
    assert sum(told) == 7
    assert keys(shards={ShardId(1)}) == [0, "", "7"]


def test_nested_fields_and_fields_with_dots(stored: dict[int, list[Batch]]) -> None:
    """A field's own name wins over a path into objects."""
    rows = [
        {"id": 1, "vector": [], "payload": {"a": {"b": "deep"}}},
        {"id": 2, "vector": [], "payload": {"a.b": "flat", "a": {"b": "deep"}}},
    ]
    stored[0] = [Batch([1, 2], [], orjson.dumps(rows))]
    assert keys("a.b") == ["deep", "flat"]


@pytest.mark.parametrize("value", [NOTHING, None, 1.5, -1, True, ["a"], {"x": 1}])
def test_points_without_a_usable_value_are_named(stored: dict[int, list[Batch]], value: Any) -> None:
    """How many, the first of them by id, and what they have instead; before anything was created."""
    stored[0] = [batch_of(0, ["a", value, "b"])]
    stored[1] = [batch_of(10, [value] * 7)]
    with pytest.raises(
        PreflightError, match=r"8 points of docs have no value of 'who'.*: 1 \(.*\), 10 .*, …"
    ) as caught:
        keys()
    assert "Nothing was changed" in caught.value.message
    with pytest.raises(RestoreError, match="Point 1 has"):
        list(by_field(iter(stored[0]), "who"))


def test_too_many_keys_are_refused(stored: dict[int, list[Batch]]) -> None:
    """Up to a thousand; one more and nothing more is read."""
    stored[0] = [batch_of(0, list(range(1000)))]
    assert len(keys()) == 1000
    read: list[int] = []
    stored[1] = [batch_of(2000, ["one more"]), batch_of(3000, ["never read"])]
    with pytest.raises(PreflightError, match="more than 1000 values in docs"):
        keys(progress=read.append)
    assert read == [1000, 1]


def test_points_are_put_together_by_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point once, under its own key, in few requests; no more waits than may be held."""
    filling, names = "x" * 1000, ["a", "b", 3]
    sources = [batch_of(30 * n, [names[k % 3] for k in range(30)], filling) for n in range(20)]
    monkeypatch.setattr(field_keys, "REQUEST_BYTES", 50_000)
    monkeypatch.setattr(field_keys, "HELD_BYTES", 120_000)
    found = list(by_field(iter(sources), "who"))
    assert sorted(point_id for _, each in found for point_id in each.ids) == list(range(600))
    assert all(names[int(point_id) % 3] == key for key, each in found for point_id in each.ids)
    assert [orjson.loads(each.body)[0]["id"] for _, each in found] == [each.ids[0] for _, each in found]
    assert all(40_000 < len(each.body) < 60_000 for _, each in found[:-3])


def test_many_keys_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more keys than fit, the largest are sent before they are full."""
    monkeypatch.setattr(field_keys, "HELD_BYTES", 100_000)
    taken, given = [0], [0]

    def source() -> Iterator[Batch]:
        for n in range(50):
            taken[0] += 1
            # A batch is taken when the one before has been put away.
            assert (taken[0] - 1) * 20 - given[0] <= 100
            yield batch_of(20 * n, list(range(20 * n, 20 * n + 20)), "x" * 1000)

    for _, each in by_field(source(), "who"):
        given[0] += len(each.ids)
    assert given[0] == 1000
