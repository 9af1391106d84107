"""Points on their way: renamed, dropped, typed, given shard keys; what would lose something is refused by its id."""

from typing import Any

import numpy as np
import pytest

from ferry.errors import PreflightError
from ferry.migration.batch import Dense, Multi, PointBatch, Sparse
from ferry.migration.changed_config import changed_config, changed_schema, require_fields_apart, wanted_vectors
from ferry.migration.changes import Changing
from ferry.migration.columns import columns_of, each_point, take
from ferry.migration.field_types import typed
from ferry.migration.ids import namespace_of, point_id
from ferry.migration.plan import Changes, MigrationRequest, QdrantSource
from ferry.migration.source import SourceDescription
from ferry.models import Replica, ShardLayout
from ferry.restore.shape import Shape

DENSE = {"image": {"size": 3, "distance": "Dot"}, "text": {"size": 2, "distance": "Cosine"}}
CONFIG: dict[str, Any] = {"params": {"vectors": DENSE, "sparse_vectors": {"words": {}}}}


def changing(
    changes: dict[str, Any] | None = None,
    shape: dict[str, Any] | None = None,
    *,
    config: dict[str, Any] = CONFIG,
    keys: tuple[str | int, ...] = (),
    kind: str = "qdrant",
) -> Changing:
    replica = (Replica(peer_id=1, state="Active"),)  # type: ignore[arg-type]
    shards = tuple(ShardLayout(shard_id=n, key=key, replicas=replica) for n, key in enumerate(keys))  # type: ignore[arg-type]
    params = config["params"] | ({"sharding_method": "custom"} if keys else {})
    source = SourceDescription(
        kind=kind,
        name="docs",
        identity="one",
        config={"params": params},
        payload_schema={},
        consistency="live",
        shards=shards,
    )
    asked = MigrationRequest(
        cluster="new",
        repository="main",
        source=QdrantSource(cluster="old", collection="docs"),
        into="docs",
        changes=Changes(**(changes or {})),
        shape=Shape(**(shape or {})),
    )
    return Changing(asked, source)


def batch(*payloads: dict[str, Any], ids: list[int | str] | None = None, key: str | int | None = None) -> PointBatch:
    """Points 0, 1, … with all three vectors each but the first, which has no words."""
    count = len(payloads)
    words = {"indices": [3, 9], "values": [0.5, 1.5]}
    points = [{"image": [n, 1.0, -2.0], "text": [0.6, 0.8]} | ({"words": words} if n else {}) for n in range(count)]
    return PointBatch(ids or list(range(count)), list(payloads), columns_of(points), key)


def test_without_changes_points_pass_undecoded() -> None:
    """From one Qdrant to another nothing is looked at, and looking changes nothing."""
    plain = changing()
    assert plain.undecoded
    given = batch({"a": 1}, {}, key=None)
    [found] = plain.apply(given).batches
    assert (list(found.ids), list(found.payloads)) == ([0, 1], [{"a": 1}, {}])
    assert list(each_point(found)) == list(each_point(given))
    assert changing({"vectors": {"words": None}}).undecoded  # the source is asked for the others alone
    for changes in ({"drop_fields": ("a",)}, {"vectors": {"text": "title"}}, {"datatype": "uint8"}):
        with_dot = {"params": {"vectors": {"text": {"size": 2, "distance": "Dot"}}}}
        assert not changing(changes, config=with_dot).undecoded, changes
    assert not changing(shape={"sharding": "custom", "key_field": "a"}).undecoded


def test_vectors_are_renamed_and_dropped() -> None:
    """The unnamed one gets a name, too; points without a vector have none afterwards."""
    found = changing({"vectors": {"words": "sparse", "image": None}}).apply(batch({}, {})).batches[0]
    points = list(each_point(found))
    assert [sorted(point) for point in points] == [["text"], ["sparse", "text"]]
    assert points[1]["sparse"]["indices"] == [3, 9]
    unnamed = {"params": {"vectors": {"size": 2, "distance": "Dot"}}}
    given = PointBatch([1], [{}], {"": Dense(np.ones((1, 2), dtype=np.float32))})
    assert list(changing({"vectors": {"": "body"}}, config=unnamed).apply(given).batches[0].vectors) == ["body"]


def test_fields_are_dropped_renamed_and_typed() -> None:
    """Types are of the new names; a value that cannot be typed, or a name that is taken, refuses its point."""
    changed = changing(
        {"drop_fields": ("old",), "rename_fields": {"y": "year"}, "field_types": {"year": "integer", "tags": "keyword"}}
    )
    found = changed.apply(
        batch({"old": 1, "y": "1999", "tags": [1, "b", None]}, {"y": 2.5}, {"y": 1, "year": 2}, {"y": None})
    )
    [kept] = found.batches
    assert list(kept.payloads) == [{"year": 1999, "tags": ["1", "b", None]}, {"year": None}]
    assert list(kept.ids) == [0, 3]
    assert [point.id for point in found.refused] == [1, 2]
    assert found.refused[0].reason == "2.5 in its field year is no integer"
    assert "twice" in found.refused[1].reason
    assert [sorted(point) for point in each_point(kept)] == [["image", "text"], ["image", "text", "words"]]


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("integer", "-7", -7), ("integer", 3.0, 3), ("integer", (1 << 63) - 1, (1 << 63) - 1),
        ("integer", 1 << 63, None),         ("integer", True, None), ("integer", "7.5", None), ("integer", {}, None),
        ("float", "2.5", 2.5), ("float", 3, 3.0), ("float", "nan", None), ("float", (1 << 53) + 1, None),
        ("keyword", True, "true"), ("keyword", 1.5, "1.5"), ("keyword", {"a": 1}, None),
        ("bool", "true", True), ("bool", 0, False), ("bool", 2, None), ("bool", "yes", None),
        ("datetime", "2026-11-22T20:00:00.123456789Z", "2026-11-22T20:00:00.123456789Z"),
        ("datetime", "2026-11-22", "2026-11-22T00:00:00+00:00"), ("datetime", 0, "1970-01-01T00:00:00+00:00"),
        ("datetime", "yesterday", None), ("datetime", False, None),
    ],
)  # fmt: skip
def test_types(kind: Any, value: Any, wanted: Any) -> None:
    """What is the same value as that type; all else is refused."""
    if wanted is None:
        with pytest.raises(ValueError, match="in its field f is no"):
            typed(value, kind, "f")
    else:
        found = typed(value, kind, "f")
        assert (found, type(found)) == (wanted, type(wanted))


def test_points_go_to_the_shard_keys_that_were_asked_for() -> None:
    """Renamed by key, into one key, by a payload field of the source (dropped or not); without keys to none."""
    renamed = changing(shape={"rename_keys": {"7": "seven"}}, keys=("a", 7))
    assert [renamed.key(7), renamed.key("a")] == ["seven", "a"]
    assert renamed.undecoded
    assert renamed.apply(batch({}, key=7)).batches[0].key == "seven"
    assert changing(shape={"into_key": "all"}, keys=("a", 7)).key(7) == "all"
    assert changing(shape={"sharding": "auto"}, keys=("a", 7)).key(7) is None
    split = changing({"drop_fields": ("t",)}, {"sharding": "custom", "key_field": "t"})
    found = split.apply(batch({"t": "x"}, {"t": 4}, {"t": "x"}, {"t": [1]}))
    assert [(part.key, list(part.ids), list(part.payloads)) for part in found.batches] == [
        ("x", [0, 2], [{}, {}]),
        (4, [1], [{}]),
    ]
    assert [sorted(point) for part in found.batches for point in each_point(part)] == [
        ["image", "text"],
        ["image", "text", "words"],
        ["image", "text", "words"],
    ]
    assert [(point.id, point.reason) for point in found.refused] == [
        (3, "it has a list in t, which can be no shard key")
    ]


def test_foreign_ids_are_mapped_and_kept() -> None:
    """A point whose payload has another __id__ is refused by the id that it has in the source."""
    found = changing().apply(batch({}, {}, {"__id__": "x"}, ids=[3, "doc", "other"]))
    [kept] = found.batches
    assert list(kept.ids) == [3, point_id("doc", namespace_of("one"))]
    assert list(kept.payloads) == [{}, {"__id__": "doc"}]
    assert [point.id for point in found.refused] == ["other"]


def test_another_datatype_shows_what_the_target_will_store() -> None:
    """float16 is rounded, uint8 cut; values that either cannot hold refuse their point, of a multivector, too."""
    dot = {"params": {"vectors": {"v": {"size": 2, "distance": "Dot"}}}}
    values = np.array([[0.1, 2.7], [300.0, 1.0], [1.0, 1e6]], dtype=np.float32)
    given = PointBatch([1, 2, 3], [{}, {}, {}], {"v": Dense(values)})
    half = changing({"datatype": "float16"}, config=dot)
    found = half.apply(given)
    assert found.batches[0].vectors["v"].values.tolist() == [[float(np.float16(0.1)), float(np.float16(2.7))], [300, 1]]
    assert [(point.id, "float16" in point.reason) for point in found.refused] == [(3, True)]
    assert half.sent(given).refused == found.refused
    byte = changing({"datatype": "uint8"}, config=dot).apply(given)
    assert byte.batches[0].vectors["v"].values.tolist() == [[0, 2]]
    assert [point.id for point in byte.refused] == [2, 3]
    starts = np.array([0, 1, 3], dtype=np.int64)
    several = PointBatch([8, 9], [{}, {}], {"v": Multi(starts, values)})
    assert [point.id for point in changing({"datatype": "uint8"}, config=dot).apply(several).refused] == [9]


def test_halves_of_cosine_are_sent_as_what_rounds_to_them() -> None:
    """Qdrant makes them as long as 1 before it rounds (ferry.qdrant.rounding); float32 ones are left alone."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((400, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    halves = vectors.astype(np.float16).astype(np.float32)
    config = {"params": {"vectors": {"v": {"size": 4, "distance": "Cosine", "datatype": "float16"}}}}
    same = changing(config=config)
    assert not same.undecoded
    given = PointBatch(list(range(400)), [{}] * 400, {"v": Dense(halves)})
    assert np.array_equal(same.apply(given).batches[0].vectors["v"].values, halves)
    sent = same.sent(given).batches[0].vectors["v"].values.astype(np.float64)
    unit = sent / np.linalg.norm(sent, axis=1, keepdims=True)
    assert np.array_equal(unit.astype(np.float32).astype(np.float16).astype(np.float32), halves)
    assert not np.array_equal((halves / np.linalg.norm(halves, axis=1, keepdims=True)).astype(np.float16), halves)


def test_cosine_vectors_that_no_qdrant_has_stored_are_made_as_long_as_one() -> None:
    """As the target would make them, so that both sides show the same; zeros and what is of length 1 stay."""
    config = {"params": {"vectors": {"v": {"size": 2, "distance": "Cosine"}}}}
    values = np.array([[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]], dtype=np.float32)
    given = PointBatch([1, 2, 3], [{}, {}, {}], {"v": Dense(values)})
    found = changing(config=config, kind="parquet").apply(given).batches[0].vectors["v"].values
    assert found.tolist() == np.array([[0.6, 0.8], [0, 0], [0.6, 0.8]], dtype=np.float32).tolist()
    assert changing(config=config).apply(given).batches[0].vectors["v"].values.tolist() == values.tolist()


def test_the_configuration_and_the_payload_indexes_follow() -> None:
    """Renamed and dropped like the vectors and fields themselves; an index of a typed field is of the new type."""
    changes = Changes(
        vectors={"image": "picture", "words": None},
        datatype="float16",
        drop_fields=("secret",),
        rename_fields={"meta": "about", "a": "b.c"},
        field_types={"year": "integer"},
    )
    new = changed_config(CONFIG, changes)["params"]
    assert {name: vector["datatype"] for name, vector in new["vectors"].items()} == {
        "picture": "float16",
        "text": "float16",
    }
    assert new["sparse_vectors"] == {}
    assert "datatype" not in DENSE["image"]
    assert wanted_vectors(CONFIG, changes) == ("image", "text")
    assert wanted_vectors(CONFIG, Changes()) is None
    keyword, integer = {"data_type": "keyword", "points": 1}, {"data_type": "integer", "params": {"lookup": False}}
    schema = {
        "secret": keyword,
        "secret.x": keyword,
        "secrets": keyword,
        "meta.k": keyword,
        "a": keyword,
        "year": keyword,
    }
    found = changed_schema(schema | {"n": integer}, changes)
    assert found == {
        "secrets": keyword, "about.k": keyword, '"b.c"': keyword, "year": {"data_type": "integer"}, "n": integer,
    }  # fmt: skip
    unnamed = {"params": {"vectors": {"size": 2, "distance": "Dot"}}}
    assert changed_config(unnamed, Changes(vectors={"": "body"}))["params"]["vectors"] == {
        "body": unnamed["params"]["vectors"]
    }
    assert changed_config(unnamed, Changes()) == unnamed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vectors": {"none": "x"}}, "has no vector 'none'; it has: 'image', 'text', 'words'"),
        ({"vectors": {"image": "text"}}, "Two vectors would have one name"),
        ({"vectors": {"image": ""}}, "unnamed vector cannot be beside"),
        ({"distance": "Euclid"}, "embedded for Dot, not for Euclid"),
        ({"datatype": "uint8"}, "as uint8 all of its values would be 0"),
    ],
)
def test_changes_that_make_no_sense_are_refused_before_anything_is_done(changes: dict[str, Any], said: str) -> None:
    """And the remedy says what to write instead."""
    with pytest.raises(PreflightError, match=said) as found:
        changed_config(CONFIG, Changes(**changes))
    assert "Nothing was changed" in found.value.message
    assert found.value.remedy
    with pytest.raises(PreflightError, match="new name of two fields"):
        require_fields_apart(Changes(rename_fields={"a": "c", "b": "c"}))
    with pytest.raises(PreflightError, match="a is dropped too"):
        require_fields_apart(Changes(rename_fields={"a": "c"}, drop_fields=("a",)))


def test_columns_are_cut_to_the_points_that_are_taken() -> None:
    """Of every kind, also where only some points have the vector."""
    vectors = [
        {"d": [1.0], "m": [[1.0, 2.0], [3.0, 4.0]]},
        {"s": {"indices": [7, 2], "values": [0.7, 0.2]}},
        {"d": [3.0], "s": {"indices": [], "values": []}, "m": [[5.0, 6.0]]},
    ]
    columns = columns_of(vectors)
    assert [type(columns[name]) for name in ("d", "m", "s")] == [Dense, Multi, Sparse]
    whole = PointBatch([1, 2, 3], [{}, {}, {}], columns)
    shown = list(each_point(whole))
    assert shown[1]["s"]["indices"] == [2, 7]  # by rising index, as Qdrant keeps them
    for chosen in ([0, 2], [1], [], [0, 1, 2]):
        part = take(whole, np.array(chosen, dtype=np.intp))
        assert (list(part.ids), list(each_point(part))) == (
            [chosen_id + 1 for chosen_id in chosen],
            [shown[n] for n in chosen],
        )
