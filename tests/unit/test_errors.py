"""Errors keep what they say on their way between processes."""

import base64
import inspect
import pickle
import subprocess
import sys

import pytest

import ferry.archive.proof
import ferry.qdrant.http
import ferry.repository.probe  # noqa: F401 - importing them makes the errors that live beside the code known, too
from ferry import errors
from ferry.errors import FerryError


def tree(root: type[FerryError]) -> list[type[FerryError]]:
    """The class and all below it."""
    return [root, *(found for child in root.__subclasses__() for found in tree(child))]


CLASSES = [found for found in tree(FerryError) if found.__module__.startswith("ferry.")]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind: type[FerryError]) -> None:
    """Message, remedy and text are the same afterwards; else a task in another process shows a TypeError instead."""
    for error in (kind("shard 3 is gone", "look at node 2"), kind("shard 3 is gone")):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert type(copy) is kind
        assert (copy.message, copy.remedy, str(copy)) == (error.message, error.remedy, str(error))
        assert (copy.args, copy.transient) == (error.args, error.transient)
        assert len(error.args) == 2, "an argument that is not given to super().__init__ is lost or breaks unpickling"


def test_every_error_survives_another_process() -> None:
    """Raised there and read here, all of them in one go."""
    script = (
        "import base64, importlib, pickle, sys\n"
        "made = [getattr(importlib.import_module(m), n)('shard 3', 'node 2') for m, n in eval(sys.argv[1])]\n"
        "print(base64.b64encode(pickle.dumps(made)).decode())"
    )
    names = repr([(kind.__module__, kind.__name__) for kind in CLASSES])
    done = subprocess.run([sys.executable, "-c", script, names], capture_output=True, check=True, text=True)
    found = pickle.loads(base64.b64decode(done.stdout))  # noqa: S301 - our own bytes
    assert [type(error) for error in found] == CLASSES
    assert {(error.message, error.remedy) for error in found} == {("shard 3", "node 2")}


def test_text_shows_the_fact_and_then_the_next_step() -> None:
    """str() is what Prefect and logs show, so both stand in it."""
    assert str(FerryError("a fact", "a step")) == "a fact\n→ a step"
    assert str(FerryError("a fact")) == "a fact"


def test_only_passing_troubles_are_transient() -> None:
    """What is tried again is an unreachable node or store, and nothing else."""
    named = {kind.__name__ for kind in CLASSES if kind.transient and kind.__module__ == "ferry.errors"}
    assert named == {"NodeUnreachableError", "StoreUnavailableError"}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Whoever reads errors.py sees all classes that are in it."""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, FerryError):
            assert name in (errors.__doc__ or "").split()
