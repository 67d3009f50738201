"""What an event costs Redis in acquire_events and finalize_events, by the size of the batch.

`script_us` is what Redis counts for the script (INFO commandstats: EVALSHA with the commands in it), `cpu_us`
all its CPU time: reading the request and writing the answer come with it. Ids are fresh, each event is of
another user, all are of one size. `unlocked` is finalize as `locking = partition` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, cpu_s
from eventproc.effects import Entry, UserEffects
from eventproc.store.scripts import Call
from tests.redis_server import RedisServer
from tests.script_runner import ScriptRunner, entry

EVENTS = 1_000 if SMOKE else 20_000
USERS = 5000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


class ByDigest(ScriptRunner):
    """Calls the scripts as workers do: EVALSHA."""

    def execute(self, call: Call) -> Any:
        keys, args = call.parts()
        return self.client.evalsha(self.scripts.scripts[call.script].sha1.decode(), len(keys), *keys, *args)

    def load_scripts(self) -> None:
        """Must be called once for each server."""
        for script in self.scripts.scripts.values():
            self.client.script_load(script.source)


def batches(size: int, *, granted_ms: int) -> list[list[Entry]]:
    """The events, cut in batches; each user's seqs ascend."""
    entries = [
        entry(
            n,
            f"user-{n % USERS}",
            n // USERS + 1,
            id=f"event-{n:08d}",
            type="order.created",
            granted_ms=granted_ms,
        )
        for n in range(EVENTS)
    ]
    return [entries[start : start + size] for start in range(0, EVENTS, size)]


def acquire_all(runner: ScriptRunner, work: list[list[Entry]]) -> None:
    for batch in work:
        assert not any(runner.acquire(*batch).verdicts)


def finalize_all(runner: ScriptRunner, work: list[list[Entry]]) -> None:
    for batch in work:
        by_user: dict[str, list[Entry]] = {}
        for one in batch:
            by_user.setdefault(one.user, []).append(one)
        groups = [UserEffects(user, False, (), entries) for user, entries in by_user.items()]
        finalized = runner.finalize(*groups, floor=batch[-1].offset + 1)
        assert finalized.status == "ok"
        assert not finalized.refused


@pytest.mark.parametrize("batch", [1, 10, 100, 500, 1000])
@pytest.mark.parametrize("script", ["acquire", "finalize", "finalize_unlocked"])
def test_script(benchmark: Any, figures: Figures, server: RedisServer, script: str, batch: int) -> None:
    client = server.client()
    client.flushall()
    runner = ByDigest(client)
    runner.load_scripts()
    runner.claim()
    work = batches(batch, granted_ms=int(script != "finalize_unlocked"))
    if script == "finalize":
        acquire_all(runner, work)
    client.config_resetstat()
    before_s = cpu_s(server.pid)
    benchmark.pedantic(acquire_all if script == "acquire" else finalize_all, args=(runner, work), rounds=1)
    used_s = cpu_s(server.pid) - before_s
    calls: dict[str, Any] = client.info("commandstats")["cmdstat_evalsha"]
    assert calls["failed_calls"] == 0
    assert client.exists(f"{'inflight' if script == 'acquire' else 'event'}:event-{EVENTS - 1:08d}")
    figures.add(
        script_us=round(calls["usec"] / EVENTS, 2),
        cpu_us=round(used_s / EVENTS * 1e6, 2),
        calls=calls["calls"],
        events=EVENTS,
    )
