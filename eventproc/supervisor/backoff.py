"""When a child that died is started again."""

from __future__ import annotations

from random import Random

#: Progress for this long forgives all deaths before it.
PROGRESS_RESETS_MS = 10_000


class RestartPolicy:
    """The first restart at once, then exponential pauses with jitter, and a budget.

    Once the budget is used up every pause is `max_ms`; progress for PROGRESS_RESETS_MS resets all.
    """

    def __init__(self, first_ms: int, max_ms: int, budget: int, random: Random) -> None:
        self._first_ms = first_ms
        self._max_ms = max_ms
        self._budget = budget
        self._random = random
        self._in_a_row = 0

    @property
    def exhausted(self) -> bool:
        """Whether the budget is used up."""
        return self._in_a_row > self._budget

    @property
    def in_a_row(self) -> int:
        """Deaths since the last progress."""
        return self._in_a_row

    def reset(self) -> None:
        """Forget all deaths."""
        self._in_a_row = 0

    def pause_ms(self, progress_ms: int) -> int:
        """How long to wait after a death; `progress_ms` is how long the dead one had made progress."""
        if progress_ms >= PROGRESS_RESETS_MS:
            self.reset()
        self._in_a_row += 1
        if self._in_a_row == 1:
            return 0
        if self.exhausted:
            return self._max_ms
        full = min(self._max_ms, self._first_ms << min(self._in_a_row - 2, 30))
        return round(full * self._random.uniform(0.5, 1))
