"""A short slice of `make soak`, and what a killed run's successor moves again."""

import random
import re
import signal
from collections.abc import Iterator

import pytest

from tests.soak.commands import Run
from tests.soak.soak import BACKUP, Soak, seed_from
from tests.soak.tripwire import Snare
from tests.workshop import Workshop

FIXED_SEED = 20261122


@pytest.fixture
def soak(workshop: Workshop) -> Iterator[Soak]:
    """The shared source, filled, behind tripwires."""
    with Soak(workshop, FIXED_SEED) as made:
        yield made


def test_random_kills_lose_nothing_and_leave_nothing(soak: Soak) -> None:
    """Three kills by dice that are always the same, two by others; what was committed stays, no trace is left."""
    soak.prepare()
    soak.go_on(3)
    seed = seed_from("SOAK_SEED")
    soak.say(f"from here on seed {seed}")
    soak.dice = random.Random(seed)
    soak.go_on(5)
    soak.finish(verified=1)


def test_a_continued_run_moves_nothing_of_what_was_proven(soak: Soak) -> None:
    """Killed when all but a commit is done, a backup is continued under its id; its bytes are moved no second time."""
    soak.content.load()
    killed = _killed_at(soak, "/manifest.json", nth=len(soak.content.shapes))
    before = soak.truth.look()
    proven = {key: before.objects[key] for key in before.archives()}
    moved = [dict(wire.bytes_moved) for wire in soak.wires]
    soak.undisturbed()
    after = soak.truth.look()
    assert after.complete() == [killed]
    assert {key: after.objects.get(key) for key in proven} == proven
    total = sum(held.bytes for held in proven.values())
    to_store = soak.store.bytes_moved["to_target"] - moved[0]["to_target"]
    from_nodes = sum(w.bytes_moved["to_client"] - m["to_client"] for w, m in zip(soak.nodes, moved[1:], strict=True))
    soak.say(f"{total} bytes were proven; {to_store} went to the store again, {from_nodes} came from nodes")
    assert to_store < 0.05 * total
    assert from_nodes < 0.05 * total
    soak.require_clean()


def test_a_multipart_upload_is_continued_from_its_parts(soak: Soak) -> None:
    """Killed in the middle, an upload keeps its id; only what comes after its first parts in a row is sent."""
    soak.content.load()
    run = soak.commands.start(*BACKUP)

    def held() -> set[int]:
        uploads = [upload for upload in soak.truth.uploads() if "/shards/" in upload["Key"]]  # not the trial's
        return {part["PartNumber"] for upload in uploads for part in soak.truth.parts(upload)}

    def once_a_part_is_there(request: str) -> bool:
        """Its parts travel side by side, so what is sent next may be a part or, when all are there, the completion."""
        if "/shards/" not in request or "uploadId=" not in request or 1 not in held():
            return False
        run.send(signal.SIGKILL)
        return True

    soak.store.on_change = once_a_part_is_there
    killed = _id_of_killed(soak, run)
    [upload] = [upload for upload in soak.truth.uploads() if "/shards/" in upload["Key"]]
    there = held()
    in_a_row = {1, 2, 3} if 2 in there and 3 in there else {1, 2} & there
    soak.store.requests.clear()
    soak.undisturbed()
    lines = [line for line in soak.store.requests if "uploadId=" in line and line.startswith(("PUT", "POST"))]
    assert lines
    assert all(upload["UploadId"] in line for line in lines)
    parts = {int(found) for line in lines for found in re.findall(r"partNumber=(\d+)", line)}
    assert parts == {1, 2, 3} - in_a_row
    assert soak.require_clean().complete() == [killed]


def _killed_at(soak: Soak, match: str, nth: int = 1) -> str:
    """A backup that is killed when its nth change of that kind is on its way, which then is lost; its id."""
    run = soak.commands.start(*BACKUP)
    soak.store.on_change = Snare(nth, lambda: run.send(signal.SIGKILL), dropped=True, match=match)
    return _id_of_killed(soak, run)


def _id_of_killed(soak: Soak, run: Run) -> str:
    assert run.wait() == f"signal {int(signal.SIGKILL)}", str(run)
    soak.store.on_change = None
    found = re.search(r"backup (\d{8}T\d{6}Z-[0-9a-f]{6})", run.output)
    assert found is not None
    return found[1]
