"""The in-memory store against a real Redis, and the scripts cut off at each of their commands."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from eventproc.effects import (
    Acquire,
    Claim,
    Death,
    Entry,
    Finalize,
    Gap,
    LoadUsers,
    Release,
    Renew,
    StoreRequest,
)
from eventproc.settings import Settings
from eventproc.store.scripts import ScriptSet, decode
from tests.redis_server import RedisServer
from tests.script_runner import FakeRecord, dump, entry, failed, group, letter, settings
from tests.simulation.memory_store import MemoryStore, ReplyError


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    def sleep_ms(self, ms: float) -> None:
        self.now_ms += int(ms)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


LIMITS = settings(order_max_len=6, gaps_max_len=3, dlq_max_len=4, dlq_raw_max_bytes=5)
USERS = ["u", "v", "ü'\"", "w:1"]
IDS = [f"i{n}" for n in range(25)]
PLANTED = ["order:v", "next:u", "gaps:u", "event:i1", "dedup:i2", "inflight:i3", "dlq:i4", "dlq:list"]

#: What depends on the moment of the call; epochs are made of time as well, so they are set by the test.
TIMES = {b"processedAt", b"queuedAt", b"seen_ms", b"epoch"}


class Walk:
    """A random sequence of requests by two owners of one partition, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.owners = {"a": [0, 0], "b": [0, 0]}
        self.offset = 0

    def entry(self, *, grouped: bool, user: str, seq: int) -> Entry:
        rng = self.random
        self.offset += 1
        fields: dict[str, Any] = {
            "id": rng.choice(IDS),
            "granted_ms": rng.randint(0, 1),
            "lock_expiry_ms": rng.choice([0, 1 << 50]),
            "record": FakeRecord(rng.randbytes(rng.randint(0, 9))),
            "attempts": rng.choice([1, 1, 1, 2]),
        }
        kind = rng.random()
        if kind < 0.2:
            return failed(self.offset, user, seq, **fields)
        if kind < 0.35 and not grouped:
            skipped = {"status": "skipped", "attempts": 0, "reason": rng.choice(["", "late"])}
            return failed(self.offset, user, seq, **{**fields, **skipped})
        return entry(self.offset, user, seq, **fields)

    def finalize(self, owner: str) -> Finalize:
        rng = self.random
        epoch, rev = self.owners[owner]
        groups = []
        for user in rng.sample(USERS, rng.randint(0, len(USERS))):
            seq, gaps = rng.randint(1, 30), []
            for _ in range(rng.choice([0, 0, 0, 1, 2])):
                gaps.append(Gap(user, seq, seq + rng.randint(0, 3), rng.choice(["timeout", "reset"])))
                seq = gaps[-1].last + 1
            entries = []
            for _ in range(rng.randint(0, 5)):
                entries.append(self.entry(grouped=True, user=user, seq=seq))
                seq += 1
            dense = bool(entries) and rng.random() < 0.5
            groups.append(group(user, *entries, gaps=gaps, has_next=rng.random() < 0.5, dense=dense))
        loose = [
            self.entry(grouped=False, user=rng.choice(USERS), seq=rng.choice([0, 3]))
            for _ in range(rng.randint(0, 3))
        ]
        letters = [letter(rng.randint(1, 9)) for _ in range(rng.randint(0, 2))]
        rev += rng.choice([1, 1, 1, 1, 1, 1, 0, 2])
        return Finalize(epoch, owner, rev, rng.randint(50, 500), rng.randint(0, 9), groups, loose, letters)

    def step(self) -> StoreRequest | tuple[str | int, ...]:
        """A request, or a raw command (planted and removed keys)."""
        rng = self.random
        owner = rng.choice("aaab")
        epoch = self.owners[owner][0]
        kind = rng.random()
        if kind < 0.05:
            lease_ms, may_take = rng.choice([0, 10_000_000]), rng.choice(["", "a", "b"])
            ran = rng.sample(range(450), rng.choice([1, 1, 3]))
            death = rng.choice([None, Death(f"d{rng.randrange(4)}", ran, "exited with code 1")])
            return Claim(owner, lease_ms, may_take, rng.random() < 0.3, 5, 3, death)
        if kind < 0.1:
            return LoadUsers(rng.sample(USERS, 3))
        if kind < 0.12:
            return ("RPUSH", rng.choice(PLANTED), "x")
        if kind < 0.14:
            return ("SET", rng.choice(PLANTED), "x")
        if kind < 0.2:
            return ("DEL", *PLANTED)
        if kind < 0.55:
            entries = [
                self.entry(grouped=True, user=rng.choice(USERS), seq=rng.randint(1, 30))
                for _ in range(rng.randint(0, 8))
            ]
            for one in entries:
                one.look = rng.random() < 0.3
            if kind < 0.25:
                return Release(epoch, owner, entries)
            if kind < 0.3:
                return Renew(epoch, owner, entries, rng.choice([-1, self.owners[owner][1]]))
            return Acquire(epoch, owner, entries)
        return self.finalize(owner)


def without_times(keys: dict[bytes, Any]) -> dict[bytes, Any]:
    """Values without the times in them, and whether each key expires."""
    cleaned = {}
    for key, (value, expires) in keys.items():
        if isinstance(value, dict):
            value = {field: text for field, text in value.items() if field not in TIMES}
        elif key.startswith(b"gaps:") and isinstance(value, list):
            value = [text.rpartition(b":")[0] or text for text in value]
        elif key.startswith(b"inflight:") and isinstance(value, bytes):
            value = value.split(b":")[-1]
        cleaned[key] = (value, expires >= 0)
    return cleaned


@pytest.mark.parametrize("seed", range(12))
def test_same_replies_and_same_keys_as_redis(seed: int, server: RedisServer, clock: FakeClock) -> None:
    client: Any = server.client()
    client.flushall()
    seconds, micros = client.time()
    clock.now_ms = seconds * 1000 + micros // 1000
    store = MemoryStore(clock)
    walk = Walk(seed)
    limits = LIMITS.model_copy(update={"order_max_len": seed % 2 * 6})
    here, there = ScriptSet(limits, "events", 0), ScriptSet(limits, "events", 0)
    seen = set()
    for _ in range(250):
        request = walk.step()
        if isinstance(request, tuple):
            assert_same(lambda: client.execute_command(*request), lambda: store.command(*request))  # noqa: B023
            continue
        call = there.encode(request)
        mine = here.encode(request)
        assert mine == call
        source = there.scripts[call.script].source
        keys, args = call.parts()
        reply = assert_same(
            lambda: client.eval(source, len(keys), *keys, *args),  # noqa: B023
            lambda: store.execute(mine),  # noqa: B023
            as_told=_AS_TOLD.get(type(request)),
        )
        if reply is None:
            continue
        answer = decode(request, reply)
        seen.add((type(request).__name__, getattr(answer, "status", "")))
        if isinstance(request, Claim) and reply[0] == b"ok":
            epoch = int(reply[1])
            walk.owners[request.owner] = [epoch, int(reply[2])]
            store.command("HSET", "partition:events:0", "epoch", epoch)
        elif isinstance(request, Finalize) and reply[0] == b"ok":
            walk.owners[request.owner][1] = max(walk.owners[request.owner][1], request.rev)
    assert without_times(store.dump()) == without_times(dump(client))
    assert {("Finalize", "ok"), ("Acquire", "ok"), ("Claim", "ok")} <= seen


def told_by_claim(reply: Any) -> Any:
    """Without the epoch or age, which are of each store's own time, and with the suspects in one order."""
    return reply[2:5], sorted(zip(reply[5::2], reply[6::2], strict=True))


def told_by_acquire(reply: Any) -> Any:
    """Without the time at which the locks expire."""
    return reply[2:]


_AS_TOLD: dict[type, Callable[[Any], Any]] = {Claim: told_by_claim, Acquire: told_by_acquire}


def assert_same(there: Any, here: Any, as_told: Callable[[Any], Any] | None = None) -> Any:
    """Both answer the same, or both raise the same kind of error (then None)."""
    try:
        expected = there()
    except redis.ResponseError as error:
        with pytest.raises(ReplyError, match="^" + str(error).split(" ")[0]):
            here()
        return None
    answered = here()
    if isinstance(expected, list) and as_told is not None and expected[0] == b"ok":
        assert as_told(answered) == as_told(expected)
    elif isinstance(expected, list) and expected and expected[0] == b"held":
        assert answered[:2] == expected[:2]
    else:
        assert answered == (b"OK" if expected is True else expected)
    return expected


def busy_request(epoch: int, rev: int) -> Finalize:
    """A call in which everything happens that a call can bring about."""
    return Finalize(
        epoch,
        "me",
        rev,
        99,
        3,
        [
            group(
                "u", entry(1, "u", 4), failed(2, "u", 5), entry(3, "u", 6), gaps=[Gap("u", 2, 3, "timeout")]
            ),
            group("v", entry(4, "v", 1, attempts=2), failed(5, "v", 2), entry(0, "v", 3, passed=True)),
            group("w", failed(6, "w", 2), entry(7, "w", 3), has_next=True),
            group("x", entry(11, "x", 1), dense=True),
            group("y", entry(12, "y", 1), entry(13, "y", 2), dense=True),
        ],
        [entry(8, "x"), failed(9, "x", 7, status="skipped", attempts=0, reason="stale")],
        [letter(10)],
    )


def without_started(store: MemoryStore) -> dict[bytes, Any]:
    keys = store.dump()
    partition = keys[b"partition:events:0"][0]
    assert isinstance(partition, dict)
    partition.pop(b"started", None)
    return keys


def prepared(clock: FakeClock, limits: Settings = LIMITS) -> tuple[MemoryStore, ScriptSet, int]:
    store, scripts = MemoryStore(clock), ScriptSet(limits, "events", 0)
    claimed = store.perform(scripts, Claim("me", 1000))
    epoch: int = claimed.epoch  # type: ignore[union-attr]
    store.perform(scripts, Acquire(epoch, "me", busy_request(epoch, 1).entries()))
    store.command("SET", "next:w", 2)
    return store, scripts, epoch


@pytest.mark.parametrize("limits", [LIMITS, settings()], ids=["bounded lists", "unbounded lists"])
def test_finalize_cut_off_anywhere_ends_the_same_when_it_comes_again(
    clock: FakeClock, limits: Settings
) -> None:
    clean, scripts, epoch = prepared(clock, limits)
    request = busy_request(epoch, 1)
    call = scripts.encode(request)
    expected = clean.execute(call)
    cuts = 0
    while True:
        store, _, _ = prepared(clock, limits)
        try:
            assert store.execute(call, fail_at=cuts) == expected
            break
        except ReplyError:
            cuts += 1
        assert store.execute(call) == expected
        assert without_started(store) == without_started(clean)
    assert cuts > 60


def test_a_first_claim_cut_off_anywhere_stores_its_position_when_it_comes_again(clock: FakeClock) -> None:
    scripts = ScriptSet(settings(), "events", 0)
    call = scripts.encode(Claim("me", 1000, offset=4, baseline=3))
    expected = MemoryStore(clock).execute(call)
    cuts = 0
    while True:
        store = MemoryStore(clock)
        try:
            assert store.execute(call, fail_at=cuts) == expected
            break
        except ReplyError:
            cuts += 1
        assert store.execute(call) == expected
    assert cuts > 2


@pytest.mark.parametrize("name", ["acquire_events", "claim_partition", "release_events", "renew_partition"])
def test_others_cut_off_anywhere_end_the_same_when_they_come_again(name: str, clock: FakeClock) -> None:
    def start() -> tuple[MemoryStore, Any]:
        store, scripts, epoch = prepared(clock)
        entries = busy_request(epoch, 1).entries()
        requests: dict[str, StoreRequest] = {
            "acquire_events": Acquire(epoch, "me", [*entries, entry(20, "u", 1, look=True)]),
            "claim_partition": Claim("me", 1000, offset=4, baseline=4),
            "release_events": Release(epoch, "me", entries),
            "renew_partition": Renew(epoch, "me", entries),
        }
        return store, scripts.encode(requests[name])

    clean, call = start()
    expected = clean.execute(call)
    cuts = 0
    while True:
        store, call = start()
        try:
            assert store.execute(call, fail_at=cuts) == expected
            break
        except ReplyError:
            cuts += 1
        assert store.execute(call)[0] == expected[0]
        if name != "claim_partition":  # a claim cut off takes a newer epoch the second time
            assert store.dump() == clean.dump()
    assert cuts > 2


@pytest.mark.parametrize("ran", [[7], [7, 8, 9]])
def test_a_claim_cut_off_anywhere_records_a_death_once(ran: list[int], clock: FakeClock) -> None:
    def start() -> tuple[MemoryStore, Any]:
        store, scripts, _ = prepared(clock)
        store.command("HSET", "partition:events:0", "offset", 5, "suspect:3", "1 x", "suspect:7", "1 x")
        return store, scripts.encode(Claim("me", 1000, death=Death("d1", ran, "exited with code 1")))

    charged = b"2 exited with code 1" if ran == [7] else b"1 x"
    expected = [(b"7", charged), *[(str(at).encode(), b"0 exited with code 1") for at in ran if at != 7]]
    cuts = 0
    while True:
        store, call = start()
        try:
            reply = store.execute(call, fail_at=cuts)
            assert told_by_claim(reply)[1] == expected
            break
        except ReplyError:
            cuts += 1
        assert told_by_claim(store.execute(call))[1] == expected
    assert cuts > 4


def test_keys_expire_by_the_clock(store: MemoryStore, clock: FakeClock) -> None:
    store.command("SET", "k", "v", "PXAT", clock.now_ms + 10)
    clock.now_ms += 10
    assert store.command("GET", "k") == b"v"
    clock.now_ms += 1
    assert store.command("GET", "k") is None
    assert store.dump() == {}


def test_flush_loses_everything(clock: FakeClock) -> None:
    store, scripts, epoch = prepared(clock)
    store.flush()
    assert store.dump() == {}
    reply = store.perform(scripts, busy_request(epoch, 1))
    assert reply.status == "rewound"  # type: ignore[union-attr]


def test_restore_goes_back_as_often_as_wanted(clock: FakeClock) -> None:
    store, scripts, epoch = prepared(clock)
    before = store.dump()
    snapshot = store.snapshot()
    for _ in range(2):
        store.perform(scripts, busy_request(epoch, 1))
        assert store.dump() != before
        store.restore(snapshot)
        assert store.dump() == before


def test_stores_share_nothing(clock: FakeClock) -> None:
    one, two = MemoryStore(clock), MemoryStore(clock)
    one.command("SET", "k", "v")
    assert two.dump() == {}


def test_script_errors_are_raised(store: MemoryStore) -> None:
    store.command("SET", "partition:events:0", "x")
    with pytest.raises(ReplyError, match=r"^FOREIGN key partition:events:0"):
        store.perform(ScriptSet(LIMITS, "events", 0), Claim("me", 1000))
