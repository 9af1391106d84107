"""The benchmarks still run: every area in tiny sizes, on servers of their own. What they measure is never asserted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import AREAS

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]  # twenty times what a free machine takes
ROOT = Path(__file__).parents[2]


@pytest.mark.soak  # a minute; `make bench` itself shows it, too
def test_every_area_gives_a_line_of_the_page(tmp_path: Path) -> None:
    """Figures, the machine's limits and commands of every area stand on the page; docs/numbers.md is left alone."""
    written = tmp_path / "numbers.md"
    page = ROOT / "docs" / "numbers.md"
    before = page.read_bytes() if page.exists() else None
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--folder", str(tmp_path), "--write", str(written)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = written.read_text()
    for area in AREAS:
        assert f"| {area}: " in text
        assert f"`python -m benchmarks --only {area}`" in text
    for limit in ("sha256, one core", "loopback, one stream", "disk write, fdatasync"):
        assert f"| {limit} | " in text
    assert (page.read_bytes() if page.exists() else None) == before
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []  # the servers and their data are gone
