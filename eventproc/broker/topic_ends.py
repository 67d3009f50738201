"""Where the topic's partitions end, asked again and again; the answer is a sign of life, too."""

from __future__ import annotations

from eventproc.broker.admin import Admin
from eventproc.clock import Clock, SystemClock
from eventproc.settings import Settings

_COUNT_AGAIN_MS = 30_000


class TopicEnds:
    """Asks on a connection of its own. Not thread-safe; `read` blocks, at most about `timeout_ms`."""

    def __init__(self, settings: Settings, timeout_ms: int, clock: Clock | None = None) -> None:
        self._settings = settings
        self._timeout_ms = timeout_ms
        self._clock = clock or SystemClock()
        self._admin: Admin | None = None
        self._count = 0
        self._counted_ms = 0

    def read(self) -> dict[int, int]:
        """End offset of each partition that answers; DependencyError or ConfigError when none does."""
        try:
            return self._read()
        except Exception:
            # after an outage a client may go on failing although its broker is back; a new one does not
            self._admin = None
            raise

    def close(self) -> None:
        """Drop the client."""
        self._admin = None

    def _read(self) -> dict[int, int]:
        now_ms = self._clock.monotonic_ms()
        if self._admin is None:
            self._admin = Admin(self._settings, self._clock, self._timeout_ms)
            self._count = 0
        if not self._count or now_ms - self._counted_ms > _COUNT_AGAIN_MS:
            self._count = self._admin.existing(self._settings.kafka_topic)
            self._counted_ms = now_ms
        return self._admin.ends(self._settings.kafka_topic, self._count)
