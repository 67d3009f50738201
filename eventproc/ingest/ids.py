"""Ids for events that bring none."""

from __future__ import annotations

import os
from collections.abc import Callable

from eventproc.clock import Clock

_AT_ONCE = 256
_RANDOM_BYTES = 10
_VERSION = 0x7000
_VARIANT = 0x8000_0000_0000_0000


class IdMaker:
    """Makes UUIDs of version 7 (RFC 9562): 48 bits of milliseconds, then 74 random bits.

    Ids of one millisecond are in no order among themselves.
    """

    def __init__(self, clock: Clock, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._entropy = entropy
        self._pool = b""
        self._at = 0

    def new(self) -> str:
        """The next id."""
        if self._at >= len(self._pool):
            self._pool, self._at = self._entropy(_RANDOM_BYTES * _AT_ONCE), 0
        bits = int.from_bytes(self._pool[self._at : self._at + _RANDOM_BYTES], "big")
        self._at += _RANDOM_BYTES
        high = (self._clock.wall_ms() & 0xFFFF_FFFF_FFFF) << 16 | _VERSION | bits >> 64 & 0xFFF
        low = _VARIANT | bits & 0x3FFF_FFFF_FFFF_FFFF
        text = f"{high:016x}{low:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
