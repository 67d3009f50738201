"""Marks that the author of a handler puts on it (CONTRACT section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

#: The attribute that makes a handler one of lists.
BATCH: str = "eventproc_batch"
_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def batch(handler: _Handler) -> _Handler:
    """Mark a handler, sync or async, as one of a list of events.

    It returns a list of the same length: None for each event that went well, an exception for each that
    did not. A mark and no annotation, so that nothing is guessed.
    """
    if isinstance(handler, (staticmethod, classmethod)):
        raise TypeError("put @batch below @staticmethod or @classmethod, which would lose the mark")
    setattr(handler, BATCH, True)
    return handler
