"""The keeper against a real Redis: locks and ownership outlive a handler that runs long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from eventproc.clock import SystemClock
from eventproc.effects import Claim, Claimed, Entry, Finalize, Renew, StoreRequest
from eventproc.keeper import Keeper
from eventproc.settings import Settings
from eventproc.store.channel import Channel
from tests.redis_server import RedisServer
from tests.unit.pipeline_driver import LogRecord

DEADLINE_S = 20
#: A test's machine may stand still for most of it.
TTL_MS = 1500


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


class Kept:
    """A keeper for one partition that is ours, and a client that looks at what it does."""

    def __init__(self, server: RedisServer, **values: Any) -> None:
        defaults: dict[str, Any] = {"inflight_ttl_ms": TTL_MS, "redis_url": server.url}
        self.settings = Settings(**(defaults | values))
        self.client: redis.Redis = server.client(decode_responses=True)
        self.channel = Channel(self.settings, "events", 0, SystemClock())
        claimed = self.channel.call(Claim("me", 10_000, offset=0))
        assert isinstance(claimed, Claimed)
        self.epoch = claimed.epoch
        self.keeper = Keeper(self.settings, 0, SystemClock())
        self.keeper.start()

    @property
    def lock(self) -> str:
        return self.channel.scripts.lock(self.epoch, "me")

    def entry(self, id: str, *, granted: bool = True, passed: bool = False) -> Entry:
        """An entry that holds its lock, as far as the keeper knows for long."""
        made = Entry(1, LogRecord(1, b""), id, "u", 1, "t", {})
        made.granted_ms = 1 if granted else 0
        made.passed = passed
        if granted and not passed:
            self.client.set(f"inflight:{id}", self.lock, px=TTL_MS)
        return made

    def close(self) -> None:
        self.keeper.stop()
        self.keeper.join(DEADLINE_S)
        assert not self.keeper.is_alive()
        self.channel.close()


@pytest.fixture
def kept(server: RedisServer) -> Iterator[Kept]:
    found = Kept(server)
    try:
        yield found
    finally:
        found.close()


def until(condition: Callable[[], object]) -> None:
    """Wait for it, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def renewals(server: RedisServer) -> int:
    """How many renewals Redis has carried out."""
    with redis.Redis(port=server.port, decode_responses=True) as client:
        stats: dict[str, Any] = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


def test_locks_outlive_a_run_of_many_times_their_life(server: RedisServer, kept: Kept) -> None:
    entries = [kept.entry("a"), kept.entry("b")]
    kept.keeper.begin(kept.epoch, "me", entries)
    end = time.monotonic() + 3 * TTL_MS / 1000
    while time.monotonic() < end:
        assert kept.client.mget("inflight:a", "inflight:b") == [kept.lock, kept.lock]
        time.sleep(0.01)
    kept.keeper.end()
    until(lambda: not kept.client.exists("inflight:a", "inflight:b"))


def test_the_lease_is_kept_too(server: RedisServer, kept: Kept) -> None:
    before = int(kept.client.hget("partition:events:0", "seen_ms") or 0)
    kept.keeper.begin(kept.epoch, "me", [])
    until(lambda: int(kept.client.hget("partition:events:0", "seen_ms") or 0) > before)
    kept.keeper.end()


def test_only_locks_that_were_taken_and_matter_are_kept(server: RedisServer, kept: Kept) -> None:
    entries = [kept.entry("a"), kept.entry("unlocked", granted=False), kept.entry("passed", passed=True)]
    before = renewals(server)
    kept.keeper.begin(kept.epoch, "me", entries)
    until(lambda: renewals(server) > before + 1)
    assert kept.client.keys("inflight:*") == ["inflight:a"]
    kept.keeper.end()


def test_a_lock_that_ran_out_is_taken_back_and_anothers_is_left_alone(
    server: RedisServer, kept: Kept
) -> None:
    entries = [kept.entry("gone"), kept.entry("taken")]
    kept.client.delete("inflight:gone")
    kept.client.set("inflight:taken", "events:3:9:another")
    kept.keeper.begin(kept.epoch, "me", entries)
    until(lambda: kept.client.get("inflight:gone") == kept.lock)
    assert kept.client.get("inflight:taken") == "events:3:9:another"
    kept.keeper.end()


def test_short_runs_cost_nothing(server: RedisServer, kept: Kept) -> None:
    before = renewals(server)
    for _ in range(2_000):
        kept.keeper.begin(kept.epoch, "me", [])
        kept.keeper.end()
    assert renewals(server) == before
    assert len(kept.client.client_list()) == 2  # this one and the channel's: the keeper has none yet


def test_a_superseded_owner_renews_nothing_and_goes_on_quietly(server: RedisServer, kept: Kept) -> None:
    entries = [kept.entry("a")]
    with_force = Claim("other", 10_000, force=True)
    claimed = kept.channel.call(with_force)
    assert isinstance(claimed, Claimed)
    kept.client.delete("inflight:a")
    before = renewals(server)
    kept.keeper.begin(kept.epoch, "me", entries)
    until(lambda: renewals(server) > before + 1)
    assert not kept.client.exists("inflight:a")
    assert kept.keeper.is_alive()
    kept.keeper.end()


def test_redis_may_go_away_and_come_back(server: RedisServer) -> None:
    kept = Kept(server, redis_timeout_ms=100)
    try:
        entries = [kept.entry("a")]
        kept.keeper.begin(kept.epoch, "me", entries)
        until(lambda: kept.client.pttl("inflight:a") > TTL_MS / 2)
        server.freeze()
        time.sleep(2 * TTL_MS / 1000)
        server.thaw()
        until(lambda: kept.client.get("inflight:a") == kept.lock)
        assert kept.keeper.is_alive()
        kept.keeper.end()
    finally:
        kept.close()


def test_a_renewal_that_is_under_way_is_awaited_before_the_locks_may_be_dropped(
    server: RedisServer, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take the lock again after finalize has dropped it."""
    calling, go_on = threading.Event(), threading.Event()

    class Slow(Channel):
        def call(self, request: StoreRequest, timeout_ms: float | None = None) -> Any:
            if isinstance(request, Renew):
                calling.set()
                assert go_on.wait(DEADLINE_S)
            return super().call(request, timeout_ms)

    monkeypatch.setattr("eventproc.keeper.Channel", Slow)
    entry = kept.entry("a")
    entry.status, entry.attempts = "processed", 1
    kept.keeper.begin(kept.epoch, "me", [entry])
    assert calling.wait(DEADLINE_S)
    ended = threading.Thread(target=kept.keeper.end)
    ended.start()
    ended.join(0.2)
    assert ended.is_alive()
    go_on.set()
    ended.join(DEADLINE_S)
    kept.channel.call(Finalize(kept.epoch, "me", 1, 2, 0, loose=[entry]))
    assert kept.client.keys("inflight:*") == []


def test_a_run_that_has_ended_is_not_renewed_any_more(server: RedisServer, kept: Kept) -> None:
    kept.keeper.begin(kept.epoch, "me", [kept.entry("a")])
    before = renewals(server)
    until(lambda: renewals(server) > before)
    kept.keeper.end()
    settled = renewals(server)
    until(lambda: not kept.client.exists("inflight:a"))
    assert renewals(server) == settled


def test_a_lock_of_half_its_life_lasts_until_the_first_renewal() -> None:
    for ttl_ms, lease_ms in ((30_000, 10_000), (1_000, 10_000), (30_000, 60_000)):
        keeper = Keeper(Settings(inflight_ttl_ms=ttl_ms, lease_ms=lease_ms), 0, SystemClock())
        first_renewal_ms = 2 * keeper._period_ms
        assert first_renewal_ms < ttl_ms / 2
        assert first_renewal_ms < lease_ms
