"""Many collections, and many shards: what a backup asks of nodes and store grows with the archives and no faster."""

from collections import Counter

import pytest

from sandbox.fault_proxy import FaultProxy
from tests.integration.crossings import SERVERS, Eavesdropper, back_up, manifest_of
from tests.integration.samples import Api, Sample, few
from tests.workshop import Workshop

pytestmark = SERVERS
COLLECTIONS, SHARDS = 12, 24  # the benchmark does 200 and 64
# Measured for each archive: 19 requests to the nodes and 16 to the bucket. One list read for each collection would be
# seen already at this size.
OF_NODES, OF_BUCKET = 24, 18
FIXED_OF_NODES, FIXED_OF_BUCKET = 250, 110  # layout, rights; probe of the bucket, tidying


@pytest.mark.parametrize(
    ("collections", "shards", "shape"),
    [(COLLECTIONS, 1, "many"), (1, SHARDS, "wide")],
    ids=["many collections", "many shards"],
)
def test_requests_grow_with_the_archives_and_no_faster(
    workshop: Workshop, collections: int, shards: int, shape: str
) -> None:
    """Every collection is whole, nothing is left, and no list is read once for each thing in it."""
    archives = collections * shards
    with Api(workshop.clusters["source"].urls[0]) as api:
        for number in range(collections):
            sample = few(f"{shape}-{number}", 10 * shards)
            api.make(f"{shape}-{number}", Sample(sample.body | {"shard_number": shards}, sample.points))
    with Eavesdropper(workshop, "source") as heard:
        record = back_up(workshop)
        # The lease beats and the guard measures by the clock: the slower the machine, the more often.
        nodes = [line for line in heard.of_nodes() if "/points/scroll" not in line]
        bucket = [line for line in heard.bucket.requests if "/leases/" not in line]
    workshop.configure()
    assert [entry.points for entry in record.collections] == [10 * shards] * collections
    manifest = manifest_of(workshop.connect(), record, f"{shape}-0")
    assert len(manifest.archives) == shards
    assert all(shard.proof.content is not None for shard, _ in manifest.best_shards())
    assert workshop.leftovers() == []
    assert len(nodes) <= OF_NODES * archives + FIXED_OF_NODES, most_asked(nodes)
    assert len(bucket) <= OF_BUCKET * archives + FIXED_OF_BUCKET, most_asked(bucket)


def most_asked(requests: list[str]) -> list[tuple[str, int]]:
    """Methods and folders by how often they were asked for."""
    return Counter(f"{line.split(' ')[0]} {line.split(' ')[1].rsplit('/', 1)[0]}" for line in requests).most_common(8)


def test_layouts_of_many_collections_cost_each_node_two_requests_a_collection(workshop: Workshop) -> None:
    """Reading the layout, being quiet and counting: linear, and the same for each node."""
    with Api(workshop.clusters["source"].urls[0]) as api:
        for number in range(10):
            api.make(f"many-{number}", few(f"many-{number}", 3))
    with Eavesdropper(workshop, "source") as heard:
        cluster = workshop.connect().cluster
        layout = cluster.read_layout()
        asked = [taken(proxy) for proxy in heard.nodes]
        cluster.require_quiet(layout)
        quiet = [taken(proxy) for proxy in heard.nodes]
        counts = cluster.all_exact_counts(layout.collections)
    assert {sum(shard.values()) for found in counts.values() for shard in found.values()} == {3}
    assert max(asked) <= 2 * 10 + 20
    assert max(quiet) <= 2 * 10 + 20
    assert sum(map(taken, heard.nodes)) == 10


def taken(proxy: FaultProxy) -> int:
    """How many requests the proxy has seen since it was asked last."""
    number = len(proxy.requests)
    proxy.requests.clear()
    return number
