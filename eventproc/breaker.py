"""The breaker: when too many events fail, an operator decides whether more of them are dead-lettered.

A handler whose database is away fails every event; without a breaker the whole backlog is dead-lettered. Off
by default (`dlq_max_ratio`, `dlq_max_consecutive`).
"""

from __future__ import annotations

from collections import deque

#: The share is one of so many events; before there were as many, the rest counts as good ones.
WINDOW = 1000


class Breaker:
    """Counts a partition's events, and opens before one dead letter too many; `close` starts anew.

    `max_ratio` is a share of the last WINDOW events, `max_consecutive` a number in a row; 0: off.
    """

    def __init__(self, max_ratio: float, max_consecutive: int) -> None:
        self.open = False  # whether nothing may be dead-lettered now
        self.reason = ""  # why it is open; "" while it is not
        self._max_ratio = max_ratio
        self._max_consecutive = max_consecutive
        self._events = 0
        self._in_a_row = 0
        self._letters: deque[tuple[int, int]] = deque()  # of the window: number of the event, offset
        self._admitted: set[int] = set()  # their offsets

    def succeeded(self, n: int) -> None:
        """So many events went well."""
        if n:
            self._events += n
            self._in_a_row = 0

    def admits(self, offset: int) -> bool:
        """Whether the event of that record may be dead-lettered; opens when it may not.

        One that was admitted comes again when its effects were refused: it counts once.
        """
        if self.open:
            return False
        if not (self._max_ratio or self._max_consecutive) or offset in self._admitted:
            return True
        while self._letters and self._letters[0][0] <= self._events + 1 - WINDOW:
            self._admitted.discard(self._letters.popleft()[1])
        if self._max_consecutive and self._in_a_row >= self._max_consecutive:
            self.reason = f"{self._in_a_row} dead letters in a row (dlq_max_consecutive)"
        elif self._max_ratio and len(self._letters) + 1 > self._max_ratio * WINDOW:
            self.reason = f"{len(self._letters)} dead letters in the last {WINDOW} events (dlq_max_ratio)"
        else:
            self._events += 1
            self._in_a_row += 1
            self._letters.append((self._events, offset))
            self._admitted.add(offset)
        self.open = self.reason != ""
        return not self.open

    def close(self) -> None:
        """Admit dead letters again; what was counted is forgotten."""
        self.open = False
        self.reason = ""
        self._in_a_row = 0
        self._letters.clear()
        self._admitted.clear()
