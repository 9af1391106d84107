"""The soak runs only when it is asked for by its marker: `make soak`, or `pytest tests/soak -m soak`."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave our tests out, unless the expression of -m names their marker."""
    if "soak" in config.option.markexpr:
        return
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]
