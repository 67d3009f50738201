"""A sync handler's run over a batch of entries, at C speed, and the mark that tells what it runs on."""

from collections.abc import Callable
from typing import Any, final

from eventproc.clock import Clock
from eventproc.effects import Entry

@final
class Mark:
    """Two words of memory that outlives the process: since when a handler runs, in ms, and on which offset.

    `words` is a contiguous buffer of two int64. The offset is written first.
    """

    def __init__(self, words: memoryview) -> None: ...
    def __call__(self, since_ms: int, offset: int = -1) -> None:
        """A handler runs since then, on the record at `offset`; 0: none does."""

    def release(self) -> None:
        """Let go of the memory; it is not to be called any more."""

@final
class BatchRun:
    """One run: an outcome for each entry, in order. None: it went well, or is passed and was not run.

    `not_run` is the outcome of what was left unrun: an earlier one of its lane failed, or `slice_ms` had
    passed (but the first is always run). `mark` is called before each run. `check` is called with what a
    handler returns that is not None, and may raise.
    """

    outcomes: list[Any]

    def __init__(
        self,
        handler: Callable[[Any], Any],
        entries: list[Entry],
        partition: int,
        clock: Clock,
        mark: Callable[[int, int], None],
        slice_ms: int,
        not_run: object,
        check: Callable[[object], None],
    ) -> None: ...
    def go_on(self) -> None:
        """Run what has no outcome yet. Raises what a handler raises; then `failed` is to be called."""

    def failed(self, error: BaseException) -> None:
        """The outcome of the entry that was running."""
