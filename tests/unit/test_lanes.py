"""Work in lanes: retries, failures beside success, and one stop for all."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from ferry.errors import FerryError, NodeRefusedError, NodeUnreachableError, StoppedError
from ferry.lanes import Job, raise_failures
from ferry.models import Progress


def test_lanes_run_beside_each_other_and_in_order_within() -> None:
    """Two lanes meet at a barrier, which one thread could not pass; results come in the order of the lanes."""
    meeting = threading.Barrier(2, timeout=5)
    seen: list[str] = []

    def work(item: str) -> str:
        meeting.wait()
        seen.append(item)
        return item.upper()

    futures = Job().run([["a1", "a2"], ["b1", "b2"]], work)
    assert [future.result() for future in futures] == ["A1", "A2", "B1", "B2"]
    assert seen.index("a1") < seen.index("a2")


def test_a_failure_does_not_stop_its_lane() -> None:
    """The rest of the lane is done; the one failure is raised as it is, several as one that lists them."""

    def work(item: int) -> int:
        if item % 2:
            raise NodeRefusedError(f"item {item} is odd", "use even ones")
        return item

    futures = Job().run([[1, 2]], work)
    assert futures[1].result() == 2
    with pytest.raises(NodeRefusedError, match="item 1"):
        raise_failures(futures, "the test")
    with pytest.raises(FerryError, match=r"2 steps of the test failed:(?s:.*)item 1(?s:.*)item 3"):
        raise_failures(Job().run([[1], [3]], work), "the test")
    raise_failures(Job().run([[2], []], work), "the test")


@pytest.mark.parametrize(("kind", "tries"), [(NodeUnreachableError, 3), (NodeRefusedError, 1)])
def test_only_what_may_pass_is_tried_again(kind: type[FerryError], tries: int) -> None:
    """A node that is away is asked once more after each pause; a refusal is final at once."""
    tried = []

    def work(_tell: Progress) -> None:
        tried.append(1)
        raise kind("no")

    with pytest.raises(kind):
        Job(retry_delays_seconds=(0.0, 0.0)).step("ask", None, work)
    assert len(tried) == tries


def test_a_step_that_passes_at_last_is_a_success() -> None:
    """What it returns is what the last try returned, and each try is shown from its beginning to its end."""
    shown: list[str] = []

    @contextmanager
    def tell(label: str, total: int | None) -> Iterator[Progress]:
        shown.append(f"{label} of {total}")
        yield lambda done: shown.append(f"+{done}")
        shown.append("end")

    def work(progress: Progress) -> str:
        progress(5)
        if len(shown) < 4:
            raise NodeUnreachableError("away")
        return "done"

    assert Job(tell, (0.0,)).step("upload", 10, work) == "done"
    assert shown == ["upload of 10", "+5", "upload of 10", "+5", "end"]


def test_interrupt_stops_every_lane_at_its_next_part() -> None:
    """Ctrl-C is raised again only after the running steps have stopped and cleaned up; the next ones never begin."""
    job, begun, cleaned = Job(), threading.Event(), []

    def endless(tell: Progress) -> None:
        begun.set()
        try:
            while True:
                tell(0)
                threading.Event().wait(0.01)
        except StoppedError:
            cleaned.append("yes")
            raise

    def interrupted() -> None:
        with job.threads(1, "caller") as caller:
            running = caller.submit(job.run, [["one", "two"]], lambda item: job.step(item, None, endless))
            futures.append(running)
            assert begun.wait(5)
            raise KeyboardInterrupt

    futures: list[Future[list[Future[None]]]] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert cleaned == ["yes"]
    assert all(isinstance(future.exception(), StoppedError) for future in futures[0].result())
