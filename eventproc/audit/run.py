"""One audit from end to end: gather, sort, judge in batches, so that memory does not grow with the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from eventproc.audit.events import EventJudge
from eventproc.audit.letters import LetterJudge
from eventproc.audit.positions import PARTITION_FIELDS, Position, judge_position, read_position
from eventproc.audit.report import Report
from eventproc.audit.rules import (
    EVENT_FIELDS,
    LETTER_FIELDS,
    Candidate,
    Final,
    Letter,
    Rules,
    read_final,
    read_letter,
)
from eventproc.audit.sequence import UserJudge
from eventproc.audit.sources import dead_letters, read_runs, topic_lines
from eventproc.audit.staging import DeadLetter, Row, Staging
from eventproc.broker.admin import Admin
from eventproc.broker.reading import TopicReader
from eventproc.clock import Clock, SystemClock
from eventproc.errors import UsageError
from eventproc.settings import Settings
from eventproc.store.keys import Keyspace, flat
from eventproc.store.reading import RedisReader
from eventproc.workload.ledger import Ledger, read_ledger

_BATCH = 2000
_POLL_MS = 100

T = TypeVar("T")
#: Told now and then what is being done, and how many of it are done.
OnProgress = Callable[[str, int], None]


def audit(
    settings: Settings,
    *,
    ledger: Path | None = None,
    runs: Path | None = None,
    idle: bool = True,
    crashed: bool = True,
    clock: Clock | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Compare Redis and Kafka with the ledger, or without one with what lies in the topic.

    `runs`: the handler's own record, a file or folder (`sources.read_runs`). `idle`: all is to be done, so
    lag and locks are violations; False: only what is below the floors is judged. A ledger without its last
    line (it is still being written) tells not all: what is not in it is no phantom then. `crashed`: workers
    may have died, so repeated runs are only counted. Raises UsageError for a ledger of another topic,
    DependencyError when Kafka or Redis cannot be reached.
    """
    clock = clock or SystemClock()
    book = read_ledger(ledger) if ledger is not None else None
    if book is not None and book.topic != settings.kafka_topic:
        raise UsageError(
            f"ledger {ledger} is of topic {book.topic}, but kafka_topic is {settings.kafka_topic}: set it"
        )
    with RedisReader(settings) as redis, Staging() as staging:
        run = _Audit(settings, redis, staging, clock, on_progress or (lambda _what, _count: None))
        return run.audit(book, runs, idle=idle, crashed=crashed)


def wait_until_idle(settings: Settings, timeout_ms: int, clock: Clock | None = None) -> bool:
    """Wait until everything in the topic is final and committed; False when it is not in time."""
    clock = clock or SystemClock()
    deadline_ms = clock.monotonic_ms() + timeout_ms
    with RedisReader(settings) as redis:
        while True:
            if all(position.idle for position in _positions(settings, redis).values()):
                return True
            if clock.monotonic_ms() >= deadline_ms:
                return False
            clock.sleep_ms(_POLL_MS)


def _positions(settings: Settings, redis: RedisReader) -> dict[int, Position]:
    """Committed before floor before end: read in that order, a moving system still looks consistent."""
    topic = settings.kafka_topic
    with Admin(settings) as admin:
        committed = admin.committed(topic, settings.kafka_group_id)
        keys = [flat(settings.key_prefix, topic, number).partition for number in committed]
        stored = redis.hashes(keys, PARTITION_FIELDS)
        marks = admin.watermarks(topic)
    return {
        number: read_position((*marks[number], committed[number]), values)
        for number, values in zip(committed, stored, strict=True)
    }


class _Audit:
    def __init__(
        self, settings: Settings, redis: RedisReader, staging: Staging, clock: Clock, on_progress: OnProgress
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._staging = staging
        self._on_progress = on_progress
        self._report = Report()
        self._rules = Rules(settings, settings.kafka_topic, clock.wall_ms())
        self._keys: Keyspace = flat(settings.key_prefix, settings.kafka_topic, 0)
        self._letters = LetterJudge(self._rules, self._report, staging)
        self._events = EventJudge(self._rules, self._report, staging, self._letters)
        self._user: tuple[str, UserJudge] | None = None
        self._seq = 0
        self._group: dict[str, Candidate] = {}
        self._run_events = 0

    def audit(self, book: Ledger | None, runs: Path | None, *, idle: bool, crashed: bool) -> Report:
        rules, report, staging = self._rules, self._report, self._staging
        positions = _positions(self._settings, self._redis)
        for number, position in positions.items():
            judge_position(f"{rules.topic}/{number}", position, idle=idle, report=report)
            rules.floors[number] = position.floor
            rules.baselines[number] = position.baseline
        rules.idle, rules.crashed, rules.with_runs = idle, crashed, runs is not None
        whole = all(position.low == 0 for position in positions.values())
        rules.timed = book is not None
        if book is None:
            rules.lows = {number: position.low for number, position in positions.items() if position.low}
            report.notes += [
                f"records below offset {low} of {rules.topic}/{number} are gone from Kafka: they are not "
                "judged"
                for number, low in rules.lows.items()
            ]

        list_length = self._gather(book, runs, positions)
        rules.complete = bool(book.end) if book is not None else whole and idle
        if book is not None and not book.end:
            report.notes.append(
                f"ledger {book.path} has no last line: its producer still writes it, or was killed; "
                "what is not in it is not judged"
            )
        self._on_progress("sorting", 0)
        staging.sort()
        self._judge_rows()
        exclusive, whole = _coverage(book, positions, whole and idle)
        self._letters.finish(list_length=list_length, exclusive=exclusive, whole=whole)
        self._finish_runs(whole)
        for id, user, seq in staging.unfounded_elsewhere() if rules.complete else ():
            report.add(
                "rewritten", f"event:{id} tells user {user} seq {seq}, under which it was never produced"
            )
        for key in dict.fromkeys(self._redis.foreign):
            report.add("foreign", f"{key} is of a wrong type")
        report.totals.dead_letters = staging.dead_copies()
        return report

    def _gather(self, book: Ledger | None, runs: Path | None, positions: dict[int, Position]) -> int:
        """Fill the staging tables; the length of dlq:list."""
        settings, staging = self._settings, self._staging
        with TopicReader(settings) as reader:
            if book is not None:
                staging.add_records(self._counted("ledger", book.lines()))
            else:
                ranges = {number: (position.low, position.high) for number, position in positions.items()}
                staging.add_records(self._counted("topic", topic_lines(reader, settings, ranges)))
            with Admin(settings) as admin:
                known = admin.partition_count(settings.dlq_topic) > 0
                marks = admin.watermarks(settings.dlq_topic) if known else {}
            letters = self._counted("dead letters", dead_letters(reader, settings, marks))
            staging.add_dead_letters(self._with_origin(letters))
        if runs is not None:
            staging.add_runs(self._counted("runs", read_runs(runs)))
        listed = self._redis.elements(self._keys.dlq_list)
        staging.add_listed(listed)
        return len(listed)

    def _with_origin(self, letters: Iterable[DeadLetter | str]) -> Iterator[DeadLetter]:
        for letter in letters:
            if isinstance(letter, DeadLetter):
                yield letter
            else:
                self._report.add("dlq", letter)

    def _counted(self, what: str, items: Iterable[T]) -> Iterator[T]:
        for count, item in enumerate(items, 1):
            yield item
            if not count % 20_000:
                self._on_progress(what, count)

    # --- judging ------------------------------------------------------------------------------------

    def _judge_rows(self) -> None:
        totals = self._report.totals
        rows = self._staging.rows()
        while batch := list(islice(rows, _BATCH)):
            totals.records += len(batch)
            totals.unacknowledged += sum(row.off < 0 for row in batch)
            self._staging.know_dead((row.part, row.off) for row in batch if row.dead)
            self._judge_batch(batch)
            self._on_progress("judging", totals.records)
        self._end_user()

    def _judge_batch(self, rows: list[Row]) -> None:
        keys, redis = self._keys, self._redis
        ids = list(dict.fromkeys(row.id for row in rows if row.id))
        finals = {
            id: read_final(values)
            for id, values in zip(
                ids, redis.hashes([keys.event + id for id in ids], EVENT_FIELDS), strict=True
            )
        }
        marked = redis.existing([keys.dedup + id for id in ids])
        if self._rules.idle:
            for key in sorted(redis.existing([keys.inflight + id for id in ids])):
                self._report.add("lock", f"{key} is left: {redis.value(key)}")
        letters = self._read_letters(rows, finals)
        judges = self._start_users(rows)
        for row in rows:
            position_letter = letters.get(self._rules.position_id(row))
            if row.kind == "invalid":
                self._events.judge_invalid(row, position_letter, finals.get(row.id) is not None)
            elif row.kind == "tombstone":
                self._events.judge_tombstone(row, position_letter)
            else:
                self._take(row, judges, finals[row.id], keys.dedup + row.id in marked, letters)

    def _take(
        self,
        row: Row,
        judges: dict[str, UserJudge],
        final: Final | None,
        marked: bool,
        letters: dict[str, Letter | None],
    ) -> None:
        if self._user is None or self._user[0] != row.user:
            self._end_user()
            self._user = (row.user, judges[row.user])
        if row.seq != self._seq or (not row.seq and row.id not in self._group):
            self._end_group()
            self._seq = row.seq
        candidate = self._group.get(row.id)
        if candidate is None:
            candidate = self._group[row.id] = Candidate([], final, marked, letters.get(row.id))
        candidate.rows.append(row)
        at = letters.get(self._rules.position_id(row))
        if at is not None:
            candidate.letters_at[row.part, row.off] = at

    def _end_group(self) -> None:
        if self._group and self._user is not None:
            self._user[1].group(self._seq, list(self._group.values()))
        self._run_events += sum(candidate.first.runs > 0 for candidate in self._group.values())
        self._group = {}

    def _end_user(self) -> None:
        self._end_group()
        if self._user is not None:
            self._user[1].finish()
        self._user, self._seq = None, 0

    def _start_users(self, rows: list[Row]) -> dict[str, UserJudge]:
        """Judges of the users in the batch, with the sequence keys of those who are new."""
        keys = self._keys
        users = list(dict.fromkeys(row.user for row in rows if row.kind not in ("invalid", "tombstone")))
        judges: dict[str, UserJudge] = {}
        if users and self._user is not None and users[0] == self._user[0]:
            judges[users[0]] = self._user[1]
            del users[0]
        found = self._redis.users([(keys.order + u, keys.next + u, keys.gaps + u) for u in users])
        for user, user_keys in zip(users, found, strict=True):
            judges[user] = UserJudge(user, user_keys, self._rules, self._events, self._report)
        return judges

    def _read_letters(self, rows: list[Row], finals: dict[str, Final | None]) -> dict[str, Letter | None]:
        """`dlq:` hashes under the id or position id of every record that may have one."""
        wanted: dict[str, None] = {}
        for row in rows:
            final = finals.get(row.id)
            elsewhere = final is not None and (final.user, final.seq) != (row.user, row.seq)
            if elsewhere or row.kind in ("invalid", "tombstone"):
                wanted[self._rules.position_id(row)] = None
        own = [self._keys.dlq + row.id for row in rows if row.id]
        prefix = len(self._keys.dlq)
        wanted |= dict.fromkeys(key[prefix:] for key in self._redis.existing(own))
        ids = list(wanted)
        found = self._redis.hashes([self._keys.dlq + id for id in ids], LETTER_FIELDS)
        return {id: read_letter(values) for id, values in zip(ids, found, strict=True)}

    def _finish_runs(self, whole: bool) -> None:
        if not self._rules.with_runs:
            return
        runs, events = self._staging.run_totals()
        self._report.totals.runs = runs
        if events > self._run_events and whole:
            for user, seq, id in self._staging.unfounded_runs():
                self._report.add(
                    "phantom", f"the handler ran {id} of user {user} seq {seq}, which nobody produced"
                )


def _coverage(book: Ledger | None, positions: dict[int, Position], whole: bool) -> tuple[bool, bool]:
    """Whether every record of the topic is judged; whether these are all that ever were."""
    if book is None:
        return whole, whole
    if not book.end:
        return False, False
    span = sum(book.end[number] - book.start[number] for number in book.end)
    exclusive = book.closing["acknowledged"] <= span <= book.closing["records"]
    starts_at_0 = not any(book.start.values())
    ends_at_high = all(position.high == book.end.get(number) for number, position in positions.items())
    return exclusive and starts_at_0 and ends_at_high, exclusive and starts_at_0 and ends_at_high and whole
