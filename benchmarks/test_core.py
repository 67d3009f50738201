"""What the reorder buffer costs: events/s on one core, bytes per parked event and per idle user.

The bars: 3 million in-order events/s, 1 million parked events in 500 MB beyond their payloads, 100,000 idle
users in 30 MB. Speeds are reported, by the wall clock and by CPU time (the two differ on a busy machine); the
memory bars are asserted.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eventproc._reorder import ReorderBuffer

MIB = 2**20
UNLIMITED = 2**40
#: Small where the point is that it runs, not how fast.
SMOKE = os.environ.get("EVENTPROC_TEST_SMOKE") == "1"
EVENTS = 20_000 if SMOKE else 200_000

Batch = tuple[list[str], list[int], list[int], list[int], list[Any]]


class Stream:
    """Events of random users, shuffled within windows; a user, seq and id object of its own for each event.

    What each batch makes ready is found out by a first run, so that `drive` can finish and settle it
    without Python work of its own.
    """

    def __init__(self, *, events: int, users: int, window: int, batch: int = 1000) -> None:
        rng = random.Random(7)
        self.names = [f"user-{u:06d}" for u in range(users)]
        last = [1] * users
        order = []
        for _ in range(events):
            user = rng.randrange(users)
            last[user] += 1
            order.append((user, last[user]))
        for start in range(0, events, window):
            block = order[start : start + window]
            rng.shuffle(block)
            order[start : start + window] = block
        self.batches: list[Batch] = []
        for start in range(0, events, batch):
            part = order[start : start + batch]
            self.batches.append(
                (
                    [f"user-{u:06d}" for u, _ in part],
                    [int(str(seq)) for _, seq in part],
                    [users + start + i for i in range(len(part))],
                    [300] * len(part),
                    [f"event-{start + i}" for i in range(len(part))],
                )
            )
        self.done: list[tuple[list[str], list[int]]] = []
        self._rehearse()

    def _rehearse(self) -> None:
        whose = {
            item: (user, offset)
            for b in self.batches
            for user, offset, item in zip(b[0], b[2], b[4], strict=True)
        }
        buffer = warm_buffer(self)
        for now_ms, batch in enumerate(self.batches):
            ready = buffer.push(*batch, now_ms).ready
            self.done.append(([whose[i][0] for i in ready], [whose[i][1] for i in ready]))


def warm_buffer(stream: Stream) -> ReorderBuffer:
    """A buffer that knows the stream's users and expects seq 2 of each."""
    n = len(stream.names)
    buffer = ReorderBuffer(position=0)
    offsets = list(range(n))
    buffer.push(stream.names, [1] * n, offsets, [0] * n, list(stream.names), 0)
    buffer.load(stream.names, [1] * n, [False] * n, 0)
    buffer.finish(stream.names)
    buffer.settle(offsets)
    return buffer


def drive(buffer: ReorderBuffer, stream: Stream) -> None:
    """All of the stream through push, finish, settle and floor."""
    for now_ms, (batch, (users, offsets)) in enumerate(zip(stream.batches, stream.done, strict=True)):
        buffer.push(*batch, now_ms)
        buffer.finish(users)
        buffer.settle(offsets)
        buffer.floor()


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def park(events: int, *, users: int = 5000) -> int:
    """Bytes that parking takes beyond the payloads; all behind gaps, in random order."""
    rng = random.Random(7)
    keys = list(range(events))
    rng.shuffle(keys)
    names = [f"user-{i % users:06d}" for i in keys]
    seqs = [i // users + 2 for i in keys]
    items = [f"event-{i}" for i in keys]
    offsets = list(range(events))
    sizes = [300] * events
    buffer = ReorderBuffer(position=0, max_parked=UNLIMITED, max_parked_bytes=UNLIMITED)
    before = rss_bytes()
    for start in range(0, events, 1000):
        part = slice(start, start + 1000)
        unknown = buffer.push(names[part], seqs[part], offsets[part], sizes[part], items[part], start).unknown
        buffer.load(unknown, [1] * len(unknown), [False] * len(unknown), start)
    assert buffer.parked == events
    return rss_bytes() - before


def idle(users: int) -> int:
    """Bytes that users without anything parked or in flight take, their names included."""
    buffer = ReorderBuffer(position=0)
    before = rss_bytes()
    for start in range(0, users, 1000):
        names = [f"user-{i:06d}" for i in range(start, start + 1000)]
        offsets = list(range(start, start + 1000))
        unknown = buffer.push(names, [1] * 1000, offsets, [300] * 1000, list(names), start).unknown
        buffer.load(unknown, [1] * 1000, [False] * 1000, start)
        buffer.finish(names)
        buffer.settle(offsets)
    assert buffer.users == users
    return rss_bytes() - before


def _in_own_process(call: str) -> int:
    """Result of a call of this module in a fresh interpreter, so that nothing else is measured."""
    code = f"from benchmarks.test_core import *; print({call})"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.parametrize("window", [1, 1000])
@pytest.mark.parametrize("users", [5000, 50])
def test_events_per_second(benchmark: Any, users: int, window: int) -> None:
    stream = Stream(events=EVENTS, users=users, window=window)
    cpu_s: list[float] = []

    def timed(buffer: ReorderBuffer) -> None:
        start = time.process_time()
        drive(buffer, stream)
        cpu_s.append(time.process_time() - start)

    benchmark.pedantic(timed, setup=lambda: ((warm_buffer(stream),), {}), rounds=2 if SMOKE else 7)
    found = {
        "events_per_s": round(EVENTS / benchmark.stats.stats.min),
        "events_per_cpu_s": round(EVENTS / min(cpu_s)),
    }
    benchmark.extra_info.update(found)
    print(f" {users} users, window {window}: {found}")


def test_a_million_parked_events(benchmark: Any) -> None:
    used = benchmark.pedantic(_in_own_process, args=("park(1_000_000)",), rounds=1)
    benchmark.extra_info["mib"] = round(used / MIB)
    assert used < 500e6


def test_a_hundred_thousand_idle_users(benchmark: Any) -> None:
    used = benchmark.pedantic(_in_own_process, args=("idle(100_000)",), rounds=1)
    benchmark.extra_info["mib"] = round(used / MIB)
    assert used < 30e6
