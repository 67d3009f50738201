"""Producing a workload: open loop, with the ledger of what Kafka acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eventproc.broker.admin import Admin, prepare_topics
from eventproc.broker.embedded import check_not_dropped, is_embedded
from eventproc.broker.producer import EventProducer
from eventproc.clock import Clock, SystemClock
from eventproc.errors import DependencyError, UsageError
from eventproc.settings import Settings
from eventproc.workload.generate import Record, Workload
from eventproc.workload.ledger import LedgerWriter
from eventproc.workload.posting import ApiPoster, ApiShare

_POLL_EVERY = 256  # records between two looks at the delivery reports
_PROGRESS_EVERY_MS = 200
_STEP_MS = 50.0
_FLUSH_TIMEOUT_S = 60.0
#: Bulk batches that suit the embedded broker, which hands out one at a time; small ones for a rate.
_BULK_LINGER_MS = 100
_PACED_LINGER_MS = 2


@dataclass(slots=True)
class Progress:
    """Where producing stands. `phase` is main, waiting (for gaps to close) or late."""

    phase: str
    sent: int
    acknowledged: int
    elapsed_ms: int


@dataclass(slots=True)
class Produced:
    """What came of it. `kinds` counts records by kind, `failed` the reasons of those not acknowledged."""

    sent: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0
    interrupted: bool = False
    elapsed_ms: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def events_per_s(self) -> float:
        """Acknowledged records by the time it took, waiting for gaps included."""
        return self.acknowledged * 1000 / self.elapsed_ms if self.elapsed_ms else 0.0


def produce(
    settings: Settings,
    workload: Workload,
    ledger: Path | None = None,
    *,
    late_after_ms: int = 0,
    before_late: Callable[[], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Clock | None = None,
    api: ApiShare | None = None,
) -> Produced:
    """Produce the workload to `kafka_topic`; creates the topics where that is allowed.

    With a rate each record has its scheduled time, whether or not Kafka keeps up; that time is the ledger's
    `sent_ms`. Before the late events it waits `late_after_ms` (0: gap_timeout_ms and two seconds), or calls
    `before_late` instead. `stop` is asked often; once true nothing more is sent and the rest is flushed.
    With `api` the valid records of some users are posted there; all others go to Kafka itself.
    Raises DependencyError when an embedded broker has dropped records (CONTRACT 7), after writing the ledger.
    """
    if workload.topic != settings.kafka_topic:
        raise UsageError(
            f"the workload is for topic {workload.topic}, but kafka_topic is {settings.kafka_topic}"
        )
    clock = clock or SystemClock()
    prepare_topics(settings, clock)
    start = {number: high for number, (_low, high) in _watermarks(settings).items()}
    run = _Run(settings, workload, clock, on_progress, stop, api)
    writer = (
        LedgerWriter(ledger, topic=workload.topic, start=start, workload=workload.describe())
        if ledger
        else None
    )
    try:
        run.carry_out(writer, late_after_ms or settings.gap_timeout_ms + 2000, before_late)
        marks = _watermarks(settings)
        end = {number: high for number, (_low, high) in marks.items()}
        if api is not None:  # what was posted is looked up in the topic
            _check_kept(settings, start, marks, posted=True)
        result = run.settle({number: (start.get(number, 0), high) for number, high in end.items()})
        if writer is not None:
            writer.finish(end, interrupted=result.interrupted)
    finally:
        if writer is not None:
            writer.close()
    if api is None:
        _check_kept(settings, start, marks, posted=False)
    return result


class _Run:
    def __init__(
        self,
        settings: Settings,
        workload: Workload,
        clock: Clock,
        on_progress: Callable[[Progress], None] | None,
        stop: Callable[[], bool] | None,
        api: ApiShare | None,
    ) -> None:
        self._workload = workload
        self._settings = settings
        self._clock = clock
        self._on_progress = on_progress
        self._stop = stop or (lambda: False)
        self._api = api
        self._poster = ApiPoster(api.url, clock) if api else None
        self._writer: LedgerWriter | None = None
        self._pending: dict[int, tuple[Record, int]] = {}  # records whose fate is not known, and send times
        self._result = Produced()
        self._begun_ms = clock.monotonic_ms()
        self._shown_ms = self._begun_ms

    def carry_out(
        self, writer: LedgerWriter | None, late_after_ms: int, before_late: Callable[[], None] | None
    ) -> None:
        """Send everything, and wait until it is acknowledged or has failed."""
        workload, result = self._workload, self._result
        self._writer = writer
        linger_ms = _PACED_LINGER_MS if workload.rate else _BULK_LINGER_MS
        producer = EventProducer(self._settings, linger_ms=linger_ms, on_acked=self._on_acked)
        try:
            self._send(producer, workload.main(), "main")
            if workload.late_events and not result.interrupted:
                self._flush(producer)
                if before_late is not None:
                    before_late()
                else:
                    self._wait(producer, late_after_ms)
                self._send(producer, workload.late(), "late")
            self._flush(producer)
        finally:
            producer.close()
            if self._poster is not None:
                self._poster.close()
        result.failed = dict(producer.failed)
        result.elapsed_ms = self._clock.monotonic_ms() - self._begun_ms

    def settle(self, ranges: Mapping[int, tuple[int, int]]) -> Produced:
        """Find out what became of the rest; everything has its line in the ledger then."""
        result = self._result
        if self._poster is not None:
            self._poster.settle(self._settings, ranges, self._on_found)
            result.failed |= self._poster.failed
        result.unacknowledged = len(self._pending)
        if self._writer is not None:
            for record, sent_ms in self._pending.values():
                self._writer.record(record, -1, -1, sent_ms, 0)
        return result

    def _flush(self, producer: EventProducer) -> None:
        producer.flush(_FLUSH_TIMEOUT_S)
        if self._poster is not None:
            self._poster.flush()

    def _send(self, producer: EventProducer, records: Iterable[Record], phase: str) -> None:
        clock, result, pending = self._clock, self._result, self._pending
        step_ms = 1000 / self._workload.rate if self._workload.rate else 0.0
        begun_ms, begun_wall_ms = clock.monotonic_ms(), clock.wall_ms()
        for count, record in enumerate(records):
            if step_ms:
                due_ms = count * step_ms
                while (ahead_ms := begun_ms + due_ms - clock.monotonic_ms()) >= 1 and not self._stop():
                    producer.poll()
                    self._show(phase)
                    clock.sleep_ms(min(ahead_ms, _STEP_MS))
                sent_ms = begun_wall_ms + int(due_ms)
            else:
                sent_ms = clock.wall_ms()
            if not count % _POLL_EVERY or step_ms:
                producer.poll()
                self._show(phase)
                if self._stop():
                    result.interrupted = True
                    return
            number = result.sent
            pending[number] = (record, sent_ms)
            if self._poster is not None and self._api is not None and self._api.takes(record):
                self._poster.post(number, record)
            else:
                producer.produce(record.key, record.value, record.headers, tag=number)
            result.sent += 1
            result.kinds[record.kind] = result.kinds.get(record.kind, 0) + 1

    def _wait(self, producer: EventProducer, wait_ms: int) -> None:
        until_ms = self._clock.monotonic_ms() + wait_ms
        while (left_ms := until_ms - self._clock.monotonic_ms()) > 0 and not self._stop():
            producer.poll()
            self._show("waiting")
            self._clock.sleep_ms(min(left_ms, _STEP_MS))

    def _on_acked(self, number: int, partition: int, offset: int) -> None:
        self._on_found(number, partition, offset, self._clock.wall_ms())

    def _on_found(self, number: int, partition: int, offset: int, acked_ms: int) -> None:
        record, sent_ms = self._pending.pop(number)
        self._result.acknowledged += 1
        if self._writer is not None:
            self._writer.record(record, partition, offset, sent_ms, acked_ms)

    def _show(self, phase: str) -> None:
        now_ms = self._clock.monotonic_ms()
        if self._on_progress is not None and now_ms - self._shown_ms >= _PROGRESS_EVERY_MS:
            self._shown_ms = now_ms
            result = self._result
            acknowledged = result.acknowledged + (self._poster.acknowledged if self._poster else 0)
            self._on_progress(Progress(phase, result.sent, acknowledged, now_ms - self._begun_ms))


def _watermarks(settings: Settings) -> dict[int, tuple[int, int]]:
    with Admin(settings) as admin:
        return admin.watermarks(settings.kafka_topic)


def _check_kept(
    settings: Settings, start: dict[int, int], marks: dict[int, tuple[int, int]], *, posted: bool
) -> None:
    """Records of this run must still be in the log, or be read; the embedded broker drops them silently.

    Those that were posted are looked up there.
    """
    with Admin(settings) as admin:
        embedded = is_embedded(admin.metadata().cluster_id)
        committed = admin.committed(settings.kafka_topic, settings.kafka_group_id) if embedded else {}
    for number, (low, _high) in marks.items():
        if embedded:
            check_not_dropped(low, committed.get(number, -1), settings.kafka_topic, number)
            if posted and low > start.get(number, 0):
                raise DependencyError(
                    f"the embedded broker has let go of {settings.kafka_topic}/{number} up to offset {low} "
                    "while events were posted, which are looked up there: start it with "
                    "embedded_keep_records=0"
                )
        elif low > start.get(number, 0):
            raise DependencyError(
                f"{settings.kafka_topic}/{number} lost the records up to offset {low} while they were "
                "produced (retention): raise the topic's retention.ms or retention.bytes"
            )
