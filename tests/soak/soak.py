"""Episodes of a bad life: commands that are killed, frozen, doubled and robbed of a node, while the source changes."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from sandbox.qdrant import wait_consensus
from tests.soak.commands import Commands, Run
from tests.soak.content import SHAPES, Content, Shape
from tests.soak.tripwire import Snare, Tripwire
from tests.soak.truth import Bucket, Truth
from tests.workshop import Workshop

LEASE_SECONDS = 2.0
# The policy of every backup keeps four, that of the prunes two; `spent` leaves nothing for a next run.
POLICIES = """
[policies.soak.retention]
keep_last = 4
minimum_proven = 1
grace_hours = 0
[policies.tight.retention]
keep_last = 2
minimum_proven = 1
grace_hours = 0
[policies.spent]
resume_hours = 0
[policies.spent.retention]
grace_hours = 0
"""
KEPT = 2
# A node that was lost, or a busy machine, makes one node miss another for a while; Ferry then refuses to begin.
NO_AGREEMENT = "do not agree"
BACKUP = ("backup", "source", "--repository", "main", "--policy", "soak")
PRUNE = ("prune", "--cluster", "source", "--repository", "main", "--policy", "tight", "--apply")
GC = ("gc", "--cluster", "source", "--repository", "main", "--policy", "spent", "--apply", "--all")


class Soak(ExitStack):
    """One source, one bucket, both behind tripwires, and the dice that decide what happens next."""

    def __init__(self, shop: Workshop, seed: int, shapes: dict[str, Shape] = SHAPES, own_nodes: bool = False) -> None:
        """``own_nodes``: the workshop's source is ours alone, so that its nodes may be killed."""
        super().__init__()
        self.shop = shop
        self.cluster = cluster = shop.clusters["source"]
        self.own_nodes = own_nodes
        self.dice = random.Random(seed)
        self.content = Content(cluster, shapes, random.Random(seed + 1))
        self.truth = Truth(shop, self.content)
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.diary = [f"seed {seed}"]
        self.seconds = 5.0  # that an undisturbed backup takes
        self.changes = 40  # requests of one that change something
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        super().__enter__()
        self.store = self.enter_context(Tripwire(self.shop.s3.host_port))
        self.nodes = [self.enter_context(Tripwire(("127.0.0.1", node.place.http_port))) for node in self.cluster.nodes]
        self.shop.configure(
            clusters={"source": {"nodes": [wire.url for wire in self.nodes]}},
            repository={"endpoint_url": self.store.url, "lease_seconds": LEASE_SECONDS, "part_bytes": 5 << 20},
        )
        with self.shop.config.open("a") as file:
            file.write(POLICIES)
        self.commands = self.enter_context(Commands(self.shop.folder))
        return self

    @property
    def wires(self) -> list[Tripwire]:
        """The ways to the bucket and to the nodes."""
        return [self.store, *self.nodes]

    @property
    def killed(self) -> int:
        """How many processes were ended by SIGKILL before they had ended."""
        return self.kills.total()

    def say(self, line: str) -> None:
        """Note what happens, with the time."""
        self.diary.append(f"{time.monotonic() - self._began:7.1f} s  {line}")
        print(self.diary[-1], flush=True)  # noqa: T201 - pytest shows it when the test fails, and with -s

    def prepare(self) -> None:
        """Fill the source, and measure an undisturbed backup."""
        self.content.load()
        self.undisturbed()  # tries out the bucket, once for all
        seen: list[str] = []
        self._arm(lambda request: bool(seen.append(request)))
        began = time.monotonic()
        self.undisturbed()
        self.seconds, self.changes = time.monotonic() - began, len(seen)
        self._arm(None)
        self.say(f"an undisturbed backup takes {self.seconds:.1f} s and makes {self.changes} changes")

    def undisturbed(self) -> Run:
        """A backup that nobody hinders; it must succeed."""
        return self.obeyed(*BACKUP)

    def obeyed(self, *arguments: str, shift_seconds: float = 0) -> Run:
        """A command that must succeed; where the nodes have lost sight of each other for a moment, once they agree."""
        deadline = time.monotonic() + 90
        while True:
            run = self.commands.start(*arguments, shift_seconds=shift_seconds)
            if run.wait() == "exit 0":
                return run
            assert NO_AGREEMENT in run.output, str(run)
            assert time.monotonic() < deadline, str(run)
            time.sleep(1)

    def go_on(self, until_kills: int, between: Callable[[], None] = lambda: None) -> None:
        """Episode after episode until so many kills."""
        while self.killed < until_kills:
            weights = {
                self.killed_backup: 60,
                self.killed_prune: 12,
                self.frozen: 8,
                self.finished: 6,
                self.two_at_once: 8,
                self.node_lost: 5,
            }
            if not self.own_nodes:
                del weights[self.node_lost]
            [episode] = self.dice.choices(list(weights), list(weights.values()))
            self.say(f"{episode.__name__}: {episode()}; {self.killed} kills")
            if self.dice.random() < 0.15:
                self.say(f"changed {self.content.change()}")
            self.look()
            between()

    def look(self, anew: bool = False) -> Bucket:
        """What must hold at any time."""
        bucket = self.truth.look()
        self.truth.require_kept(bucket, KEPT)
        self.truth.require_readable(bucket, anew)
        return bucket

    def finish(self, verified: int = 1000) -> None:
        """One undisturbed run; then nothing is left, everything reads back, and the source is as it was written.

        That run may go on with archives from before the last change, so one more is compared with the source. Ferry's
        own verify is asked about the newest ``verified`` backups, too.
        """
        self.undisturbed()
        self.require_clean(anew=verified > 1)
        self.undisturbed()
        bucket = self.require_clean()
        self.truth.require_latest(bucket)
        self.content.require_unharmed()
        for backup_id in bucket.complete()[:verified]:
            self.obeyed("verify", "source", backup_id, "--repository", "main")
        self.obeyed(*GC)
        swept = self.look()
        assert not swept.fences
        assert set(swept.archives()) == set(swept.named())
        self.say(
            f"{self.killed} kills: {dict(self.kills)}; ends {dict(self.ends)}; {len(bucket.complete())} backups, "
            f"{len(bucket.archives())} archives read back"
        )

    def require_clean(self, anew: bool = False) -> Bucket:
        """What must hold after an undisturbed run."""
        bucket = self.look(anew)
        left = self.truth.left_behind(bucket)
        assert left == [], "\n".join(left)
        return bucket

    def killed_backup(self) -> str:
        """A backup killed at a random moment; sometimes the next one too, before it has done anything."""
        done = self._backup_killed()
        while self.dice.random() < 0.15:
            done += ", again " + self._backup_killed()
        return done

    def finished(self) -> str:
        """A backup that is let alone."""
        self.undisturbed()
        return "undisturbed"

    def frozen(self) -> str:
        """A run that sleeps past its lease and wakes up while the next one works, or after it."""
        first = self.commands.start(*BACKUP)
        snare = Snare(self.dice.randint(1, self.changes), lambda: first.send(signal.SIGSTOP))
        self._arm(snare)
        while snare.sprung is None and first.ended is None:
            time.sleep(0.02)
        self._arm(None)
        second = self.commands.start(*BACKUP)
        second.within(LEASE_SECONDS + self.dice.uniform(0, 1.2 * self.seconds))
        first.send(signal.SIGCONT)
        ends = first.wait(), second.wait()
        if "exit 0" not in ends:  # the first one may take a snapshot away from under the second when it wakes
            self.say(f"neither of the two succeeded:\n{first}\n{second}")
            self.undisturbed()
        return f"frozen at {snare.sprung}; the two ended with {self._noted(*ends)}"

    def two_at_once(self) -> str:
        """Two backups, or a backup and a prune, together; one of them is killed."""
        runs = [self.commands.start(*BACKUP), self.commands.start(*self.dice.choice((BACKUP, PRUNE)))]
        victim, other = self.dice.sample(runs, 2)
        victim.within(self.dice.uniform(0, self.seconds + LEASE_SECONDS))
        self._note_kill("one of two", victim.kill())
        return f"{victim.arguments[0]} was killed; {other.arguments[0]} ended with {self._noted(other.wait())}"

    def killed_prune(self) -> str:
        """A prune killed at a random moment; it keeps less than the backups do, so there is something to delete."""
        wait = "" if self.dice.random() < 0.3 else f"; {self._backup_first()}"
        if self.dice.random() < 0.3:
            run = self.commands.start(*PRUNE)
            run.within(self.dice.uniform(0.2, LEASE_SECONDS + 1.5))
            self._note_kill("prune by time", run.kill())
            return f"by time{wait}; {self._noted(str(run.ended))}"
        run, how = self._killed_at_change(PRUNE, self.dice.randint(1, 40))
        return f"{how}{wait}; {self._noted(str(run.ended))}"

    def _backup_first(self) -> str:
        self.undisturbed()
        return "after an undisturbed backup"

    def node_lost(self) -> str:
        """A node is killed and comes back while a backup is at work."""
        node = self.dice.choice(self.cluster.nodes)
        run = self.commands.start(*BACKUP)
        run.within(self.dice.uniform(0, self.seconds))
        node.kill()
        time.sleep(self.dice.uniform(0, 1.5))
        node.restart()
        wait_consensus(self.cluster.nodes)
        self._wait_replicas()
        return f"{node.folder.name} was lost; {self._noted(run.wait())}"

    def _backup_killed(self) -> str:
        run_number = self.dice.random()
        if run_number < 0.4:
            run = self.commands.start(*BACKUP)
            moment = self.dice.uniform(0, self.seconds + LEASE_SECONDS)
            run.within(moment)
            self._note_kill("by time", run.kill())
            how = f"after {moment:.2f} s"
        else:
            run, how = self._killed_at_change(BACKUP, self.dice.randint(1, self.changes))
        refused = run.ended == "exit 1" and NO_AGREEMENT in run.output
        assert refused or run.ended in ("exit 0", f"signal {int(signal.SIGKILL)}"), f"{how}: {run}"
        self._noted(str(run.ended))
        return how

    def _killed_at_change(self, arguments: tuple[str, ...], nth: int) -> tuple[Run, str]:
        dropped = self.dice.random() < 0.5
        snare = Snare(nth, lambda: run.send(signal.SIGKILL), dropped)
        run = self.commands.start(*arguments)
        self._arm(snare)
        run.wait()
        self._arm(None)
        what = "" if arguments is BACKUP else "prune "
        by_us = run.ended == f"signal {int(signal.SIGKILL)}"
        self._note_kill(f"{what}at a request{', dropped' if dropped else ''}", by_us)
        return run, f"at change {nth} ({'dropped' if dropped else 'passed'}): {snare.sprung}"

    def _arm(self, listener: Callable[[str], bool] | None) -> None:
        for wire in self.wires:
            wire.on_change = listener
            wire.requests.clear()

    def _note_kill(self, kind: str, killed: bool) -> None:
        self.kills[kind] += killed

    def _noted(self, *ends: str) -> str:
        self.ends.update(ends)
        return ", ".join(ends)

    def _wait_replicas(self) -> None:
        deadline = time.monotonic() + 60
        while not self.content.all_active():
            assert time.monotonic() < deadline, "the replicas did not come back"
            time.sleep(0.2)


def seed_from(name: str) -> int:
    """The seed of an environment variable, or a new one."""
    return int(os.environ.get(name) or random.SystemRandom().randrange(1 << 32))
