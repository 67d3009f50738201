"""What may go wrong in a simulated world, by name.

A fault strikes between two actions, aimed at one worker. One that finds nothing to hit answers False, and is
tried again before each of the next actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from eventproc.effects import Finalized
from tests.simulation.judge import Violation
from tests.simulation.memory_store import MemoryStore
from tests.simulation.workload import Document

if TYPE_CHECKING:
    from tests.simulation.worker import SimulatedWorker
    from tests.simulation.world import World

Fault = Callable[["World", "SimulatedWorker"], bool | None]
FAULTS: dict[str, Fault] = {}

EVENT_FIELDS = ("status", "attempts", "userId", "seq", "offset", "partition")
JUMPS_MS = (-3_600_000, -30_000, -2_000, 2_000, 30_000, 3_600_000)


def _fault(fault: Fault) -> Fault:
    FAULTS[fault.__name__] = fault
    return fault


# --- deaths ----------------------------------------------------------------------------------------


@_fault
def crash(world: World, worker: SimulatedWorker) -> None:
    """Killed between two requests. What is on the wire may be carried out, even after the next claim."""
    rng = world.random
    for _ in range(rng.randrange(3)):
        if worker.requests and not world.redis_away:
            world.execute(worker)
    if worker.produced and rng.random() < 0.5:
        world.dead_letters.add(worker.produced[0].offset)
    if worker.commits.under_way >= 0 and rng.random() < 0.5:
        world.committed = worker.commits.under_way
    world.bury(worker, "crash")
    if rng.random() < 0.5:
        world.wire += [call for _, call in worker.requests]


@_fault
def crash_in_turn(world: World, worker: SimulatedWorker) -> None:
    """Killed between two of the things that the next step asks for."""
    worker.crash_after = world.random.randrange(6)


@_fault
def crash_in_run(world: World, worker: SimulatedWorker) -> None:
    """Killed by its next handler, or after a few runs."""
    worker.crash_in_run = world.random.randrange(4)


@_fault
def drain(world: World, worker: SimulatedWorker) -> None:
    """A worker ends properly, and another one starts."""
    worker.pipeline.drain()
    for _ in range(500):
        if worker.pipeline.drained or not worker.pipeline.owned or world.redis_away or world.kafka_away:
            break
        world.serve(worker)
        world.clock.now_ms += 10
    else:
        raise Violation("a drain does not end")
    if worker.pipeline.drained:
        world.counts["drained"] += 1
        ownership = worker.pipeline.ownership
        mine = world.scripts.lock(ownership.epoch, ownership.owner).encode()
        left = [
            key
            for key, (value, _) in world.store.dump().items()
            if key.startswith(b"inflight:") and value == mine
        ]
        # one that was fenced by its own claim, which came twice, may not write any more
        fenced = world.field(world.scripts.keyspace.partition, "epoch") != str(ownership.epoch).encode()
        if left and not (world.others or world.snapshots or fenced):
            raise Violation(f"locks left by a drain: {left}")
    world.bury(worker, "drained")


# --- the network and the servers -------------------------------------------------------------------


@_fault
def lost_reply(world: World, worker: SimulatedWorker) -> bool:
    """The connection breaks: whatever is unanswered, carried out or not, is sent again in order."""
    if not (worker.requests or worker.replies):
        return False
    worker.requests.extendleft(reversed([(request, call) for request, call, _ in worker.replies]))
    worker.replies.clear()
    return True


@_fault
def late_retry(world: World, worker: SimulatedWorker) -> bool:
    """The same, but what was sent before is still on its way, and is carried out whenever it arrives."""
    hit = lost_reply(world, worker)
    world.wire += [call for _, call in worker.requests]
    return bool(hit)


@_fault
def script_error(world: World, worker: SimulatedWorker) -> None:
    """Redis dies in the middle of the script that it runs next."""
    worker.die_at = world.random.randrange(30)


@_fault
def rewind(world: World, worker: SimulatedWorker) -> bool:
    """A replica falls behind; later on Redis fails over to it, and recent writes are lost."""
    if world.field(world.scripts.keyspace.partition, "offset") is None:
        return False  # it has nothing to lose
    world.snapshots.append(world.store.snapshot())
    world.restore_in = world.random.randrange(1, 40 + 2 * world.events)
    return True


@_fault
def flush(world: World, worker: SimulatedWorker) -> None:
    """FLUSHALL: what was final by then stays lost; what was read and not final is done again."""
    stored = int(world.field(world.scripts.keyspace.partition, "offset") or 0)
    world.store.flush()
    world.clock.now_ms += 1  # no claim that comes twice is carried out within the same ms before and after it
    world.snapshots.clear()
    world.restore_in = 0
    floors = []
    for w in (world.worker, *world.others):  # what they know to be acknowledged, or are about to learn
        floors.append(w.pipeline.acked_floor)
        floors += [reply.floor for _, _, reply in w.replies if isinstance(reply, Finalized)]
    world.forgiven = max(
        *floors, stored, world.offered, world.committed, world.judge.checked_floor, world.forgiven
    )
    world.judge.redis_lost_writes()


@_fault
def redis_outage(world: World, worker: SimulatedWorker) -> None:
    """Redis goes away, or comes back."""
    world.redis_away = not world.redis_away
    world.faults_left += world.redis_away


@_fault
def kafka_outage(world: World, worker: SimulatedWorker) -> None:
    """Kafka goes away, or comes back."""
    world.kafka_away = not world.kafka_away
    world.faults_left += world.kafka_away


@_fault
def lost_ack(world: World, worker: SimulatedWorker) -> bool:
    """The acknowledgement of a dead letter never comes."""
    if not worker.produced:
        return False
    world.deliver(worker, lost=True)
    return True


@_fault
def refused_commit(world: World, worker: SimulatedWorker) -> bool:
    """Kafka refuses a commit."""
    if worker.commits.under_way < 0:
        return False
    worker.commits.answer(refused=True)
    return True


# --- owners ----------------------------------------------------------------------------------------


@_fault
def zombie(world: World, worker: SimulatedWorker) -> None:
    """The worker is stopped, replaced by an operator's --takeover, and goes on later."""
    worker.asleep = world.random.choice((0, 5, 100))
    world.others.append(worker)
    world.worker = world.start(world.random.choice("ab"), force=True)


@_fault
def rival(world: World, worker: SimulatedWorker) -> None:
    """A supervisor on another host starts a worker too: it stands by until the lease is over."""
    world.others.append(world.start("b" if worker.host == "a" else "a"))


@_fault
def race(world: World, worker: SimulatedWorker) -> None:
    """Two take over at the same time."""
    one, other = world.start("a", force=True), world.start("b", force=True)
    for taker in (one, other):
        taker.turn()
        world.answer(taker)
        taker.turn()
    world.others += [worker, other]
    world.worker = one


@_fault
def stop(world: World, worker: SimulatedWorker) -> None:
    """SIGSTOP for longer than the lease; whoever stands by takes over meanwhile."""
    world.clock.now_ms += 4_000
    for other in list(world.others):
        other.asleep = 0
        for _ in range(12):
            if not world.redis_away and other.number not in world.dead:
                world.guarded(other, world.serve, other)
            world.clock.now_ms += 200


# --- time ------------------------------------------------------------------------------------------


@_fault
def stall(world: World, worker: SimulatedWorker) -> None:
    """Everything stands still for a while, Redis and Kafka apart."""
    world.clock.now_ms += 5_000


@_fault
def clock_jump(world: World, worker: SimulatedWorker) -> None:
    """The clock of Redis, or of the worker's host, is set."""
    clock = world.random.choice((world.redis_clock, world.clock))
    clock.jump_ms += world.random.choice(JUMPS_MS)


@_fault
def slow_run(world: World, worker: SimulatedWorker) -> None:
    """A handler outlasts its lock."""
    worker.slow_run = True


@_fault
def reset(world: World, worker: SimulatedWorker) -> bool:
    """An hour later the position is set back by an operator: what is final must stay as it is."""
    key = world.scripts.keyspace.partition
    offset = world.field(key, "offset")
    if not offset or offset == b"0" or world.redis_away or world.others:
        return False
    world.was_reset = True
    world.wire.clear()
    world.snapshots.clear()
    world.restore_in = 0
    world.bury(worker, "reset")
    world.clock.now_ms += 3_600_000
    world.store.command("HSET", key, "offset", world.random.randrange(int(offset)))
    return True


# --- keys of others --------------------------------------------------------------------------------


@dataclass(slots=True)
class Foreign:
    """A key that somebody else has put where one of ours belongs."""

    key: str
    kind: str

    def remove(self, store: MemoryStore) -> None:
        """The operator deletes it, if it is there: a flush, or a failover, may have changed that."""
        if store.command("TYPE", self.key) == self.kind.encode():
            store.command("DEL", self.key)


@_fault
def foreign_key(world: World, worker: SimulatedWorker) -> bool:
    """A key of the wrong type is in the way of a user or an event, until somebody deletes it."""
    rng, store = world.random, world.store
    if world.foreign and rng.random() < 0.5:
        rng.choice(world.foreign).remove(store)
        return True
    prefix = rng.choice(("order", "next", "gaps", "event", "dedup", "inflight", "dlq", "dlq:list"))
    if prefix == "dlq:list":
        key = prefix
    elif prefix in ("order", "next", "gaps"):
        key = f"{prefix}:{rng.choice(_users(world))}"
    else:
        document = _coming(world)
        if document is None:
            return False
        key = f"{prefix}:{document['id']}"
    if store.command("EXISTS", key):
        return False
    kind = rng.choice(("string", "list", "hash"))
    if kind == "string" and prefix in ("next", "dedup", "inflight"):
        kind = "list"
    if kind == "list" and prefix in ("order", "gaps", "dlq:list"):
        kind = "hash"
    if kind == "hash" and prefix in ("event", "dlq"):
        kind = "string"
    words = {"string": ("SET", key, "x"), "list": ("RPUSH", key, "x"), "hash": ("HSET", key, "f", "x")}
    store.command(*words[kind])
    world.foreign.append(Foreign(key, kind))
    world.counts[f"foreign:{prefix}"] += 1
    return True


def _users(world: World) -> list[str]:
    users = sorted({document["userId"] for _, document in world.documents[-20:]})
    return users or ["u0"]


def _coming(world: World) -> Document | None:
    """An event that is about to be read."""
    coming = [written.document for written in islice(world.to_write, 10) if written.document is not None]
    coming += [document for _, document in world.documents[-10:]]
    return world.random.choice(coming) if coming else None


@_fault
def locked_elsewhere(world: World, worker: SimulatedWorker) -> bool:
    """A worker of another partition has met the same id: a misrouted copy, or another user's event.

    It holds the lock for a while, or has made the id final.
    """
    rng, store = world.random, world.store
    document = _coming(world)
    if document is None:
        return False
    id, seq = document["id"], document["payload"].get("seq", 0)
    if store.command("EXISTS", f"event:{id}", f"inflight:{id}", f"dedup:{id}"):
        return False
    world.taken_elsewhere.add(id)
    if rng.random() < 0.5:
        until = world.redis_clock.wall_ms() + rng.choice((1, 100, 400))
        store.command("SET", f"inflight:{id}", world.elsewhere, "PXAT", until)
        return True
    copy = rng.random() < 0.6
    fields: dict[str, str | int] = {"status": "processed", "processedAt": 1, "attempts": 1, "type": "t"}
    fields["userId"] = document["userId"] if copy else "other"
    if seq or not copy:
        fields["seq"] = seq if copy else 1
    world.final_elsewhere[id] = [word for pair in fields.items() for word in pair]
    make_final_elsewhere(world)
    return True


def make_final_elsewhere(world: World) -> None:
    """Again as well: the other worker notices, too, when Redis has lost what it had written."""
    for id, fields in world.final_elsewhere.items():
        if not world.store.command("EXISTS", f"event:{id}", f"inflight:{id}", f"dedup:{id}"):
            world.store.command("HSET", f"event:{id}", *fields)
            world.store.command("SET", f"dedup:{id}", "1")


@_fault
def expired(world: World, worker: SimulatedWorker) -> bool:
    """The hash of a final event has lived its time, its marker has not."""
    past = [d for r, d in world.documents if world.forgiven <= r.place < world.judge.checked_floor]
    if not past:
        return False
    id = world.random.choice(past)["id"]
    fields = [name.encode() for name in EVENT_FIELDS]
    found = dict(zip(fields, world.store.hashes((f"event:{id}",), EVENT_FIELDS)[0], strict=True))
    if found[b"status"] is None or not world.store.command("EXISTS", f"dedup:{id}"):
        return False
    world.judge.expired[id] = {name: value for name, value in found.items() if value is not None}
    world.store.command("DEL", f"event:{id}")
    return True
