"""finalize_events on a real Redis: what it writes, what it refuses, and what it answers the second time."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from eventproc.effects import Gap, Refusal
from tests.script_runner import (
    FakeRecord,
    ScriptRunner,
    entry,
    failed,
    group,
    letter,
    settings,
    values,
)

FINAL, CONFLICT, FOREIGN = list(Refusal)
KEY = "partition:events:0"


def order(client: Any, user: str = "u") -> list[int]:
    return [int(seq) for seq in client.lrange(f"order:{user}", 0, -1)]


# --- what is written ------------------------------------------------------------------------------


def test_processed_events(me: ScriptRunner, client: Any) -> None:
    entries = [entry(i, "u", i + 1) for i in range(3)]
    me.acquire(*entries)
    finalized = me.finalize(group("u", *entries), floor=3, unfinalized=4)
    assert (finalized.status, finalized.floor, finalized.refused, finalized.foreign) == ("ok", 3, {}, {})
    stored = client.hgetall("event:e1")
    assert 0 <= client.time()[0] * 1000 + 1000 - int(stored.pop(b"processedAt")) < 60_000
    assert stored == {
        b"status": b"processed",
        b"attempts": b"1",
        b"userId": b"u",
        b"type": b"t",
        b"seq": b"2",
    }
    assert 86_390_000 < client.pttl("event:e1") <= 86_400_000
    assert 86_390_000 < client.pttl("dedup:e1") <= 86_400_000
    assert order(client) == [1, 2, 3]
    assert client.ttl("order:u") == -1
    assert client.keys("inflight:*") == []
    assert client.keys("dlq:*") == client.keys("next:*") == client.keys("gaps:*") == []
    position = client.hgetall(KEY)
    assert (position[b"rev"], position[b"offset"], position[b"unfinalized"]) == (b"1", b"3", b"4")


# --- lists that hold every seq ---------------------------------------------------------------------


def test_a_dense_list_goes_on(me: ScriptRunner, client: Any) -> None:
    for first, behind in ((1, 4), (4, 5), (5, 9)):
        entries = [entry(seq, "u", seq) for seq in range(first, behind)]
        assert not me.finalize(group("u", *entries, dense=True)).refused
    assert order(client) == list(range(1, 9))
    assert client.exists(*[f"event:e{seq}" for seq in range(1, 9)]) == 8


@pytest.mark.parametrize("pushed", [[3], [3, 4], [3, 4, 5], [9]])
@pytest.mark.parametrize("seqs", [[3], [3, 4], [3, 4, 5]])
def test_what_another_partition_has_pushed_is_noticed(
    me: ScriptRunner, client: Any, pushed: list[int], seqs: list[int]
) -> None:
    """The owner knows of 1 and 2; a user in two partitions is the misrouted producer's doing."""
    client.rpush("order:u", 1, 2, *pushed)
    finalized = me.finalize(group("u", *[entry(seq, "u", seq) for seq in seqs], dense=True))
    assert not finalized.refused
    assert finalized.not_dense
    assert order(client) == [1, 2, *pushed, *[seq for seq in seqs if seq > pushed[-1]]]
    assert client.exists(*[f"event:e{seq}" for seq in seqs]) == len(seqs)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("attempts", [1, 2])
def test_the_owner_is_told_that_a_list_is_not_dense(
    me: ScriptRunner, client: Any, dense: bool, attempts: int
) -> None:
    """Seq 4 would make this list as long as a dense one."""
    client.rpush("order:u", 1, 2, 5)
    told = me.finalize(
        group("v", entry(1, "v", 1), dense=True),
        group("u", entry(3, "u", 3, attempts=attempts), dense=dense),
    )
    assert (told.not_dense, told.refused, told.foreign) == ({1}, {}, {})
    assert order(client) == [1, 2, 5]
    assert not me.finalize(group("v", entry(2, "v", 2), dense=True)).not_dense


def test_a_list_that_was_cut_behind_the_owners_back_goes_on(me: ScriptRunner, client: Any) -> None:
    client.rpush("order:u", 2)
    told = me.finalize(group("u", entry(3, "u", 3), entry(4, "u", 4), dense=True))
    assert (told.not_dense, told.refused) == ({0}, {})
    assert order(client) == [2, 3, 4]


def test_an_id_that_is_final_in_a_dense_group(me: ScriptRunner, client: Any) -> None:
    client.hset("event:e3", mapping={"status": "processed", "userId": "other", "seq": 3})
    client.set("dedup:e2", 1)
    entries = [entry(seq, "u", seq) for seq in range(1, 5)]
    finalized = me.finalize(group("u", *entries, dense=True), floor=9)
    assert (finalized.refused, finalized.floor) == ({1: FINAL, 2: CONFLICT}, 2)
    assert order(client) == [1, 4]
    assert client.get("next:u") is None
    assert client.hget("event:e3", "userId") == b"other"
    assert not client.exists("event:e2")


@pytest.mark.parametrize("foreign", ["string", "list"])
def test_a_foreign_order_list_of_a_dense_group(me: ScriptRunner, client: Any, foreign: str) -> None:
    if foreign == "string":
        client.set("order:u", "x")
    else:
        client.rpush("order:u", "x", "y", "z")
    before = values(client)[b"order:u"]
    entries = [entry(1, "u", 1), entry(2, "u", 2)]
    finalized = me.finalize(group("u", *entries, dense=True), group("v", entry(3, "v", 1), dense=True))
    assert finalized.refused == {0: FOREIGN, 1: FOREIGN}
    assert finalized.foreign == {0: "order:u"}
    assert values(client)[b"order:u"] == before
    assert not client.exists("event:e1", "dedup:e1", "event:e2", "dedup:e2")
    assert order(client, "v") == [1]


def test_a_bounded_list_is_cut_though_it_is_said_to_be_dense(client: Any) -> None:
    me = ScriptRunner(client, settings(order_max_len=2))
    me.claim()
    for seq in range(1, 5):
        me.finalize(group("u", entry(seq, "u", seq), dense=True))
    assert order(client) == [3, 4]


# --- locks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False])
def test_a_lock_is_looked_at_once_it_may_have_expired(me: ScriptRunner, client: Any, held: bool) -> None:
    entries = [entry(1, "u", 1), entry(2, "u", 2)]
    acquired = me.acquire(*entries)
    now_s, _ = client.time()
    assert now_s * 1000 + 29_000 < acquired.expiry_ms <= now_s * 1000 + 32_000
    client.set("inflight:e2", "events:7:1:another")
    for one in entries:
        one.lock_expiry_ms = acquired.expiry_ms if held else now_s * 1000 - 1
    me.finalize(group("u", *entries))
    assert client.keys("inflight:*") == ([] if held else [b"inflight:e2"])


def test_events_of_one_call_get_nothing_of_each_other(me: ScriptRunner, client: Any) -> None:
    """However many types and users there are, and however long: hashes are made from one template."""
    users = ["u", "v" * 64, "w" * 65, "x" * 255, "y"]
    types = [f"type-{n}" for n in range(300)] + ["t" * 200]
    entries = [
        entry(at, users[at % len(users)], at + 1, type=types[at * 7 % len(types)]) for at in range(500)
    ]
    me.acquire(*entries)
    me.finalize(*[group(user, *[e for e in entries if e.user == user]) for user in users], floor=500)
    for one in entries:
        stored = client.hgetall(f"event:{one.id}")
        del stored[b"processedAt"]
        assert stored == {
            b"status": b"processed",
            b"attempts": b"1",
            b"userId": one.user.encode(),
            b"type": one.type.encode(),
            b"seq": b"%d" % one.seq,
        }
        short = max(len(one.user), len(one.type)) <= 64
        assert (client.object("encoding", f"event:{one.id}") != b"hashtable") == short
        assert client.pttl(f"event:{one.id}") > 86_000_000 < client.pttl(f"dedup:{one.id}")


def test_no_template_is_left_and_none_is_in_the_way(me: ScriptRunner, client: Any) -> None:
    client.set(f"{KEY}:event", "not ours")
    client.rpush(f"{KEY}:dedup", "not ours")
    client.hset(f"{KEY}:lock", "not", "ours")
    one = entry(1, "u", 1)
    assert me.acquire(one).verdicts == [0]
    assert client.get("inflight:e1")
    me.finalize(group("u", one))
    assert sorted(client.keys()) == [b"dedup:e1", b"event:e1", b"order:u", KEY.encode()]
    assert client.get("dedup:e1") == b"1"


def test_attempts_are_told(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1, attempts=3), entry(2, "u", 2)))
    assert client.hget("event:e1", "attempts") == b"3"
    assert client.hgetall("event:e1").keys() == client.hgetall("event:e2").keys()
    assert order(client) == [1, 2]


def test_unsequenced_event(me: ScriptRunner, client: Any) -> None:
    me.finalize(loose=[entry(1, "u")])
    assert client.hget("event:e1", "status") == b"processed"
    assert client.hget("event:e1", "userId") == b"u"
    assert not client.hexists("event:e1", "seq")
    assert sorted(client.keys()) == [b"dedup:e1", b"event:e1", KEY.encode()]


def test_failed_event_is_dead_lettered_and_the_user_moves_on(me: ScriptRunner, client: Any) -> None:
    poison = failed(7, "u", 1)
    me.acquire(poison)
    me.finalize(group("u", poison))
    stored = client.hgetall("event:e7")
    now = stored.pop(b"processedAt")
    assert stored == {
        b"status": b"failed",
        b"attempts": b"3",
        b"userId": b"u",
        b"type": b"t",
        b"seq": b"1",
        b"error": b"boom",
        b"partition": b"0",
        b"offset": b"7",
        b"reason": b"handler",
    }
    assert client.hgetall("dlq:e7") == {
        b"eventId": b"e7",
        b"attempts": b"3",
        b"error": b"boom",
        b"queuedAt": now,
        b"reason": b"handler",
        b"userId": b"u",
        b"seq": b"1",
        b"topic": b"events",
        b"partition": b"0",
        b"offset": b"7",
        b"raw": b'{"id":"x"}',
    }
    assert 604_790 < client.ttl("dlq:e7") <= 604_800
    assert client.lrange("dlq:list", 0, -1) == [b"e7"]
    assert client.exists("dedup:e7") == 1
    assert order(client) == []
    assert client.get("next:u") == b"2"
    assert client.keys("inflight:*") == []


def test_next_goes_once_the_list_tells_as_much(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1), failed(2, "u", 2)))
    assert client.get("next:u") == b"3"
    me.finalize(group("u", entry(3, "u", 3), has_next=True))
    assert not client.exists("next:u")
    me.finalize(group("u", failed(4, "u", 4), entry(5, "u", 5)))
    assert not client.exists("next:u")
    assert order(client) == [1, 3, 5]


def test_next_never_falls(me: ScriptRunner, client: Any) -> None:
    client.set("next:u", 50)
    me.finalize(group("u", failed(1, "u", 7), has_next=True))
    assert client.get("next:u") == b"50"


def test_gap_is_written_before_what_follows(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", gaps=[Gap("u", 1, 4, "timeout")]))
    (first,) = client.lrange("gaps:u", 0, -1)
    assert first.startswith(b"1-4:timeout:")
    assert int(first.rsplit(b":", 1)[1]) > 1_600_000_000_000
    assert client.get("next:u") == b"5"
    me.finalize(group("u", entry(5, "u", 5), gaps=[Gap("u", 6, 6, "overflow")], has_next=True))
    assert [g.rsplit(b":", 1)[0] for g in client.lrange("gaps:u", 0, -1)] == [b"1-4:timeout", b"6-6:overflow"]
    assert order(client) == [5]
    assert client.get("next:u") == b"7"


def test_ledger_holds_no_gap_twice(me: ScriptRunner, client: Any) -> None:
    gaps = [Gap("u", 1, 2, "timeout"), Gap("u", 4, 5, "reset")]
    me.finalize(group("u", gaps=gaps))
    me.finalize(group("u", gaps=gaps))
    assert client.llen("gaps:u") == 2


def test_skipped_event(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 5)))
    late = failed(2, "u", 3, status="skipped", attempts=0, reason="late", error="came late", granted_ms=0)
    quiet = failed(3, "u", 2, status="skipped", attempts=0, reason="", error="came late", granted_ms=0)
    me.finalize(loose=[late, quiet])
    assert client.hmget("event:e2", "status", "attempts", "seq", "offset") == [b"skipped", b"0", b"3", b"2"]
    assert client.hget("event:e3", "status") == b"skipped"
    assert client.hget("dlq:e2", "reason") == b"late"
    assert client.keys("dlq:*") != []
    assert not client.exists("dlq:e3")
    assert order(client) == [5]
    assert client.keys("next:*") == []


def test_letter_has_a_dlq_entry_only(me: ScriptRunner, client: Any) -> None:
    me.finalize(letters=[letter(9, record=FakeRecord(b"\x00\xff'\"\r\n"))])
    assert client.hgetall("dlq:events-0-9")[b"raw"] == b"\x00\xff'\"\r\n"
    assert client.hmget("dlq:events-0-9", "eventId", "seq", "userId") == [b"events-0-9", b"", b""]
    assert sorted(client.keys()) == [b"dlq:events-0-9", b"dlq:list", KEY.encode()]


def test_raw_is_cut_and_may_be_missing(client: Any) -> None:
    runner = ScriptRunner(client, settings(dlq_raw_max_bytes=4))
    runner.claim()
    runner.finalize(letters=[letter(1, record=FakeRecord(b"abcdefgh")), letter(2, record=FakeRecord(None))])
    assert client.hget("dlq:events-0-1", "raw") == b"abcd"
    assert client.hget("dlq:events-0-2", "raw") == b""


def test_dead_letter_is_written_once_per_record(me: ScriptRunner, client: Any) -> None:
    me.finalize(letters=[letter(9)])
    before = client.hgetall("dlq:events-0-9")
    me.finalize(letters=[letter(9, error="another")])
    assert client.hgetall("dlq:events-0-9") == before
    assert client.llen("dlq:list") == 1


def test_dead_letter_of_another_record_with_that_id_is_replaced(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", failed(1, "u", 1, id="x")))
    client.delete("event:x", "dedup:x")
    client.hset("dlq:x", "stray", "1")
    me.finalize(group("u", failed(2, "u", 2, id="x")))
    assert client.hget("dlq:x", "offset") == b"2"
    assert not client.hexists("dlq:x", "stray")
    assert client.lrange("dlq:list", 0, -1) == [b"x", b"x"]


def test_caps(client: Any) -> None:
    runner = ScriptRunner(client, settings(order_max_len=3, gaps_max_len=2, dlq_max_len=2))
    runner.claim()
    runner.finalize(
        group(
            "u",
            *[entry(i, "u", i) for i in range(10, 15)],
            gaps=[Gap("u", n, n, "timeout") for n in (1, 3, 5)],
        ),
        letters=[letter(n) for n in range(20, 23)],
    )
    assert order(client) == [12, 13, 14]
    assert [gap[:3] for gap in client.lrange("gaps:u", 0, -1)] == [b"3-3", b"5-5"]
    assert client.lrange("dlq:list", 0, -1) == [b"events-0-21", b"events-0-22"]


def test_ttls_are_the_settings(client: Any) -> None:
    runner = ScriptRunner(client, settings(event_ttl_s=100, dedup_ttl_s=200, dlq_ttl_s=300))
    runner.claim()
    runner.finalize(group("u", entry(1, "u", 1), failed(2, "u", 2)))
    for key, ttl_s in {
        "event:e1": 100,
        "event:e2": 100,
        "dedup:e1": 200,
        "dedup:e2": 200,
        "dlq:e2": 300,
    }.items():
        assert ttl_s - 5 <= client.ttl(key) <= ttl_s


def test_seqs_near_2_to_53_stay_exact(me: ScriptRunner, client: Any) -> None:
    top = 2**53 - 1
    me.finalize(group("u", entry(1, "u", top - 2), entry(2, "u", top - 1), failed(3, "u", top)))
    assert order(client) == [top - 2, top - 1]
    assert client.get("next:u") == str(top + 1).encode()
    me.finalize(group("v", gaps=[Gap("v", 1, top - 1, "timeout")]))
    assert client.get("next:v") == str(top).encode()
    assert client.lindex("gaps:v", 0).startswith(f"1-{top - 1}:".encode())


def test_seq_that_is_no_advance_is_not_listed(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 5)))
    me.finalize(group("u", entry(2, "u", 4), entry(3, "u", 5), entry(4, "u", 6)))
    assert order(client) == [5, 6]


@pytest.mark.parametrize("users", [1, 2000])
def test_thousands_in_one_call(me: ScriptRunner, client: Any, users: int) -> None:
    entries = [entry(i, f"u{i % users}", i // users + 1) for i in range(2000)]
    me.acquire(*entries)
    groups = [group(f"u{u}", *entries[u::users]) for u in range(users)]
    assert me.finalize(*groups, floor=2000).refused == {}
    assert [order(client, f"u{u}") for u in range(users)] == [
        [e.seq for e in entries[u::users]] for u in range(users)
    ]
    assert client.keys("inflight:*") == []
    assert len(client.keys("event:*")) == len(client.keys("dedup:*")) == 2000


def test_empty_call_moves_floor_and_revision(me: ScriptRunner, client: Any) -> None:
    assert me.finalize(floor=77).floor == 77
    assert client.hmget(KEY, "offset", "rev") == [b"77", b"1"]


# --- locks ----------------------------------------------------------------------------------------


def test_only_our_locks_are_dropped(me: ScriptRunner, client: Any) -> None:
    entries = [entry(i, "u", i) for i in (1, 2, 3)]
    me.acquire(*entries)
    client.set("inflight:e2", "events:5:1:other")
    me.finalize(group("u", *entries))
    assert client.keys("inflight:*") == [b"inflight:e2"]


def test_entry_without_lock_touches_none(me: ScriptRunner, client: Any) -> None:
    client.set("inflight:e1", f"events:0:{me.epoch}:me")
    me.finalize(group("u", entry(1, "u", 1, granted_ms=0)))
    assert client.exists("inflight:e1")


# --- the same call again, and the fence -----------------------------------------------------------


def test_same_call_again_writes_nothing_and_answers_the_same(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1, id="taken")))
    client.set("order:w", "foreign")
    request = me.request(
        group("u", entry(2, "u", 2), entry(3, "u", 9, id="taken"), entry(4, "u", 10)),
        group("w", entry(5, "w", 1)),
        loose=[failed(6, "x", 1)],
        letters=[letter(7)],
    )
    first = me.again(request)
    assert first.refused == {1: CONFLICT, 3: FOREIGN}
    assert first.foreign == {1: "order:w"}
    assert first.floor == 3
    before = values(client)
    assert me.again(request) == first
    assert values(client) == before
    clean = me.request(floor=50)
    assert me.again(clean).refused == {}
    assert not client.hexists(KEY, "rejects")
    late = me.again(request)
    assert (late.status, late.floor, late.refused) == ("ok", 50, {})


def test_rewound_when_calls_are_lost(me: ScriptRunner, client: Any) -> None:
    me.finalize()
    me.finalize()
    client.hset(KEY, "rev", 0)
    before = values(client)
    assert me.finalize(group("u", entry(1, "u", 1))).status == "rewound"
    assert values(client) == before


def test_rewound_by_an_older_epoch_and_by_a_flush(me: ScriptRunner, client: Any) -> None:
    client.hset(KEY, "epoch", me.epoch - 1)
    assert me.finalize(group("u", entry(1, "u", 1))).status == "rewound"
    client.flushall()
    assert me.finalize(group("u", entry(1, "u", 1))).status == "rewound"
    assert client.dbsize() == 0


def test_fenced_by_a_newer_epoch_and_by_another_owner(me: ScriptRunner, client: Any) -> None:
    client.hset(KEY, "epoch", me.epoch + 1)
    assert me.finalize(group("u", entry(1, "u", 1))).status == "fenced"
    client.hset(KEY, mapping={"epoch": me.epoch, "owner": "other"})
    assert me.finalize(group("u", entry(1, "u", 1))).status == "fenced"
    assert client.keys("event:*") == []


def test_claim_after_a_flush_goes_on(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1)), floor=2)
    client.flushall()
    claimed = me.claim(offset=2)
    assert (claimed.status, claimed.rev, claimed.offset) == ("ok", 0, 2)
    assert me.finalize(group("u", entry(2, "u", 2)), floor=3).status == "ok"
    assert order(client) == [2]


def test_passed_entry_moves_its_user_on_and_is_not_written(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1)))
    assert me.finalize(group("u", entry(5, "u", 2, id="e1", passed=True, status=""))).refused == {}
    assert client.get("next:u") == b"3"
    assert me.finalize(group("u", entry(6, "u", 3), has_next=True)).refused == {}
    assert order(client) == [1, 3]
    assert sorted(client.keys("event:*")) == [b"event:e1", b"event:e6"]


def test_passed_entry_that_was_processed_is_seen_to_be_in_the_order(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1), entry(2, "u", 2)))
    client.rpop("order:u")
    assert me.finalize(group("u", entry(2, "u", 2, passed=True))).refused == {}
    assert me.finalize(group("u", entry(2, "u", 2, passed=True))).refused == {}
    assert order(client) == [1, 2]
    assert client.get("next:u") is None


# --- what is final already ------------------------------------------------------------------------


def test_final_is_refused_unchanged_and_the_user_moves_on(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1), entry(2, "u", 2)))
    client.delete("order:u")
    before = client.hgetall("event:e2")
    finalized = me.finalize(group("u", entry(8, "u", 2, id="e2"), entry(9, "u", 3)))
    assert finalized.refused == {0: FINAL}
    assert finalized.floor == 100
    assert client.hgetall("event:e2") == before
    assert order(client) == [2, 3]


def test_final_by_the_marker_alone_takes_its_seq(me: ScriptRunner, client: Any) -> None:
    client.set("dedup:e1", "1")
    assert me.finalize(group("u", entry(1, "u", 1))).refused == {0: FINAL}
    assert client.get("next:u") == b"2"
    assert order(client) == []
    assert not client.exists("event:e1")


def test_final_as_failed_takes_its_seq(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", failed(1, "u", 1)))
    client.delete("next:u")
    finalized = me.finalize(group("u", entry(5, "u", 1, id="e1")))
    assert finalized.refused == {0: FINAL}
    assert client.get("next:u") == b"2"


def test_failed_at_this_very_position_counts_as_applied(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", failed(1, "u", 1)))
    client.delete("dlq:e1", "dlq:list")
    assert me.finalize(group("u", failed(1, "u", 1))).refused == {}
    assert client.lrange("dlq:list", 0, -1) == [b"e1"]
    assert me.finalize(group("u", failed(2, "u", 1, id="e1"))).refused == {0: FINAL}


def test_event_without_marker_is_not_rewritten(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1)))
    client.delete("dedup:e1")
    before = client.hgetall("event:e1")
    assert me.finalize(group("u", entry(1, "u", 1))).refused == {0: FINAL}
    assert client.hgetall("event:e1") == before


@pytest.mark.parametrize(("user", "seq"), [("v", 1), ("u", 2)])
def test_conflict_holds_the_floor_and_the_user_moves_on(
    me: ScriptRunner, client: Any, user: str, seq: int
) -> None:
    me.finalize(group("u", entry(1, "u", 1, id="x")))
    before = client.hgetall("event:x")
    mine = entry(5, user, seq, id="x")
    finalized = me.finalize(group(user, mine, entry(6, user, seq + 1), failed(7, user, seq + 2)))
    assert finalized.refused == {0: CONFLICT}
    assert finalized.floor == 5
    assert client.hget(KEY, "offset") == b"5"
    assert client.hgetall("event:x") == before
    assert order(client, user)[-1] == seq + 1
    assert client.get(f"next:{user}") == str(seq + 3).encode()


def test_conflict_at_the_tail_is_told_by_next(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1, id="x")))
    me.finalize(group("v", entry(5, "v", 1, id="x")))
    assert client.get("next:v") == b"2"


def test_loose_final_and_conflict(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1)), loose=[entry(2, "u")])
    finalized = me.finalize(loose=[entry(2, "u"), entry(1, "u"), entry(8, "v", id="e2"), entry(9, "v")])
    assert finalized.refused == {0: FINAL, 1: CONFLICT, 2: CONFLICT}
    assert finalized.floor == 1
    assert client.exists("event:e9")


def test_locks_of_refused_entries_are_dropped(me: ScriptRunner, client: Any) -> None:
    mine = entry(1, "u", 1)
    me.acquire(mine)
    client.set("dedup:e1", "1")
    me.finalize(group("u", mine))
    assert client.keys("inflight:*") == []


# --- keys of the wrong type -----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["order:u", "next:u", "gaps:u"])
def test_foreign_user_key_refuses_the_group_unwritten(me: ScriptRunner, client: Any, key: str) -> None:
    client.hset(key, "x", "1")
    finalized = me.finalize(
        group("u", entry(3, "u", 3), entry(4, "u", 4), gaps=[Gap("u", 1, 2, "timeout")], has_next=True),
        group("v", entry(5, "v", 1)),
        floor=9,
    )
    assert finalized.refused == {0: FOREIGN, 1: FOREIGN}
    assert finalized.foreign == {0: key}
    assert finalized.floor == 3
    assert sorted(client.keys()) == sorted([key.encode(), b"dedup:e5", b"event:e5", b"order:v", KEY.encode()])


def test_foreign_next_is_found_when_it_is_needed(me: ScriptRunner, client: Any) -> None:
    client.rpush("next:u", "x")
    finalized = me.finalize(group("u", entry(1, "u", 1), failed(2, "u", 2), entry(3, "u", 3)))
    assert finalized.refused == {1: FOREIGN, 2: FOREIGN}
    assert finalized.foreign == {0: "next:u"}
    assert finalized.floor == 2
    assert order(client) == [1]
    assert sorted(client.keys("event:*")) == [b"event:e1"]
    client.set("dedup:e9", "1")
    assert me.finalize(group("u", entry(9, "u", 2))).foreign == {0: "next:u"}


def test_order_without_seqs_is_foreign(me: ScriptRunner, client: Any) -> None:
    client.rpush("order:u", "no seq")
    assert me.finalize(group("u", entry(1, "u", 1))).foreign == {0: "order:u"}


@pytest.mark.parametrize("key", ["event:e2", "dedup:e2", "dlq:e2", "dlq:list"])
def test_foreign_event_key_stops_its_group(me: ScriptRunner, client: Any, key: str) -> None:
    plant = client.set if key in ("event:e2", "dlq:list") else client.rpush
    plant(key, "x")
    bad = failed(2, "u", 2) if "dlq" in key else entry(2, "u", 2)
    finalized = me.finalize(
        group("u", entry(1, "u", 1), bad, entry(3, "u", 3)), group("v", entry(4, "v", 1)), floor=9
    )
    assert finalized.refused == {1: FOREIGN, 2: FOREIGN}
    assert finalized.foreign == {0: key}
    assert finalized.floor == 2
    assert order(client) == [1]
    assert order(client, "v") == [1]
    assert not client.exists("event:e3")
    assert {b"event:e2", b"dedup:e2"} & set(client.keys()) <= {key.encode()}
    client.delete(key)
    again = me.finalize(group("u", bad, entry(3, "u", 3)), floor=9)
    assert (again.refused, again.floor) == ({}, 9)


def test_foreign_keys_of_loose_entries_and_letters_are_named(me: ScriptRunner, client: Any) -> None:
    client.set("event:e2", "x")
    client.set("dlq:events-0-3", "x")
    finalized = me.finalize(
        group("u", entry(1, "u", 1)), loose=[entry(4, "w"), entry(2, "v")], letters=[letter(3), letter(5)]
    )
    assert finalized.refused == {2: FOREIGN, 3: FOREIGN}
    assert finalized.foreign == {2: "event:e2", 3: "dlq:events-0-3"}
    assert finalized.floor == 2
    assert client.lrange("dlq:list", 0, -1) == [b"events-0-5"]


def test_foreign_lock_stays(me: ScriptRunner, client: Any) -> None:
    client.rpush("inflight:e1", "x")
    assert me.finalize(group("u", entry(1, "u", 1))).refused == {}
    assert client.lrange("inflight:e1", 0, -1) == [b"x"]


def test_foreign_group_leaves_next_alone(me: ScriptRunner, client: Any) -> None:
    me.finalize(group("u", entry(1, "u", 1), failed(2, "u", 2)))
    client.set("event:e3", "x")
    me.finalize(group("u", entry(3, "u", 3), has_next=True))
    assert client.get("next:u") == b"3"


def test_names_with_separators_are_told_whole(me: ScriptRunner, client: Any) -> None:
    user = "0:1,1=5:ü"
    client.set(f"order:{user}", "x")
    client.set("order:w", "x")
    finalized = me.finalize(group(user, entry(1, user, 1)), group("w", entry(2, "w", 1)))
    assert finalized.foreign == {0: f"order:{user}", 1: "order:w"}
    assert finalized.refused == {0: FOREIGN, 1: FOREIGN}


# --- the server's trouble -------------------------------------------------------------------------


def test_out_of_memory_leaves_nothing(me: ScriptRunner, client: Any) -> None:
    request = me.request(
        group("u", entry(1, "u", 5), failed(2, "u", 6), gaps=[Gap("u", 1, 4, "timeout")], has_next=True),
        letters=[letter(3)],
    )
    before = values(client)
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        me.again(request)
    client.config_set("maxmemory", 0)
    assert values(client) == before
    assert me.again(request).refused == {}


def test_calls_of_two_partitions_do_not_mix(me: ScriptRunner, client: Any) -> None:
    other = ScriptRunner(client, owner="other", partition=1)
    other.claim()
    assert me.finalize(group("u", entry(1, "u", 1))).status == "ok"
    assert other.finalize(group("u", entry(1, "u", 1))).refused == {0: FINAL}
    assert order(client) == [1]
