"""Named points at which a worker dies or stops when the environment says so: how faults are made to hit.

`EVENTPROC_CRASH_AT=<point>[:<count>[:<action>[:<partition>]]]`: at the `count`-th pass (default 1) of the
point the worker is killed (`kill`, the default) or stopped (`stop`: SIGSTOP). Several are separated by
commas; a worker goes by the first that is for its partition. Only the first start of a partition's worker
looks at them, so that the one started instead lives.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from typing import Literal, get_args

from eventproc.errors import ConfigError

VARIABLE = "EVENTPROC_CRASH_AT"

Point = Literal[
    "before_claim",
    "after_claim",
    "before_load",
    "after_load",
    "before_acquire",
    "after_acquire",
    "before_run",
    "after_run",
    "before_finalize",
    "after_finalize",
    "before_produce",
    "after_produce",
    "before_commit",
    "after_commit",
    "before_release",
    "after_release",
]
POINTS: tuple[Point, ...] = get_args(Point)

_FORM = re.compile(
    r"(?P<point>\w+)(:(?P<count>[1-9]\d*)?(:(?P<action>kill|stop)?(:(?P<partition>\d+)?)?)?)?", re.ASCII
)


def from_environment(partition: int, start_count: int) -> Callable[[Point], None] | None:
    """What to call at each point; None when nothing is to happen, which is the rule."""
    text = os.environ.get(VARIABLE, "")
    if not text or start_count:
        return None
    for found in map(_read, text.split(",")):
        if not found["partition"] or int(found["partition"]) == partition:
            number = signal.SIGSTOP if found["action"] == "stop" else signal.SIGKILL
            return _Fuse(found["point"], int(found["count"] or 1), number)
    return None


def _read(text: str) -> re.Match[str]:
    found = _FORM.fullmatch(text)
    if found is None or found["point"] not in POINTS:
        raise ConfigError(
            f"{VARIABLE}={text}: not <point>[:<count>[:kill|stop[:<partition>]]]; points: {POINTS}"
        )
    return found


class _Fuse:
    def __init__(self, point: str, count: int, sig: signal.Signals) -> None:
        self._point = point
        self._left = count
        self._signal = sig

    def __call__(self, point: Point) -> None:
        if point != self._point or not self._left:
            return
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._signal)
