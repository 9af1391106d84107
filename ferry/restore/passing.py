"""What becomes of points on their way from an archive into a live collection, and what the target must then show.

Two things do not arrive as they were (seen on 1.16.3), and both are told:

- A node passes points on to other nodes by gRPC, whose integers end at 2^63: larger ones in payloads become floats on
  those nodes' replicas, while the node that was asked keeps them. A cluster of one node passes nothing on.
- A few doubles in payloads have no decimal that Qdrant's JSON reader reads right (`ferry.archive.doubles`); they come
  to differ in their last place. Which ones is known, so what the target must show is known to the bit.
"""

import re
from collections.abc import Iterator
from typing import Any

import orjson

from ferry.archive.digest import ContentDigest, PointSample, point_fields, range_of
from ferry.archive.doubles import as_read
from ferry.archive.points import Batch
from ferry.archive.proof import Proof
from ferry.errors import RestoreError
from ferry.models import Finding
from ferry.restore.plan import RestorePlan

NAMED_POINTS = 5
_MODULUS = 2**256
_INT64 = range(-(2**63), 2**63)
_MAYBE_LARGE = re.compile(rb"[:,\[](?:9[2-9]\d{17}|1\d{19})[,}\]]")  # or an id: decoding tells


class Passing:
    """The points of one shard as they pass. ``bytes`` are those of their JSON."""

    def __init__(self, plan: RestorePlan, proof: Proof) -> None:
        self._plan, self._proof = plan, proof
        self._sample = {str(sample.id): sample for sample in proof.sample}
        self._content_changes: dict[str, int] = {}
        self._rounded = 0
        self._large = 0
        self._named: list[str] = []
        self.bytes = 0

    @property
    def hashes(self) -> bool:
        """Whether the reader must hash points: only then does it tell which ones change."""
        return self._plan.request.verify == "content" and self._proof.content is not None

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches. Raises RestoreError when the comparison that was asked for would fail at the end."""
        passed_on = len(self._plan.layout.nodes) > 1
        for batch in batches:
            self.bytes += len(batch.body)
            if passed_on and _MAYBE_LARGE.search(batch.body):
                self._note_large(batch)
            if batch.carried:
                self._note_rounded(batch)
            if sampled := [point_id for point_id in batch.ids if str(point_id) in self._sample]:
                self._note_sampled(batch, set(sampled))
            yield batch

    def proof(self) -> Proof:
        """The proof of the shard as the target must show it."""
        content = self._proof.content
        if content is not None and self._content_changes:
            content = _changed(content, self._content_changes)
        sample = [self._sample[str(point.id)] for point in self._proof.sample]
        return self._proof.model_copy(update={"content": content, "sample": sample})

    def findings(self) -> tuple[Finding, ...]:
        """What was changed on the way."""
        messages = [self._fact()] if self._large else []
        if self._rounded:
            messages.append(
                f"{self._rounded} points have doubles in their payload that Qdrant's JSON reader gets wrong in the "
                "last place, whatever decimal is sent; all else is equal."
            )
        return tuple(Finding(severity="warning", subject=self._plan.target, message=message) for message in messages)

    def _note_large(self, batch: Batch) -> None:
        large = [str(point["id"]) for point in orjson.loads(batch.body) if too_large(point.get("payload"))]
        self._large += len(large)
        self._named += large[: NAMED_POINTS - len(self._named)]
        if large and self._plan.request.verify != "count":
            remedy = "Restore with the backup's own shards (path `shards`), or with verify `count` if floats will do."
            raise RestoreError(f"{self._fact()} {self._plan.target} will be dropped again.", remedy)

    def _fact(self) -> str:
        return (
            f"{self._large} points or more have integers above 2^63 in their payload ({', '.join(self._named)}), which "
            "become floats on the way from one node to another."
        )

    def _note_rounded(self, batch: Batch) -> None:
        self._rounded += len(batch.carried)
        before = dict(zip(batch.ids, batch.hashes, strict=True))
        for point_id, after in batch.carried.items():
            name = range_of(point_id)
            change = int(after, 16) - int(before[point_id], 16)
            self._content_changes[name] = self._content_changes.get(name, 0) + change

    def _note_sampled(self, batch: Batch, sampled: set[int | str]) -> None:
        for point in (point for point in orjson.loads(batch.body) if point["id"] in sampled):
            payload = point.get("payload") or {}
            before, after = (point_fields(point["id"], each, None) for each in (payload, as_read(payload)))
            changed = {name: digest for name, digest in after.items() if before[name] != digest}
            sample = self._sample[str(point["id"])]
            self._sample[str(point["id"])] = PointSample(id=sample.id, fields=sample.fields | changed)


def _changed(content: ContentDigest, changes: dict[str, int]) -> ContentDigest:
    sums = {name: int(digest, 16) for name, digest in content.ranges.items()}
    for name, change in changes.items():
        sums[name] = (sums.get(name, 0) + change) % _MODULUS
    ranges = {name: f"{total:064x}" for name, total in sorted(sums.items()) if total}
    return content.model_copy(update={"digest": f"{sum(sums.values()) % _MODULUS:064x}", "ranges": ranges})


def too_large(value: Any) -> bool:
    """Whether a payload, or a value in it, has an integer that one node cannot pass on to another."""
    if isinstance(value, dict):
        return any(map(too_large, value.values()))
    if isinstance(value, list):
        return any(map(too_large, value))
    return isinstance(value, int) and value not in _INT64
