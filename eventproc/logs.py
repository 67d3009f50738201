"""Logs: one line an event, key=value or JSON, on standard error, without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Hashable, MutableMapping
from typing import Any

from eventproc.clock import Clock, SystemClock

# structlog imports rich where it finds it, for tracebacks that nobody prints here: a third of all that a
# worker's start takes.
_rich = sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]

Log = structlog.typing.FilteringBoundLogger

#: Name of the logger that librdkafka's own lines go to.
LIBRDKAFKA = "eventproc.librdkafka"

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SECRET_KEY = re.compile(r"password|secret|token$|credential", re.IGNORECASE)
_URL_USER = re.compile(r"(\w+://)[^@/\s]*@")
_MINUTE_MS = 60_000
_MAX_KEYS = 10_000


def configure(level: str, form: str, **fields: Any) -> None:
    """Set up logging of this process; `form` is text or json, `fields` stand in every line.

    Call it once, before the first line.
    """
    last: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False, default=str) if form == "json" else _render_text
    )
    structlog.configure(
        processors=[
            lambda _log, _method, line: {**fields, **line},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            hide_secrets,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_StderrFactory(),
        cache_logger_on_first_use=False,
    )
    for name, least in (("eventproc", logging.INFO), ("uvicorn", logging.WARNING)):
        libraries = logging.getLogger(name)
        libraries.handlers = [_Forward()]
        libraries.propagate = False
        libraries.setLevel(least)


def get() -> Log:
    """The logger of this process."""
    log: Log = structlog.get_logger()
    return log


class OnceAMinute:
    """Lets one warning a minute through for each key, so that a stream of them does not fill the disk."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._seen: dict[Hashable, tuple[int, int]] = {}  # key -> (when let through, held back since)

    def warning(self, log: Log, event: str, key: Hashable = None, **fields: Any) -> bool:
        """Log the warning, unless the same event and key was logged in the last minute.

        The line says how many were held back since (`more`). Returns whether it was logged.
        """
        now = self._clock.monotonic_ms()
        when, held_back = self._seen.get((event, key), (now - _MINUTE_MS, 0))
        if now - when < _MINUTE_MS:
            self._seen[event, key] = (when, held_back + 1)
            return False
        if len(self._seen) >= _MAX_KEYS:
            self._seen.clear()
        self._seen[event, key] = (now, 0)
        if held_back:
            fields["more"] = held_back
        log.warning(event, **fields)
        return True


def hide_secrets(_log: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: blank fields that are secrets by name, and the user part of URLs."""
    for key, value in line.items():
        if _SECRET_KEY.search(key):
            line[key] = "***"
        elif isinstance(value, str) and "://" in value:
            line[key] = _URL_USER.sub(r"\1***@", value)
    return line


class _Forward(logging.Handler):
    """Passes on what is logged by way of Python's own loggers, a line a minute of each.

    librdkafka's lines are for debugging: what an operator must know of them comes as an error too, and is
    logged in our words (`kafka_away`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._rarely = OnceAMinute()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == LIBRDKAFKA:
            get().debug("client_log", logger=record.name, message=record.getMessage())
        else:
            self._rarely.warning(get(), record.getMessage(), key=record.msg)


class _StderrFactory:
    """Loggers that write to what sys.stderr is now (tests replace it)."""

    def __call__(self, *_args: Any) -> Any:
        return structlog.WriteLogger(sys.stderr)


def _render_text(_log: Any, _method: str, line: MutableMapping[str, Any]) -> str:
    words = [str(line.pop("time", "")), f"{line.pop('level', ''):7}", str(line.pop("event", ""))]
    trace = line.pop("exception", None)
    if trace is not None:
        line["exception"] = trace
    return " ".join(words + [f"{key}={_quoted(value)}" for key, value in line.items()])


def _quoted(value: Any) -> str:
    text = str(value)
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped) + '"'
