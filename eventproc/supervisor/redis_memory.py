"""What the monitor has found out about Redis' memory, for `status`; and the warning that it will not do."""

from __future__ import annotations

from typing import Any

from eventproc.logs import Log
from eventproc.metrics import Page
from eventproc.settings import Settings

_HOUR_S = 3600
_MIB = 2**20


def told(deployment: Page) -> dict[str, Any] | None:
    """Redis in `status --json`, with None for what is not known; None while nothing is.

    `maxmemory_bytes` 0: Redis has no limit.
    """
    used = deployment.get("redis_bytes_used")
    if not used:
        return None
    full_s = deployment.get("redis_full_s")
    return {
        "used_bytes": used,
        "maxmemory_bytes": deployment.get("redis_maxmemory"),
        "bytes_per_event": deployment.get("redis_bytes_per_event") or None,
        "hours_until_maxmemory": round(full_s / _HOUR_S, 3) if full_s else None,
    }


class FullTooSoon:
    """Warns, once, when Redis will be full before the first events expire."""

    def __init__(self, deployment: Page, settings: Settings, log: Log) -> None:
        self._page = deployment
        self._ttl_s = settings.event_ttl_s
        self._log = log
        self._warned = False

    def look(self) -> None:
        """Call it now and then."""
        full_s = self._page.get("redis_full_s")
        if self._warned or not 0 < full_s < self._ttl_s:
            return
        self._warned = True
        used, limit = self._page.get("redis_bytes_used"), self._page.get("redis_maxmemory")
        needed_mib = round((used + (limit - used) / full_s * self._ttl_s) / _MIB)
        self._log.warning(
            "Redis will be full before events expire, at the current rate, and refuse writes then",
            hours_until_maxmemory=round(full_s / _HOUR_S, 3),
            event_ttl_s=self._ttl_s,
            bytes_per_event=self._page.get("redis_bytes_per_event"),
            used_mib=round(used / _MIB),
            maxmemory_mib=round(limit / _MIB),
            remedy=f"raise Redis' maxmemory to {needed_mib} MiB, or lower event_ttl_s and dedup_ttl_s",
        )
