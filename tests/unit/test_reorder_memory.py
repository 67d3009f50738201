"""The reorder buffer gives back what it takes: RSS stays flat over ten million operations."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from eventproc._reorder import ReorderBuffer

MIB = 2**20
BATCH = 1000
USERS = 100  # of a batch; ten events each
#: Per user and batch: two in order, three behind two gaps, two of them twice, one below, two unsequenced.
SEQS = [1, 2, 9, 5, 6, 5, 9, 1, 0, 0]
RELEASED = 5


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Churn:
    """Batches that go through everything: load, park, refusals, close, open, finish, eviction."""

    def __init__(self) -> None:
        self.buffer = ReorderBuffer(position=0, gap_timeout_ms=10, max_users=3 * USERS, max_parked=USERS)
        self.crowds = [
            [f"user-{crowd}-{u}" for u in range(USERS) for _ in SEQS] for crowd in range(10)
        ]  # each crowd evicts the one three before
        self.seqs = SEQS * USERS
        self.items = [object() for _ in range(BATCH)]
        self.sizes = [100] * BATCH
        self.now_ms = 0
        self.evicted = 0

    def turn(self) -> int:
        """One batch; returns the number of operations, one per event in each call."""
        buffer = self.buffer
        first = buffer.position
        users = self.crowds[first // BATCH % len(self.crowds)]
        names = users[:: len(SEQS)]
        self.now_ms += 11
        offsets = list(range(first, first + BATCH))
        arrivals = buffer.push(users, self.seqs, offsets, self.sizes, self.items, self.now_ms)
        self.evicted += len(arrivals.evicted)
        self.evicted += len(buffer.load(arrivals.unknown, [1] * USERS, [False] * USERS, self.now_ms).evicted)
        assert len(buffer.overfull()) == USERS
        for gap_last in (4, 8):
            due = buffer.due(self.now_ms + 10)
            assert [gap[2] for gap in buffer.close(due)] == [gap_last] * USERS
            buffer.open(due, self.now_ms)
        for _ in range(RELEASED):
            buffer.finish(names)
        try:
            buffer.settle([*offsets, first])
        except ValueError:
            buffer.settle(offsets[::-1])
        assert buffer.floor() == buffer.position
        assert buffer.parked == 0
        return 2 * BATCH + (RELEASED + 1) * USERS + 2 * USERS


def test_memory_is_flat_over_ten_million_operations() -> None:
    churn = Churn()
    references = sys.getrefcount(churn.items[0]), sys.getrefcount(churn.crowds[0][0])
    for _ in range(200):
        churn.turn()
    before = rss_bytes()
    evicted = churn.evicted
    operations = turns = 0
    while operations < 10_000_000:
        operations += churn.turn()
        turns += 1
    assert churn.evicted - evicted == turns * USERS
    assert rss_bytes() - before < MIB
    del churn.buffer
    assert references == (sys.getrefcount(churn.items[0]), sys.getrefcount(churn.crowds[0][0]))


def test_memory_of_parked_items_is_given_back() -> None:
    """Thirty rounds that park 20,000 items of one user and throw the buffer away."""

    def round_trip() -> None:
        n = 20_000
        buffer = ReorderBuffer(position=0)
        seqs = list(range(n, 0, -1))
        buffer.push(["a"] * n, seqs, list(range(n)), [1] * n, [object() for _ in range(n)], 0)
        buffer.load(["a"], [2**40], [False], 0)
        assert buffer.parked == 0
        buffer.push(["b"] * n, seqs, list(range(n, 2 * n)), [1] * n, [object() for _ in range(n)], 0)

    for _ in range(5):
        round_trip()
    before = rss_bytes()
    for _ in range(30):
        round_trip()
    assert rss_bytes() - before < 4 * MIB
