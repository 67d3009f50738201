"""acquire_events on a real Redis: every verdict, every lock, every key in the way."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import redis

from eventproc.effects import Final, Gap, Verdict
from tests.script_runner import ScriptRunner, entry, failed, group, settings, values

GRANTED, FINAL, LOCKED, LATE, STALE, FOREIGN, PROCESSED = list(Verdict)


def test_locks_name_the_owner_and_expire(me: ScriptRunner, client: Any) -> None:
    acquired = me.acquire(entry(1), entry(2))
    assert (acquired.status, acquired.verdicts) == ("ok", [GRANTED, GRANTED])
    assert client.get("inflight:e1") == f"events:0:{me.epoch}:me".encode()
    assert 29_000 < client.pttl("inflight:e1") <= 30_000


def test_same_call_again_refreshes_our_locks(me: ScriptRunner, client: Any) -> None:
    me.acquire(entry(1))
    client.pexpire("inflight:e1", 5000)
    assert me.acquire(entry(1)).verdicts == [GRANTED]
    assert client.pttl("inflight:e1") > 25_000


def test_nothing_to_acquire(me: ScriptRunner) -> None:
    acquired = me.acquire()
    assert (acquired.status, acquired.verdicts) == ("ok", [])


def test_final_tells_under_which_user_and_seq(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("ü", entry(1, "ü", 2**53 - 2)), group("v", failed(2, "v", 3)), loose=[entry(3, "w")])
    client.set("dedup:e4", "1")
    acquired = me.acquire(*[entry(i) for i in range(1, 6)])
    assert acquired.verdicts == [FINAL, FINAL, FINAL, FINAL, GRANTED]
    assert acquired.finals == {
        0: Final("processed", "ü", 2**53 - 2, -1, -1, 1),
        1: Final("failed", "v", 3, 0, 2, 3, "boom", "handler"),
        2: Final("processed", "w", 0, -1, -1, 1),
        3: Final(),
    }
    assert client.keys("inflight:*") == [b"inflight:e5"]


def test_event_without_marker_is_final(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1)))
    client.delete("dedup:e1")
    assert me.acquire(entry(1)).verdicts == [FINAL]


def test_lock_of_another_partition_is_respected(me: ScriptRunner, client: Any) -> None:
    other = ScriptRunner(client, owner="other", partition=1)
    other.claim()
    other.acquire(entry(1))
    before = client.get("inflight:e1")
    assert me.acquire(entry(1), entry(2)).verdicts == [LOCKED, GRANTED]
    assert client.get("inflight:e1") == before


@pytest.mark.parametrize("value", ["events:0:x:me", "events:0:", "events:01:5:me", "", "anything"])
def test_lock_of_unknown_form_is_respected(me: ScriptRunner, client: Any, value: str) -> None:
    client.set("inflight:e1", value)
    assert me.acquire(entry(1)).verdicts == [LOCKED]
    assert client.get("inflight:e1") == value.encode()


def test_lock_of_an_older_epoch_of_this_partition_is_taken_over(me: ScriptRunner, client: Any) -> None:
    me.acquire(entry(1))
    successor = ScriptRunner(client, owner="successor")
    successor.claim(force=True)
    assert successor.acquire(entry(1)).verdicts == [GRANTED]
    assert client.get("inflight:e1") == f"events:0:{successor.epoch}:successor".encode()
    assert client.pttl("inflight:e1") > 25_000


def test_lock_of_a_newer_epoch_is_respected(me: ScriptRunner, client: Any) -> None:
    client.set("inflight:e1", f"events:0:{me.epoch + 1}:other")
    assert me.acquire(entry(1)).verdicts == [LOCKED]


def test_look_tells_late_from_stale_and_locks(me: ScriptRunner, client: Any) -> None:
    me.finalize(
        group("u", entry(1, "u", 100), gaps=[Gap("u", n, n + 2, "timeout") for n in range(1, 95, 5)]),
        group("v", entry(2, "v", 1)),
    )
    looks = [entry(100 + seq, "u", seq, look=True) for seq in range(1, 100)]
    looks.append(entry(300, "v", 1, look=True))
    expected = [LATE if seq % 5 in (1, 2, 3) and seq < 94 else STALE for seq in range(1, 100)]
    acquired = me.acquire(*looks)
    assert acquired.verdicts == [*expected, STALE]
    assert len(client.keys("inflight:*")) == 100
    client.set("inflight:e300", "events:1:7:other")
    assert me.acquire(looks[0], looks[-1]).verdicts == [LATE, LOCKED]


def test_look_at_a_final_id(me: ScriptRunner) -> None:
    me.finalize(group("u", entry(1, "u", 1)))
    mixed = me.acquire(
        entry(1, "u", 2, look=True), entry(5, "u", 9), entry(6, "u", 1, look=True), entry(1, "u", 1)
    )
    assert mixed.verdicts == [FINAL, GRANTED, STALE, FINAL]
    assert mixed.finals == {
        0: Final("processed", "u", 1, attempts=1),
        3: Final("processed", "u", 1, attempts=1),
    }


def test_look_at_an_unsequenced_event_of_a_user_with_a_ledger(me: ScriptRunner) -> None:
    """As one that lies in the wrong partition is looked up."""
    me.finalize(group("u", gaps=[Gap("u", 1, 3, "timeout")]))
    assert me.acquire(entry(1, "u", look=True), entry(2, "u", 2, look=True)).verdicts == [STALE, LATE]


@pytest.mark.parametrize("prefix", ["", "other:partition:"])
def test_look_at_what_is_processed_under_this_user_and_seq(client: Any, prefix: str) -> None:
    me = ScriptRunner(client, settings(key_prefix=prefix))
    me.claim()
    me.finalize(group("ü:gaps", entry(1, "ü:gaps", 7)), group("v", failed(2, "v", 3)))
    asked = [(1, "ü:gaps", 7), (1, "gaps", 7), (1, "ü:gaps", 8), (2, "v", 3), (1, "", 7)]
    looks = [entry(number, user, seq, look=True) for number, user, seq in asked]
    acquired = me.acquire(*looks)
    assert acquired.verdicts == [PROCESSED, FINAL, FINAL, FINAL, FINAL]
    assert [acquired.finals[i].user for i in range(1, 5)] == ["ü:gaps", "ü:gaps", "v", "ü:gaps"]
    assert client.keys(f"{prefix}inflight:*") == []


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("event:e1", "string"),
        ("event:e1", "list"),
        ("event:e1", "other hash"),
        ("dedup:e1", "list"),
        ("inflight:e1", "list"),
    ],
)
def test_foreign_key_is_named_and_the_others_go_on(
    me: ScriptRunner, client: Any, key: str, kind: str
) -> None:
    plant(client, key, kind)
    before = values(client)
    acquired = me.acquire(entry(0), entry(1), entry(2))
    assert acquired.verdicts == [GRANTED, FOREIGN, GRANTED]
    assert acquired.foreign == {1: key}
    assert {k: v for k, v in values(client).items() if k not in (b"inflight:e0", b"inflight:e2")} == before


@pytest.mark.parametrize("kind", ["string", "list"])
def test_foreign_ledger_is_named(me: ScriptRunner, client: Any, kind: str) -> None:
    plant(client, "gaps:u", kind)
    acquired = me.acquire(entry(1, "u", 1, look=True))
    assert (acquired.verdicts, acquired.foreign) == ([FOREIGN], {0: "gaps:u"})


def plant(client: Any, key: str, kind: str) -> None:
    if kind == "string":
        client.set(key, "x")
    elif kind == "list":
        client.rpush(key, "x")
    else:
        client.hset(key, "name", "x")


def test_fenced_by_a_newer_epoch_and_by_another_owner(me: ScriptRunner, client: Any) -> None:
    client.hset("partition:events:0", "epoch", me.epoch + 1)
    assert me.acquire(entry(1)).status == "fenced"
    client.hset("partition:events:0", mapping={"epoch": me.epoch, "owner": "other"})
    assert me.acquire(entry(1)).status == "fenced"
    assert client.keys("inflight:*") == []


def test_rewound_by_an_older_epoch_and_by_a_flush(me: ScriptRunner, client: Any) -> None:
    client.hset("partition:events:0", "epoch", me.epoch - 1)
    assert me.acquire(entry(1)).status == "rewound"
    client.flushall()
    assert me.acquire(entry(1)).status == "rewound"
    assert client.dbsize() == 0


def test_thousands_in_one_call(me: ScriptRunner) -> None:
    me.finalize(loose=[entry(i, "u") for i in range(0, 2000, 7)])
    acquired = me.acquire(*[entry(i) for i in range(2000)])
    assert acquired.verdicts == [FINAL if i % 7 == 0 else GRANTED for i in range(2000)]
    assert len(acquired.finals) == len(range(0, 2000, 7))


@pytest.mark.parametrize("seed", range(30))
def test_an_entry_is_judged_alike_wherever_it_stands(me: ScriptRunner, client: Any, seed: int) -> None:
    rng = Random(seed)
    verdicts: list[int] = []
    while len(verdicts) < 200:  # runs of one kind, from less than a chunk to several
        verdicts += [rng.choice([GRANTED, GRANTED, *Verdict])] * rng.choice([1, 2, 5, 31, 32, 33, 70])
    other = ScriptRunner(client, owner="other", partition=1)
    other.claim()
    other.acquire(*[entry(i) for i, verdict in enumerate(verdicts) if verdict == LOCKED])
    for i, verdict in enumerate(verdicts):
        if verdict == FOREIGN:
            client.lpush(f"event:e{i}", "x")
    finals = [entry(i, "u", i + 1) for i, verdict in enumerate(verdicts) if verdict in (FINAL, PROCESSED)]
    lates = [Gap("u", i + 1, i + 1, "timeout") for i, verdict in enumerate(verdicts) if verdict == LATE]
    me.finalize(group("u", *finals, gaps=lates))
    looks = (LATE, STALE, PROCESSED)
    asked = [entry(i, "u", i + 1, look=verdict in looks) for i, verdict in enumerate(verdicts)]
    assert me.acquire(*asked).verdicts == verdicts


@pytest.mark.parametrize("name", ["ü", "'\"\\", "a b\tc", "{x}", "%d%%", "🎉" * 50, "e:1:2"])
def test_any_id_and_user(me: ScriptRunner, client: Any, name: str) -> None:
    mine = entry(1, name, 5, id=name)
    assert me.acquire(mine).verdicts == [GRANTED]
    assert client.exists(f"inflight:{name}")
    me.finalize(group(name, mine))
    assert me.acquire(mine).finals == {0: Final("processed", name, 5, attempts=1)}
    assert client.lrange(f"order:{name}", 0, -1) == [b"5"]
    assert not client.exists(f"inflight:{name}")


def test_out_of_memory_is_an_error_of_the_server(me: ScriptRunner, client: Any) -> None:
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        me.acquire(entry(1))
    client.config_set("maxmemory", 0)
    assert me.acquire(entry(1)).verdicts == [GRANTED]


def test_ttl_is_the_setting(client: Any) -> None:
    runner = ScriptRunner(client, settings(inflight_ttl_ms=500_000))
    runner.claim()
    runner.acquire(entry(1))
    assert 490_000 < client.pttl("inflight:e1") <= 500_000
