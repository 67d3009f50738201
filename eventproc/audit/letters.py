"""Dead letters: each one in Redis, in the list and in the topic, and none that should not be (CONTRACT 4.7).

Judged: `dlq:<id>` (reason, attempts, position) while its life lasts; an element in dlq:list, as far as its
cap reaches; at least one record in the dead-letter topic with that origin, the same reason and attempts,
and the very bytes of the original (a pointer record has none of them). Copies with one origin are allowed.
"""

from __future__ import annotations

from collections.abc import Collection

from eventproc.audit.report import Report
from eventproc.audit.rules import Candidate, Letter, Rules
from eventproc.audit.staging import DeadLetter, Row, Staging


class LetterJudge:
    """Compares what should be dead-lettered with what is."""

    def __init__(self, rules: Rules, report: Report, staging: Staging) -> None:
        self._rules = rules
        self._report = report
        self._staging = staging

    def expect(
        self,
        what: str,
        id: str,
        letter: Letter | None,
        row: Row,
        reasons: Collection[str],
        attempts: Collection[int],
    ) -> None:
        """`row` must be dead-lettered under `id` for one of these reasons, after so many attempts."""
        if not self._rules.judged(row):
            return
        if letter is None:
            if not self._rules.expired(row, self._rules.settings.dlq_ttl_s):
                self._bad(f"{what}: dlq:{id} is missing")
        else:
            if letter.reason not in reasons:
                self._bad(f"{what}: dlq:{id} has reason {letter.reason!r}, not {' or '.join(reasons)}")
            if letter.attempts not in attempts:
                self._bad(f"{what}: dlq:{id} has attempts {letter.attempts}, not {_either(attempts)}")
            if (letter.part, letter.off) != (row.part, row.off):
                self._bad(f"{what}: dlq:{id} is of {letter.part}/{letter.off}, not of {row.part}/{row.off}")
            if letter.id != id:
                self._bad(f"{what}: dlq:{id} has eventId {letter.id!r}")
        self._staging.want_letters([id])
        if row.off < 0:
            return
        if not row.dead:
            self._bad(f"{what}: the dead-letter topic has no record of {row.part}/{row.off}")
            return
        dead = DeadLetter(row.part, row.off, row.dead_reason, row.dead_attempts, row.dead_crc)
        self._compare(what, dead, letter, row, reasons, attempts)

    def expect_unknown_copy(self, what: str, candidate: Candidate) -> None:
        """The event was dead-lettered from a copy whose position the ledger does not know."""
        final = candidate.final
        assert final is not None
        self._staging.want_letters([candidate.first.id])
        if candidate.letter is None:
            self._bad(f"{what}: dlq:{candidate.first.id} is missing")
        if self._staging.dead_letter(final.part, final.off) is None:
            self._bad(f"{what}: the dead-letter topic has no record of {final.part}/{final.off}")

    def expect_none(self, what: str, row: Row, why: str) -> None:
        """`row` must not be dead-lettered."""
        if row.dead:
            self._bad(f"{what}: the dead-letter topic has {row.part}/{row.off}, although {why}")

    def finish(self, *, list_length: int, exclusive: bool, whole: bool) -> None:
        """Judge what belongs to no record, and dlq:list.

        `exclusive`: every record in the ledger's range of offsets is in the ledger. `whole`: the records
        that are judged are all that the topic ever had.
        """
        if exclusive or whole:
            for part, off in self._staging.unknown_dead():
                self._bad(f"the dead-letter topic has a record of {part}/{off}, where none was produced")
        full = list_length >= self._rules.settings.dlq_max_len
        for id, listed, wanted in self._staging.listings():
            if not listed and not full:
                self._bad(f"dlq:list does not name {id}")
            elif listed > 1:
                self._bad(f"dlq:list names {id} {listed} times")
            elif listed and not wanted and whole:
                self._bad(f"dlq:list names {id}, which was not dead-lettered")

    def _compare(
        self,
        what: str,
        dead: DeadLetter,
        letter: Letter | None,
        row: Row,
        reasons: Collection[str],
        attempts: Collection[int],
    ) -> None:
        reason = letter.reason if letter is not None and letter.reason in reasons else ""
        if dead.reason != reason if reason else dead.reason not in reasons:
            self._bad(
                f"{what}: the dead-letter topic gives reason {dead.reason!r}, not "
                f"{reason or ' or '.join(reasons)}"
            )
        if dead.attempts not in attempts:
            self._bad(
                f"{what}: the dead-letter topic gives attempts {dead.attempts}, not {_either(attempts)}"
            )
        if dead.crc not in (row.crc, -1):
            self._bad(f"{what}: the dead-letter topic has other bytes than were produced")

    def _bad(self, text: str) -> None:
        self._report.add("dlq", text)


def _either(numbers: Collection[int]) -> str:
    return " or ".join(map(str, numbers))
