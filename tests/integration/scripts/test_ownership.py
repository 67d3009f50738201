"""claim_partition, renew_partition, release_events and load_users on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from eventproc.effects import Claim, Death, Renew, Renewed, Suspect, UserState
from eventproc.errors import ConfigError
from eventproc.store.scripts import script_error
from tests.integration.supervised import wait_for
from tests.script_runner import ScriptRunner, entry, group, settings, values

KEY = "partition:events:0"


@pytest.fixture
def me(client: Any) -> ScriptRunner:
    """One who has claimed nothing yet."""
    return ScriptRunner(client)


def server_ms(client: Any) -> int:
    seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


# --- claim_partition ------------------------------------------------------------------------------


def test_first_claim_takes_the_time_as_epoch_and_stores_position_and_baseline(
    me: ScriptRunner, client: Any
) -> None:
    before = server_ms(client)
    claimed = me.claim(offset=7, baseline=5)
    assert claimed.status == "ok"
    assert before <= claimed.epoch <= server_ms(client)
    assert (claimed.rev, claimed.offset, claimed.baseline) == (0, 7, 5)
    stored = client.hgetall(KEY)
    assert stored[b"owner"] == b"me"
    assert (stored[b"offset"], stored[b"baseline"], stored[b"schema"]) == (b"7", b"5", b"1")


def died(*offsets: int, number: int = 1) -> Death:
    return Death(f"d{number}", list(offsets), "was killed by SIGSEGV")


def test_a_death_is_recorded_once_and_charges_who_ran_alone(me: ScriptRunner) -> None:
    me.claim(offset=5)
    first = me.claim(death=died(7, 9, 4))
    assert first.suspects == {at: Suspect(0, "was killed by SIGSEGV") for at in (7, 9)}  # 4 is final
    assert me.claim(death=died(7, 9, 4)).suspects == first.suspects
    assert me.claim(death=died(7, number=2)).suspects[7].deaths == 1
    assert me.claim(death=died(7, number=2)).suspects[7].deaths == 1
    assert me.claim(death=died(7, 9, number=3)).suspects[7].deaths == 1  # not alone
    assert me.claim().suspects == me.claim(death=died(7, 9, number=3)).suspects


def test_a_claim_that_was_long_under_way_charges_no_death_twice(me: ScriptRunner) -> None:
    """Its sender has given it up, claimed anew and died meanwhile; and the one after it."""
    for number in (1, 2, 3):
        me.claim(death=died(7, number=number))
    for number in (1, 2, 3):
        assert me.claim(death=died(7, number=number)).suspects[7].deaths == 2
    assert me.claim(death=died(7, number=4)).suspects[7].deaths == 3


def test_suspects_below_the_position_are_forgotten(me: ScriptRunner, client: Any) -> None:
    me.claim(offset=5)
    me.claim(death=died(7, 9))
    me.finalize(floor=8)
    assert list(me.claim().suspects) == [9]
    assert not client.hexists(KEY, "suspect:7")


def test_a_claim_that_is_refused_records_nothing(me: ScriptRunner, client: Any) -> None:
    me.claim(offset=5)
    assert ScriptRunner(client, owner="other").claim(death=died(7)).status == "held"
    assert me.claim().suspects == {}


def test_claim_without_position_leaves_none(me: ScriptRunner, client: Any) -> None:
    claimed = me.claim()
    assert (claimed.offset, claimed.baseline) == (-1, -1)
    assert not client.hexists(KEY, "offset")


def test_stored_position_and_revision_outlive_a_claim(me: ScriptRunner) -> None:
    me.claim(offset=7)
    me.finalize(floor=9)
    claimed = me.claim(offset=100, baseline=100)
    assert (claimed.rev, claimed.offset, claimed.baseline) == (1, 9, -1)


def test_epoch_always_grows(me: ScriptRunner, client: Any) -> None:
    me.claim()
    future = server_ms(client) + 1_000_000
    client.hset(KEY, "epoch", future)
    assert me.claim().epoch == future + 1


def test_epoch_grows_also_when_redis_has_lost_the_one_before(me: ScriptRunner, client: Any) -> None:
    """Else a late call from before the loss would pass for one of the new claim."""
    before = me.claim().epoch
    client.flushall()
    future = before + 1_000_000
    assert me.claim(above=future).epoch == future + 1
    assert me.claim(above=before).epoch == future + 2


def test_same_call_again_takes_nothing_anew(me: ScriptRunner) -> None:
    call = me.scripts.encode(Claim("me", 10_000))
    first = me.execute(call)
    assert me.execute(call) == first
    assert int(me.execute(me.scripts.encode(Claim("me", 10_000)))[1]) > int(first[1])


def test_held_while_the_lease_of_another_runs(me: ScriptRunner, client: Any) -> None:
    me.claim()
    before = client.hgetall(KEY)
    other = ScriptRunner(client, owner="other")
    held = other.claim()
    assert (held.status, held.owner) == ("held", "me")
    assert 0 <= held.age_ms < 10_000
    assert client.hgetall(KEY) == before


@pytest.mark.parametrize("options", [{"may_take": "me"}, {"force": True}, {"lease_ms": 0}])
def test_taken_from_another(me: ScriptRunner, client: Any, options: dict[str, object]) -> None:
    first = me.claim()
    taken = ScriptRunner(client, owner="other").claim(**options)
    assert taken.status == "ok"
    assert taken.epoch > first.epoch


def test_taken_when_the_lease_has_run_out(me: ScriptRunner, client: Any) -> None:
    me.claim()
    client.hset(KEY, "seen_ms", server_ms(client) - 10_001)
    assert ScriptRunner(client, owner="other").claim().status == "ok"


def test_a_clock_of_redis_that_was_set_back_prolongs_a_lease_by_no_more_than_the_lease(
    me: ScriptRunner, client: Any
) -> None:
    me.claim()
    client.hset(KEY, "seen_ms", server_ms(client) + 3_600_000)
    other = ScriptRunner(client, owner="other")
    held = other.claim(lease_ms=60_000)
    assert (held.status, held.age_ms) == ("held", 0)
    assert int(client.hget(KEY, "seen_ms")) <= server_ms(client)
    wait_for(lambda: other.claim(lease_ms=20).status == "ok", told="the lease did not run out")


def test_another_may_take_is_not_enough(me: ScriptRunner, client: Any) -> None:
    me.claim()
    assert ScriptRunner(client, owner="other").claim(may_take="a third").status == "held"


def test_foreign_partition_key_is_named(me: ScriptRunner, client: Any) -> None:
    client.set(KEY, "x")
    with pytest.raises(redis.ResponseError, match=f"^FOREIGN key {KEY}") as caught:
        me.claim()
    error = script_error("claim_partition", str(caught.value))
    assert isinstance(error, ConfigError)
    assert KEY in str(error)


def test_newer_schema_is_refused(me: ScriptRunner, client: Any) -> None:
    client.hset(KEY, "schema", 2)
    with pytest.raises(redis.ResponseError, match=r"^SCHEMA 2 of key") as caught:
        me.claim()
    assert isinstance(script_error("claim_partition", str(caught.value)), ConfigError)


def test_prefix_is_in_front_of_every_key(client: Any) -> None:
    one = ScriptRunner(client, settings(key_prefix="app:"))
    one.claim()
    first = entry(1, "u", 1)
    one.acquire(first)
    one.finalize(group("u", first))
    assert all(key.startswith(b"app:") for key in client.keys("*"))


# --- renew_partition ------------------------------------------------------------------------------


def test_renew_keeps_partition_and_locks(me: ScriptRunner, client: Any) -> None:
    me.claim()
    one, two, three = entry(1), entry(2), entry(3)
    me.acquire(one, two, three)
    client.pexpire("inflight:e1", 5000)
    client.delete("inflight:e2")
    client.set("inflight:e3", "events:9:1:other")
    client.hset(KEY, "seen_ms", 1)
    renewed = me.renew(one, two, three)
    assert (renewed.status, renewed.lost) == ("ok", [2])
    assert client.pttl("inflight:e1") > 25_000
    assert client.pttl("inflight:e2") > 25_000
    assert client.get("inflight:e3") == b"events:9:1:other"
    assert int(client.hget(KEY, "seen_ms") or 0) > 1


def test_renew_tells_a_foreign_lock_lost(me: ScriptRunner, client: Any) -> None:
    me.claim()
    client.rpush("inflight:e1", "x")
    assert me.renew(entry(1)).lost == [0]


def test_renew_and_release_are_fenced(me: ScriptRunner, client: Any) -> None:
    me.claim()
    one = entry(1)
    me.acquire(one)
    ScriptRunner(client, owner="other").claim(force=True)
    before = values(client)
    assert me.renew(one).status == "fenced"
    me.release(one)
    assert values(client) == before


def test_renew_and_release_after_a_loss(me: ScriptRunner, client: Any) -> None:
    me.claim()
    client.flushall()
    assert me.renew(entry(1)).status == "rewound"
    me.release(entry(1))
    assert client.dbsize() == 0


@pytest.mark.parametrize("verb", ["renew", "release", "acquire", "finalize"])
def test_foreign_partition_key_is_named_by_all(me: ScriptRunner, client: Any, verb: str) -> None:
    me.claim()
    client.delete(KEY)
    client.rpush(KEY, "x")
    with pytest.raises(redis.ResponseError, match=f"^FOREIGN key {KEY}"):
        getattr(me, verb)()


# --- release_events -------------------------------------------------------------------------------


def test_release_drops_only_our_locks(me: ScriptRunner, client: Any) -> None:
    me.claim()
    entries = [entry(i) for i in range(4)]
    me.acquire(*entries)
    client.set("inflight:e1", "events:9:1:other")
    client.delete("inflight:e2")
    client.rpush("inflight:e2", "x")
    me.release(*entries)
    assert sorted(client.keys("inflight:*")) == [b"inflight:e1", b"inflight:e2"]
    me.release(*entries)


def test_release_of_many(me: ScriptRunner, client: Any) -> None:
    me.claim()
    entries = [entry(i) for i in range(2000)]
    me.acquire(*entries)
    assert len(client.keys("inflight:*")) == 2000
    me.release(*entries)
    assert client.keys("inflight:*") == []


# --- load_users -----------------------------------------------------------------------------------


def test_load_tells_last_and_next(me: ScriptRunner, client: Any) -> None:
    client.rpush("order:a", 1, 2, 5)
    client.set("next:a", 9)
    client.rpush("order:b", 2**53 - 1)
    client.set("next:c", 4)
    assert me.load("a", "b", "c", "d") == [
        UserState(5, 9),
        UserState(2**53 - 1, 0),
        UserState(0, 4, dense=True),
        UserState(0, 0, dense=True),
    ]
    assert me.load() == []


@pytest.mark.parametrize(
    ("seqs", "dense"), [([1, 2, 3], True), ([1, 3], False), ([2, 3], False), ([3], False)]
)
def test_load_tells_whether_the_list_is_dense(
    me: ScriptRunner, client: Any, seqs: list[int], dense: bool
) -> None:
    client.rpush("order:a", *seqs)
    assert me.load("a") == [UserState(3, dense=dense)]


def test_load_names_foreign_keys(me: ScriptRunner, client: Any) -> None:
    client.set("order:a", "x")
    client.rpush("next:b", "x")
    client.rpush("order:c", "no seq")
    client.set("next:d", "no seq")
    client.rpush("order:ü'\"", 3)
    assert me.load("a", "b", "c", "d", "ü'\"") == [
        UserState(foreign="order:a"),
        UserState(foreign="next:b"),
        UserState(foreign="order:c"),
        UserState(foreign="next:d"),
        UserState(3),
    ]


def test_load_of_many(me: ScriptRunner, client: Any) -> None:
    for user in range(3000):
        client.rpush(f"order:u{user}", user + 1)
    assert [state.last for state in me.load(*[f"u{i}" for i in range(3000)])] == list(range(1, 3001))


def test_a_renewal_that_comes_again_takes_no_lock_that_finalize_has_dropped(
    me: ScriptRunner, client: Any
) -> None:
    me.claim()
    ended, running = entry(1, "u", 1), entry(2, "v", 1)
    me.acquire(ended, running)
    renewal = Renew(me.epoch, me.owner, [ended, running], me.rev)
    client.delete("inflight:e2")
    assert me.run(renewal) == Renewed("ok")
    assert client.get("inflight:e2") is not None  # it had run out
    me.finalize(group("u", ended))
    assert me.run(renewal) == Renewed("ok")
    assert client.get("inflight:e1") is None
    assert client.get("inflight:e2") is not None
