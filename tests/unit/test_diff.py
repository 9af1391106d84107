"""A diff names exactly what differs, whatever lies in which shard, and reads only where something can."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.__main__ import parser
from ferry.archive.digest import ShardDigest, digest_of, point_fields, range_of
from ferry.archive.points import Selection, read_points
from ferry.errors import ConfigurationError, HeadroomError, StoppedError, VerificationError
from ferry.models import Finding, Progress, ShardId, ShardKey
from ferry.profiles import WorkerSettings
from ferry.verify import ledger as ledger_module
from ferry.verify.diff import Comparison, _lines, compare, diff
from ferry.verify.diff_report import comparison_text, difference_rows
from ferry.verify.ledger import Difference, Ledger
from ferry.verify.sides import Explain, Note, Side, SideName, SideShard, parse_side
from tests.unit.shard_archives import build_archive, points

Point = dict[str, Any]
Model = dict[tuple[ShardKey | None, int | str], Point]  # by shard key and id
IDS: list[int | str] = [0, 1, 2, 3, 2**64 - 1, *(str(UUID(int=n << 100 | n)) for n in range(3))]


class FakeSide(Side):
    """A side in memory; what it is asked for is noted."""

    def __init__(self, name: str, shards: dict[tuple[ShardKey | None, int], list[Point]], known: bool = True) -> None:
        super().__init__(name, {"params": {}}, {})
        self.held = {ShardId(number): content for (_, number), content in shards.items()}
        self.shards = tuple(
            SideShard(shard_id=ShardId(number), key=key, content=digest_of(content) if known else None)
            for (key, number), content in shards.items()
        )
        self.read: list[tuple[ShardId, int | str]] = []
        self.looked_at: list[int | str] = []
        self.rewritten: int | None = None

    @property
    def bytes_read(self) -> int:
        return 100 * len(self.read)

    def hashes(self, wanted: Mapping[ShardId, Sequence[str] | None], note: Note, progress: Progress) -> None:
        for shard_id, ranges in wanted.items():
            for point in self.held[shard_id]:
                if ranges is None or range_of(point["id"]) in ranges:
                    self.read.append((shard_id, point["id"]))
                    note(shard_id, [point["id"]], [hash_of(point)])
                    progress(1)

    def fields(
        self, shard_id: ShardId, ids: Iterator[list[int | str]], points: int, explain: Explain, progress: Progress
    ) -> None:
        asked = [each for page in ids for each in page]
        assert len(asked) == points
        for point in self.held[shard_id]:  # more than was asked for, as from sub-ranges
            explain(point["id"], hash_of(point), point_fields(point["id"], point["payload"], point["vector"]))
        self.looked_at += asked

    def afterwards(self, read: Mapping[ShardId, int], rewritten: int) -> list[Finding]:
        self.rewritten = rewritten
        return super().afterwards(read, rewritten)


def hash_of(point: Point) -> str:
    return f"{ShardDigest().add(point['id'], point['payload'], point['vector']):064x}"


def laid_out(model: Model, shards: Mapping[ShardKey | None, Sequence[int]]) -> dict[Any, list[Point]]:
    """The points in the shards of their keys, always the same shard for the same id."""
    found: dict[Any, list[Point]] = {(key, number): [] for key, numbers in shards.items() for number in numbers}
    for (key, _), point in model.items():
        numbers = shards[key]
        found[key, numbers[sum(str(point["id"]).encode()) % len(numbers)]].append(point)
    return found


def truth(a: Model, b: Model) -> list[Difference]:
    """What differs, by comparing everything with everything."""
    found = []
    for key, point_id in a.keys() | b.keys():
        one, other = a.get((key, point_id)), b.get((key, point_id))
        if one == other:
            continue
        what = "added" if one is None else "removed" if other is None else "changed"
        fields: set[str] = set()
        if one is not None and other is not None:
            for part in ("payload", "vector"):
                names = one[part].keys() | other[part].keys()
                fields |= {f"{part}.{name}" for name in names if one[part].get(name) != other[part].get(name)}
        found.append(Difference(id=point_id, what=what, fields=tuple(sorted(fields)), shard_key=key))  # type: ignore[arg-type]
    return sorted(found, key=str)


def compared(a: Side, b: Side, folder: Path) -> tuple[Comparison, list[Difference]]:
    told: list[Difference] = []
    return compare(a, b, WorkerSettings(spool_dir=folder / "spool"), told.append), told


def point_of(point_id: int | str) -> st.SearchStrategy[Point]:
    payload = st.dictionaries(st.sampled_from(["n", "ü"]), st.integers(0, 1), max_size=2)
    vector = st.dictionaries(st.sampled_from(["", "image"]), st.just([0.5, 1.0]) | st.just([0.5, 2.0]), max_size=2)
    return st.builds(lambda p, v: {"id": point_id, "payload": p, "vector": v}, payload, vector)


def models(keys: Sequence[ShardKey | None]) -> st.SearchStrategy[Model]:
    places = [(key, point_id) for key in keys for point_id in IDS]
    return st.fixed_dictionaries({}, optional={place: point_of(place[1]) for place in places})


@given(models([None]), models([None]), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans(), st.booleans())
@settings(deadline=None)
def test_a_diff_is_the_truth(
    tmp_path_factory: pytest.TempPathFactory, a: Model, b: Model, shards: tuple[int, int], known: bool, same: bool
) -> None:
    """Any two collections of any numbers of shards, from digests or read whole: every difference, and no other."""
    first = FakeSide("a", laid_out(a, {None: range(shards[0])}))
    second = FakeSide("b", laid_out(a if same else b, {None: range(shards[1])}), known)
    found, told = compared(first, second, tmp_path_factory.mktemp("diff"))
    expected = [] if same else truth(a, b)
    assert sorted(told, key=str) == expected
    assert (found.points, found.a.points) == (len(expected), len(a))
    assert found.changed_payload == sum(any(name < "v" for name in each.fields) for each in expected)
    assert found.changed_vector == sum(any(name > "v" for name in each.fields) for each in expected)
    differing = {range_of(each.id) for each in expected}
    assert {range_of(point_id) for _, point_id in first.read} <= differing
    assert {point_id for _, point_id in second.read} == (
        {point_id for _, point_id in (a if same else b) if not known or range_of(point_id) in differing}
    )
    assert set(first.looked_at) == {each.id for each in expected if each.what == "changed"}
    assert found.a.points_read == len(first.read)
    assert (first.rewritten, second.rewritten) == (0, 0)


@given(models(["eu", 1]), models(["eu", 1]), st.booleans())
@settings(deadline=None)
def test_an_id_under_two_keys_is_two_points(
    tmp_path_factory: pytest.TempPathFactory, a: Model, b: Model, same_shards: bool
) -> None:
    """With the same shard keys on both sides points are told apart by key and id, however many shards a key has."""
    layout: dict[ShardKey | None, Sequence[int]] = {"eu": [0, 1], 1: [2]}
    other = layout if same_shards else {"eu": [4], 1: [0, 3]}
    found, told = compared(
        FakeSide("a", laid_out(a, layout)), FakeSide("b", laid_out(b, other)), tmp_path_factory.mktemp("diff")
    )
    assert sorted(told, key=str) == truth(a, b)
    assert found.findings == ()


@given(models(["eu", "us"]), models(["eu", "us"]))
@settings(deadline=None)
def test_other_keys_are_compared_as_a_whole(tmp_path_factory: pytest.TempPathFactory, a: Model, b: Model) -> None:
    """With other shard keys, or without, the points of an id are compared together; the finding says how many."""
    first = FakeSide("a", laid_out(a, {"eu": [0], "us": [1]}))
    second = FakeSide("b", {(None, 7): list(b.values())})
    found, told = compared(first, second, tmp_path_factory.mktemp("diff"))
    whole = [sorted(hash_of(side[key]) for key in side if key[1] == point) for point in IDS for side in (a, b)]
    pairs = dict(zip(IDS, zip(whole[::2], whole[1::2], strict=True), strict=True))
    assert {each.id for each in told} == {point for point, (one, other) in pairs.items() if one != other}
    read_twice = [point for _, point in first.read if len(pairs[point][0]) > 1]
    assert bool(read_twice) == any(
        "in several shards" in each.message for each in found.findings if each.subject == "a"
    )
    assert "shard keys: 'eu' (1), 'us' (1) in the first, none in the second" in found.schema_differences


FEW = 600  # so that a sub-range has points in several shards


def few(changed: int = 0) -> dict[Any, list[Point]]:
    """Three shards of points, of which the first so many are other ones."""
    rows = {
        n: {"id": n, "payload": {"n": -n if n < changed else n}, "vector": {"": [float(n), 1.0]}} for n in range(FEW)
    }
    return laid_out({(None, n): row for n, row in rows.items()}, {None: range(3)})


def test_equal_shards_are_not_read(tmp_path: Path) -> None:
    """One changed point: only its range of its shard is read, on both sides."""
    a, changed = FakeSide("a", few()), few()
    elsewhere = {range_of(point["id"]) for number in (0, 2) for point in changed[None, number]}
    victim = next(point for point in changed[None, 1] if range_of(point["id"]) in elsewhere)
    victim["vector"] = {"": [9.0, 9.0]}
    b = FakeSide("b", changed)
    found, told = compared(a, b, tmp_path)
    assert told == [Difference(id=victim["id"], what="changed", fields=("vector.",))]
    assert a.read == b.read
    assert {(shard_id, range_of(point)) for shard_id, point in a.read} == {(1, range_of(victim["id"]))}
    assert (found.a.shards, found.a.shards_read, found.a.points, found.a.points_read) == (3, 1, FEW, len(a.read))
    assert list((tmp_path / "spool").iterdir()) == []


def test_many_differences_are_paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No list of ids is longer than a page; the report names the first of each kind, the file all."""
    monkeypatch.setattr(ledger_module, "PAGE_IDS", 7)
    found, told = compared(FakeSide("a", few()), FakeSide("b", few(changed=50)), tmp_path)
    assert [each.id for each in told] == list(range(1, 50))
    assert (found.changed, len(found.first)) == (49, 20)
    assert {each.fields for each in told} == {("payload.n",)}


def test_points_that_are_not_those_of_the_proof_are_refused(tmp_path: Path) -> None:
    """A reader that leaves a point out, or a proof of something else, is an error and not a difference."""
    a = FakeSide("a", few())
    b = FakeSide("b", few(changed=50))
    for content in a.held.values():
        del content[1]  # one that has changed on the other side
    with pytest.raises(VerificationError, match="of a are not those of its proof"):
        compared(a, b, tmp_path)


def test_a_point_that_was_written_between_the_looks_is_counted(tmp_path: Path) -> None:
    """The second look finds another hash, or nothing: both count as written meanwhile."""
    a, b = FakeSide("a", few()), FakeSide("b", few(changed=9), known=False)
    fields = b.fields

    def after_a_write(shard_id: ShardId, *rest: Any) -> None:
        for point in [each for each in b.held[shard_id] if each["id"] in (1, 2)]:
            b.held[shard_id].remove(point)
            if point["id"] == 2:
                b.held[shard_id].append({**point, "payload": {"n": "new"}})
        fields(shard_id, *rest)

    with patch.object(b, "fields", after_a_write):
        _, told = compared(a, b, tmp_path)
    assert (a.rewritten, b.rewritten) == (0, 2)
    assert [each.fields for each in told][:2] == [(), ("payload.n",)]


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    """What progress raises ends the diff, and the spool is empty."""

    def stop(_done: int) -> None:
        raise StoppedError("enough")

    sides = FakeSide("a", few()), FakeSide("b", few(changed=9))
    with pytest.raises(StoppedError):
        compare(*sides, WorkerSettings(spool_dir=tmp_path / "spool"), [].append, stop)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_full_spool_disk_is_said(tmp_path: Path) -> None:
    """SQLite's own error becomes one with the folder and what to do."""

    def fill() -> None:
        with Ledger(tmp_path / "points.sqlite") as ledger:
            ledger._base.execute("PRAGMA max_page_count = 20")
            ledger.note("a", ShardId(0), list(range(5000)), ["00" * 32] * 5000)

    with pytest.raises(HeadroomError, match="ran full"):
        fill()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prod/latest/docs", ("prod", "latest", "docs")),
        ("prod/20261122T020000Z-7f3a9c/a/b", ("prod", "20261122T020000Z-7f3a9c", "a/b")),
        ("live:prod/docs", ("prod", None, "docs")),
        ("live:prod/a/b\n", ("prod", None, "a/b\n")),
    ],
)
def test_names_of_sides(text: str, expected: tuple[str, str | None, str]) -> None:
    """A backup's collection or a live one; a collection's name may hold anything."""
    cluster, backup, collection = expected
    assert parse_side(text) == SideName(cluster=cluster, backup=backup, collection=collection)


@pytest.mark.parametrize(
    "text", ["", "prod", "prod/latest", "prod/latest/", "live:prod", "live:prod/", "/a/b", "P/l/d"]
)
def test_wrong_names_of_sides_are_refused(text: str) -> None:
    """With an example of the right form, before anything is asked."""
    with pytest.raises(ConfigurationError, match="neither CLUSTER/BACKUP/COLLECTION"):
        diff("none", (text, "live:prod/docs"), "a test")


def test_the_list_is_whole_or_not_there(tmp_path: Path) -> None:
    """A file that exists is never overwritten; one that was not finished does not stay."""
    out = tmp_path / "list.jsonl"
    with _lines(out) as write:
        write(Difference(id=2**64 - 1, what="changed", fields=("payload.ü",)))
        write(Difference(id=IDS[-1], what="added", shard_key=1))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [
        {"id": 2**64 - 1, "what": "changed", "fields": ["payload.ü"]},
        {"id": IDS[-1], "what": "added", "fields": [], "shard_key": 1},
    ]
    with pytest.raises(ConfigurationError, match="exists already"), _lines(out):
        pass
    with pytest.raises(StoppedError), _lines(tmp_path / "other.jsonl"):
        raise StoppedError("enough")
    assert [path.name for path in tmp_path.iterdir()] == ["list.jsonl"]


def test_the_report_says_what_differs_and_what_was_read(tmp_path: Path) -> None:
    """Numbers, the first points, the points and bytes read of each side, schema, findings."""
    b = FakeSide("b", few(changed=2))
    b.config = {"params": {"on_disk_payload": True}}
    b.aliases = ("live",)
    a = FakeSide("a", few())
    a.aliases = ()
    found, _ = compared(a, b, tmp_path)
    text = comparison_text(found)
    assert "## 1 point differs" in text
    assert "Changed: **1** (1 in the payload, 0 in vectors)" in text
    assert "- params.on_disk_payload: nothing in the first, True in the second" in text
    assert "- aliases: none in the first, live in the second" in text
    assert difference_rows(found) == [{"point": "1", "what": "changed", "fields": "payload.n"}]
    assert f"- First: a. Read: {found.a.points_read} of {FEW} points in 1 of 3 shards, " in text
    assert f" shards, {found.a.bytes_read} B.\n- Second: b. Read: " in text
    same, _ = compared(FakeSide("a", few()), FakeSide("b", few()), tmp_path)
    assert "## The points are equal" in comparison_text(same)
    assert "Settings, indexes and aliases are the same." in comparison_text(same)


def test_the_command_line() -> None:
    """Two sides, the older first; one is not enough."""
    given_ = parser().parse_args(["diff", "prod/latest/docs", "live:prod/docs", "--out", "list.jsonl", "--json"])
    assert (given_.first, given_.second) == ("prod/latest/docs", "live:prod/docs")
    assert (given_.out, given_.json, given_.repository) == (Path("list.jsonl"), True, None)
    with pytest.raises(SystemExit):
        parser().parse_args(["diff", "prod/latest/docs"])


def test_fields_are_read_out_of_an_archive(tmp_path: Path) -> None:
    """The worker tells the fields of the chosen points as `point_fields` does, with their hashes and without bodies."""
    content = points(9)
    archive = build_archive(tmp_path, content)
    wanted = Selection(ids=(1, content[0]["id"], 77), with_points=False, hashes=True, fields=True)
    [batch] = read_points(archive, tmp_path / "work", wanted)
    chosen = {row["id"]: row for row in content}
    assert set(batch.ids) == {1, content[0]["id"]}
    assert batch.hashes == [hash_of(chosen[each]) for each in batch.ids]
    assert batch.fields == [point_fields(each, chosen[each]["payload"], chosen[each]["vector"]) for each in batch.ids]
    assert batch.body == b"[]"
