"""Every metric, declared once, and the board in shared memory through which processes publish them.

The supervisor creates a `Board`: one `Page` per partition and one for the deployment. A worker writes its
page from its own loop; the supervisor and the monitor read. The supervisor owns the memory, so a restart
of a worker resets no counter. Each word has one writer at a time, and is written as one aligned 8-byte
store: readers need no lock, and two words may be a batch apart.
"""

from __future__ import annotations

import mmap
import os
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from eventproc._run import Mark
from eventproc.effects import GapReason, Reason
from eventproc.errors import ConfigError
from eventproc.settings import MAX_CONCURRENCY
from eventproc.spawn import nameless_file

Counter = Literal[
    "records_consumed",
    "events",
    "dead_letters",
    "dlq_pointers",
    "retries",
    "handler_runs",
    "gaps_closed",
    "rewinds",
    "redis_calls",
    "redis_errors",
    "kafka_commits",
    "kafka_errors",
    "foreign_keys",
    "restarts",
]
Gauge = Literal[
    "lag",
    "unfinalized",
    "parked",
    "parked_bytes",
    "oldest_gap_ms",
    "users",
    "users_set_aside",
    "position",
    "floor",
    "committed",
    "high_watermark",
    "epoch",
    "pid",
    "started_ms",
    "redis_down",
    "kafka_down",
    "breaker_open",
    "redis_bytes_used",
    "redis_maxmemory",
    "redis_bytes_per_event",
    "redis_full_s",
]
Histogram = Literal["latency_ms", "hold_ms", "handler_ms", "acquire_batch_events", "finalize_batch_events"]
Scope = Literal["partition", "deployment"]

State = Literal["starting", "standby", "running", "paused", "draining", "stopped", "crashed"]
STATES: tuple[State, ...] = get_args(State)

OUTCOMES = ("processed", "failed", "skipped", "duplicate", "invalid", "tombstone", "misrouted")
REASONS: tuple[str, ...] = tuple(reason for reason in get_args(Reason) if reason)
GAP_REASONS: tuple[str, ...] = get_args(GapReason)
CALLS = ("claim", "load", "acquire", "finalize", "release", "renew", "check")


# Fine below 50 ms, where the latency target lies.
_LATENCY_MS = (
    *(1, 2, 3, 5, 7.5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750),
    *(1000, 2000, 5000, 10_000, 30_000, 60_000),
)
_HOLD_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000)
_HANDLER_MS = (0.01, 0.05, 0.1, 0.5, *_HOLD_MS)
_BATCH_EVENTS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500, 750, 1000, 2000)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `exposed` is its Prometheus name, whose unit is `scale` times the one it is kept in.

    `values` are all values its `label` may have; without a label there is one unnamed value.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    exposed: str
    scale: float = 1
    label: str = ""
    values: tuple[str, ...] = ("",)
    buckets: tuple[float, ...] = ()
    scope: Scope = "partition"
    absent_at_zero: bool = False  # 0: not known, and not shown


def _counter(
    name: Counter, help: str, label: str = "", values: tuple[str, ...] = ("",), exposed: str = ""
) -> Metric:
    # prometheus_client adds the _total of counters
    return Metric(name, "counter", help, f"eventproc_{exposed or name}", label=label, values=values)


def _gauge(name: Gauge, help: str, exposed: str = "", scale: float = 1, scope: Scope = "partition") -> Metric:
    return Metric(name, "gauge", help, f"eventproc_{exposed or name}", scale, scope=scope)


def _estimate(name: Gauge, help: str, exposed: str = "") -> Metric:
    return Metric(
        name, "gauge", help, f"eventproc_{exposed or name}", scope="deployment", absent_at_zero=True
    )


def _histogram(
    name: Histogram, help: str, buckets: tuple[float, ...], exposed: str = "", scale: float = 1
) -> Metric:
    return Metric(name, "histogram", help, f"eventproc_{exposed or name}", scale, buckets=buckets)


_MS = 0.001

METRICS: tuple[Metric, ...] = (
    _counter("records_consumed", "Kafka records read"),
    _counter("events", "records that are settled, by outcome", "outcome", OUTCOMES),
    _counter("dead_letters", "records sent to the dead-letter queue, by reason", "reason", REASONS),
    _counter("dlq_pointers", "dead letters of which only a pointer record could be produced"),
    _counter("retries", "handler runs after the first of an event"),
    _counter("handler_runs", "handler runs"),
    _counter("gaps_closed", "gaps given up, by reason", "reason", GAP_REASONS),
    _counter("rewinds", "times the partition was claimed anew because Redis had lost writes"),
    _counter("redis_calls", "calls to Redis (a batch is one call)", "call", CALLS),
    _counter(
        "redis_errors",
        "times that Redis could not be reached or refused a call for now",
    ),
    _counter("kafka_commits", "offset commits that Kafka acknowledged"),
    _counter("kafka_errors", "errors that the worker's consumer reported, refused commits among them"),
    _counter("foreign_keys", "keys of the wrong type found in the way"),
    _counter("restarts", "restarts of the partition's worker", exposed="worker_restarts"),
    _gauge("lag", "records between the committed offset and the end of the partition"),
    _gauge("unfinalized", "records read that are not final yet"),
    _gauge("parked", "events waiting for a lower seq of their user"),
    _gauge("parked_bytes", "bytes of the parked events"),
    _gauge("oldest_gap_ms", "age of the oldest open gap, 0 without one", "oldest_gap_seconds", _MS),
    _gauge("users", "users kept in memory"),
    _gauge("users_set_aside", "users held back by a foreign key"),
    _gauge("position", "next offset to read", "position_offset"),
    _gauge("floor", "lowest offset that is not final", "floor_offset"),
    _gauge("committed", "offset committed to the group", "committed_offset"),
    _gauge("high_watermark", "end offset of the partition", "high_watermark_offset"),
    _gauge("epoch", "fencing epoch under which the partition is owned"),
    _gauge("pid", "process id of the worker", "worker_pid"),
    _gauge("started_ms", "when the worker started, since 1970", "worker_start_time_seconds", _MS),
    _gauge("redis_down", "1 while Redis does not answer this worker"),
    _gauge("kafka_down", "1 while Kafka does not answer this worker"),
    _gauge("breaker_open", "1 while the partition is stopped before one dead letter too many"),
    _gauge("redis_bytes_used", "memory Redis uses (used_memory)", "redis_used_bytes", scope="deployment"),
    _gauge(
        "redis_maxmemory", "memory Redis may use, 0: unlimited", "redis_maxmemory_bytes", scope="deployment"
    ),
    _estimate(
        "redis_bytes_per_event",
        "growth of Redis' memory in the last five minutes, divided by the events finalized in them;"
        " absent while unknown, or nothing grows",
    ),
    _estimate(
        "redis_full_s",
        "when Redis will have reached maxmemory if it goes on growing as in the last five minutes;"
        " absent while unknown, without maxmemory, or nothing grows",
        "redis_seconds_until_maxmemory",
    ),
    _histogram("latency_ms", "record timestamp to final outcome", _LATENCY_MS, "latency_seconds", _MS),
    _histogram("hold_ms", "time in the reorder buffer", _HOLD_MS, "hold_seconds", _MS),
    _histogram("handler_ms", "time of one handler run", _HANDLER_MS, "handler_seconds", _MS),
    _histogram("acquire_batch_events", "events per acquire call", _BATCH_EVENTS),
    _histogram("finalize_batch_events", "events per finalize call", _BATCH_EVENTS),
)


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram holds: `counts[i]` values in (bounds[i-1], bounds[i]], the last one above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def __add__(self, other: Distribution) -> Distribution:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Distribution(self.bounds, counts, self.sum + other.sum)

    def __sub__(self, earlier: Distribution) -> Distribution:
        """What was observed since `earlier`."""
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        return Distribution(self.bounds, counts, self.sum - earlier.sum)

    def quantile(self, q: float) -> float:
        """Estimate the `q` quantile (0..1), linear within its bucket; 0 without values.

        Above the highest bound nothing is known: that bound is the answer then.
        """
        rank = q * self.count
        below, lower = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * max(0.0, rank - below) / count
            below, lower = below + count, bound
        return self.bounds[-1] if self.count else 0.0


# --- layout of a page, in 8-byte words ---------------------------------------------------------------

# used for progress, not exposed as metrics of their own
_PROGRESS, _LAST_BEAT, _RUNNING_SINCE, _RUNNING_OFFSET, _STATE, _RESUMES, _RESUMED = range(7)
_TEXT_WORDS = 31  # one of length and checksum, 240 bytes
_TEXT_BYTES = (_TEXT_WORDS - 1) * 8
_LAST_ERROR = 7
_STATE_REASON = _LAST_ERROR + _TEXT_WORDS
_LAST_DEAD_LETTER = _STATE_REASON + _TEXT_WORDS
_TASKS = _LAST_DEAD_LETTER + _TEXT_WORDS  # of each slot: since when its handler runs, on which offset
_FIRST_METRIC = _TASKS + 2 * MAX_CONCURRENCY
_SUM_SCALE = 1000  # sums of histograms are kept in thousandths

_METRIC = {metric.name: metric for metric in METRICS}
_WORD: dict[tuple[str, str], int] = {}  # (metric, label value) -> its (first) word


def _lay_out() -> int:
    word = _FIRST_METRIC
    for metric in METRICS:
        for value in metric.values:
            _WORD[metric.name, value] = word
            word += len(metric.buckets) + 2 if metric.buckets else 1
    return word


_PAGE_BYTES = -(-_lay_out() * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
#: Tells a board of another version of this table: a worker started after an upgrade must not misread it.
_LAYOUT = zlib.crc32(repr((METRICS, STATES, _PAGE_BYTES)).encode())


class Page:
    """The words of one partition (or of the deployment). Get it from a `Board`."""

    __slots__ = ("_at", "_words", "running")

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._at: memoryview = words  # the same; where it is compiled, memory of C
        #: Of the handler that runs in the worker's own loop.
        self.running = Mark(words[_RUNNING_SINCE : _RUNNING_OFFSET + 1])

    # metrics

    def inc(self, metric: Counter, n: int = 1, label: str = "") -> None:
        """Add `n` to a counter; `label` is required for one that has labels. KeyError if not declared."""
        self._at[_WORD[metric, label]] += n

    def set(self, metric: Gauge, value: int) -> None:
        """Set a gauge."""
        self._at[_WORD[metric, ""]] = value

    def get(self, metric: Counter | Gauge, label: str = "") -> int:
        """Return a counter (of one label value) or a gauge."""
        return int(self._at[_WORD[metric, label]])

    def total(self, metric: Counter) -> int:
        """Return a counter, summed over its label values."""
        return sum(self._words[_WORD[metric, value]] for value in _METRIC[metric].values)

    def observe(self, metric: Histogram, values: Iterable[float]) -> None:
        """Add a batch of values to a histogram; about 0.1 us each."""
        ordered = sorted(values)
        bounds = _METRIC[metric].buckets
        words, first = self._at, _WORD[metric, ""]
        n, below = len(ordered), 0
        while below < n:
            bucket = bisect_left(bounds, ordered[below])
            upto = bisect_right(ordered, bounds[bucket], below) if bucket < len(bounds) else n
            words[first + bucket] += upto - below
            below = upto
        words[first + len(bounds) + 1] += round(sum(ordered) * _SUM_SCALE)

    def distribution(self, metric: Histogram) -> Distribution:
        """Return a histogram as it stands."""
        bounds = _METRIC[metric].buckets
        first = _WORD[metric, ""]
        counts = self._words[first : first + len(bounds) + 1].tolist()
        return Distribution(bounds, tuple(counts), self._words[first + len(bounds) + 1] / _SUM_SCALE)

    def reset_gauges(self) -> None:
        """Zero all gauges and forget the running record: what a new worker does first."""
        for metric in METRICS:
            if metric.kind == "gauge":
                self._words[_WORD[metric.name, ""]] = 0
        self.forget_runs()

    # progress and state; times are on the machine's monotonic clock, which all processes share

    def beat(self, now_ms: int) -> None:
        """Progress was made (a batch, or an idle poll)."""
        self._at[_LAST_BEAT] = now_ms
        self._at[_PROGRESS] += 1

    def task(self, slot: int, since_ms: int, offset: int = -1) -> None:
        """The same for one of many async handlers, each of which has a slot while it runs."""
        word = _TASKS + 2 * slot
        self._words[word + 1] = offset
        self._words[word] = since_ms

    def forget_runs(self) -> None:
        """Nothing runs."""
        self.running(0)
        words = self._words
        for word in range(_TASKS, _TASKS + 2 * MAX_CONCURRENCY, 2):
            if words[word]:
                words[word] = 0

    def ask_resume(self) -> int:
        """Ask the worker to close its breaker; the number of times it was asked. The supervisor's word."""
        self._words[_RESUMES] += 1
        return int(self._words[_RESUMES])

    @property
    def resumes(self) -> int:
        """How often the worker was asked."""
        return int(self._words[_RESUMES])

    @property
    def resumed(self) -> int:
        """Up to which of these the worker has obeyed; the worker's word."""
        return int(self._words[_RESUMED])

    @resumed.setter
    def resumed(self, number: int) -> None:
        self._words[_RESUMED] = number

    @property
    def progress(self) -> int:
        """How often progress was made."""
        return int(self._words[_PROGRESS])

    @property
    def last_beat_ms(self) -> int:
        """When progress was last made, monotonic; 0: never."""
        return int(self._words[_LAST_BEAT])

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Since when (monotonic) and on which offset each handler runs, the oldest first; what a dead worker
        leaves here is what it died of, or with."""
        words = self._words
        first = words[_RUNNING_SINCE]  # read once: the handler may end meanwhile
        found = [(first, words[_RUNNING_OFFSET])] if first else []
        since = words[_TASKS : _TASKS + 2 * MAX_CONCURRENCY : 2].tolist()
        if any(since):
            offsets = words[_TASKS + 1 : _TASKS + 2 * MAX_CONCURRENCY : 2].tolist()
            found += [run for run in zip(since, offsets, strict=True) if run[0]]
            found.sort()
        return found

    @property
    def running_since_ms(self) -> int:
        """Since when the oldest runs, monotonic; 0: none does."""
        return min((since for since, _ in self.runs), default=0)

    @property
    def running_offset(self) -> int:
        """Offset of the record on which the oldest runs; -1: none, or not told."""
        return min(self.runs, default=(0, -1))[1]

    @property
    def state(self) -> State:
        """Where the worker stands; assigning it clears `state_reason`."""
        return STATES[self._words[_STATE]]

    @state.setter
    def state(self, state: State) -> None:
        self.enter(state)

    def enter(self, state: State, reason: str = "") -> None:
        """Set the state and what it waits for: the owner of a standby, the cause of a pause."""
        self._write_text(_STATE_REASON, reason)
        self._words[_STATE] = STATES.index(state)

    @property
    def state_reason(self) -> str:
        """What the state waits for; "" when there is nothing to say."""
        return self._read_text(_STATE_REASON)

    @property
    def last_error(self) -> str:
        """The last error, at most 240 bytes of UTF-8; kept over restarts."""
        return self._read_text(_LAST_ERROR)

    @last_error.setter
    def last_error(self, text: str) -> None:
        self._write_text(_LAST_ERROR, text)

    @property
    def last_dead_letter(self) -> str:
        """Which event was dead-lettered last, and why; at most 240 bytes, kept over restarts."""
        return self._read_text(_LAST_DEAD_LETTER)

    @last_dead_letter.setter
    def last_dead_letter(self, text: str) -> None:
        self._write_text(_LAST_DEAD_LETTER, text)

    def _write_text(self, word: int, text: str) -> None:
        data = text.encode(errors="replace")[:_TEXT_BYTES]
        # a character cut in two goes; anything else is whole
        data = data.decode(errors="ignore").encode()
        padded = data.ljust(_TEXT_BYTES, b"\0")
        for i in range(_TEXT_WORDS - 1):
            self._words[word + 1 + i] = int.from_bytes(padded[i * 8 : i * 8 + 8], "little", signed=True)
        self._words[word] = len(data) << 32 | zlib.crc32(data)

    def _read_text(self, word: int) -> str:
        # The checksum tells a text that is being replaced, whatever the order in which words arrive.
        for _ in range(100):
            head = self._words[word]
            words = self._words[word + 1 : word + _TEXT_WORDS].tolist()
            data = b"".join(w.to_bytes(8, "little", signed=True) for w in words)[: head >> 32]
            if zlib.crc32(data) == head & 0xFFFFFFFF:
                return data.decode(errors="replace")
        return ""  # its writer died half-way

    def release(self) -> None:
        """Let go of the memory; done by `Board.close`."""
        self.running.release()
        self._at = None  # type: ignore[assignment]
        self._words.release()


class Board:
    """Pages in memory that several processes map.

    The creator passes `fd` to its children (`pass_fds`), who `open` it with the same number of slots.
    """

    def __init__(self, fd: int, slots: int, owns_fd: bool = False) -> None:
        self.fd = fd
        self.slots = slots
        self._owns_fd = owns_fd
        self._map = mmap.mmap(fd, self.size_bytes(slots))
        self._words = memoryview(self._map).cast("q")
        step = _PAGE_BYTES // 8
        views = [self._words[(1 + i) * step : (2 + i) * step] for i in range(slots + 1)]
        self.deployment = Page(views.pop())
        self._pages = [Page(view) for view in views]

    @staticmethod
    def size_bytes(slots: int) -> int:
        """Size of a board: a header, a page for each slot, one for the deployment."""
        return _PAGE_BYTES * (slots + 2)

    @classmethod
    def create(cls, slots: int) -> Board:
        """Make a board of zeros in memory without a name, which goes with its last user."""
        fd = nameless_file("eventproc-board")
        try:
            os.truncate(fd, cls.size_bytes(slots))
            board = cls(fd, slots, owns_fd=True)
        except BaseException:
            os.close(fd)
            raise
        board._words[0], board._words[1] = _LAYOUT, slots
        for page in board.pages():
            page.running(0)
        return board

    @classmethod
    def open(cls, fd: int, slots: int) -> Board:
        """Map the board behind an inherited descriptor, which stays open.

        Raises ConfigError if it was made for other slots, or by another version of eventproc.
        """
        if os.fstat(fd).st_size != cls.size_bytes(slots):
            raise ConfigError(f"metrics board (fd {fd}) is not one of {slots} slots: restart the supervisor")
        board = cls(fd, slots)
        if board._words[0] != _LAYOUT or board._words[1] != slots:
            board.close()
            raise ConfigError(
                f"metrics board (fd {fd}) was made by another version of eventproc: restart the supervisor"
            )
        return board

    def page(self, i: int) -> Page:
        """Return the page of slot `i`."""
        return self._pages[i]

    def pages(self) -> Sequence[Page]:
        """Return the pages of all slots."""
        return self._pages

    def close(self) -> None:
        """Unmap; pages must not be used any more."""
        for page in (*self._pages, self.deployment):
            page.release()
        self._words.release()
        self._map.close()
        if self._owns_fd:
            os.close(self.fd)
            self._owns_fd = False
