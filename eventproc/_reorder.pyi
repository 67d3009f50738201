"""The reorder buffer: all per-user sequence state of one partition. No I/O, no clock of its own.

All times are monotonic milliseconds, 0..2**53, handed in. Seqs are in 1..2**53-1 (0 = unsequenced), offsets
are int64 and need not be contiguous. An *item* is any Python object the caller wants back (the pipeline's
`Entry`). Not thread-safe. Every method checks its arguments before it changes anything: TypeError (not an
int or a str; bool is none), ValueError (out of range, unknown, twice). Rules: CONTRACT section 4.

A user is *unknown* until load(); then it either follows its seq, *waits behind a gap* (something is parked,
its lowest seq is above the expected one), or is *closed* (from close() to open()). It is *idle* when nothing
of it is parked and everything released is finished.
"""

from typing import Any, final

@final
class Arrivals:
    """What a call led to; all lists are the caller's to keep.

    push(): in arrival order. load() and open(): user by user as named, each in arrival order. What is
    `ready` ascends by one per user, always. `evicted` is meant to be read last.
    """

    @property
    def ready(self) -> list[Any]:
        """To be processed now, in this order."""
    @property
    def below(self) -> list[Any]:
        """seq < expected: late, stale, a duplicate, or released and not finished yet; to be looked up."""
    @property
    def occupied(self) -> list[tuple[Any, Any]]:
        """(arrival, item parked under the same user and seq); the parked one stays."""
    @property
    def jumped(self) -> list[Any]:
        """seq > expected + max_seq_jump; not parked."""
    @property
    def unknown(self) -> list[str]:
        """Users seen for the first time: load() must follow, once each; their items are parked."""
    @property
    def evicted(self) -> list[str]:
        """Idle users forgotten to make room; their next arrival makes them unknown again."""

@final
class ReorderBuffer:
    @property
    def position(self) -> int:
        """Next offset to read."""
    @property
    def parked(self) -> int:
        """Items parked: behind a gap, or waiting for load() or open()."""
    @property
    def parked_bytes(self) -> int:
        """Sum of their sizes."""
    @property
    def users(self) -> int:
        """Users in memory."""
    def __init__(
        self,
        *,
        position: int,
        gap_timeout_ms: int = 5000,
        max_seq_jump: int = 1_000_000,  # 0 = off
        max_parked_per_user: int = 10_000,
        max_parked: int = 100_000,
        max_parked_bytes: int = 268_435_456,
        max_users: int = 100_000,  # idle users above this are evicted, least recently used first
    ) -> None: ...
    def push(
        self,
        users: list[str],
        seqs: list[int],
        offsets: list[int],
        sizes: list[int],
        items: list[Any],
        now_ms: int,
    ) -> Arrivals:
        """Take records in offset order. Every offset is unsettled until settle(); position moves past it.

        A seq of 0 is ready at once and belongs to no user. Offsets ascend from `position` on. While a user
        is closed, what is neither below nor jumped is parked. What is parked under a seq already stays, a
        second item for it is `occupied`, even where the seq has become a jump since.
        """
    def track(self, offsets: list[int]) -> None:
        """Offsets without an item for the buffer (invalid records): unsettled until settle()."""
    def advance(self, position: int) -> None:
        """The reader stands at `position` (a partition EOF, a transaction marker). A lower one than before
        is passed over: position never goes back."""
    def load(self, users: list[str], expected: list[int], adopt: list[bool], now_ms: int) -> Arrivals:
        """Tell the next expected seq of unknown users. What was parked for them is judged as if it arrived
        now, one by one in arrival order, but deadlines count from the items' own arrival.

        `adopt`: the user has no state although the position is a baseline: no jump check until its first
        gap closes (whose reason is then "reset") or its expected seq arrives in order.
        """
    def due(self, now_ms: int) -> list[str]:
        """Users whose gap deadline has come (deadline <= now_ms), earliest first, then by offset.

        The deadline is gap_timeout_ms after the arrival of the user's lowest parked item. Each user is
        reported once until rearm(), close() or restart_timers(), or until its lowest parked item changes:
        its gap is filled, or a lower seq has arrived and is waited behind anew.
        """
    def rearm(self, users: list[str], now_ms: int) -> None:
        """These users' gaps are not to be closed yet: no deadline of theirs before now_ms + gap_timeout_ms,
        until nothing of the user is parked any more. Users that wait behind no gap are passed over."""
    def next_deadline_ms(self) -> int:
        """Earliest deadline that is not reported yet, -1 if none."""
    def restart_timers(self, now_ms: int) -> None:
        """Time so far does not count: no deadline of what has arrived before now_ms + gap_timeout_ms.
        Costs O(users behind a gap)."""
    def close(self, users: list[str], *, only_due: bool = False) -> list[tuple[str, int, int, bool]]:
        """Give up each user's gap: (user, first, last, adopt). Expected becomes last + 1; nothing of the
        user is released until open(); arrivals in the gap are `below`. A user that waits behind no gap,
        unknown or closed already is left out.

        `only_due`: a user that due() has not reported, or whose deadline has moved since, is left out too.
        So what due() told some time ago can be passed on: a gap that was filled, or a seq that arrived
        below, in the meantime closes nothing early.
        """
    def open(self, users: list[str], now_ms: int) -> Arrivals:
        """The closing is recorded: release what follows; a further gap has the deadline of its own lowest
        item, which may have come already. ValueError unless each user is closed."""
    def overfull(self) -> list[str]:
        """Users whose gap must be closed now because a cap is exceeded: those above the cap per user, then
        further ones until count and bytes would fit; each group by age, as in oldest_gap().

        Only items behind a gap count here. Those that wait for load() or open() do not: closing gaps
        brings Redis back no sooner, and what is closed already must not make others follow.
        """
    def oldest_gap(self) -> tuple[str, int] | None:
        """(user, arrival of its lowest parked item) of the longest waiting gap, by that arrival, whether
        its timer was restarted or not; None if there is none."""
    def floor_gap(self) -> tuple[str, int] | None:
        """The same for the gap that holds the floor: the user whose parked item lies at floor(). None if
        that record is not parked behind a gap. Costs O(parked)."""
    def expected(self, user: str) -> int:
        """Next expected seq, 0 if the user is not in memory (or not loaded yet)."""
    def in_flight(self, user: str) -> int:
        """How many ready items of the user are not finished."""
    def finish(self, users: list[str]) -> None:
        """One ready item of each named user is final in Redis ("" = none): lets idle users be evicted."""
    def settle(self, offsets: list[int]) -> None:
        """These offsets are final, in any order. Each once, ValueError otherwise."""
    def is_settled(self, offset: int) -> bool:
        """Whether it is settled, or was never pushed."""
    def floor(self) -> int:
        """Lowest unsettled offset, else position."""
    def unfinalized(self) -> int:
        """Number of unsettled offsets."""

def partition_of(user: str, partitions: int) -> int:
    """The partition that Kafka's murmur2 partitioner gives the UTF-8 key `user` (Java DefaultPartitioner)."""

def is_plain(a: object, b: object, c: object) -> bool:
    """Whether each is a str of 1 to 256 printable ASCII characters, not all of them spaces: an id, a userId
    or a type that needs no closer look."""
