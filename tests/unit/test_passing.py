"""Points on their way out of a real archive: what is changed, and what the target must show afterwards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferry.archive.digest import digest_of, point_fields
from ferry.archive.doubles import as_read, read_by_qdrant
from ferry.archive.points import Batch, Selection
from ferry.archive.proof import Proof, prove_archive
from ferry.archive.reader import open_archive
from ferry.archive.selected import batches
from ferry.errors import RestoreError
from ferry.models import VerifyLevel
from ferry.restore.passing import Passing
from ferry.restore.plan import RestorePlan, plan_restore
from tests.unit.builders import archive, collection, layout, manifest, node, shard
from tests.unit.shard_archives import build_archive, points
from tests.unit.test_restore_plan import request

# Doubles as gRPC may have brought them, of which Qdrant then shows another one that no decimal gives.
BITS = np.random.default_rng(5).integers(0x2000000000000000, 0x5000000000000000, 20_000)
WRITTEN = [float(value) for value in BITS.view(np.float64)]
ODD = [value for value in WRITTEN if as_read(shown := {"v": read_by_qdrant(repr(value))}) != shown]


def shown_by_qdrant(text: str) -> float:
    """What is shown of a decimal that was sent: read, stored as its shortest decimal, and read again."""
    return read_by_qdrant(repr(read_by_qdrant(text)))


def plan_of(nodes: int = 2, verify: VerifyLevel = "content") -> RestorePlan:
    """A plan to send the points of one shard to some nodes."""
    backup = manifest(collection("docs", [shard(0, [1])]), [archive(0)])
    target = layout([node(number) for number in range(1, nodes + 1)], [])
    plan = plan_restore(request(path="points", into="new", verify="count"), backup, target)
    return plan.model_copy(update={"request": plan.request.model_copy(update={"verify": verify})})


def passed(passing: Passing, path: Path, folder: Path) -> list[Batch]:
    """All batches of an archive, as they pass."""
    with open_archive(path, folder / "read") as opened:
        return list(passing.watched(batches(opened, Selection(hashes=passing.hashes))))


def as_qdrant_reads(sent: list[Batch]) -> Iterator[dict[str, Any]]:
    """The points as Qdrant shows them when they were written."""
    for each in sent:
        yield from json.loads(each.body, parse_float=shown_by_qdrant)


def with_payload(count: int, *extra: Any) -> list[dict[str, Any]]:
    """Some points, of which every third holds one of these values deep in its payload."""
    rows = points(count)
    for number, row in enumerate(rows[::3]):
        row["payload"]["deep"] = {"list": [extra[number % len(extra)]]}
    return rows


def proven(path: Path, folder: Path) -> Proof:
    return prove_archive(path, folder / "prove", "content", sample=40)


def test_what_passes_as_it_is_leaves_the_proof_as_it_is(tmp_path: Path) -> None:
    """Nothing is found, and the target must show what was backed up."""
    path = build_archive(tmp_path, with_payload(60, 0.1, 2**63 - 1, -(2**63), "9223372036854775808"))
    proof = proven(path, tmp_path)
    passing = Passing(plan_of(), proof)
    sent = passed(passing, path, tmp_path)
    assert passing.findings() == ()
    assert passing.proof() == proof
    assert passing.bytes == sum(len(each.body) for each in sent)
    assert digest_of(as_qdrant_reads(sent)) == proof.content


def test_doubles_that_no_decimal_gives_are_expected_as_they_arrive(tmp_path: Path) -> None:
    """The digest and the sampled points are those that Qdrant's reader makes of what is sent, to the bit."""
    path = build_archive(tmp_path, with_payload(60, *ODD))
    proof = proven(path, tmp_path)
    passing = Passing(plan_of(), proof)
    sent = passed(passing, path, tmp_path)
    arrived = list(as_qdrant_reads(sent))
    assert digest_of(arrived) != proof.content
    assert passing.proof().content == digest_of(arrived)
    fields = {point["id"]: point_fields(point["id"], point["payload"], point["vector"]) for point in arrived}
    assert len(passing.proof().sample) == len(proof.sample) == 40
    assert all(sample.differing_fields(fields[sample.id]) == [] for sample in passing.proof().sample)
    assert any(sample.differing_fields(fields[sample.id]) == ["payload.deep"] for sample in proof.sample)
    [finding] = passing.findings()
    assert finding.message.startswith("20 points have doubles in their payload")


def test_a_sample_is_right_without_hashes(tmp_path: Path) -> None:
    """At level sample no point is hashed; the sampled ones are still expected as they arrive."""
    path = build_archive(tmp_path, with_payload(60, *ODD))
    proof = proven(path, tmp_path)
    passing = Passing(plan_of(verify="sample"), proof)
    sent = passed(passing, path, tmp_path)
    assert not any(each.hashes for each in sent)
    fields = {point["id"]: point_fields(point["id"], point["payload"], None) for point in as_qdrant_reads(sent)}
    payloads = [{k: v for k, v in each.fields.items() if k.startswith("payload")} for each in passing.proof().sample]
    assert payloads == [fields[each.id] for each in proof.sample]


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_integers_that_grpc_cannot_carry_refuse_a_comparison_that_would_fail(tmp_path: Path, number: int) -> None:
    """Named by point before more is sent; with verify count they pass with a finding; one node passes nothing on."""
    path = build_archive(tmp_path, with_payload(60, number, 1, 2))
    proof = proven(path, tmp_path)
    with pytest.raises(RestoreError, match=r"integers above 2\^63 in their payload .* new will be dropped again"):
        passed(Passing(plan_of(verify="sample"), proof), path, tmp_path)
    counting = Passing(plan_of(verify="count"), proof)
    passed(counting, path, tmp_path)
    [finding] = counting.findings()
    assert finding.message.startswith("7 points or more have integers above 2^63")
    assert len(finding.message.split("(")[1].split(")")[0].split(", ")) == 5
    alone = Passing(plan_of(nodes=1), proof)
    passed(alone, path, tmp_path)
    assert alone.findings() == ()


def test_large_ids_are_no_large_payloads(tmp_path: Path) -> None:
    """Ids pass between nodes as they are."""
    rows = points(6)
    for offset, row in enumerate(rows):
        row["id"] = 2**64 - 1 - offset
    path = build_archive(tmp_path, rows)
    passing = Passing(plan_of(), proven(path, tmp_path))
    assert b"18446744073709551615" in passed(passing, path, tmp_path)[0].body
    assert passing.findings() == ()
