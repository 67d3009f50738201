"""Whether the deployment is ready, and why not: judged from the board alone, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eventproc.metrics import Board, Page, State
from eventproc.settings import Settings

# A gap may outlive its timeout while the worker reads up to the end of the partition; longer is a fault.
_GAP_TIMEOUTS = 3


@dataclass(frozen=True, slots=True)
class Readiness:
    """`redis` is "ok" or what is wrong with it; `partitions` maps each to its state and reasons."""

    redis: str
    partitions: dict[int, tuple[State, list[str]]]

    @property
    def ready(self) -> bool:
        """Whether all partitions are owned and moving."""
        return self.redis == "ok" and not any(reasons for _, reasons in self.partitions.values())

    def as_json(self) -> dict[str, Any]:
        """The body of /readyz."""
        return {
            "ready": self.ready,
            "redis": self.redis,
            "partitions": {
                str(partition): {"state": state, "reasons": reasons}
                for partition, (state, reasons) in self.partitions.items()
            },
        }


def judge(
    board: Board, partitions: Sequence[int], settings: Settings, now_ms: int, redis_error: str
) -> Readiness:
    """Look at every page; page i is the partition `partitions[i]`. `redis_error` is "" when it answers."""
    return Readiness(
        redis_error or "ok",
        {
            p: (board.page(i).state, _reasons(board.page(i), settings, now_ms))
            for i, p in enumerate(partitions)
        },
    )


def _reasons(page: Page, settings: Settings, now_ms: int) -> list[str]:
    state = page.state
    if state != "running":
        return [_not_running(page, state)]
    reasons = []
    if page.get("redis_down"):
        reasons.append("Redis does not answer the worker")
    if page.get("kafka_down"):
        reasons.append("Kafka does not answer the worker")
    since_ms = page.running_since_ms  # read once: the handler may end meanwhile
    silent_ms = now_ms - max(page.last_beat_ms, since_ms)
    allowed_ms = settings.handler_timeout_ms if since_ms else settings.heartbeat_timeout_ms
    if allowed_ms and silent_ms > allowed_ms:
        reasons.append(f"no progress for {_seconds(silent_ms)}")
    gap_ms = page.get("oldest_gap_ms")
    if gap_ms > _GAP_TIMEOUTS * settings.gap_timeout_ms:
        reasons.append(f"oldest gap is {_seconds(gap_ms)} old (gap_timeout_ms={settings.gap_timeout_ms})")
    return reasons


def _not_running(page: Page, state: State) -> str:
    match state:
        case "standby":
            return f"standby, not owned: {page.state_reason or 'another supervisor owns the partition'}"
        case "starting":
            restarts = page.get("restarts")
            return f"worker is restarting (restart {restarts})" if restarts else "worker is starting"
        case "crashed":
            cause = page.state_reason or page.last_error
            return f"worker has crashed and waits for its restart{': ' + cause if cause else ''}"
        case "paused":
            return f"paused: {page.state_reason or 'no reason given'}"
        case "draining":
            return "draining"
        case _:
            return "stopped"


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"
