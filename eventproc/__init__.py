"""Per-user ordered, effectively-once event processing from Kafka into Redis.

A handler needs only `Event`, `Reject` and `batch`; everything else is the programs behind the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:  # the absence of one is to be told at once
    import eventproc._entry as _entry  # noqa: F401
    import eventproc._intake as _intake  # noqa: F401
    import eventproc._reorder as _reorder  # noqa: F401
except ImportError as _error:
    raise ImportError(
        f"{_error.name} is not built: install a wheel (pip install eventproc), or run `make setup` in the "
        "checkout"
    ) from _error

if TYPE_CHECKING:
    from eventproc.errors import Reject
    from eventproc.event import Event
    from eventproc.marks import batch

__all__ = ["Event", "Reject", "__version__", "batch"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import on first use: the commands are to handle Ctrl-C before anything large is imported."""
    if name == "Event":
        from eventproc.event import Event

        return Event
    if name == "Reject":
        from eventproc.errors import Reject

        return Reject
    if name == "batch":
        from eventproc.marks import batch

        return batch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
