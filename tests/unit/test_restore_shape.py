"""Any layout, any wish: what the planner promises of a restored collection's shards, held against Qdrant's own rules.

The rules are written here once more, from the facts and not from the planner: how an id finds its shard (tests/unit/
routing.py, compared with a real server in tests/integration), and which numbers the shards of a new key get.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ferry.errors import FerryError, PreflightError
from ferry.models import PeerId, Replica, ShardId, ShardKey, ShardLayout
from ferry.qdrant.shard_keys import ShardKeyStep
from ferry.repository.manifest import CollectionManifest
from ferry.restore.plan import RestorePlan, plan_restore
from ferry.restore.shape import MOST_FILLERS, Shape
from tests.unit import builders
from tests.unit.routing import shard_of
from tests.unit.test_restore_plan import request

KEYS: tuple[ShardKey, ...] = ("a", "b", "z/ключ", 7, "7", 8)
IDS: list[int | str] = [*range(150), 2**64 - 1, *(str(UUID(int=number**9)) for number in range(50))]
POINTS = 10  # of each shard, as its proof says


@st.composite
def auto_layouts(draw: st.DrawFn) -> list[ShardLayout]:
    """Shards by id: numbered through, or with gaps as after resharding down and up again."""
    through = list(range(draw(st.integers(1, 6))))
    numbers = draw(st.one_of(st.just(through), st.lists(st.integers(0, 8), min_size=1, max_size=5, unique=True)))
    return [layout_of(number, None, draw(st.integers(1, 3))) for number in sorted(numbers)]


@st.composite
def keyed_layouts(draw: st.DrawFn) -> list[ShardLayout]:
    """Shards by key as a life of making, dropping and, now and then, resharding keys leaves them; or none yet."""
    made, following = [], 1
    for key in draw(st.permutations(KEYS))[: draw(st.integers(0, 4))]:
        following += draw(st.sampled_from([0, 0, 0, 1, 3, 40]))  # of keys that were dropped since
        copies = draw(st.integers(1, 3))
        for _ in range(draw(st.integers(1, 4))):
            made.append(layout_of(following, key, copies))
            following += 1
    if made and draw(st.integers(0, 4)) == 0:
        grown = draw(st.sampled_from(made))
        made.append(layout_of(following, grown.key, len(grown.replicas)))
    return made


def layout_of(number: int, key: ShardKey | None, copies: int) -> ShardLayout:
    replicas = tuple(Replica(peer_id=PeerId(peer + 1), state="Active") for peer in range(copies))
    return ShardLayout(shard_id=ShardId(number), key=key, replicas=replicas)


def seldom(values: st.SearchStrategy[Any], otherwise: Any) -> st.SearchStrategy[Any]:
    """Mostly the same, so that not every wish is one too many."""
    return st.one_of(st.just(otherwise), st.just(otherwise), values)


@st.composite
def shapes(draw: st.DrawFn, held: list[ShardKey]) -> Shape:
    """Wishes that mostly make sense for a backup with these keys."""
    named = st.sampled_from([*held, *held, *KEYS])
    ways: list[st.SearchStrategy[dict[str, Any]]] = [
        st.just({}),
        st.fixed_dictionaries({"into_key": named}),
        st.just({"key_field": "tenant"}),
        st.fixed_dictionaries({"rename_keys": st.dictionaries(named.map(str), st.sampled_from(KEYS), max_size=2)}),
    ]
    keys = draw(st.one_of(ways))
    return Shape(
        shard_number=draw(seldom(st.integers(1, 6), None)),
        sharding=draw(seldom(st.sampled_from(["auto", "custom"]), "custom" if keys else None)),
        only_keys=draw(seldom(st.lists(named, max_size=2, unique=True).map(tuple), ())) if held else (),
        on_disk=draw(seldom(st.booleans(), None)),
        quantization=draw(seldom(st.sampled_from([{}, {"scalar": {"type": "int8"}}]), None)),
        **keys | (draw(st.one_of(ways)) if draw(st.integers(0, 9)) == 0 else {}),
    )


@dataclass(frozen=True)
class Case:
    """A backup, what is wished of it, how many nodes there are, and what values the key field has."""

    manifest: CollectionManifest
    wishes: dict[str, Any]
    nodes: int
    field_keys: list[ShardKey]

    @property
    def shape(self) -> Shape:
        """The shape that is wished for."""
        found: Shape = self.wishes["shape"]
        return found


@st.composite
def asked(draw: st.DrawFn) -> Case:
    """Any backup and any wish."""
    keyed = draw(st.booleans())
    manifest = manifest_of(draw(keyed_layouts() if keyed else auto_layouts()), keyed)
    nodes = draw(st.integers(1, 4))
    wishes = {
        "shape": draw(shapes([shard.key for shard in manifest.layout if shard.key is not None])),
        "path": draw(seldom(st.sampled_from(["shards", "points"]), None)),
        "replication_factor": draw(seldom(st.integers(1, nodes + 1), None)),
        "verify": "count",
    }
    return Case(manifest, wishes, nodes, draw(st.lists(st.sampled_from(KEYS), max_size=3, unique=True)))


def manifest_of(layout: list[ShardLayout], keyed: bool) -> CollectionManifest:
    params = {"sharding_method": "custom", "shard_number": 1, "replication_factor": 1} if keyed else {}
    source = builders.collection("docs", layout, **params)
    return builders.manifest(source, [builders.archive(shard.shard_id, POINTS) for shard in layout])


def planned(
    manifest: CollectionManifest, wishes: dict[str, Any], nodes: int = 3, field_keys: Sequence[ShardKey] = ()
) -> RestorePlan | FerryError:
    """The plan, or why there is none."""
    target = builders.layout([builders.node(number + 1) for number in range(nodes)], [])
    try:
        return plan_restore(request(**wishes), manifest, target, field_keys)
    except FerryError as error:
        return error


def chosen(manifest: CollectionManifest, shape: Shape) -> list[ShardLayout]:
    """The shards of the backup that the wish is about."""
    wanted = [meant(name, manifest.layout) for name in shape.only_keys]
    return [shard for shard in manifest.layout if not wanted or shard.key in wanted]


def meant(name: ShardKey, layout: Sequence[ShardLayout]) -> ShardKey | None:
    """The key that a wish names: 7 and "7" are two keys, and where there is only one it is that."""
    held = [shard.key for shard in layout]
    return name if name in held else next((key for key in held if str(key) == str(name)), None)


SEVENS = manifest_of([layout_of(1, 7, 1), layout_of(2, "7", 1)], keyed=True)
NO_KEYS_YET = manifest_of([], keyed=True)


@settings(max_examples=10 * settings.default.max_examples)
@example(Case(SEVENS, {"shape": Shape(only_keys=(7,)), "replication_factor": None}, 2, []))
@example(Case(SEVENS, {"shape": Shape(rename_keys={"7": "seven"}), "replication_factor": None}, 2, []))
@example(Case(NO_KEYS_YET, {"shape": Shape(sharding="auto"), "replication_factor": None}, 1, []))
@given(asked())
def test_whatever_is_asked_the_plan_keeps_its_promises_or_says_what_to_do(case: Case) -> None:
    """A refusal has a remedy; a plan reads what is wanted, puts it where it is looked for, and can be carried out."""
    plan = planned(case.manifest, case.wishes, case.nodes, case.field_keys)
    if isinstance(plan, FerryError):
        assert isinstance(plan, PreflightError)
        assert plan.remedy
        return
    every_shard_that_is_wanted_is_read_exactly_once(plan, case)
    the_steps_give_each_key_its_planned_shards(plan)
    nothing_is_planned_beyond_the_nodes(plan, case)
    no_point_loses_copies_unasked(plan, case)
    if plan.path == "shards":
        archives_are_placed_only_where_qdrant_looks_for_their_points(plan)
    else:
        points_are_sent_into_the_keys_that_were_asked_for(plan, case)


def every_shard_that_is_wanted_is_read_exactly_once(plan: RestorePlan, case: Case) -> None:
    """None is forgotten, none is read twice, and none that was left out is read; what is left out is told."""
    placed = [shard.source for shard in plan.shards if shard.source is not None]
    streamed = [stream.source for stream in plan.streams]
    assert sorted(placed + streamed) == [shard.shard_id for shard in chosen(case.manifest, case.shape)]
    assert not (placed and streamed)
    assert plan.sources == set(placed + streamed)
    left_out = POINTS * (len(case.manifest.layout) - len(plan.sources))
    assert any(f"left out: {left_out} points" in loss for loss in plan.losses) == (left_out > 0)


def the_steps_give_each_key_its_planned_shards(plan: RestorePlan) -> None:
    """Obeying them as Qdrant does ends with the plan's shards; without keys they are numbered through."""
    by_number = {shard.shard_id: shard.key for shard in plan.shards}
    assert len(by_number) == len(plan.shards)
    if plan.config["params"].get("sharding_method") == "custom":
        assert obeyed(plan.key_steps) == by_number
    else:
        assert plan.key_steps == ()
        assert by_number == dict.fromkeys(range(plan.config["params"]["shard_number"]))
    made = sum(step.shards for step in plan.key_steps if step.action == "create")
    assert made <= len(plan.shards) + MOST_FILLERS


def obeyed(steps: Sequence[ShardKeyStep]) -> dict[int, ShardKey]:
    """What Qdrant has after the steps: new shards are numbered on from the largest there is, the first is 1."""
    made: dict[int, ShardKey] = {}
    for step in steps:
        if step.action == "create":
            assert step.key not in made.values()
            first = max(made, default=0) + 1
            made |= dict.fromkeys(range(first, first + step.shards), step.key)
        else:
            assert step.key in made.values()
            made = {number: key for number, key in made.items() if key != step.key}
    return made


def nothing_is_planned_beyond_the_nodes(plan: RestorePlan, case: Case) -> None:
    """Copies, confirmations and needs are of nodes that there are; as many copies as were asked for by name."""
    wanted = case.wishes["replication_factor"]
    assert all(1 <= shard.copies <= case.nodes for shard in plan.shards)
    assert wanted is None or {shard.copies for shard in plan.shards} <= {wanted}
    assert set(plan.needs) == {node.peer_id for node in plan.layout.nodes}
    created = plan.creation_body
    assert created["write_consistency_factor"] <= created["replication_factor"] == plan.replication_factor <= case.nodes


def no_point_loses_copies_unasked(plan: RestorePlan, case: Case) -> None:
    """What had two copies has two again, where there are two nodes."""
    had = {shard.shard_id: min(case.nodes, len(shard.replicas)) for shard in case.manifest.layout}
    has = [(shard.source, shard.copies) for shard in plan.shards if shard.source is not None]
    for stream in plan.streams:
        has += [(stream.source, shard.copies) for shard in plan.shards if stream.key in (shard.key, None)]
    assert case.wishes["replication_factor"] or all(had[source] <= copies for source, copies in has)


def archives_are_placed_only_where_qdrant_looks_for_their_points(plan: RestorePlan) -> None:
    """Every id that was in a shard of the backup is looked for in the planned shard that gets this shard's archive."""
    before: dict[ShardKey | None, list[int]] = defaultdict(list)
    keys_before = {shard.shard_id: shard.key for shard in plan.manifest.layout}
    for number, key in keys_before.items():
        before[key].append(number)
    after: dict[ShardKey | None, dict[int, int | None]] = defaultdict(dict)
    for placed in plan.shards:
        after[placed.key][placed.shard_id] = placed.source
    for key, sources in after.items():
        (key_before,) = {keys_before[ShardId(source)] for source in sources.values() if source is not None}
        assert key == new_key(key_before, plan)
        for point in IDS:
            held_by = shard_of(point, tuple(before[key_before]))
            assert sources[shard_of(point, tuple(sources))] == held_by, (key, point)


def points_are_sent_into_the_keys_that_were_asked_for(plan: RestorePlan, case: Case) -> None:
    """Each stream's key is its shard's own, its new name, or the one for all; each key has the shards asked for."""
    shape, keys_before = case.shape, {shard.shard_id: shard.key for shard in case.manifest.layout}
    shards = Counter(shard.key for shard in plan.shards)
    if plan.config["params"].get("sharding_method") != "custom":
        assert {stream.key for stream in plan.streams} <= {None}
        assert shards == {None: shape.shard_number or len(chosen(case.manifest, shape)) or 1}
    elif shape.key_field is not None:
        assert {stream.key for stream in plan.streams} <= {None}
        assert shards == dict.fromkeys(case.field_keys, shape.shard_number or 1)
    else:
        assert all(stream.key == new_key(keys_before[stream.source], plan) for stream in plan.streams)
        assert set(shards) == {stream.key for stream in plan.streams}
        assert shape.shard_number is None or set(shards.values()) <= {shape.shard_number}


def new_key(old: ShardKey | None, plan: RestorePlan) -> ShardKey | None:
    """The key that points of an old one are to get."""
    shape = plan.request.shape
    if plan.config["params"].get("sharding_method") != "custom":
        return None
    renamed = {meant(name, chosen(plan.manifest, shape)): new for name, new in shape.rename_keys.items()}
    return renamed.get(old, old) if shape.into_key is None else shape.into_key


@settings(max_examples=4 * settings.default.max_examples)
@given(st.one_of(auto_layouts(), keyed_layouts()), st.integers(1, 4))
def test_what_a_collection_was_is_restored_by_its_archives(layout: list[ShardLayout], nodes: int) -> None:
    """Without a wish the cheap path is taken, save where Qdrant gives no new collection the same numbers."""
    keyed = any(shard.key is not None for shard in layout) or not layout
    plan = planned(manifest_of(layout, keyed), {}, nodes)
    assert isinstance(plan, RestorePlan)
    numbers = [int(shard.shard_id) for shard in layout]
    if keyed:
        rings: dict[ShardKey | None, list[int]] = defaultdict(list)
        for shard in layout:
            rings[shard.key].append(shard.shard_id)
        together = all(ring == list(range(ring[0], ring[0] + len(ring))) for ring in rings.values())
        alone = all(len(ring) == 1 for ring in rings.values())
        fits = alone or (together and max(numbers) - len(numbers) <= MOST_FILLERS)
    else:
        fits = len(numbers) == 1 or numbers == list(range(len(numbers)))
    assert plan.path == ("shards" if fits else "points")
