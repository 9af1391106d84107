"""What is stuck in a collection, why, and the exact call that mends it: pure rules over its condition.

Learnt on real 1.16.3 clusters (docs/stuck.md): ``replicate_shard`` onto a replica in any state empties it and fills it
again from its source; ``drop_replica`` takes one away; ``abort_transfer`` makes its target Dead, and a Dead replica is
filled again by Qdrant itself. Never out of a broken replica: when such a transfer fails, the consensus of its node
stops, and the node does not start again.
"""

import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import orjson

from ferry.models import PeerId, ShardId, ShardKey, Value
from ferry.qdrant.condition import Condition, SeenReplica, SeenTransfer
from ferry.qdrant.http import path_of
from ferry.qdrant.quiet import AT_REST

Kind = Literal["away", "consensus", "disagreement", "transfer", "broken", "inactive", "differs", "surplus", "missing"]
ARCHIVE = "<signed address of the shard's archive>"


class Call(Value):
    """One request to one node."""

    node: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    keyed: bool = False

    @property
    def curl(self) -> str:
        """The line to type; the api key is left to the shell."""
        words = ["curl", "-X", self.method, shlex.quote(self.node + self.path)]
        if self.keyed:
            words += ["-H", '"api-key: $QDRANT_API_KEY"']
        if self.body is not None:
            words += ["-H", "'Content-Type: application/json'", "-d", shlex.quote(orjson.dumps(self.body).decode())]
        return " ".join(words)


class Stuck(Value):
    """One thing that is not as it should be. ``token`` changes when it moves on by itself.

    Ferry makes the call itself only where ``withheld``, the reason why not, is None. ``under_way``: it goes on.
    """

    collection: str
    kind: Kind
    diagnosis: str
    shard_id: ShardId | None = None
    shard_key: ShardKey | None = None
    peer_id: PeerId | None = None
    where: str = ""
    token: str = ""
    call: Call | None = None
    withheld: str | None = None
    remedy: str | None = None
    under_way: bool = False

    @property
    def may(self) -> bool:
        """Whether Ferry may make the call itself."""
        return self.call is not None and self.withheld is None

    @property
    def key(self) -> tuple[Kind, ShardId | None, PeerId | None, str]:
        """What makes it the same thing when it is seen again."""
        return self.kind, self.shard_id, self.peer_id, self.token

    @property
    def subject(self) -> str:
        """What an operator calls it: ``docs/shard 1 on 10.0.0.2:6333``."""
        key = "" if self.shard_key is None else f" of key {self.shard_key}"
        shard = "" if self.shard_id is None else f"/shard {self.shard_id}{key}"
        return f"{self.collection}{shard}" + (f" on {self.where}" if self.where else "")


def find_stuck(condition: Condition, restore_id: str | None = None) -> tuple[Stuck, ...]:
    """Everything that is stuck or under way, nodes first, then shard by shard.

    ``restore_id`` is the restore that asks: others keep their hands off a collection that a restore has not finished.
    """
    rules = _Rules(condition, restore_id)
    found = [*rules.of_nodes()]
    for shard_id in sorted({replica.shard_id for replica in condition.replicas}):
        found += rules.of_shard(shard_id)
    return tuple(found)


class _Rules:
    """The rules over one condition."""

    def __init__(self, condition: Condition, restore_id: str | None) -> None:
        self.condition = condition
        self.held = Counter(replica.peer_id for replica in condition.replicas)
        self.hold_off = self._hold_off(restore_id)
        leader = next((node for node in condition.nodes if node.leads and node.trouble is None), None)
        self.reference = (leader or condition.nodes[0]).info

    def _hold_off(self, restore_id: str | None) -> str | None:
        """Why nothing at all may be changed now."""
        condition = self.condition
        if stopped := [node.info.label for node in condition.nodes if node.trouble]:
            return f"consensus on {', '.join(stopped)} has stopped"
        if condition.resharding:
            return "the collection is being resharded"
        if condition.restore_id not in (None, restore_id):
            return f"restore {condition.restore_id} has not finished in it"
        return None if condition.counted else "the replicas were not counted"

    def of_nodes(self) -> Iterator[Stuck]:
        """Nodes that are away with replicas of the collection, and nodes whose consensus has stopped."""
        condition = self.condition
        if gone := sorted(set(condition.silent) & set(self.held)):
            named = ", ".join(condition.away) or f"the node of peer {', '.join(map(str, gone))} (no address is known)"
            yield Stuck(
                collection=condition.collection,
                kind="away",
                where=", ".join(condition.away),
                token=",".join(map(str, gone)),
                diagnosis=f"{named} does not answer; it has {sum(self.held[peer] for peer in gone)} replicas.",
                remedy="Start it: Qdrant then makes its replicas Active by itself. When it is gone for good, take its "
                f"peer out (DELETE /cluster/peer/{gone[0]}?force=true) and run this again, which makes new copies.",
            )
        for node in condition.nodes:
            if node.trouble:
                yield self._stopped(node.info.peer_id, node.trouble)

    def _stopped(self, peer_id: PeerId, trouble: str) -> Stuck:
        condition = self.condition
        label = condition.label(peer_id)
        broken = [each for each in condition.replicas if each.peer_id == peer_id and each.broken]
        remedy = f"See the log of {label}, then restart it."
        if broken:
            remedy = (
                f"Do not restart {label} yet: with a broken shard it would not start again. First recover shard "
                f"{broken[0].shard_id} on it, which works while it runs; then restart it."
            )
        return Stuck(
            collection=condition.collection,
            kind="consensus",
            peer_id=peer_id,
            where=label,
            token=trouble,
            diagnosis=f"Consensus has stopped ({trouble}): no change reaches this node.",
            call=self._recover(broken[0]) if broken else None,
            withheld="it needs an archive of the shard" if broken else None,
            remedy=remedy,
        )

    def of_shard(self, shard_id: ShardId) -> list[Stuck]:
        """What is stuck in one shard. Where nodes disagree, or a transfer runs, nothing else is judged."""
        replicas = self.condition.of_shard(shard_id)
        if odd := [*self._disagreements(shard_id, replicas)]:
            return odd
        transfers = [each for each in self.condition.transfers if each.shard_id == shard_id]
        if transfers:
            return [self._transfer(transfer, replicas) for transfer in transfers]
        wanted = self.condition.copies.get(shard_id, 1)
        surplus = len(replicas) - wanted if self.condition.certain else 0
        bad = [each for each in replicas if each.broken or each.state not in AT_REST]
        if bad:
            return [self._bad(replica, replicas, drop=number < surplus) for number, replica in enumerate(bad)]
        if any(replica.peer_id in self.condition.silent for replica in replicas):
            return []  # the node that is away has been told; nobody knows what it holds
        return [*self._unequal(shard_id, replicas, wanted)]

    def _disagreements(self, shard_id: ShardId, replicas: list[SeenReplica]) -> Iterator[Stuck]:
        condition, reference = self.condition, self.reference.peer_id
        for node in condition.nodes:
            peer = node.info.peer_id
            different = [
                f"{condition.label(each.peer_id)} is {each.states[peer]} for it and {each.states[reference]} for "
                f"{self.reference.label}"
                for each in replicas
                if each.states[peer] != each.states[reference]
            ]
            if different:
                yield self._stuck(
                    "disagreement",
                    shard_id,
                    peer,
                    token="; ".join(different),
                    diagnosis=f"It sees the shard otherwise than the cluster's leader: {'; '.join(different)}.",
                    call=Call(node=node.info.url, method="POST", path="/cluster/recover", keyed=condition.keyed),
                    withheld="it takes over the leader's word on every collection: look at the node first",
                    remedy="If it stays so, let the node ask the leader for the state of the cluster anew.",
                )

    def _transfer(self, transfer: SeenTransfer, replicas: list[SeenReplica]) -> Stuck:
        condition = self.condition
        source = next((each for each in replicas if each.peer_id == transfer.source), None)
        way = f"from {condition.label(transfer.source)} to {condition.label(transfer.target)}"
        told = transfer.told or "its source says nothing of it"
        if source is not None and source.broken:
            return self._stuck(
                "transfer",
                transfer.shard_id,
                transfer.source,
                token=told,
                diagnosis=f"A transfer {way} reads a broken replica ({source.broken}). When it fails, consensus on "
                f"{condition.label(transfer.source)} stops, and that node does not start again.",
                call=self._recover(source),
                withheld="it needs an archive of the shard",
                remedy="Recover the shard on the source now. Do not abort the transfer, do not restart the node.",
            )
        withheld = self.hold_off
        if {transfer.source, transfer.target} & set(condition.silent):
            withheld = withheld or "a node of it is away; Qdrant ends the transfer itself when that one is back"
        elif transfer.told:
            withheld = withheld or "it goes on; stop it only when its numbers stay the same"
        body = {"shard_id": transfer.shard_id, "from_peer_id": transfer.source, "to_peer_id": transfer.target}
        return self._stuck(
            "transfer",
            transfer.shard_id,
            transfer.target,
            token=told,
            diagnosis=f"A transfer {way}: {told}.",
            call=self._change(abort_transfer=body),
            withheld=withheld,
            under_way=transfer.told is not None,
        )

    def _bad(self, replica: SeenReplica, replicas: list[SeenReplica], *, drop: bool) -> Stuck:
        """A replica that cannot be read, or is not Active."""
        kind: Kind = "broken" if replica.broken else "inactive"
        has = f"It is {replica.state}" + (f" with {replica.points} points" if replica.points is not None else "")
        if replica.broken:
            has = f"It is {replica.state}, but its own node cannot read it: {replica.broken}"
        sound = self._sound(replicas, replica)
        if not sound:
            return self._last(kind, replica, has)
        source = sound[0]
        body = {"shard_id": replica.shard_id, "peer_id": replica.peer_id}
        refill = {"shard_id": replica.shard_id, "from_peer_id": source.peer_id, "to_peer_id": replica.peer_id}
        return self._stuck(
            kind,
            replica.shard_id,
            replica.peer_id,
            token=replica.broken or replica.state,
            diagnosis=f"{has}; {self._good(sound)}. "
            + ("It is one copy too many." if drop else "It is to be filled again from there."),
            call=self._change(drop_replica=body) if drop else self._change(replicate_shard=refill),
            withheld=self.hold_off or self._why_not(replica, sound),
        )

    def _why_not(self, replica: SeenReplica, sound: list[SeenReplica]) -> str | None:
        """Why this replica may not be given up for the sound ones."""
        if replica.peer_id in self.condition.silent:
            return "its node is away, and makes it Active by itself when it is back"
        if len({each.points for each in sound}) > 1:
            return "the Active replicas hold different numbers of points"
        if (replica.points or 0) > (sound[0].points or 0):
            return "it holds more points than the Active ones"
        if replica.state.startswith("Resharding"):
            return "it belongs to a resharding: end that first"
        return None

    def _last(self, kind: Kind, replica: SeenReplica, has: str) -> Stuck:
        """No other replica of the shard could stand for this one."""
        condition = self.condition
        return self._stuck(
            kind,
            replica.shard_id,
            replica.peer_id,
            token=replica.broken or replica.state,
            diagnosis=f"{has}; no other replica of the shard is Active and readable.",
            call=self._recover(replica) if replica.peer_id not in condition.silent else None,
            withheld="no sound copy is left on the cluster: choose the backup yourself",
            remedy="Restore the collection under another name: python -m ferry restore --cluster "
            f"{condition.cluster} --source-cluster {condition.cluster} {condition.collection}",
        )

    def _unequal(self, shard_id: ShardId, replicas: list[SeenReplica], wanted: int) -> Iterator[Stuck]:
        """All replicas are well; there may be too many, too few, or they hold different numbers of points."""
        counts = {self.condition.label(each.peer_id): each.points for each in replicas}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{points} on {label}" for label, points in counts.items())
            yield self._stuck(
                "differs",
                shard_id,
                None,
                diagnosis=f"Its Active replicas hold different numbers of points: {told}.",
                withheld="nobody knows which of them is right",
                remedy="If it stays so without writes, compare them with a backup (python -m ferry diff); then drop "
                "the wrong one and run this again.",
            )
            return
        certain = None if self.condition.certain else "its shard key may have a number of copies of its own: name it"
        sound = self._sound(replicas)
        if len(replicas) > wanted and len(sound) > wanted:
            chosen = max(sound, key=lambda each: (self.held[each.peer_id], each.peer_id))
            yield self._stuck(
                "surplus",
                shard_id,
                chosen.peer_id,
                diagnosis=f"The shard has copies: {len(replicas)}, wanted: {wanted}; {self._good(sound)}. "
                "This node holds most of the collection.",
                call=self._change(drop_replica={"shard_id": shard_id, "peer_id": chosen.peer_id}),
                withheld=self.hold_off or certain,
            )
        elif len(replicas) < wanted and sound and (free := self._free(replicas)):
            body = {"shard_id": shard_id, "from_peer_id": sound[0].peer_id, "to_peer_id": free[0]}
            yield self._stuck(
                "missing",
                shard_id,
                free[0],
                diagnosis=f"The shard has copies: {len(replicas)}, wanted: {wanted}; {self._good(sound)}. "
                "This node has none of it.",
                call=self._change(replicate_shard=body),
                withheld=self.hold_off or certain,
            )

    def _sound(self, replicas: list[SeenReplica], but: SeenReplica | None = None) -> list[SeenReplica]:
        """Replicas that may be the source of others: Active, read by their own nodes; the fullest first."""
        found = [
            each
            for each in replicas
            if each is not but
            and each.state == "Active"
            and not each.broken
            and each.peer_id not in self.condition.silent
            and (each.points is not None or not self.condition.counted)
        ]
        return sorted(found, key=lambda each: (-(each.points or 0), self.held[each.peer_id], each.peer_id))

    def _free(self, replicas: list[SeenReplica]) -> list[PeerId]:
        """Peers without a replica of the shard, those that hold least of the collection first."""
        taken = {replica.peer_id for replica in replicas}
        peers = [node.info.peer_id for node in self.condition.nodes if node.info.peer_id not in taken]
        return sorted(peers, key=lambda peer: (self.held[peer], peer))

    def _good(self, sound: list[SeenReplica]) -> str:
        counted = "" if sound[0].points is None else f" with {', '.join(str(each.points) for each in sound)} points"
        return f"Active on {', '.join(self.condition.label(each.peer_id) for each in sound)}{counted}"

    def _stuck(self, kind: Kind, shard_id: ShardId, peer_id: PeerId | None, **told: Any) -> Stuck:
        return Stuck(
            collection=self.condition.collection,
            kind=kind,
            shard_id=shard_id,
            shard_key=self.condition.keys.get(shard_id),
            peer_id=peer_id,
            where="" if peer_id is None else self.condition.label(peer_id),
            **told,
        )

    def _change(self, **operation: dict[str, int]) -> Call:
        path = path_of("collections", self.condition.collection) + "/cluster"
        node, keyed = self.reference.url, self.condition.keyed
        return Call(node=node, method="POST", path=path, body=operation, keyed=keyed)

    def _recover(self, replica: SeenReplica) -> Call:
        """Qdrant's own call that gives one replica its data; it works on a broken one, whatever consensus does."""
        url = next(node.info.url for node in self.condition.nodes if node.info.peer_id == replica.peer_id)
        path = path_of("collections", self.condition.collection, "shards", replica.shard_id) + "/snapshots/recover"
        body = {"location": ARCHIVE, "priority": "no_sync"}
        return Call(node=url, method="PUT", path=path, body=body, keyed=self.condition.keyed)
