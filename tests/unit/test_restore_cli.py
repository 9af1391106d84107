"""What the arguments of ``restore`` and ``plan`` ask for, and what a plan says to people and to programs."""

import json
from typing import Any

import pytest

from ferry import report
from ferry.__main__ import parser
from ferry.cli.restore import shape_of
from ferry.errors import ConfigurationError
from ferry.restore.plan import plan_restore
from ferry.restore.plan_document import plan_document
from ferry.restore.shape import Shape
from tests.unit.builders import archive, collection, layout, manifest, node, shard
from tests.unit.test_restore_plan import BACKUP, TARGET, request

TO_TARGET = ["--cluster", "t", "--source-cluster", "s", "docs"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Shape()),
        (["--shard-number", "5", "--sharding", "auto"], Shape(shard_number=5, sharding="auto")),
        (["--only-key", "a", "--only-key", "7", "--only-key", '"7"'], Shape(only_keys=("a", 7, "7"))),
        (["--rename-key", "a=b=c", "--rename-key", "7=8"], Shape(rename_keys={"a": "b=c", "7": 8})),
        (["--into-key", "7", "--sharding", "custom"], Shape(into_key=7, sharding="custom")),
        (["--key-field", "tenant"], Shape(key_field="tenant")),
        (["--on-disk"], Shape(on_disk=True)),
        (["--no-on-disk"], Shape(on_disk=False)),
        (["--quantization", "{}"], Shape(quantization={})),
        (["--quantization", '{"scalar": {"type": "int8"}}'], Shape(quantization={"scalar": {"type": "int8"}})),
    ],
)
@pytest.mark.parametrize("command", ["plan", "restore"])
def test_a_shape_is_made_of_arguments(command: str, arguments: list[str], expected: Shape) -> None:
    """A number is a number, in quotation marks it is a word; what is left out stays as it was in the backup."""
    given = parser().parse_args([command, *arguments, *TO_TARGET])
    made = shape_of(given)
    assert made == expected
    assert [type(key) for key in made.only_keys] == [type(key) for key in expected.only_keys]
    assert given.dry_run is (command == "plan")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rename-key", "a"], "must be OLD=NEW"),
        (["--rename-key", "a=b", "--rename-key", "a=c"], "once for each OLD"),
        (["--quantization", "int8"], "must be a JSON object"),
        (["--quantization", "[]"], "must be a JSON object"),
        (["--shard-number", "9999"], "shard_number: Input should be less than or equal to 4096"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], said: str) -> None:
    """In words, before anything is asked of anybody."""
    with pytest.raises(ConfigurationError, match=said) as refused:
        shape_of(parser().parse_args(["plan", *arguments, *TO_TARGET]))
    assert refused.value.remedy


@pytest.mark.parametrize("wrong", ["--shard-number=0", "--replication-factor=0", "--keep-days=-1", "--keep-days=week"])
def test_numbers_that_cannot_be_are_a_wrong_command_line(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with what was expected; 0 days are a wish, 0 copies are not."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["plan", wrong, *TO_TARGET])
    assert ended.value.code == 2
    assert "is no whole number from" in capsys.readouterr().err
    assert parser().parse_args(["plan", "--keep-days=0", *TO_TARGET]).keep_days == 0


def keyed_plan(**wishes: Any) -> Any:
    """The plan of two keys, of which one is left out."""
    shards = [shard(number, [1, 2]).model_copy(update={"key": key}) for number, key in ((1, "a"), (2, "b"))]
    source = collection("docs", shards, sharding_method="custom")
    backup = manifest(source, [archive(1, points=30), archive(2, points=12, size=5000)])
    return plan_restore(request(shape=Shape(only_keys=("b",)), **wishes), backup, TARGET)


def test_a_plan_says_path_points_time_and_losses() -> None:
    """Of what is restored, and not of what is in the backup."""
    plan = keyed_plan()
    text = report.restore_plan_text(plan.model_copy(update={"expected_seconds": 4000.0}))
    assert "by the path **shards**: 12 points into 1 shards × 2 replicas, 10.0 kB to move, about 67 min" in text
    assert "- shard keys a are left out: 30 points" in text
    assert f"- {plan.reasons[-1]}" in text
    assert "a time that nobody knows yet" in report.restore_plan_text(plan)
    assert "- nothing" in report.restore_plan_text(plan_restore(request(), BACKUP, TARGET))
    assert report.restore_plan_rows(plan)[0] == {
        "node": "node-1:6333", "version": "1.16.3", "disk needed": "15.0 kB", "memory needed": "5.0 kB",
    }  # fmt: skip


def test_a_plan_as_json_has_all_but_the_manifest() -> None:
    """Whatever a program may want to decide by; the proofs and the other collections' names are not its business."""
    plan = keyed_plan()
    document = json.loads(json.dumps(plan_document(plan)))
    assert document["path"] == "shards"
    assert document["target"] == plan.target
    assert (document["points"], document["bytes_to_move"], document["expected_seconds"]) == (12, 10_000, None)
    assert document["backup"]["points"] == 42
    assert document["nodes"][1]["disk_bytes"] == 15_000
    assert document["shards"] == [{"shard_id": 1, "key": "b", "copies": 2, "source": 2}]
    assert [step["action"] for step in document["key_steps"]] == ["create"]
    assert document["losses"] == list(plan.losses)
    assert not {"manifest", "layout", "needs"} & document.keys()
    assert "proof" not in json.dumps(document)


def test_times_are_said_as_people_say_them() -> None:
    """Seconds up to a minute and a half or so, then minutes, then hours."""
    said = [report.duration(seconds) for seconds in (0.4, 99, 100, 5900, 6000, 90_000)]
    assert said == ["0 s", "99 s", "2 min", "98 min", "1 h 40 min", "25 h 0 min"]


def test_nodes_that_take_no_part_need_nothing() -> None:
    """A plan with no shard at all, such as of a keyed collection before its first key, needs no room."""
    empty = collection("docs", [], sharding_method="custom")
    plan = plan_restore(request(), manifest(empty, []), layout([node(1)], []))
    assert [(need.disk_bytes, need.ram_bytes) for need in plan.needs.values()] == [(0, 0)]
