"""Every error eventproc raises, and the exit code each one ends a process with.

    EventprocError                  1
    ├─ UsageError                   2   the command was called wrongly
    ├─ ConfigError                  3   a setting, a topic or a Redis policy is wrong
    ├─ HandlerLoadError             4   the handler cannot be imported or called
    ├─ DependencyError              5   Kafka or Redis cannot be reached
    │  └─ Transient                     the same, once running: wait, retry, report
    └─ Fenced                       6   another owner has the partition

    Reject                              raised by a handler: this event is not to be retried

Exit codes are CONTRACT section 7.
"""

from __future__ import annotations


class EventprocError(Exception):
    """Root of all errors; the message names the thing, the value and the remedy."""

    exit_code = 1


class UsageError(EventprocError):
    """The command line makes no sense."""

    exit_code = 2


class ConfigError(EventprocError):
    """A setting, a topic or a server's policy is wrong; trying again does not help."""

    exit_code = 3


class HandlerLoadError(EventprocError):
    """The handler cannot be imported, or does not take one event."""

    exit_code = 4


class DependencyError(EventprocError):
    """Kafka or Redis cannot be reached."""

    exit_code = 5


class Transient(DependencyError):
    """Kafka or Redis is away for now; never the event's fault (CONTRACT 4.10)."""


class Fenced(EventprocError):
    """Another owner has taken the partition (CONTRACT section 6)."""

    exit_code = 6


class CannotStart(EventprocError):
    """A process cannot be started, for want of memory, descriptors or processes; it may be over soon."""


class Reject(Exception):
    """Raised by a handler: dead-letter this event now, do not retry it (CONTRACT 4.6)."""

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason
