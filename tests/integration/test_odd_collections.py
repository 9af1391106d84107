"""Collections at the edge of what can be backed up."""

import httpx
import pytest

from ferry.errors import PreflightError
from tests.integration.crossings import SERVERS, back_up, manifest_of
from tests.workshop import Workshop

pytestmark = SERVERS
VECTORS = {"vectors": {"size": 4, "distance": "Cosine"}, "shard_number": 1}


def create(shop: Workshop, name: str, **more: object) -> None:
    """Create a collection on the source."""
    url = f"{shop.clusters['source'].urls[0]}/collections/{name}"
    httpx.put(url, json=VECTORS | more, trust_env=False).raise_for_status()


def test_a_collection_without_shards_keeps_its_schema(workshop: Workshop) -> None:
    """A custom-sharded collection before its first key is in the backup, with a manifest and a finding."""
    create(workshop, "keyed", sharding_method="custom")
    create(workshop, "docs")
    record = back_up(workshop)
    assert [entry.collection for entry in record.collections] == ["docs", "keyed"]
    manifest = manifest_of(workshop.connect(), record, "keyed")
    assert manifest.archives == ()
    assert manifest.config["params"]["sharding_method"] == "custom"
    assert "keyed has no shards" in record.findings[0].message
    assert workshop.leftovers() == []


def test_a_name_too_long_for_a_snapshot_is_refused_before_anything_is_made(workshop: Workshop) -> None:
    """Qdrant answers 500 for it again and again; Ferry says so at once, and what to do."""
    name = "n" * 206
    create(workshop, name)
    with pytest.raises(PreflightError, match="206 bytes"):
        back_up(workshop)
    assert workshop.objects() == []
    create(workshop, "docs")
    assert [entry.collection for entry in back_up(workshop, exclude=(name,)).collections] == ["docs"]
