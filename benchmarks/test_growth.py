"""How the cost of an event grows with what is there already.

Redis: events go through eventproc's scripts, each of a batch for another user, on servers whose users have
so long an order list (batches of 100), or that know so many users (500). Rounds alternate over the sizes,
and the least CPU time of each is compared: whatever disturbs can only add. The reference, on the same data,
tells what Redis' own cache misses do to bare commands.

Whole way: a backlog is drained over 1 to 8 partitions. Core: shuffle windows from 0 to 100,000.

The bars: the dearest size costs at most 1.15 of the cheapest over events per user, 1.4 over users.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from benchmarks.redis_load import Batch, Cost, Event, Writer, calls, send
from benchmarks.reference import Reference
from benchmarks.script_load import Scripts
from benchmarks.test_core import Stream, drive, warm_buffer
from benchmarks.test_drain import Drain, backlog, drain, tell
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(1800)

ROUNDS = 1 if SMOKE else 5
BATCH = 500
EVENTS = 2_000 if SMOKE else 20_000
HISTORIES = [10, 1_000] if SMOKE else [10, 100, 1_000, 10_000, 100_000]
USERS = [1_000, 5_000] if SMOKE else [1_000, 10_000, 100_000, 1_000_000]
#: Whose histories grow.
HISTORY_USERS = 100
DRAINED = 4_000 if SMOKE else 40_000
DRAIN_USERS = 200 if SMOKE else 4_000
PARTITIONS = [2] if SMOKE else [1, 2, 4, 8]
WINDOWS = [0, 1_000] if SMOKE else [0, 10, 100, 1_000, 10_000, 100_000]
SHUFFLED = 5_000 if SMOKE else 200_000
FLAT_HISTORY = 1.15
FLAT_USERS = 1.4

#: Order lists of users ARGV[1] to ARGV[2] - 1, with seqs 1 to ARGV[3].
_FILL = """
local seqs = {}
for user = ARGV[1], ARGV[2] - 1 do
  local key = string.format('order:user-%07d', user)
  for from = 1, ARGV[3], 1000 do
    for seq = from, math.min(from + 999, ARGV[3]) do
      seqs[seq - from + 1] = string.format('%d', seq)
    end
    redis.call('RPUSH', key, unpack(seqs, 1, math.min(1000, ARGV[3] - from + 1)))
  end
end
"""
_FILLED_AT_ONCE = 10_000  # seqs, or one user's
_TIMEOUT_S = 60.0


def fill(server: RedisServer, users: int, history: int) -> None:
    """Give each user that many processed events, as far as the order list tells."""
    client = server.client(socket_timeout=_TIMEOUT_S)
    step = max(1, _FILLED_AT_ONCE // history)
    for start in range(0, users, step):
        client.eval(_FILL, 0, start, min(start + step, users), history)


def batches(users: int, history: int) -> list[Batch]:
    """The next events of random users, each batch of different ones."""
    rng = random.Random(7)
    size = min(users, BATCH)
    last: dict[int, int] = {}
    work = []
    waiting: list[int] = []
    for start in range(0, EVENTS, size):
        if len(waiting) < size:
            waiting = rng.sample(range(users), min(users, EVENTS) // size * size)
        chosen, waiting = waiting[:size], waiting[size:]
        events = []
        for number, user in enumerate(chosen, start):
            last[user] = last.get(user, history) + 1
            events.append(Event(f"event-{number:08d}", f"user-{user:07d}", last[user], "order.created"))
        work.append(Batch(0, start, events))
    return work


def cost(kind: str, users: int, history: int) -> Cost:
    """Of all events, lock and effects, on a fresh server with that much in it."""
    work = batches(users, history)
    with RedisServer() as server:
        fill(server, users, history)
        writer: Writer = (
            Scripts(server, [0], locks=True)
            if kind == "scripts"
            else Reference(time.time_ns() // 1_000_000, locks=True)
        )
        spent = send(server, calls(writer, work, locks=True))
        client = server.client()
        assert client.dbsize() == 2 * EVENTS + users + 1, "not all was written, or a lock is left"
        one = work[-1].events[-1]
        assert client.lindex(f"order:{one.user}", -1) == str(one.seq).encode()
        assert client.llen(f"order:{one.user}") == one.seq
    return spent


def grow(benchmark: Any, figures: Figures, sizes: list[int], where: dict[int, tuple[int, int]]) -> float:
    """Tell the cost for each size, which means (users, events of each); the dearest by the cheapest."""
    found: dict[tuple[str, int], list[float]] = {}

    def one_round() -> None:
        for size in sizes:
            for kind in ("scripts", "reference"):
                found.setdefault((kind, size), []).append(cost(kind, *where[size]).us(EVENTS))

    benchmark.pedantic(one_round, rounds=ROUNDS)
    spreads = {}
    for kind in ("scripts", "reference"):
        least = {size: min(found[kind, size]) for size in sizes}
        spreads[kind] = max(least.values()) / min(least.values())
        figures.add(**{f"{kind}_us_{size}": round(least[size], 2) for size in sizes})
        figures.add(**{f"{kind}_spread": round(spreads[kind], 3)})
    figures.add(events=EVENTS, rounds=ROUNDS)
    return spreads["scripts"]


def test_growth_events_per_user(benchmark: Any, figures: Figures) -> None:
    spread = grow(benchmark, figures, HISTORIES, {size: (HISTORY_USERS, size) for size in HISTORIES})
    figures.bar("dearest by cheapest", spread, most=FLAT_HISTORY)
    figures.judge()


def test_growth_users(benchmark: Any, figures: Figures) -> None:
    spread = grow(benchmark, figures, USERS, {size: (size, 1) for size in USERS})
    figures.bar("dearest by cheapest", spread, most=FLAT_USERS)
    figures.judge()


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_growth_partitions(benchmark: Any, figures: Figures, partitions: int) -> None:
    rounds: list[Drain] = []
    with Deployment(partitions=partitions) as deployment:
        with deployment.frozen():
            deployment.produce(backlog(DRAIN_USERS, DRAINED))
        benchmark.pedantic(lambda: rounds.append(drain(deployment, DRAINED)), rounds=1)
        assert deployment.audit().totals.processed == DRAINED
    tell(figures, rounds, DRAIN_USERS, partitions)


@pytest.mark.parametrize("window", WINDOWS)
def test_growth_shuffle_window(benchmark: Any, figures: Figures, window: int) -> None:
    stream = Stream(events=SHUFFLED, users=5000, window=max(window, 1))
    cpu_s: list[float] = []

    def timed() -> None:
        buffer = warm_buffer(stream)
        begun = time.process_time()
        drive(buffer, stream)
        cpu_s.append(time.process_time() - begun)
        assert buffer.parked == 0

    benchmark.pedantic(timed, rounds=ROUNDS)
    figures.add(events_per_cpu_s=round(SHUFFLED / statistics.median(cpu_s)), events=SHUFFLED)
