"""Version rules."""

import pytest

from ferry.errors import VersionError
from ferry.models import NodeInfo, PeerId
from ferry.qdrant.versions import cluster_findings, compare, newest, parse


def severities(source: str, target: str) -> list[str]:
    return [finding.severity for finding in compare(source, target)]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("1.16.3", "1.16.3", []),
        ("1.16.3", "1.16.4", []),
        ("1.16.3", "1.17.0", []),
        ("1.16.9", "1.16.10", []),
        ("1.16.3", "1.16.2", ["error"]),
        ("1.17.0", "1.16.9", ["error"]),
        ("1.16.3", "1.18.2", ["warning"]),
        ("1.16.3", "1.19.0", ["warning"]),
        ("1.16.1", "1.18.0", ["warning"]),
        ("1.16.0", "1.18.0", ["error"]),
        ("1.16.0", "1.17.1", []),
        ("1.15.5", "1.16.3", []),
        ("1.15.4", "1.16.3", ["warning"]),
        ("1.14.0", "1.19.0", ["error", "warning"]),
        ("1.16.3", "2.0.0", ["error"]),
    ],
)
def test_each_pair_gets_its_findings(source: str, target: str, expected: list[str]) -> None:
    """A pair of versions is refused, warned about, or passed as the rules say."""
    assert severities(source, target) == expected


def test_a_wide_gap_names_every_step_of_the_path() -> None:
    """The remedy of a minor gap above one is the path through each minor version."""
    (finding,) = compare("1.16.3", "1.19.0")
    assert finding.remedy is not None
    assert "1.16.3 → 1.17 → 1.18 → 1.19.0" in finding.remedy


def test_an_older_target_is_told_both_versions() -> None:
    """The refusal names both versions, and the upgrade as the way out."""
    (finding,) = compare("1.17.1", "1.16.3")
    assert "1.16.3" in finding.message
    assert "1.17.1" in finding.message
    assert "Upgrade the target to 1.17.1" in (finding.remedy or "")


@pytest.mark.parametrize("text", ["", "1.16", "latest", "1.16.x"])
def test_what_is_no_version_is_refused(text: str) -> None:
    """A text that is no version raises VersionError and not ValueError."""
    with pytest.raises(VersionError):
        parse(text)


def test_suffixes_are_dropped() -> None:
    """A development build counts as the version it leads to."""
    assert parse("v1.17.0-dev") == parse("1.17.0")


def test_mixed_versions_are_a_warning_and_the_newest_counts() -> None:
    """A half-done upgrade is told with each node's version."""
    nodes = [NodeInfo(url=f"http://n{i}:6333", peer_id=PeerId(i), version=f"1.16.{i}") for i in (3, 10)]
    (finding,) = cluster_findings(nodes)
    assert "n3:6333 1.16.3" in finding.message
    assert newest([node.version for node in nodes]) == "1.16.10"


def test_the_oldest_node_decides_whether_snapshots_are_safe() -> None:
    """Versions are ordered as numbers: 1.9 is older than 1.16."""
    nodes = [NodeInfo(url="http://n:1", peer_id=PeerId(1), version=version) for version in ("1.16.3", "1.9.0")]
    assert "1.9.0 is older than 1.15.5" in cluster_findings(nodes)[0].message


def test_one_safe_version_has_no_findings() -> None:
    """Nothing is said where nothing is to be said."""
    assert cluster_findings([NodeInfo(url="http://n:1", peer_id=PeerId(1), version="1.16.3")]) == []
