"""Decoding what nearly all records are, at C speed; everything else is `event.Validator`'s to judge."""

from collections.abc import Callable
from typing import Any, final

from eventproc.effects import Record

@final
class PlainIntake:
    """Takes records that are valid by a look at their plain ASCII names and their seq.

    It accepts less than the validator, and nothing that the validator refuses. `loads` decodes JSON; what it
    raises as `json_error` makes a record not plain. `partitions` = 0: no record is misrouted.
    """

    def __init__(
        self,
        loads: Callable[[bytes], Any],
        json_error: type[Exception],
        topic: str,
        partition: int,
        partitions: int,
        max_event_bytes: int,
        max_depth: int,
    ) -> None: ...
    def take(
        self,
        records: list[Record],
        at: int,
        now_ms: int,
        users: list[str],
        seqs: list[int],
        offsets: list[int],
        sizes: list[int],
        entries: list[object],
    ) -> int:
        """Append the columns of records from `at` on; stops at one that is not plain, whose index it answers
        (or the length of the list)."""
