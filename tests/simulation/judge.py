"""The checker: what must hold at every moment of a history, and what must be there in the end."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eventproc.effects import Claim, Finalize, Gap, Run, StoreRequest
from eventproc.event import Event
from eventproc.suspects import CRASH_DEATHS
from tests.simulation.workload import Document

if TYPE_CHECKING:
    from tests.simulation.worker import SimulatedWorker
    from tests.simulation.world import FakeRecord, World


class Violation(AssertionError):
    """The world is not as it should be."""


@dataclass(slots=True)
class RunOf:
    """One run of the handler."""

    worker: int
    life: int
    user: str
    seq: int
    id: str
    attempt: int


def _place(pair: tuple[FakeRecord, Document]) -> int:
    return pair[0].place


def _event(document: Document) -> tuple[str, str, int]:
    return document["id"], document["userId"], document["payload"].get("seq", 0)


class Judge:
    """Looks at one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.runs: list[RunOf] = []
        self._last: dict[tuple[int, int, str], RunOf] = {}  # of a user in one life of a worker
        self._of_runs = ""
        self._finals: dict[str, tuple[bytes | None, ...]] = {}  # how an id is final
        self.expired: dict[
            str, dict[bytes, bytes]
        ] = {}  # hashes that were there, of ids whose marker still is
        self._false_gaps: list[tuple[Gap, str]] = []
        self.checked_floor = 0
        self._deaths: dict[int, list[int]] = defaultdict(list)  # offset -> how many ran, at each death

    def redis_lost_writes(self) -> None:
        """What was final may be so no more, and may become final in another way."""
        self.checked_floor = 0
        self._finals.clear()
        self._last.clear()
        kept = (
            self._world.store.command("MGET", *[f"dedup:{id}" for id in self.expired]) if self.expired else []
        )
        self.expired = {id: self.expired[id] for id, marker in zip(self.expired, kept, strict=True) if marker}

    # --- at every moment --------------------------------------------------------------------------

    def _is_next_attempt(self, before: RunOf, run: RunOf) -> bool:
        settings = self._world.settings
        # what the breaker has held runs once more: its last run does not count
        held = bool(settings.dlq_max_consecutive or settings.dlq_max_ratio) and run.attempt == before.attempt
        return (run.seq, run.id) == (before.seq, before.id) and (held or run.attempt == before.attempt + 1)

    def run(self, worker: SimulatedWorker, event: Event) -> None:
        """A life of a worker runs each user's events by seq, and none whose id is final.

        What a handler raises is caught by whoever runs it: `raise_of_runs` tells afterwards.
        """
        world, ownership = self._world, worker.pipeline.ownership
        run = RunOf(worker.number, worker.lives, event.user_id, event.seq or 0, event.id, event.attempt)
        self.runs.append(run)
        if run.seq:
            life = (run.worker, run.life, run.user)
            before = self._last.get(life)
            self._last[life] = run
            if before is not None and not (run.seq > before.seq or self._is_next_attempt(before, run)):
                self._of_runs = f"out of order: {run} after {before}"
        if run.seq and world.settings.locking == "partition":
            return
        owner, final = world.store.hashes(
            (world.scripts.keyspace.partition, f"event:{run.id}"), ("owner", "epoch", "status")
        )
        mine = owner[0] == ownership.owner.encode() and owner[1] == str(ownership.epoch).encode()
        if mine and final[2] is not None and run.id not in world.taken_elsewhere:
            self._of_runs = f"run although it is final: {run}"

    def raise_of_runs(self) -> None:
        """The runs since the last call."""
        if self._of_runs:
            raise Violation(self._of_runs)

    def begun(self, worker: SimulatedWorker, request: Run) -> None:
        """No two handlers of a user at a time, and nothing beside a suspect: all before is written."""
        ran = [entry for entry in request.entries if not entry.passed]
        if self._world.concurrency:
            if self._world.batches and ran and worker.tasks:
                raise Violation(f"a batch begins beside another: {[entry.offset for entry in ran]}")
            ran += worker.tasks
            if len({entry.lane for entry in ran}) < len(ran) or len(ran) > self._world.concurrency:
                raise Violation(f"run together: {[(entry.lane, entry.seq) for entry in ran]}")
        suspects = [entry.offset for entry in ran if entry.offset in worker.suspects]
        if not suspects:
            return
        self._world.counts["run: a suspect"] += 1
        if len(ran) > 1:
            raise Violation(f"suspects {suspects} do not run alone: {[entry.offset for entry in ran]}")
        asked = [*worker.requests, *worker.replies]
        if any(isinstance(of[0], Finalize) for of in asked):
            raise Violation(f"suspect {suspects[0]} runs before what ran is written")

    def asked(self, worker: SimulatedWorker, request: StoreRequest) -> None:
        """A claim waits for what runs, and what came of that is never written."""
        if isinstance(request, Claim) and worker.tasks:
            raise Violation(f"claims while handlers run: {worker.runs()}")
        if isinstance(request, Finalize) and worker.strays:
            for entry in request.entries():
                if entry in worker.strays:
                    raise Violation(f"result of {entry.id} from before a rewind is taken")

    def died(self, offsets: list[int]) -> None:
        """A worker died while handlers ran on these."""
        for offset in offsets:
            self._deaths[offset].append(len(offsets))

    def commit(self, offset: int) -> None:
        """Kafka's offset follows what Redis has acknowledged."""
        world = self._world
        stored = world.field(world.scripts.keyspace.partition, "offset")
        lossy = world.others or world.wire or world.forgiven or world.snapshots or world.was_reset
        if stored is not None and offset > int(stored) and not lossy:
            raise Violation(f"committed {offset} above the floor {int(stored)} in Redis")

    def floor(self, floor: int) -> None:
        """Every record below the floor is final, and its dead letter is in the topic."""
        world = self._world
        since = max(self.checked_floor, world.forgiven)
        if floor <= since:
            return
        first = bisect_left(world.documents, since, key=_place)
        last = bisect_left(world.documents, floor, lo=first, key=_place)
        passed = world.documents[first:last]
        keys = [f"event:{document['id']}" for _, document in passed]
        found = world.store.hashes(keys, ("status", "offset", "partition", "userId", "seq")) if keys else []
        for (record, document), (status, offset, partition, *of) in zip(passed, found, strict=True):
            id, place = document["id"], record.place
            if status is None and id in self.expired:
                continue
            if status is None:
                raise Violation(f"floor {floor} passed offset {place} ({id}), which is not final")
            dropped = status == b"skipped" and world.settings.late_policy == "skip"
            here = offset is not None and int(offset) == place and partition == b"0" and not dropped
            if here and place not in world.dead_letters:
                raise Violation(f"floor {floor} passed the dead letter at {place}, not produced")
            before = self._finals.setdefault(id, (status, *of))
            if before != (status, *of):
                raise Violation(f"{id} was final as {before} and is rewritten as {(status, *of)}")
        self.checked_floor = floor

    def gap_closed(self, worker: SimulatedWorker, gap: Gap) -> None:
        """No gap is closed over a record that was read, or that was there when the end was asked.

        It counts once it is written: what a worker thinks that Redis has just been emptied under does not.
        What is dead-lettered for its seq stands outside the order, and a gap may lie over it: of a user
        without state after a flush, a seq that is as far ahead is kept.
        """
        world = self._world
        user, first, last = gap.user, gap.first, gap.last
        position = worker.pipeline.buffer.position
        ahead = sum(end > position for end in worker.answers)  # the log was not read up to these yet
        for record, document in world.documents:
            seq = document["payload"].get("seq", 0)
            if document["userId"] != user or not first <= seq <= last or record.place < world.forgiven:
                continue
            if world.field(f"event:{document['id']}", "reason") in (b"seq_jump", b"misrouted"):
                continue
            if worker.has_jumped(record.place, document["id"]):
                continue
            read = record.place < position
            asked = any(end <= record.place for end in worker.answers[-4 - ahead :])
            if read or not asked:
                false = f"false gap {first}-{last} of {user}: seq {seq} is at {record.place}"
                self._false_gaps.append((gap, false))

    def gaps_written(self, request: Finalize) -> None:
        """Redis has these gap closings."""
        written = [gap for group in request.groups for gap in group.gaps]
        for gap, false in self._false_gaps:
            if any(gap is one for one in written):
                raise Violation(false)

    # --- in the end -------------------------------------------------------------------------------

    def end(self) -> None:
        """Nothing lost, doubled, reordered or unexplained."""
        world = self._world
        dump = world.store.dump()
        hashes: dict[str, dict[bytes, bytes]] = {
            key[6:].decode(): value
            for key, (value, _) in dump.items()
            if key.startswith(b"event:") and isinstance(value, dict)
        }
        hashes = {**self.expired, **hashes}
        left = [
            key
            for key, (value, _) in dump.items()
            if key.startswith(b"inflight:") and self._is_left(value, final=key[9:].decode() in hashes)
        ]
        if left:
            raise Violation(f"locks left: {left}")
        judged = [(r, d) for r, d in world.documents if r.place >= world.forgiven]
        places = defaultdict(set)  # of an event and its copies
        for record, document in world.documents:
            places[_event(document)].add(record.place)
        for record, document in judged:
            self._document(record.place, document, hashes.get(document["id"]), places[_event(document)])
        good = {record.place for record, _ in world.documents}
        for record in world.log:
            lost = record.place not in good and record.place not in world.dead_letters
            if lost and record.body is not None and record.place >= world.forgiven:
                raise Violation(f"invalid record at {record.place} is not in the DLQ topic")
        self._orders(dump, hashes, judged)
        self._killers()
        for id, value in hashes.items():
            self._hash(id, value, dump)

    def _is_left(self, lock: Any, *, final: bool) -> bool:
        """Where ownership is the lock, nobody takes over what an earlier claim has left. And a failover may
        bring one back that was dropped when its id was found final: nobody minds it until it expires."""
        world = self._world
        if int(lock.split(b":")[2]) == world.worker.pipeline.ownership.epoch:
            return True
        return world.settings.locking == "event" and not (final and world.counts["restored"])

    def _document(
        self, place: int, document: Document, final: dict[bytes, bytes] | None, places: set[int]
    ) -> None:
        if final is None:
            raise Violation(f"lost: {document['id']} at {place}")
        id, user, seq = _event(document)
        same = final[b"userId"].decode() == user and int(final.get(b"seq", b"0")) == seq
        if not same and id not in self.expired and places.isdisjoint(self._world.dead_letters):
            raise Violation(f"{id} at {place} is another's id, but not in the DLQ topic")

    def _hash(self, id: str, value: dict[bytes, bytes], dump: dict[bytes, Any]) -> None:
        settings = self._world.settings
        status, attempts = value[b"status"], int(value[b"attempts"])
        if status == b"processed" and not 1 <= attempts <= settings.max_attempts:
            raise Violation(f"{id} processed after {attempts} attempts")
        if status != b"processed":
            dropped = status == b"skipped" and settings.late_policy == "skip"
            if not dropped and int(value[b"offset"]) not in self._world.dead_letters:
                raise Violation(f"{id} {status!r} is not in the DLQ topic")
            if (f"dlq:{id}".encode() in dump) == dropped:
                raise Violation(f"{id} {status!r}: dlq entry {'there' if dropped else 'missing'}")
        if value.get(b"reason") == b"crash":
            self._crash(id, attempts, self._deaths[int(value[b"offset"])])
        if status == b"skipped" and attempts:
            raise Violation(f"{id} skipped after {attempts} attempts")

    def _crash(self, id: str, attempts: int, deaths: list[int]) -> None:
        """Only what has killed again and again, when nothing else ran, is a crash."""
        alone = deaths.count(1)
        if alone < CRASH_DEATHS or len(deaths) <= CRASH_DEATHS:
            raise Violation(f"{id} is failed as crash after deaths beside {deaths}")
        # more of them when a second owner ran it, and its death was told later; `_killers` sees to the others
        if not 1 + CRASH_DEATHS <= attempts <= 1 + alone:
            raise Violation(f"{id} is failed as crash after {attempts} attempts")

    def _killers(self) -> None:
        """What kills each time costs no more workers than it takes to know."""
        world = self._world
        forgets = ("rewind", "flush", "reset", "zombie", "rival", "race")
        if any(world.counts[f"fault:{fault}"] for fault in forgets):
            return
        for record, document in world.documents:
            deaths = len(self._deaths[record.place])
            if document["payload"].get("kill") and deaths > 1 + CRASH_DEATHS:
                raise Violation(f"{document['id']} at {record.place} has killed {deaths} workers")

    def _orders(self, dump: dict[bytes, Any], hashes: dict[str, Any], judged: list[Any]) -> None:
        settled: dict[str, set[int]] = defaultdict(set)
        processed: dict[str, set[int]] = defaultdict(set)
        known: dict[str, set[int]] = defaultdict(set)
        for id, value in hashes.items():
            user, seq = value[b"userId"].decode(), int(value.get(b"seq", b"0"))
            if seq:
                settled[user].add(seq)
                listed = str(seq).encode() in dump.get(f"order:{user}".encode(), ([], 0))[0]
                # another partition's worker has its own view of what comes in order
                if value[b"status"] == b"processed" and (listed or id not in self._world.taken_elsewhere):
                    processed[user].add(seq)
        for _, document in judged:
            known[document["userId"]].add(document["payload"].get("seq", 0))
        for user in known:
            self._order(user, dump, processed[user], settled[user] | known[user])

    def _order(self, user: str, dump: dict[bytes, Any], processed: set[int], settled: set[int]) -> None:
        settings = self._world.settings
        order = [int(seq) for seq in dump.get(f"order:{user}".encode(), ([], 0))[0]]
        if any(a >= b for a, b in pairwise(order)):
            raise Violation(f"order of {user} is not increasing: {order}")
        most = settings.order_max_len
        expected = sorted(processed)
        if most:
            # a script that dies between adding and trimming leaves more, until the next is added
            died = self._world.counts["died:finalize_events"]
            expected = expected[-len(order) :] if len(order) > most and died else expected[-most:]
        if order != expected:
            raise Violation(f"order of {user} {order} but processed {sorted(processed)}")
        entries = dump.get(f"gaps:{user}".encode(), ([], 0))[0]
        ledger = [tuple(map(int, entry.split(b":")[0].split(b"-"))) for entry in entries]
        if any(a[1] >= b[0] for a, b in pairwise(ledger)):
            raise Violation(f"ledger of {user} does not ascend: {ledger}")
        if len(ledger) < settings.gaps_max_len and not self._world.forgiven:
            for seq in range(1, max(processed, default=0)):
                if seq not in settled and not any(a <= seq <= b for a, b in ledger):
                    raise Violation(f"seq {seq} of {user} is unexplained: {order}, ledger {ledger}")
        following = dump.get(f"next:{user}".encode())
        if following is not None and int(following[0]) <= (order[-1] if order else 0) + 1:
            raise Violation(f"next:{user} {following[0]!r} is not ahead of {order}")
