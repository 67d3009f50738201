"""What an event costs Redis in acquire_events and finalize_events, by the size of the batch.

`script_us` is what Redis counts for the script (INFO commandstats: EVALSHA with the commands in it),
`inside_us` the commands alone, and `cpu_us` all its CPU time: reading the request and writing the answer come
with it.
Ids are fresh, each event is of another user, all are of one size. `unlocked` is finalize as
`locking = partition` calls it.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE
from benchmarks.redis_load import Batch, Cost, Event, send
from benchmarks.script_load import Scripts
from tests.redis_server import RedisServer

EVENTS = 1_000 if SMOKE else 20_000
USERS = 5000
_SHOWN = 5  # commands that take most


def batches(size: int) -> list[Batch]:
    """The events, cut in batches; each user's seqs ascend."""
    events = [
        Event(f"event-{n:08d}", f"user-{n % USERS}", n // USERS + 1, "order.created") for n in range(EVENTS)
    ]
    return [Batch(0, start, events[start : start + size]) for start in range(0, EVENTS, size)]


@pytest.mark.parametrize("batch", [1, 10, 100, 500, 1000])
@pytest.mark.parametrize("script", ["acquire", "finalize", "finalize_unlocked"])
def test_script(benchmark: Any, figures: Figures, script: str, batch: int) -> None:
    work = batches(batch)
    spent: list[Cost] = []
    with RedisServer() as server:
        scripts = Scripts(server, [0], locks=script != "finalize_unlocked")
        locks = [scripts.lock(one) for one in work]
        writes = [scripts.write(one) for one in work]
        if script == "finalize":
            send(server, locks)
        timed = locks if script == "acquire" else writes
        benchmark.pedantic(lambda: spent.append(send(server, timed)), rounds=1)
        client = server.client()
        assert client.info("commandstats")["cmdstat_evalsha"]["failed_calls"] == 0
        written = [client.exists(f"{name}:event-{EVENTS - 1:08d}") for name in ("inflight", "event")]
        assert written == ([1, 0] if script == "acquire" else [0, 1])
    inside = {name: s / EVENTS * 1e6 for name, s in spent[0].counted.items() if name != "evalsha"}
    most = sorted(inside, key=inside.__getitem__, reverse=True)[:_SHOWN]
    figures.add(
        script_us=round(spent[0].counted_us(EVENTS), 2),
        inside_us=round(sum(inside.values()), 2),
        cpu_us=round(spent[0].us(EVENTS), 2),
        commands="/".join(f"{name}:{inside[name]:.2f}" for name in most),
        calls=len(work),
        events=EVENTS,
    )
