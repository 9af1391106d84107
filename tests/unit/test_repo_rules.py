"""Rules of the house that no linter knows."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import ferry

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("ferry", "flows", "tasks", "sandbox", "deployments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
STANDARD_NAMES = {"secrets", "types", "queue", "logging", "signal", "select", "token", "code", "prefect", "boto3"}


@cache
def tree_of(path: Path) -> ast.Module:
    """Read once for all rules."""
    return ast.parse(path.read_text())


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [found for found in ast.walk(tree) if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_fit_in_the_head(path: Path) -> None:
    """Modules have at most 400 lines, flows 120; functions at most 40 without their docstring."""
    text = path.read_text()
    limit = 120 if path.parent.name == "flows" else 400
    assert text.count("\n") <= limit
    for function in functions(tree_of(path)):
        doc = ast.get_docstring(function, clean=False) or ""
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
        assert lines <= 40, f"{function.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    """flows → tasks → ferry; a flow takes nothing from ferry but models, settings and errors."""
    layer = path.relative_to(ROOT).parts[0]
    forbidden = {
        "ferry": r"(prefect|flows|tasks|sandbox|tests)(\.|$)",
        "tasks": r"(flows|sandbox|tests)(\.|$)",
        "flows": r"(sandbox|tests|ferry\.(?!models|settings|errors))",
        "sandbox": r"(prefect|flows|tasks|tests)(\.|$)",
    }.get(layer, r"tests(\.|$)")
    for found in ast.walk(tree_of(path)):
        names = [alias.name for alias in found.names] if isinstance(found, ast.Import) else []
        names += [found.module] if isinstance(found, ast.ImportFrom) and found.module else []
        assert not [name for name in names if re.match(forbidden, name)]


def test_every_deployment_is_a_module_path_to_a_flow() -> None:
    """A file path as entrypoint loads modules twice; a name that cannot be imported deploys silently."""
    registry = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in registry["deployments"]:
        module, _, function = deployment["entrypoint"].rpartition(".")
        path = ROOT / (module.replace(".", "/") + ".py")
        assert function in {found.name for found in functions(ast.parse(path.read_text()))}


def test_no_module_hides_one_of_the_standard_library() -> None:
    """flows/ or tasks/ may end up on sys.path, where such a name would win."""
    for folder in ("flows", "tasks"):
        assert not {path.stem for path in (ROOT / folder).glob("*.py")} & STANDARD_NAMES


def test_the_changelog_begins_with_this_version() -> None:
    """A release is described before it is made."""
    heading = re.search(r"^## ([^\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == ferry.__version__


def test_every_dependency_has_its_reason() -> None:
    """A line in pyproject.toml that nobody can explain is one that nobody dares to take out."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    declared = tomllib.loads("\n".join(lines))["project"]["dependencies"]
    for requirement in declared:
        number = next(i for i, line in enumerate(lines) if f'"{requirement}"' in line)
        assert lines[number - 1].strip().startswith("#") or "#" in lines[number]


def test_constraints_name_no_address() -> None:
    """Pins are versions only, so that any index serves them."""
    assert not re.search(r"://|@ |^-", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
