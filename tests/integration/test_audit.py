"""The checker: what is right is clean, and each planted defect is reported as what it is and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from eventproc.audit import KINDS, Report, audit, wait_until_idle
from eventproc.broker.producer import EventProducer
from eventproc.broker.reading import TopicReader
from eventproc.errors import DependencyError, UsageError
from eventproc.settings import Settings
from eventproc.workload import Workload, produce
from eventproc.workload.ledger import Line
from tests.integration.audit_world import CLOCK, World, commit, lines_of
from tests.integration.conftest import BrokerUnderTest
from tests.redis_server import RedisServer, free_port

PARTITIONS = 2


def everything(topic: str, **changes: Any) -> Workload:
    """A workload with something of everything."""
    values: dict[str, Any] = {
        "users": 30,
        "events_per_user": 12,
        "shuffle_window": 40,
        "duplicate_ratio": 0.1,
        "failing_ratio": 0.08,
        "missing_seqs": 4,
        "late_events": 4,
        "invalid_records": 26,
        "unsequenced_ratio": 0.1,
        "stale": 4,
        "conflicts": 4,
        "tombstones": 2,
        "seed": 37,
        "topic": topic,
    }
    return Workload(**(values | changes))


def settings_for(broker: BrokerUnderTest, server: RedisServer, **values: Any) -> Settings:
    values.setdefault("kafka_topic", broker.topics(PARTITIONS))
    return broker.settings(redis_url=server.url, gap_timeout_ms=1, **values)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as found:
        yield found


@pytest.fixture(scope="module")
def snapshot(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, dict[bytes, bytes]]:
    """A world that is in order, and all its keys."""
    settings = settings_for(embedded_broker, server)
    client = server.client()
    client.flushall()
    folder = tmp_path_factory.mktemp("world")
    world = World(settings, client, everything(settings.kafka_topic), folder)
    keys: Any = client.keys("*")
    dumped: dict[bytes, Any] = {key: client.dump(key) for key in keys}
    return world, dumped


@pytest.fixture
def world(snapshot: tuple[World, dict[bytes, bytes]]) -> World:
    """The world in order, to be damaged."""
    found, keys = snapshot
    found.redis.flushall()
    for key, value in keys.items():
        found.redis.restore(key, 0, value)
    return found


def check(world: World, **options: Any) -> Report:
    settings = options.pop("settings", world.settings)
    options.setdefault("ledger", world.ledger)
    options.setdefault("runs", world.runs)
    options.setdefault("crashed", False)
    return audit(settings, **options)


def only(report: Report, kind: str, count: int = 1) -> None:
    assert report.counts == {kind: count}, report.examples


def pick(world: World, wanted: Callable[[Line], bool]) -> Line:
    """The first line of the ledger that fits and whose id comes but once."""
    lines = world.lines()
    ids = [line.id for line in lines]
    return next(line for line in lines if ids.count(line.id) == 1 and wanted(line))


def hash_of(world: World, id: str) -> dict[str, str]:
    found: Any = world.redis.hgetall(f"event:{id}")
    return {key.decode(): value.decode() for key, value in found.items()}


def status(world: World, id: str) -> str:
    return hash_of(world, id).get("status", "")


def processed(world: World, line: Line) -> bool:
    """A plain event in the middle of its user's sequence, whose neighbours were processed too."""
    order: Any = [int(seq) for seq in world.redis.lrange(f"order:{line.user}", 0, -1)]
    near = {line.seq - 1, line.seq, line.seq + 1}
    return line.kind == "event" and line.seq > 2 and near <= set(order)


def letter(world: World, reason: str) -> str:
    """An id in the dead-letter list with that reason."""
    for raw in _elements(world.redis, "dlq:list"):
        if world.redis.hget(f"dlq:{raw}", "reason") == reason.encode():
            return raw
    raise AssertionError(f"no dead letter with reason {reason}")


def _elements(client: redis.Redis, key: str) -> list[str]:
    found: Any = client.lrange(key, 0, -1)
    return [element.decode() for element in found]


# --- in order -------------------------------------------------------------------------------------------


def test_clean_state_is_clean_on_each_broker(
    broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(broker, server)
    client = server.client()
    client.flushall()
    world = World(settings, client, everything(settings.kafka_topic, seed=5), tmp_path)
    for options in ({}, {"ledger": None}, {"ledger": None, "runs": None}, {"idle": False, "crashed": True}):
        report = check(world, **options)
        assert report.clean, report.examples
        totals = report.totals
        assert totals.records == len(world.lines())
        assert (totals.users, totals.invalid, totals.tombstones) == (30, 26, 2)
        assert totals.gap_seqs == 8
        assert totals.skipped == 8  # late and stale ones
        assert totals.conflicts == 4
        assert totals.processed > 300
        assert totals.failed > 5
        assert totals.duplicates > 10
        assert totals.dead_letters == totals.failed + totals.skipped + totals.invalid + totals.conflicts
    assert wait_until_idle(settings, 0)


def test_totals_and_latency_are_told(world: World) -> None:
    report = check(world)
    assert report.clean, report.examples
    assert report.latency_ms(0.99) >= report.latency_ms(0.5) > 0
    assert report.totals.runs == report.totals.processed + 3 * report.totals.failed
    shown = report.as_json()
    assert shown["clean"] is True
    assert shown["totals"]["processed"] == report.totals.processed


def test_nothing_at_all_is_clean(embedded_broker: BrokerUnderTest, server: RedisServer, world: World) -> None:
    world.redis.flushall()
    report = audit(settings_for(embedded_broker, server))
    assert report.clean, report.examples
    assert report.totals.records == 0


def test_a_late_event_that_was_in_time_may_be_processed(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    client = server.client()
    client.flushall()

    class Patient(World):
        def _before_late(self) -> None:
            pass

    world = Patient(settings, client, everything(settings.kafka_topic), tmp_path)
    report = check(world)
    assert report.clean, report.examples
    assert report.totals.gap_seqs == 4


# --- each defect ----------------------------------------------------------------------------------------


def test_lost_event(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}", f"dedup:{line.id}")
    report = check(world)
    only(report, "lost")
    assert line.id in report.examples["lost"][0]
    only(check(world, ledger=None), "lost")


def test_lost_event_whose_marker_is_left(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}")
    only(check(world), "lost")


def test_lost_unsequenced_event(world: World) -> None:
    line = pick(world, lambda line: line.kind == "unsequenced")
    world.redis.delete(f"event:{line.id}", f"dedup:{line.id}", f"dlq:{line.id}")
    world.redis.lrem("dlq:list", 0, line.id)
    assert check(world).counts["lost"] == 1


def test_keys_whose_time_is_over_are_not_missed(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}")
    settings = world.settings.model_copy(update={"event_ttl_s": 1})
    report = check(world, settings=settings)
    assert report.clean, report.examples
    assert report.totals.expired == 1


def test_seq_twice_in_the_order_list(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.linsert(f"order:{line.user}", "after", str(line.seq), str(line.seq))
    only(check(world), "doubled")


def test_two_ids_processed_for_one_seq(world: World) -> None:
    line = next(line for line in world.lines() if line.kind == "stale")
    loser = next(
        other
        for other in world.lines()
        if (other.user, other.seq) == (line.user, line.seq) and status(world, other.id) == "skipped"
    )
    winner = next(
        other
        for other in world.lines()
        if (other.user, other.seq) == (line.user, line.seq) and other.id != loser.id
    )
    if winner.fail or loser.fail:
        pytest.fail("choose another seed: the stale pair fails")
    world.redis.hset(f"event:{loser.id}", mapping={"status": "processed", "attempts": 1})
    report = check(world, runs=None)
    assert report.counts["doubled"] == 1
    assert set(report.counts) == {"doubled", "dlq"}  # its dead letter is there without need


def test_handler_ran_twice_without_a_crash(world: World, tmp_path: Path) -> None:
    runs = tmp_path / "0.runs"
    lines = (world.runs / "0.runs").read_text().splitlines(keepends=True)
    at = next(at for at, text in enumerate(lines) if text.endswith("\t1\tok\n") and "\t0\t" not in text)
    runs.write_text("".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]))
    (tmp_path / "1.runs").write_bytes((world.runs / "1.runs").read_bytes())
    only(check(world, runs=tmp_path), "doubled")
    report = check(world, runs=tmp_path, crashed=True)
    assert report.clean, report.examples
    assert report.totals.reruns == 1


def test_order_list_out_of_order(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    key = f"order:{line.user}"
    world.redis.lrem(key, 1, str(line.seq))
    world.redis.linsert(key, "before", str(line.seq - 1), str(line.seq))
    only(check(world), "reordered")


def test_last_runs_out_of_order(world: World, tmp_path: Path) -> None:
    lines = (world.runs / "0.runs").read_text().splitlines(keepends=True)
    line = pick(world, lambda line: line.partition == 0 and processed(world, line))
    at = next(at for at, text in enumerate(lines) if f"\t{line.id}\t" in text)
    (tmp_path / "0.runs").write_text("".join([lines[at], *lines[:at], *lines[at + 1 :]]))
    (tmp_path / "1.runs").write_bytes((world.runs / "1.runs").read_bytes())
    report = check(world, runs=tmp_path)
    assert set(report.counts) == {"reordered"}


def test_processed_seq_missing_from_the_order_list(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.lrem(f"order:{line.user}", 1, str(line.seq))
    only(check(world), "gap")


def test_seq_passed_over_without_ledger_entry(world: World) -> None:
    gap, user = next(
        (gap, key.split(":", 1)[1])
        for key in _keys(world, "gaps:*")
        for gap in _elements(world.redis, key)
        if _is_hole(world, key.split(":", 1)[1], int(gap.split("-")[0]))
    )
    world.redis.lrem(f"gaps:{user}", 1, gap)
    report = check(world)
    only(report, "gap")
    assert "passed over" in report.examples["gap"][0]


def test_skipped_event_whose_seq_nobody_gave_up(world: World) -> None:
    line = pick(world, lambda line: line.kind == "late")
    for gap in _elements(world.redis, f"gaps:{line.user}"):
        if gap.startswith(f"{line.seq}-{line.seq}:"):
            world.redis.lrem(f"gaps:{line.user}", 1, gap)
            only(check(world), "gap")
            return
    pytest.fail("the late event's seq is not a ledger entry of its own")


def test_ledger_entry_over_a_processed_seq(world: World) -> None:
    line = pick(world, lambda line: processed(world, line) and not world.redis.exists(f"gaps:{line.user}"))
    world.redis.rpush(f"gaps:{line.user}", f"{line.seq}-{line.seq}:timeout:1")
    only(check(world), "gap")


def test_gap_over_an_event_that_lay_before_the_one_beyond_it(world: World) -> None:
    """Given up, though it came first: provable by the offsets alone."""
    lines = world.lines()
    for line in lines:
        beyond = [o for o in lines if (o.user, o.seq, o.kind) == (line.user, line.seq + 1, "event")]
        if processed(world, line) and beyond and all(o.offset > line.offset for o in beyond):
            if [o.id for o in lines].count(line.id) > 1 or world.redis.exists(f"gaps:{line.user}"):
                continue
            break
    else:
        pytest.fail("no such event")
    _skip(world, line, "late")
    world.redis.rpush(f"gaps:{line.user}", f"{line.seq}-{line.seq}:timeout:1")
    report = check(world, runs=None)
    assert report.counts["gap"] == 1
    assert set(report.counts) == {"gap", "dlq"}  # it has no dead letter either
    assert "lies before" in report.examples["gap"][0]


def test_gap_over_an_event_that_came_in_time(world: World) -> None:
    """The late events of this workload came within a minute: with that timeout their gaps were none."""
    settings = world.settings.model_copy(update={"gap_timeout_ms": 60_000})
    report = check(world, settings=settings)
    assert set(report.counts) == {"gap"}
    assert all("before that gap could close" in text for text in report.examples["gap"])
    assert check(world, settings=settings, ledger=None).clean  # the topic's times prove nothing


@pytest.mark.parametrize(
    ("field", "value"),
    [("userId", "someone"), ("seq", "999"), ("type", "other")],
    ids=["user", "seq", "type"],
)
def test_rewritten_hash(world: World, field: str, value: str) -> None:
    line = pick(world, lambda line: line.kind == "unsequenced" and status(world, line.id) == "processed")
    world.redis.hset(f"event:{line.id}", field, value)
    report = check(world, runs=None)
    assert report.counts["rewritten"] == 1
    if field == "type":
        only(report, "rewritten")


def test_rewritten_position(world: World) -> None:
    line = pick(world, lambda line: line.kind == "event" and line.fail and line.seq > 0)
    world.redis.hset(f"event:{line.id}", "offset", "99999")
    assert set(check(world).counts) == {"rewritten", "dlq"}


def test_leftover_lock(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.set(f"inflight:{line.id}", "someone")
    report = check(world)
    only(report, "lock")
    assert "someone" in report.examples["lock"][0]
    assert check(world, idle=False).clean


@pytest.mark.parametrize(
    ("changes", "which"),
    [
        ({"attempts": "0"}, "processed"),
        ({"attempts": "4"}, "processed"),
        ({"attempts": "x"}, "processed"),
        ({"status": "done"}, "unsequenced"),
        ({"processedAt": ""}, "processed"),
        ({"attempts": "2"}, "failed"),
        ({"error": ""}, "failed"),
        ({"attempts": "1"}, "late"),
    ],
)
def test_impossible_status(world: World, changes: Any, which: str) -> None:
    wanted = {
        "processed": lambda line: processed(world, line),
        "unsequenced": lambda line: line.kind == "unsequenced" and not line.fail,
        "failed": lambda line: line.kind == "event" and line.fail,
        "late": lambda line: line.kind == "late",
    }
    line = pick(world, wanted[which])
    world.redis.hset(f"event:{line.id}", mapping=changes)
    if "attempts" in changes and which != "processed":
        world.redis.hset(f"dlq:{line.id}", mapping=changes)
    report = check(world, runs=None)
    assert report.counts["status"] == 1
    assert set(report.counts) <= {"status", "dlq"}  # the topic's header tells the attempts too


def test_failing_event_that_is_processed(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.hset(
        f"event:{line.id}",
        mapping={"status": "failed", "attempts": 3, "error": "x", "partition": 0, "offset": 0},
    )
    assert "status" in check(world).counts


def test_marker_missing(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"dedup:{line.id}")
    only(check(world), "status")


def test_event_of_an_invalid_record(world: World) -> None:
    line = pick(world, lambda line: line.kind == "invalid" and line.id != "")
    world.redis.hset(f"event:{line.id}", mapping={"status": "processed", "attempts": 1})
    only(check(world), "status")


def test_second_to_arrive_won(world: World) -> None:
    lines = world.lines()
    stale = next(line for line in lines if line.kind == "stale")
    pair = [line for line in lines if (line.user, line.seq) == (stale.user, stale.seq)]
    first, second = sorted({line.id: line for line in pair}.values(), key=lambda line: line.offset)
    if first.fail or second.fail:
        pytest.fail("choose another seed: the stale pair fails")
    hashes = hash_of(world, first.id), hash_of(world, second.id)
    world.redis.hset(f"event:{second.id}", mapping={"status": "processed", "attempts": 1})
    _skip(world, first, "stale")
    assert [h["status"] for h in hashes] == ["processed", "skipped"]
    assert check(world, runs=None).counts["status"] == 1


@pytest.mark.parametrize("reason", ["handler", "late", "stale", "invalid", "id_conflict"])
def test_dead_letter_missing_in_redis(world: World, reason: str) -> None:
    id = letter(world, reason)
    world.redis.delete(f"dlq:{id}")
    only(check(world), "dlq")


def test_dead_letter_missing_in_the_list(world: World) -> None:
    id = letter(world, "handler")
    world.redis.lrem("dlq:list", 1, id)
    only(check(world), "dlq")
    length: Any = world.redis.llen("dlq:list")
    settings = world.settings.model_copy(update={"dlq_max_len": length})
    assert check(world, settings=settings).clean  # it may have been trimmed


def test_dead_letter_listed_twice(world: World) -> None:
    world.redis.rpush("dlq:list", letter(world, "late"))
    only(check(world), "dlq")


def test_dead_letter_of_nothing(world: World) -> None:
    world.redis.rpush("dlq:list", "nobody")
    only(check(world), "dlq")


def test_dead_letter_of_a_processed_event(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.hset(f"dlq:{line.id}", mapping={"eventId": line.id, "reason": "handler"})
    only(check(world), "dlq")


@pytest.mark.parametrize("field", ["reason", "attempts", "offset", "eventId"])
def test_dead_letter_tells_something_else(world: World, field: str) -> None:
    id = letter(world, "late")
    world.redis.hset(f"dlq:{id}", field, {"reason": "stale"}.get(field, "77"))
    counts = check(world).counts
    assert "dlq" in counts or field == "reason"
    assert set(counts) <= {"dlq", "status"}


def test_dead_letters_missing_in_the_topic(world: World, embedded_broker: BrokerUnderTest) -> None:
    settings = world.settings.model_copy(update={"kafka_dlq_topic": embedded_broker.topics()})
    report = check(world, settings=settings)
    totals = report.totals
    only(report, "dlq", totals.failed + totals.skipped + totals.invalid + totals.conflicts)


def test_dead_letter_too_many_in_the_topic(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    client = server.client()
    client.flushall()

    class Careless(World):
        sent = 0

        def _handle(self, message: Any, document: dict[str, Any]) -> bool:
            done = super()._handle(message, document)
            if done and not self.sent:
                self.sent += 1
                self.dead_letter(message, "handler", 3)
            return done

    world = Careless(settings, client, everything(settings.kafka_topic), tmp_path)
    only(check(world), "dlq")


def test_copies_with_one_origin_are_allowed(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    client = server.client()
    client.flushall()

    class Replaying(World):
        def dead_letter(self, message: Any, reason: Any, attempts: int, error: str = "") -> None:
            super().dead_letter(message, reason, attempts, error)
            super().dead_letter(message, reason, attempts, error)

    world = Replaying(settings, client, everything(settings.kafka_topic), tmp_path)
    report = check(world)
    assert report.clean, report.examples


class _OtherBytes:
    """A record whose value was changed on its way."""

    def __init__(self, message: Any) -> None:
        self._message = message

    def value(self) -> bytes:
        return b"other"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


def test_dead_letter_with_other_bytes(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    client = server.client()
    client.flushall()

    class Corrupting(World):
        sent = 0

        def dead_letter(self, message: Any, reason: Any, attempts: int, error: str = "") -> None:
            self.sent += 1
            super().dead_letter(message if self.sent > 1 else _OtherBytes(message), reason, attempts, error)

    world = Corrupting(settings, client, everything(settings.kafka_topic), tmp_path)
    report = check(world)
    only(report, "dlq")
    assert "other bytes" in report.examples["dlq"][0]


def test_dead_letter_from_nowhere(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    client = server.client()
    client.flushall()
    world = World(settings, client, everything(settings.kafka_topic), tmp_path)
    letters = EventProducer(settings.model_copy(update={"kafka_topic": settings.dlq_topic}), linger_ms=0)
    letters.produce(b"u", b"x", [("eventproc-origin", f"{settings.kafka_topic}/1/99999".encode())])
    letters.produce(b"u", b"x", [])  # tells no origin
    assert letters.flush(10) == 0
    letters.close()
    only(check(world), "dlq", 2)


def test_next_without_need(world: World) -> None:
    line = pick(world, lambda line: processed(world, line) and not world.redis.exists(f"next:{line.user}"))
    world.redis.set(f"next:{line.user}", 3)
    only(check(world), "next")
    world.redis.set(f"next:{line.user}", 300)
    only(check(world), "next")


def test_next_missing(world: World) -> None:
    key = _keys(world, "next:*")[0]
    world.redis.delete(key)
    only(check(world), "next")


@pytest.mark.parametrize("field", ["epoch", "rev", "offset", "seen_ms", "owner"])
def test_partition_hash_incomplete(world: World, field: str) -> None:
    world.redis.hdel(f"partition:{world.settings.kafka_topic}:0", field)
    assert set(check(world).counts) == {"position"}


def test_floor_behind_the_end(world: World) -> None:
    key = f"partition:{world.settings.kafka_topic}:0"
    end: Any = world.redis.hget(key, "offset")
    world.redis.hset(key, "offset", int(end) - 1)
    assert set(check(world).counts) == {"position"}
    assert set(check(world, idle=False).counts) == {"position"}  # more is committed than is final
    assert not wait_until_idle(world.settings, 0)


def test_floor_beyond_the_end(world: World) -> None:
    world.redis.hset(f"partition:{world.settings.kafka_topic}:0", "offset", 999_999)
    assert set(check(world).counts) == {"position"}


def test_nothing_committed(world: World) -> None:
    settings = world.settings.model_copy(update={"kafka_group_id": "nobody"})
    only(check(world, settings=settings), "position", PARTITIONS)
    assert check(world, settings=settings, idle=False).clean


def test_redis_flushed(world: World) -> None:
    world.redis.flushall()
    assert "position" in check(world).counts


def test_seq_that_nobody_produced(world: World) -> None:
    line = pick(world, lambda line: processed(world, line) and not world.redis.exists(f"next:{line.user}"))
    world.redis.rpush(f"order:{line.user}", 1000)
    only(check(world), "phantom")


def test_run_of_something_that_nobody_produced(world: World, tmp_path: Path) -> None:
    for name in ("0.runs", "1.runs"):
        (tmp_path / name).write_bytes((world.runs / name).read_bytes())
    with (tmp_path / "0.runs").open("a") as file:
        file.write("nobody\t1\tnothing\t1\tok\n")
        file.write("torn li")
    only(check(world, runs=tmp_path), "phantom")


def test_processed_without_a_run(world: World, tmp_path: Path) -> None:
    line = pick(world, lambda line: processed(world, line))
    for name in ("0.runs", "1.runs"):
        lines = (world.runs / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(text for text in lines if f"\t{line.id}\t" not in text))
    only(check(world, runs=tmp_path), "status")


def test_key_of_a_wrong_type(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}")
    world.redis.set(f"event:{line.id}", "text")
    counts = check(world).counts
    assert counts["foreign"] == 1
    assert set(counts) == {"foreign", "lost"}


def test_every_kind_is_planted() -> None:
    """A kind that no test plants is a kind that may never be found."""
    text = Path(__file__).read_text()
    for kind in KINDS:
        assert f'"{kind}"' in text


# --- the rest -------------------------------------------------------------------------------------------


def test_unfinished_work_above_the_floor_is_no_loss(world: World) -> None:
    lines = [line for line in world.lines() if line.partition == 0 and line.kind != "invalid"]
    last = max(lines, key=lambda line: line.offset)
    marks = {number: high for number, (_low, high) in world.marks().items()}
    world.redis.hset(f"partition:{world.settings.kafka_topic}:0", "offset", last.offset)
    settings = world.settings.model_copy(update={"kafka_group_id": "behind"})
    commit(settings, marks | {0: last.offset})
    world.redis.delete(f"event:{last.id}", f"dedup:{last.id}", f"dlq:{last.id}")
    world.redis.lrem("dlq:list", 0, last.id)
    counts = check(world, settings=settings, idle=False, runs=None).counts
    assert "lost" not in counts
    assert check(world, settings=settings, runs=None).counts["position"] == 1


def test_record_that_was_not_acknowledged_may_be_there_or_not(world: World, tmp_path: Path) -> None:
    lines = world.ledger.read_text().splitlines(keepends=True)
    there = pick(world, lambda line: processed(world, line))
    edited = tmp_path / "ledger"
    text = "".join(
        line.replace(f'"offset":{there.offset},', '"offset":-1,') if f'"id":"{there.id}"' in line else line
        for line in lines[:-1]
    )
    gone = (
        '{"kind":"event","id":"gone","user":"gone-user","seq":1,"type":"t","fail":false,"partition":-1,'
        '"offset":-1,"sent_ms":1,"acked_ms":0,"crc":0}\n'
    )
    edited.write_text(text + gone + lines[-1])
    report = check(world, ledger=edited, runs=None)
    assert report.clean, report.examples
    assert report.totals.unacknowledged == 2


def test_ledger_of_another_topic_is_refused(world: World) -> None:
    settings = world.settings.model_copy(update={"kafka_topic": "others"})
    with pytest.raises(UsageError, match=r"topic .*kafka_topic is others"):
        check(world, settings=settings)


def test_ledger_that_is_none_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello\n")
    for path in (tmp_path / "x", tmp_path / "missing"):
        with pytest.raises(UsageError, match=str(path)):
            check(world, ledger=path)


def test_runs_that_are_none_are_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "0.runs").write_text("hello\n")
    with pytest.raises(UsageError, match="line 1"):
        check(world, runs=tmp_path)


def test_redis_away(world: World) -> None:
    settings = Settings(
        **(world.settings.model_dump() | {"redis_url": f"redis://127.0.0.1:{free_port()}/0"}),
    )
    with pytest.raises(DependencyError, match="redis_url"):
        check(world, settings=settings)


def test_embedded_broker_that_dropped_is_told(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server, kafka_topic=embedded_broker.topics(1))
    workload = Workload(
        users=10,
        events_per_user=40,
        payload_bytes=60_000,
        topic=settings.kafka_topic,
        run="big",
    )
    with pytest.raises(DependencyError, match=r"dropped the first \d+ records"):
        produce(settings, workload, tmp_path / "ledger")
    assert len((tmp_path / "ledger").read_text().splitlines()) == 402


def test_ledger_tells_where_each_record_is(world: World) -> None:
    lines = {(line.partition, line.offset): line for line in world.lines()}
    with TopicReader(world.settings) as reader:
        for message in reader.read(world.settings.kafka_topic, world.marks()):
            line = lines.pop((message.partition() or 0, message.offset() or 0))
            assert message.key() == line.user.encode()
            if line.kind not in ("invalid", "tombstone"):
                assert dict(message.headers() or [])["event-id"] == line.id.encode()
    assert not lines


def test_paced_producing_keeps_its_schedule(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    workload = Workload(users=20, events_per_user=5, rate=500, topic=settings.kafka_topic, run="paced")
    result = produce(settings, workload, tmp_path / "ledger")
    assert result.acknowledged == 100
    assert 190 <= result.elapsed_ms < 5000
    sent = sorted(line.sent_ms for line in lines_of(tmp_path / "ledger"))
    assert 190 <= sent[-1] - sent[0] <= 200


def test_interrupted_producing_leaves_a_ledger(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    workload = Workload(users=20, events_per_user=50, rate=2000, topic=settings.kafka_topic)
    begun = CLOCK.monotonic_ms()
    result = produce(settings, workload, tmp_path / "ledger", stop=lambda: CLOCK.monotonic_ms() - begun > 300)
    assert result.interrupted
    assert result.acknowledged == result.sent < 1000
    assert len(lines_of(tmp_path / "ledger")) == result.sent


def _keys(world: World, pattern: str) -> list[str]:
    found: Any = world.redis.keys(pattern)
    return sorted(key.decode() for key in found)


def _is_hole(world: World, user: str, seq: int) -> bool:
    return not any((line.user, line.seq) == (user, seq) for line in world.lines())


def _skip(world: World, line: Line, reason: str) -> None:
    """Make it a skipped event; a late one has no place in the order."""
    world.redis.hset(
        f"event:{line.id}",
        mapping={
            "status": "skipped",
            "attempts": 0,
            "error": reason,
            "partition": line.partition,
            "offset": line.offset,
        },
    )
    if reason == "late":
        world.redis.lrem(f"order:{line.user}", 1, str(line.seq))
