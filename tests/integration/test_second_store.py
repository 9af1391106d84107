"""A whole backup and restore over moto, the other S3 implementation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.moto_s3 import MotoServer
from sandbox.qdrant import QdrantCluster
from tests.integration.crossings import SERVERS, back_up, proven_everywhere, restore
from tests.integration.samples import SAMPLES, Api
from tests.workshop import Workshop

pytestmark = SERVERS


@pytest.fixture
def shop(
    moto: MotoServer,
    three_nodes: QdrantCluster,
    two_nodes: QdrantCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workshop]:
    """The clusters, and moto for a bucket."""
    with Workshop(tmp_path, monkeypatch, moto, {"source": three_nodes, "target": two_nodes}) as made:
        with Api(three_nodes.urls[0]) as api:
            for name in ("dense", "named"):
                api.make(name, SAMPLES[name]())
        yield made


def test_what_is_backed_up_to_another_store_comes_back(shop: Workshop) -> None:
    """Two collections in one run, proven from the bucket, restored from signed addresses; nothing is left.

    Every object is written with the KMS key of the profile.
    """
    shop.configure(repository={"part_bytes": 5 << 20, "sse": "aws:kms", "sse_kms_key_id": "alias/ferry"})
    record = back_up(shop)
    assert shop.leftovers() == []
    for name in ("dense", "named"):
        restored = restore(shop, record, name)
        assert proven_everywhere(restored)
        assert restored.plan.findings == ()
    assert shop.leftovers() == []
    for key in shop.objects():
        held = shop.bucket.head_object(Bucket="ferry", Key=f"{shop.folder.name}/{key}")
        assert (held["ServerSideEncryption"], held["SSEKMSKeyId"]) == ("aws:kms", "alias/ferry")
