"""What the worker's loop cannot do inside a handler: keep locks and ownership alive, see a stop."""

from __future__ import annotations

import contextlib
import threading

from eventproc.clock import Clock
from eventproc.effects import Entry, Renew
from eventproc.errors import EventprocError
from eventproc.settings import Settings
from eventproc.store.channel import Channel

_TICK_MS = 250
#: A tick that comes so much late: this process was stopped (or a handler held the interpreter's lock).
STALL_MS = 1000


class Keeper(threading.Thread):
    """Renews what a run holds once the run has lasted for a period or two, then each period.

    A lock may have lived half its life when the run begins, so a period is a third of the other half, or
    of the lease if that is shorter. The loop calls `begin` and `end` around each run: they only swap a
    reference, but `end` waits for a renewal that is under way, lest it take a lock again after the loop
    has dropped it. The thread has a Redis connection of its own, made when it is first needed.

    `stalls` counts how often the process stood still: of a run that took long the loop cannot tell whether
    the handler did, or the process was stopped meanwhile.
    """

    def __init__(self, settings: Settings, partition: int, clock: Clock) -> None:
        super().__init__(name="keeper", daemon=True)
        self._settings = settings
        self._partition = partition
        self._clock = clock
        self.stalls = 0
        self._period_ms = min(settings.inflight_ttl_ms / 2, settings.lease_ms) / 3
        self._stop_asked = threading.Event()
        self._renewing = threading.Lock()
        self._run: tuple[int, str, list[Entry]] | None = None

    def begin(self, epoch: int, owner: str, entries: list[Entry]) -> None:
        """These entries are being run."""
        self._run = (epoch, owner, entries)

    def end(self) -> None:
        """They are not any more, and nothing is renewed after this."""
        self._run = None
        with self._renewing:
            pass

    def stop(self) -> None:
        """End the thread."""
        self._stop_asked.set()

    def run(self) -> None:
        channel: Channel | None = None
        before = None
        ticked_ms = self._clock.monotonic_ms()
        due_ms = ticked_ms + self._period_ms
        while not self._stop_asked.wait(min(max(due_ms - ticked_ms, 1), _TICK_MS) / 1000):
            now_ms = self._clock.monotonic_ms()
            if now_ms - ticked_ms > STALL_MS:
                self.stalls += 1
            ticked_ms = now_ms
            if now_ms < due_ms:
                continue
            due_ms = now_ms + self._period_ms
            now = self._run
            if now is not None and now is before:
                if channel is None:
                    channel = Channel(
                        self._settings, self._settings.kafka_topic, self._partition, self._clock
                    )
                self._renew(channel, now)
                ticked_ms = self._clock.monotonic_ms()  # waiting for Redis is no stall
            before = now
        if channel is not None:
            channel.close()

    def _renew(self, channel: Channel, run: tuple[int, str, list[Entry]]) -> None:
        epoch, owner, entries = run
        held = [entry for entry in entries if entry.granted_ms and not entry.passed]
        # the loop's own calls meet the same trouble, and report it
        with self._renewing, contextlib.suppress(EventprocError):
            if self._run is run:
                channel.call(Renew(epoch, owner, held))
