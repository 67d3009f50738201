"""The ingest API's small parts: ids, addresses, strict JSON, keys, the limiter, what counts as backlog."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventproc.errors import ConfigError, Transient
from eventproc.ingest.acceptance import seconds
from eventproc.ingest.addresses import client_address
from eventproc.ingest.api_keys import ApiKeys
from eventproc.ingest.events import EventReader
from eventproc.ingest.ids import IdMaker
from eventproc.ingest.limiter import MAX_CHARGES, RateLimiter
from eventproc.ingest.refusal import Refusal
from eventproc.ingest.strict_json import fault, loads
from eventproc.ingest.watch import Watch
from eventproc.settings import Settings
from eventproc.store.ingest import Allowance, Charge, Position


class FakeClock:
    """Stands still until it is set."""

    def __init__(self, ms: int = 0) -> None:
        self.ms = ms

    def monotonic_ms(self) -> int:
        return self.ms

    def wall_ms(self) -> int:
        return self.ms

    def sleep_ms(self, ms: float) -> None:
        raise AssertionError("nothing here may wait")


# --- ids --------------------------------------------------------------------------------------------


def test_ids_are_uuids_of_version_7_that_carry_the_time() -> None:
    clock = FakeClock(1_767_225_600_123)
    made = [uuid.UUID(IdMaker(clock).new()) for _ in range(100)]
    assert {found.version for found in made} == {7}
    assert {found.variant for found in made} == {uuid.RFC_4122}
    assert {found.int >> 80 for found in made} == {clock.ms}


def test_ids_use_all_their_entropy() -> None:
    assert IdMaker(FakeClock(), lambda n: b"\0" * n).new() == "00000000-0000-7000-8000-000000000000"
    assert IdMaker(FakeClock(), lambda n: b"\xff" * n).new() == "00000000-0000-7fff-bfff-ffffffffffff"


def test_no_two_ids_are_alike_when_the_entropy_is_fetched_again() -> None:
    maker = IdMaker(FakeClock())
    assert len({maker.new() for _ in range(2000)}) == 2000


# --- addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forwarded", "trusted", "address"),
    [
        (["1.1.1.1"], 0, "9.9.9.9"),
        ([], 1, "9.9.9.9"),
        (["1.1.1.1"], 1, "1.1.1.1"),
        (["6.6.6.6, 1.1.1.1"], 1, "1.1.1.1"),
        (["6.6.6.6", "1.1.1.1"], 1, "1.1.1.1"),
        (["6.6.6.6, 1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
        (["1.1.1.1"], 2, "9.9.9.9"),
        (["6.6.6.6, nonsense"], 1, "9.9.9.9"),
        (["6.6.6.6,"], 1, "9.9.9.9"),
        (["1.1.1.1:4711"], 1, "1.1.1.1"),
        (["[2001:DB8::1]:4711"], 1, "2001:db8::1"),
        (["2001:db8:0::1"], 1, "2001:db8::1"),
        (["::ffff:1.1.1.1"], 1, "1.1.1.1"),
        (["fe80::1%eth0"], 1, "9.9.9.9"),
        (["\xff"], 1, "9.9.9.9"),
    ],
)
def test_the_address_is_what_the_trusted_proxies_say(
    forwarded: list[str], trusted: int, address: str
) -> None:
    headers = [(b"x-forwarded-for", line.encode("latin1")) for line in forwarded]
    assert client_address("9.9.9.9", headers, trusted) == address


# --- JSON -------------------------------------------------------------------------------------------

documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    # with what may be taken for the end of a key
    | st.text(st.characters(codec="utf-8") | st.sampled_from('":\\{}[],')),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8") | st.sampled_from('":\\')), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(documents, st.booleans())
def test_good_json_is_read_as_it_is(document: object, ascii: bool) -> None:
    found, marked = loads(json.dumps(document, ensure_ascii=ascii).encode())
    assert found == document
    assert not marked


@given(documents, st.text(st.characters(codec="utf-8")))
def test_a_doubled_key_is_found_wherever_it_is(document: object, key: str) -> None:
    name, value = json.dumps(key), json.dumps(document)
    found, marked = loads(f'[{value}, {{"a": [{{{name}: {value}, {name}: 1}}]}}]'.encode())
    assert marked
    assert fault(found[0]) == ""
    assert fault(found[1]) == f"key {key!r} stands twice in an object"


@given(st.binary())
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        found, marked = loads(body)
    except Refusal as refusal:
        if refusal.status != 400:
            raise
    else:
        if marked:
            fault(found)


def reader(**settings: object) -> EventReader:
    clock = FakeClock(7)
    return EventReader(Settings.model_validate(settings), clock, IdMaker(clock))


@given(documents)
def test_any_document_is_an_event_or_refused(document: object) -> None:
    body = json.dumps(document).encode()
    try:
        posted = reader().read_one(body)
    except Refusal as refusal:
        if refusal.status != 400:
            raise
    else:
        assert posted.record().key
    for event in reader().read_batch(b'{"events":[' + body + b"]}"):
        assert event.state in ("", "invalid")


@given(st.dictionaries(st.sampled_from(["id", "userId", "type", "payload", "timestamp"]), documents))
def test_what_is_accepted_the_workers_accept_too(document: dict[str, object]) -> None:
    from eventproc.event import Validator

    try:
        posted = reader().read_one(json.dumps(document).encode())
    except Refusal:
        return
    record = posted.record()
    validator = Validator("events", 900_000)
    decoded = validator.decode(record.value, len(record.value) + len(record.key))
    validator.check(decoded)
    assert decoded["id"] == posted.id


# --- API keys ---------------------------------------------------------------------------------------


def test_keys_are_read_from_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalpha\n\n beta \n")
    keys = ApiKeys(str(path))
    one = keys.check([(b"authorization", b"Bearer alpha")])
    other = keys.check([(b"x-api-key", b"beta")])
    assert one != other
    path.write_text("gamma\n")
    assert keys.reload() == 1
    assert keys.check([(b"authorization", b"bearer  gamma")])
    with pytest.raises(Refusal) as refused:
        keys.check([(b"authorization", b"Bearer alpha")])
    assert refused.value.status == 401
    assert "alpha" not in refused.value.error


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"alph")],
        [(b"x-api-key", b"# ours")],
        [(b"authorization", b"alpha")],
        [(b"authorization", b"Basic alpha")],
    ],
)
def test_other_keys_are_refused(tmp_path: Path, headers: list[tuple[bytes, bytes]]) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalpha\n")
    with pytest.raises(Refusal):
        ApiKeys(str(path)).check(headers)


def test_a_file_without_keys_is_a_configuration_error_and_the_former_keys_stand(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match="api_keys_file"):
        ApiKeys(str(path))
    path.write_text("alpha\n")
    keys = ApiKeys(str(path))
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="there is no key in it"):
        keys.reload()
    assert keys.check([(b"x-api-key", b"alpha")])


# --- limiter ----------------------------------------------------------------------------------------


class FakeQuotas:
    """Allows everything; each call waits until it is let go on."""

    def __init__(self) -> None:
        self.calls: list[list[Charge]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def rate_limit(self, charges: Sequence[Charge]) -> list[Allowance]:
        self.calls.append(list(charges))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return [Allowance(charge.events, 0, 0) for charge in charges]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_that_come_while_a_call_is_under_way_share_the_next() -> None:
    async def main() -> None:
        quotas = FakeQuotas()
        limiter = RateLimiter(Settings(), quotas)
        tasks = [asyncio.create_task(limiter.take([f"u{n}", f"u{n}"], "ip")) for n in range(50)]
        await settle()
        assert quotas.calls == [[Charge(f"u{n}", "", 2) for n in range(50)]]
        late = asyncio.create_task(limiter.take(["v", "w", "v"], "ip"))
        await settle()
        assert len(quotas.calls) == 1
        quotas.go_on.set()
        assert [await task for task in tasks] == [[(2, Allowance(2, 0, 0))]] * 50
        assert [count for count, _ in await late] == [1, 1, 1]

    asyncio.run(main())


def test_one_call_has_no_more_than_so_many_charges() -> None:
    async def main() -> None:
        quotas = FakeQuotas()
        quotas.go_on.set()
        limiter = RateLimiter(Settings(), quotas)
        users = [f"u{n}" for n in range(MAX_CHARGES - 1)]
        await asyncio.gather(*(limiter.take(users, "") for _ in range(3)))
        assert [len(call) for call in quotas.calls] == [MAX_CHARGES - 1] * 3

    asyncio.run(main())


def test_a_call_that_fails_fails_those_that_wait_behind_it_and_the_next_is_made_anew() -> None:
    async def main() -> None:
        quotas = FakeQuotas()
        limiter = RateLimiter(Settings(), quotas)
        tasks = [asyncio.create_task(limiter.take(["a"], ""))]
        await settle()
        tasks.append(asyncio.create_task(limiter.take(["b"], "")))
        await settle()
        quotas.error = Transient("away")
        quotas.go_on.set()
        for task in tasks:
            with pytest.raises(Transient, match="away"):
                await task
        assert len(quotas.calls) == 1
        quotas.error = None
        assert await limiter.take(["c"], "") == [(1, Allowance(1, 0, 0))]

    asyncio.run(main())


def test_without_limits_redis_is_not_asked() -> None:
    async def main() -> None:
        quotas = FakeQuotas()
        limiter = RateLimiter(Settings(rate_limit_per_user=0), quotas)
        assert await limiter.take(["a", "a", "b"], "ip") == [(2, Allowance(2, 0, 0)), (1, Allowance(1, 0, 0))]
        assert quotas.calls == []

    asyncio.run(main())


@pytest.mark.parametrize(("ms", "expected"), [(-5, 1), (0, 1), (1, 1), (1000, 1), (1001, 2), (4500, 5)])
def test_retry_after_is_whole_seconds_and_at_least_one(ms: int, expected: int) -> None:
    assert seconds(ms) == expected


# --- backlog ----------------------------------------------------------------------------------------


class World:
    """Kafka, Redis and the producer as the watch sees them."""

    def __init__(self, **settings: object) -> None:
        self.ends: dict[int, int] = {0: 0}
        self.found: dict[int, Position] = {}
        self.committed: dict[int, int] = {}
        self.kafka_away = self.redis_away = False
        self.down = False
        self.last_error = "no broker"
        self.asked_group = 0
        self.clock = FakeClock()
        self.settings = Settings.model_validate({"max_lag": 100, **settings})
        self.watch = Watch(self.settings, self, self, self.clock, self.read_ends, self.read_committed)

    def read_ends(self) -> dict[int, int]:
        if self.kafka_away:
            raise Transient("Kafka does not answer")
        return dict(self.ends)

    def read_committed(self) -> dict[int, int]:
        self.asked_group += 1
        return self.committed

    async def positions(self, partitions: Sequence[int]) -> dict[int, Position]:
        if self.redis_away:
            raise Transient("Redis does not answer")
        return {number: self.found[number] for number in partitions if number in self.found}

    def up(self) -> None:
        self.down = False

    def look(self) -> int:
        asyncio.run(self.watch.look())
        return self.watch.backlog


def test_the_backlog_is_what_the_workers_publish() -> None:
    world = World()
    world.ends = {0: 500, 1: 900}
    world.found = {0: Position(460, 30, 7, 10), 1: Position(900, 0, 3, 10)}
    assert world.look() == 30


def test_what_comes_while_a_worker_makes_nothing_final_is_added() -> None:
    world = World()
    world.ends, world.found = {0: 500}, {0: Position(460, 30, 7, 10)}
    world.look()
    world.ends = {0: 570}
    assert world.look() == 100
    with pytest.raises(Refusal) as refused:
        world.watch.check()
    assert (refused.value.status, refused.value.reason, refused.value.retry_after_s) == (503, "lag", 1)
    world.found = {0: Position(560, 10, 8, 10)}
    assert world.look() == 10
    world.watch.check()


def test_without_a_living_worker_all_from_its_position_to_the_end_counts() -> None:
    world = World()
    world.ends, world.found = {0: 500}, {0: Position(460, 0, 7, 10_001)}
    assert world.look() == 40


def test_where_no_worker_ever_was_the_groups_offset_tells_and_is_asked_for_rarely() -> None:
    world = World()
    world.ends, world.committed = {0: 500}, {0: 420}
    assert world.look() == 80
    world.clock.ms += 9_999
    world.look()
    assert world.asked_group == 1
    world.clock.ms += 1
    world.look()
    assert world.asked_group == 2


@pytest.mark.parametrize(
    ("away", "reason"), [("kafka_away", "kafka"), ("redis_away", "redis"), ("down", "kafka")]
)
def test_nothing_is_taken_while_a_server_is_away(away: str, reason: str) -> None:
    world = World()
    with pytest.raises(Refusal):  # nothing is known yet
        world.watch.check()
    world.look()
    world.watch.check()
    setattr(world, away, True)
    if away != "down":
        world.look()
    with pytest.raises(Refusal) as refused:
        world.watch.check()
    assert refused.value.reason == reason
    setattr(world, away, False)
    world.look()
    world.watch.check()


def test_a_kafka_that_stands_still_is_away_and_is_asked_once() -> None:
    world = World(api_timeout_ms=100)
    world.look()
    goes_on = threading.Event()
    asked = 0

    def read_ends() -> dict[int, int]:
        nonlocal asked
        asked += 1
        assert goes_on.wait(10)
        return {0: 5}

    watch = Watch(world.settings, world, world, world.clock, read_ends, world.read_committed)

    async def main() -> None:
        for _ in range(3):
            await watch.look()
            with pytest.raises(Refusal, match=r"Kafka is away: it does not answer in 0\.1 s"):
                watch.check()
        assert not watch.redis_error, "Redis is looked at all the same"
        assert asked == 1
        goes_on.set()
        while watch.kafka_error:
            await watch.look()
        watch.check()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_an_answer_of_kafka_ends_the_producers_doubt() -> None:
    world = World()
    world.look()
    world.down = True
    world.look()
    world.watch.check()


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_to_a_question_from_before_the_doubt_does_not_end_it(late: bool) -> None:
    """Kafka answered, and died: what is asked then is what tells."""
    world = World(api_timeout_ms=100)
    answered = threading.Event()

    def read_ends() -> dict[int, int]:
        assert answered.wait(10)
        world.down = world.down or not late
        return {0: 5}

    watch = Watch(world.settings, world, world, world.clock, read_ends, world.read_committed)

    async def main() -> None:
        if late:
            await watch.look()
            world.down = True
        answered.set()
        while watch.kafka_error and not watch.kafka_error.endswith("no broker"):
            await watch.look()
        with pytest.raises(Refusal, match="Kafka is away: Kafka: no broker"):
            watch.check()
        await watch.look()
        watch.check()

    asyncio.run(asyncio.wait_for(main(), 10))
