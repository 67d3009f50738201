"""Keeps locks and ownership alive while a handler runs long: the worker's loop cannot, it is inside."""

from __future__ import annotations

import contextlib
import threading

from eventproc.clock import Clock
from eventproc.effects import Entry, Renew
from eventproc.errors import EventprocError
from eventproc.settings import Settings
from eventproc.store.channel import Channel


class Keeper(threading.Thread):
    """Renews what a run holds once the run has lasted a third of the shorter of lock and lease.

    The loop calls `begin` and `end` around each run; both only swap a reference. The thread has a Redis
    connection of its own, made when it is first needed.
    """

    def __init__(self, settings: Settings, partition: int, clock: Clock) -> None:
        super().__init__(name="keeper", daemon=True)
        self._settings = settings
        self._partition = partition
        self._clock = clock
        self._period_s = min(settings.inflight_ttl_ms, settings.lease_ms) / 3000
        self._stop_asked = threading.Event()
        self._run: tuple[int, str, list[Entry]] | None = None

    def begin(self, epoch: int, owner: str, entries: list[Entry]) -> None:
        """These entries are being run."""
        self._run = (epoch, owner, entries)

    def end(self) -> None:
        """They are not any more."""
        self._run = None

    def stop(self) -> None:
        """End the thread."""
        self._stop_asked.set()

    def run(self) -> None:
        channel: Channel | None = None
        before = None
        while not self._stop_asked.wait(self._period_s):
            now = self._run
            if now is not None and now is before:
                if channel is None:
                    channel = Channel(
                        self._settings, self._settings.kafka_topic, self._partition, self._clock
                    )
                epoch, owner, entries = now
                held = [entry for entry in entries if entry.granted_ms and not entry.passed]
                # the loop's own calls meet the same trouble, and report it
                with contextlib.suppress(EventprocError):
                    channel.call(Renew(epoch, owner, held))
            before = now
        if channel is not None:
            channel.close()
