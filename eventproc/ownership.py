"""Whose partition it is, and where reading starts (CONTRACT section 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from eventproc.effects import Claim, Claimed, Death, FetchOffsets, Offsets
from eventproc.errors import ConfigError
from eventproc.settings import Settings

STANDBY_POLL_MS = 1000


class Ownership:
    """Takes the partition: asks Kafka for its offsets, then claims it in Redis, as often as it must.

    The offsets are asked for before each claim: while another owner has the partition, they move on.

    `may_take(owner)` tells whether a recorded owner is known to be gone, so that its lease need not run
    out. `force` takes the partition from anyone, once. `death` is that of the worker before, to be recorded.
    """

    def __init__(
        self,
        settings: Settings,
        partition: int,
        owner: str,
        may_take: Callable[[str], bool],
        force: bool = False,
        death: Death | None = None,
    ) -> None:
        self._settings = settings
        self._death = death
        self._name = f"{settings.kafka_topic}/{partition}"
        self.owner = owner
        self.owned = False  # whether the partition is ours, as far as we know
        self._may_take = may_take
        self._force = force
        self._state: Literal["new", "asked", "ready", "claiming", "standby", "owned"] = "new"
        self._offsets = Offsets(0, 0, -1)
        self._live_floor = -1
        self._taken_over = ""
        self._again_ms = 0
        self._doubted = False  # the position lay outside the log that Kafka had told of
        self.standby_for = ""
        self.epoch = 0
        self.rev = 0
        self.baseline = -1

    def step(self, now_ms: int) -> FetchOffsets | Claim | None:
        """What to ask next."""
        if self._state == "new" or (self._state == "standby" and now_ms >= self._again_ms):
            self._state = "asked"
            return FetchOffsets()
        if self._state == "ready":
            self._state = "claiming"
            offset, baseline = self._first_position()
            return Claim(
                self.owner,
                self._settings.lease_ms,
                self._taken_over,
                self._force,
                offset,
                baseline,
                self._death,
                self.epoch,
            )
        return None

    def on_offsets(self, offsets: Offsets) -> None:
        """Kafka's answer."""
        self._offsets = offsets
        if self._state == "asked":
            self._state = "ready"

    def on_claimed(self, reply: Claimed, now_ms: int) -> int:
        """Redis's answer: the offset to read from, or -1 while another one owns the partition.

        -1 too, once, for a position outside the log: the owner before may have gone on between Kafka's
        answer and the claim. Now that nobody else moves it, both are asked for again.

        Raises ConfigError when there is no such offset and the settings say to stop.
        """
        if reply.status == "held":
            if self._taken_over != reply.owner and self._may_take(reply.owner):
                self._taken_over = reply.owner
                self._state = "ready"
            else:
                self.standby_for = reply.owner
                self._state = "standby"
                self._again_ms = now_ms + STANDBY_POLL_MS
            return -1
        self._force = False
        self._death = None
        self.standby_for = ""
        self.epoch, self.rev, self.baseline = reply.epoch, reply.rev, reply.baseline
        if reply.offset >= 0 and not self._in_log(reply.offset) and not self._doubted:
            self._doubted = True
            self._state = "new"
            return -1
        self._doubted = False
        start = self._start(reply.offset)
        self._state = "owned"
        self.owned = True
        return start

    def lost(self, floor: int) -> None:
        """Redis has lost writes: claim anew. `floor` is the last one it had acknowledged."""
        self._live_floor = floor
        self.owned = False
        self._state = "new"

    def _first_position(self) -> tuple[int, int]:
        """Offset and baseline for a Redis that holds no position; -1 = none."""
        if self._live_floor >= 0:
            return self._live_floor, self._live_floor
        committed = self._offsets.committed
        if committed < 0:
            return self._offsets.low, -1
        policy = self._settings.on_redis_empty
        if policy == "group":
            return committed, committed
        return (self._offsets.low, -1) if policy == "earliest" else (-1, -1)

    def _in_log(self, offset: int) -> bool:
        return self._offsets.low <= offset <= self._offsets.high

    def _start(self, offset: int) -> int:
        low, high = self._offsets.low, self._offsets.high
        if offset < 0:
            raise ConfigError(
                f"Redis holds no position for {self._name}, but group {self._settings.kafka_group_id} has "
                f"committed {self._offsets.committed}: Redis was emptied, or redis_url or key_prefix is "
                "another one than before. Set on_redis_empty=group to go on there, or earliest to process "
                "all anew"
            )
        if self._in_log(offset):
            return offset
        policy = self._settings.on_offset_out_of_range
        if policy == "stop":
            raise ConfigError(
                f"the position of {self._name} is {offset}, but the log holds {low} to {high}: the topic was "
                "made anew, or records were deleted before they were processed. Set on_offset_out_of_range "
                "to earliest or latest to go on all the same"
            )
        return low if policy == "earliest" else high
