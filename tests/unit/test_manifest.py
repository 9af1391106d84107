"""Documents hold their own hash: damage and edits show."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.errors import ArchiveDamagedError
from ferry.repository.manifest import HASH_FIELD, CollectionManifest
from tests.unit.builders import archive, collection, manifest, shard

DOCS = manifest(collection("docs", [shard(0, [1]), shard(1, [1])]), [archive(0), archive(1)])


def test_a_manifest_comes_back_equal() -> None:
    """Written and read, it is the same value, and the same bytes again."""
    read = CollectionManifest.from_bytes(DOCS.to_bytes(), "there")
    assert read == DOCS
    assert read.to_bytes() == DOCS.to_bytes()


@given(st.data())
def test_any_flipped_bit_is_found(data: st.DataObject) -> None:
    """Not one byte of a manifest may change unnoticed."""
    stored = bytearray(DOCS.to_bytes())
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ArchiveDamagedError):
        CollectionManifest.from_bytes(bytes(stored), "there")


@pytest.mark.parametrize("field", ["collection", "points", "sha256", "bytes", "key"])
def test_an_edit_is_found(field: str) -> None:
    """An edit that leaves good JSON behind is damage all the same."""
    content = orjson.loads(DOCS.to_bytes())
    target = content if field in content else content["archives"][0]
    target[field] = "edited"
    with pytest.raises(ArchiveDamagedError, match=r"damaged or edited"):
        CollectionManifest.from_bytes(orjson.dumps(content), "there")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"not json", b'{"self_sha256": 1}'])
def test_what_is_no_document_is_damage(data: bytes) -> None:
    """No other error leaks out of reading."""
    with pytest.raises(ArchiveDamagedError, match="there"):
        CollectionManifest.from_bytes(data, "there")


def test_a_future_format_is_named() -> None:
    """The remedy is another release, not another backup."""
    content = orjson.loads(DOCS.to_bytes()) | {"format_version": 2}
    with pytest.raises(ArchiveDamagedError, match="format version 2") as caught:
        CollectionManifest.from_bytes(orjson.dumps(content), "there")
    assert "release" in str(caught.value.remedy)


def test_the_hash_stands_in_the_document() -> None:
    """Readable without Ferry: sha256 over the sorted JSON without that field."""
    assert len(orjson.loads(DOCS.to_bytes())[HASH_FIELD]) == 64
