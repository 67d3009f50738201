"""Described workloads: deterministic, displaced within the window, and with what was asked for in them."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventproc.errors import UsageError
from eventproc.event import Invalid, Validator
from eventproc.workload import LedgerWriter, Record, Workload, read_ledger
from eventproc.workload.invalid import INVALID_KINDS, invalid_value

FULL: dict[str, Any] = {
    "users": 50,
    "events_per_user": 20,
    "shuffle_window": 30,
    "duplicate_ratio": 0.1,
    "failing_ratio": 0.05,
    "missing_seqs": 5,
    "late_events": 7,
    "invalid_records": len(INVALID_KINDS) + 3,
    "unsequenced_ratio": 0.1,
    "stale": 6,
    "conflicts": 4,
    "tombstones": 3,
}


def content(record: Record) -> tuple[object, ...]:
    return (record.kind, record.key, record.value, tuple(record.headers))


def test_same_workload_same_records() -> None:
    first, second = Workload(**FULL, seed=3), Workload(**FULL, seed=3)
    assert list(map(content, first.main())) == list(map(content, second.main()))
    assert list(map(content, first.late())) == list(map(content, second.late()))
    other = Workload(**FULL, seed=4)
    assert list(map(content, first.main())) != list(map(content, other.main()))


def test_runs_share_no_user_and_no_id() -> None:
    first, second = Workload(**FULL, run="a"), Workload(**FULL, run="b")
    assert not {r.user for r in first.main()} & {r.user for r in second.main()}
    assert not {r.id for r in first.main() if r.id} & {r.id for r in second.main() if r.id}


def test_what_was_asked_for_is_in_it() -> None:
    workload = Workload(**FULL)
    main, late = list(workload.main()), list(workload.late())
    kinds = Counter(record.kind for record in main)
    assert len(late) == 7
    assert kinds["invalid"] == FULL["invalid_records"]
    assert (kinds["stale"], kinds["conflict"], kinds["tombstone"]) == (6, 4, 3)
    assert kinds["event"] == 1000 - 5 - 7 - 4
    assert 60 < kinds["duplicate"] < 140
    assert 60 < kinds["unsequenced"] < 140
    assert 20 < sum(record.fail for record in main) < 90
    produced = Counter((r.user, r.seq) for r in main + late if r.kind in ("event", "late", "conflict"))
    assert set(produced.values()) == {1}
    assert len(produced) == 1000 - 5
    followed = {(r.user, r.seq) for r in main if r.kind == "event"}
    assert all((r.user, r.seq) not in followed and r.seq < 20 for r in late)


def test_each_kind_is_what_it_says() -> None:
    workload = Workload(**FULL)
    main = list(workload.main())
    events = {record.id: record for record in main if record.kind == "event"}
    for record in main:
        if record.kind == "duplicate":
            assert content(record)[1:] == content(events[record.id])[1:]
        elif record.kind == "conflict":
            original = events[record.id]
            assert (original.user, original.seq) == (record.user, record.seq - 1)
        elif record.kind == "stale":
            twin = next(o for o in events.values() if (o.user, o.seq) == (record.user, record.seq))
            assert twin.id != record.id
        elif record.kind == "unsequenced":
            assert record.seq == 0
            assert record.id not in events


def test_records_are_valid_exactly_when_they_say_so() -> None:
    validator = Validator("events", 900_000)
    for record in (*Workload(**FULL).main(), *Workload(**FULL).late()):
        if record.value is None:
            assert record.kind == "tombstone"
            continue
        size = len(record.key) + len(record.value)
        if record.kind == "invalid":
            with pytest.raises(Invalid):
                validator.check(validator.decode(record.value, size))
            continue
        document = validator.decode(record.value, size)
        assert validator.check(document) == record.seq
        assert (document["id"], document["userId"], document["type"]) == (record.id, record.user, record.type)
        assert bool(document["payload"].get("fail")) is record.fail
        assert dict(record.headers) == {"event-id": record.id.encode(), "event-type": record.type.encode()}


@pytest.mark.parametrize("kind", INVALID_KINDS)
def test_every_kind_of_invalid_record_is_refused(kind: str) -> None:
    value, shows_id = invalid_value(kind, "some-id", "user", "events", 5)
    validator = Validator("events", 900_000)
    with pytest.raises(Invalid):
        validator.check(validator.decode(value, len(value)))
    assert shows_id == (b'"some-id"' in value)


@pytest.mark.parametrize("window", [0, 1, 17])
def test_displacement_stays_within_the_window(window: int) -> None:
    def places(shuffle_window: int) -> dict[str, int]:
        workload = Workload(users=100, events_per_user=10, shuffle_window=shuffle_window, payload_bytes=0)
        return {record.id: place for place, record in enumerate(workload.main())}

    unshuffled, shuffled = places(0), places(window)
    moved = [abs(place - unshuffled[id]) for id, place in shuffled.items()]
    assert max(moved) <= window
    assert (max(moved) > 0) == (window > 0)


def test_memory_does_not_grow_with_the_number_of_events() -> None:
    def peak(events_per_user: int) -> int:
        workload = Workload(**(FULL | {"events_per_user": events_per_user}))
        tracemalloc.start()
        for _ in workload.main():
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(20)
    assert peak(400) < 1.5 * peak(40) + 1_000_000


def test_timestamps_follow_the_rate() -> None:
    workload = Workload(users=10, events_per_user=10, shuffle_window=0, rate=100, start_ms=1_000_000)
    stamps = [orjson.loads(record.value or b"")["timestamp"] for record in workload.main()]
    assert stamps == [1_000_000 + 10 * turn for turn in range(100)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": 0},
        {"events_per_user": 0},
        {"duplicate_ratio": 1.5},
        {"failing_ratio": -0.1},
        {"rate": -1},
        {"shuffle_window": -1},
        {"stale": -1},
        {"payload_bytes": 1_000_000},
        {"payload_bytes": -1},
        {"missing_seqs": 6, "users": 1, "events_per_user": 11},
        {"conflicts": 3, "users": 1, "events_per_user": 11},
        {"stale": 6, "users": 1, "events_per_user": 11},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).split("_")[0]):
        Workload(**wrong)


# --- the ledger -----------------------------------------------------------------------------------------


def written(path: Path) -> list[Record]:
    records = list(islice(Workload(**FULL).main(), 20))
    with LedgerWriter(path, topic="events", start={0: 5, 1: 7}, workload={"users": 50}) as writer:
        for place, record in enumerate(records[:-1]):
            writer.record(record, place % 2, 100 + place, 1000 + place, 1010 + place)
        writer.record(records[-1], -1, -1, 1000, 0)
        writer.finish({0: 15, 1: 17})
    return records


def test_ledger_reads_as_it_was_written(tmp_path: Path) -> None:
    records = written(tmp_path / "ledger")
    ledger = read_ledger(tmp_path / "ledger")
    assert (ledger.topic, ledger.start, ledger.end) == ("events", {0: 5, 1: 7}, {})
    lines = list(ledger.lines())
    assert ledger.end == {0: 15, 1: 17}
    assert (ledger.closing["acknowledged"], ledger.closing["unacknowledged"]) == (19, 1)
    for place, (line, record) in enumerate(zip(lines[:-1], records, strict=False)):
        assert (line.kind, line.id, line.user, line.seq) == (record.kind, record.id, record.user, record.seq)
        assert (line.partition, line.offset) == (place % 2, 100 + place)
    assert lines[-1].offset == -1


def test_ledger_of_a_killed_producer_is_read_up_to_its_torn_line(tmp_path: Path) -> None:
    written(tmp_path / "ledger")
    whole = (tmp_path / "ledger").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn").write_bytes(b"".join(whole[:5]) + whole[5][:20])
    assert len(list(read_ledger(tmp_path / "torn").lines())) == 4


def test_ledger_with_rubbish_in_it_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "ledger")
    whole = (tmp_path / "ledger").read_bytes().splitlines(keepends=True)
    (tmp_path / "bad").write_bytes(b"".join([*whole[:5], b"rubbish\n", *whole[5:]]))
    with pytest.raises(UsageError, match="line 6"):
        list(read_ledger(tmp_path / "bad").lines())


def test_ledger_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        LedgerWriter(tmp_path / "nowhere" / "ledger", topic="events", start={}, workload={})
