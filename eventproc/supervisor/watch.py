"""How a live worker is judged: by progress on its page, and by how long its handler runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from eventproc.metrics import Page

#: A watch that looked away for this long forgives what it did not see (the whole host was stopped).
_BLIND_MS = 2_000
_FINAL_OUTCOMES = ("processed", "failed", "skipped")


def final_events(page: Page) -> int:
    """Events that have their outcome."""
    return sum(page.get("events", outcome) for outcome in _FINAL_OUTCOMES)


class Watch:
    """Watches one worker process from its start on; give it a look several times a second."""

    def __init__(self, page: Page, heartbeat_timeout_ms: int, handler_timeout_ms: int, now_ms: int) -> None:
        self._page = page
        self._heartbeat_timeout_ms = heartbeat_timeout_ms
        self._handler_timeout_ms = handler_timeout_ms
        self._looked_ms = now_ms
        self._seen_alive_ms = now_ms
        self._forgiven_ms = 0  # before this nothing counts
        self._running_from_ms: int | None = None

    @property
    def ran(self) -> bool:
        """Whether the worker ever was in state running."""
        return self._running_from_ms is not None

    def progress_ms(self) -> int:
        """How long the worker has made progress in state running."""
        if self._running_from_ms is None:
            return 0
        return max(0, self._page.last_beat_ms - self._running_from_ms)

    def look(self, now_ms: int) -> str:
        """Return why the worker hangs; "" while it does not."""
        page = self._page
        if now_ms - self._looked_ms > _BLIND_MS:
            self._forgiven_ms = self._seen_alive_ms = now_ms
        self._looked_ms = now_ms
        if self._running_from_ms is None and page.state in ("running", "paused"):
            self._running_from_ms = now_ms
        runs = page.runs
        if runs:
            since_ms, offset = runs[0]
            # its next beat may come a moment after the handler's end
            self._seen_alive_ms = now_ms
            ran_ms = now_ms - max(since_ms, self._forgiven_ms)
            if self._handler_timeout_ms and ran_ms > self._handler_timeout_ms:
                where = f" (offset {offset})" if offset >= 0 else ""
                return (
                    f"handler has run for {ran_ms} ms{where}: handler_timeout_ms={self._handler_timeout_ms}"
                )
            return ""
        silent_ms = now_ms - max(page.last_beat_ms, self._seen_alive_ms)
        if silent_ms > self._heartbeat_timeout_ms:
            return f"no progress for {silent_ms} ms: heartbeat_timeout_ms={self._heartbeat_timeout_ms}"
        return ""


class Rate:
    """How fast a count grows over the last few seconds; sample it once a second."""

    def __init__(self, count: Callable[[], int], seconds: int = 5) -> None:
        self._count = count
        self._samples: deque[tuple[int, int]] = deque(maxlen=seconds + 1)

    def sample(self, now_ms: int) -> None:
        """Note how many there are by now."""
        self._samples.append((now_ms, self._count()))

    @property
    def per_s(self) -> float:
        """0.0 until there are two samples."""
        if len(self._samples) < 2:
            return 0.0
        (then_ms, before), (now_ms, after) = self._samples[0], self._samples[-1]
        return round((after - before) * 1000 / max(1, now_ms - then_ms), 1)
