"""Each event by itself: is it final, as what, and does that fit what was produced (CONTRACT 3, 4.3-4.8).

Judged: an acknowledged record below the floor has `event:<id>` (as long as its life lasts) and `dedup:<id>`;
user, seq, type and position are those produced; status and attempts are possible together; with the
built-in handler, exactly the events with payload.fail are failed, after max_attempts runs. Which copy of a
duplicate took effect does not matter. An id that is final under another user or seq is an id_conflict,
and its first record in a partition has a dead letter under its position; further copies may have one. With
`locking = partition` its handler may have run before that was found (CONTRACT section 6).
"""

from __future__ import annotations

from eventproc.audit.letters import LetterJudge
from eventproc.audit.report import Report
from eventproc.audit.rules import Candidate, Final, Letter, Rules
from eventproc.audit.staging import Row, Staging
from eventproc.suspects import CRASH_DEATHS

#: Reasons of a failed event, of which the last two leave the user's order untouched.
_FAILED = ("handler", "rejected", "crash", "seq_jump", "misrouted")
_APART = ("seq_jump", "misrouted")
_SKIPPED = ("late", "stale")


class EventJudge:
    """Judges candidates (one id under one user and seq) and records that are no events."""

    def __init__(self, rules: Rules, report: Report, staging: Staging, letters: LetterJudge) -> None:
        self._rules = rules
        self._settings = rules.settings
        self._report = report
        self._staging = staging
        self._letters = letters

    def judge(self, candidate: Candidate) -> None:
        """Set the candidate's verdict; report what is wrong with it by itself."""
        if not any(self._rules.judged(row) for row in candidate.rows):
            candidate.verdict = "open"
            return
        report, final = self._report, candidate.final
        report.totals.duplicates += len(candidate.rows) - 1
        if final is None:
            self._judge_missing(candidate)
        elif (final.user, final.seq) != (candidate.first.user, candidate.first.seq):
            self._judge_elsewhere(candidate, final)
        else:
            self._judge_own(candidate, final)
        if self._rules.with_runs:
            self._judge_runs(candidate)

    def judge_invalid(self, row: Row, letter: Letter | None, has_event: bool) -> None:
        """A record that is no valid event."""
        self._report.totals.invalid += 1
        what = f"invalid record {row.part}/{row.off}"
        if has_event:
            self._report.add(
                "status", f"{what}: event:{row.id} exists, but the record is invalid ({row.type})"
            )
        if letter is None and self._rules.below_baseline(row):
            self._report.lost_below(row.part, self._rules.baselines[row.part])
        elif self._rules.must_be_final(row) or letter is not None or row.dead:
            self._letters.expect(what, self._rules.position_id(row), letter, row, ("invalid",), (0,))

    def judge_tombstone(self, row: Row, letter: Letter | None) -> None:
        """A null value: passed over."""
        self._report.totals.tombstones += 1
        what = f"tombstone {row.part}/{row.off}"
        self._letters.expect_none(what, row, "a null value is no event")
        if letter is not None:
            self._report.add("dlq", f"{what}: dlq:{self._rules.position_id(row)} exists")

    # --- not final ----------------------------------------------------------------------------------

    def _judge_missing(self, candidate: Candidate) -> None:
        rules, settings = self._rules, self._settings
        newest = max(candidate.rows, key=lambda row: row.acked_ms)
        ttl_s = settings.event_ttl_s if candidate.marked else settings.dedup_ttl_s
        if any(rules.expired(row, ttl_s) for row in candidate.rows):
            candidate.verdict = "expired"
            self._report.totals.expired += 1
            return
        candidate.verdict = "missing"
        if any(rules.must_be_final(row) for row in candidate.rows):
            left = " although its marker is there" if candidate.marked else ""
            self._report.add("lost", f"{candidate.name} is not final{left}: no event:{newest.id}")
            return
        forgotten = next((row for row in candidate.rows if rules.below_baseline(row)), None)
        if forgotten is not None:
            self._report.lost_below(forgotten.part, rules.baselines[forgotten.part])

    # --- final under another user or seq ------------------------------------------------------------

    def _judge_elsewhere(self, candidate: Candidate, final: Final) -> None:
        candidate.verdict = "elsewhere"
        self._report.totals.conflicts += 1
        first = candidate.first
        self._staging.expect_elsewhere(first.id, final.user, final.seq)
        most = self._rules.conflict_attempts
        partitions: set[int] = set()
        for row in candidate.rows:
            letter = candidate.letters_at.get((row.part, row.off))
            must = row.part not in partitions and self._rules.must_be_final(row)
            if row.off >= 0:
                partitions.add(row.part)
            if letter is None and self._rules.below_baseline(row):
                continue
            if must or letter is not None or row.dead:
                id = self._rules.position_id(row)
                what = f"{candidate.name}, whose id is final under user {final.user} seq {final.seq}"
                self._letters.expect(what, id, letter, row, ("id_conflict",), range(most + 1))

    # --- final as itself ----------------------------------------------------------------------------

    def _judge_own(self, candidate: Candidate, final: Final) -> None:
        report, totals = self._report, self._report.totals
        if not candidate.marked and not self._rules.expired(candidate.first, self._settings.dedup_ttl_s):
            report.add(
                "status", f"{candidate.name} is {final.status}, but dedup:{candidate.first.id} is missing"
            )
        if all(final.type != row.type for row in candidate.rows):
            report.add(
                "rewritten", f"{candidate.name} has type {final.type!r}, produced as {candidate.first.type!r}"
            )
        if final.processed_ms <= 0:
            self._status(candidate, "has no processedAt")
        if final.status == "processed":
            totals.processed += 1
            candidate.verdict = "processed"
            self._judge_processed(candidate, final)
        elif final.status == "failed":
            totals.failed += 1
            candidate.verdict = "failed"
            self._judge_failed(candidate, final)
        elif final.status == "skipped":
            totals.skipped += 1
            candidate.verdict = "skipped"
            self._judge_skipped(candidate, final)
        else:
            candidate.verdict = "expired"
            self._status(candidate, f"has status {final.status!r}")

    def _judge_processed(self, candidate: Candidate, final: Final) -> None:
        row = candidate.first
        if not 1 <= final.attempts <= self._settings.max_attempts:
            self._status(candidate, f"is processed with attempts {final.attempts}")
        if row.fail and self._rules.fail_flag_tells:
            self._status(candidate, "is processed although payload.fail is true")
        self._no_letters(candidate, "it is processed")
        timed = self._rules.timed and row.kind != "late" and row.off >= 0
        self._report.done_at(final.processed_ms, row.sent_ms if timed else 0)

    def _judge_failed(self, candidate: Candidate, final: Final) -> None:
        row, settings = candidate.first, self._settings
        reason = candidate.letter.reason if candidate.letter else row.dead_reason
        if reason in _APART:
            candidate.verdict = "apart"
        if reason == "handler" or reason not in _FAILED:
            if final.attempts != settings.max_attempts:
                self._status(
                    candidate, f"is failed with attempts {final.attempts}, not {settings.max_attempts}"
                )
            elif not row.fail and self._rules.fail_flag_tells:
                self._status(candidate, "is failed although payload.fail is not true")
        elif reason == "rejected":
            if not 1 <= final.attempts <= settings.max_attempts or self._rules.fail_flag_tells:
                self._status(
                    candidate, f"is rejected with attempts {final.attempts} (handler {settings.handler})"
                )
        elif reason == "crash" and final.attempts != 1 + CRASH_DEATHS:
            self._status(
                candidate, f"is failed (crash) with attempts {final.attempts}, not {1 + CRASH_DEATHS}"
            )
        elif reason in _APART and final.attempts != 0:
            self._status(candidate, f"is failed ({reason}) with attempts {final.attempts}, not 0")
        if reason == "seq_jump" and not 0 < settings.max_seq_jump < row.seq:
            self._status(candidate, f"is failed as seq_jump, but max_seq_jump is {settings.max_seq_jump}")
        if reason == "misrouted" and settings.misrouted != "dlq":
            self._status(candidate, "is failed as misrouted, but misrouted records are to be processed")
        self._expect_letter(candidate, final, _FAILED)

    def _judge_skipped(self, candidate: Candidate, final: Final) -> None:
        if final.attempts != 0:
            self._status(candidate, f"is skipped with attempts {final.attempts}, not 0")
        if not candidate.first.seq:
            self._status(candidate, "is skipped although it is unsequenced")
        if self._settings.late_policy == "skip":
            self._no_letters(candidate, "it is skipped (late_policy)")
        else:
            self._expect_letter(candidate, final, _SKIPPED)

    # --- dead letters of own ids --------------------------------------------------------------------

    def _expect_letter(self, candidate: Candidate, final: Final, reasons: tuple[str, ...]) -> None:
        if not final.error:
            self._status(candidate, f"is {final.status} without an error")
        at = (final.part, final.off)
        row = next((row for row in candidate.rows if (row.part, row.off) == at), None)
        for other in candidate.rows:
            if other is not row:
                self._letters.expect_none(candidate.name, other, "another copy of it took effect")
        if row is not None:
            self._letters.expect(candidate.name, row.id, candidate.letter, row, reasons, (final.attempts,))
        elif candidate.all_acknowledged() and not self._rules.unknown(final.part, final.off):
            self._report.add(
                "rewritten",
                f"{candidate.name} is {final.status} from {final.part}/{final.off}, where it never was",
            )
        else:
            self._letters.expect_unknown_copy(candidate.name, candidate)

    def _no_letters(self, candidate: Candidate, why: str) -> None:
        if candidate.letter is not None:
            self._report.add("dlq", f"{candidate.name}: dlq:{candidate.first.id} exists, although {why}")
        for row in candidate.rows:
            self._letters.expect_none(candidate.name, row, why)

    # --- the handler's own record -------------------------------------------------------------------

    def _judge_runs(self, candidate: Candidate) -> None:
        row, final = candidate.first, candidate.final
        attempts = final.attempts if final is not None and candidate.verdict != "elsewhere" else 0
        if candidate.verdict in ("processed", "failed"):
            # a run that ends its process may never have been recorded
            if row.runs < attempts and not self._crashed(candidate):
                self._status(candidate, f"has {row.runs} runs on record, but attempts {attempts}")
            elif candidate.verdict == "processed" and not row.oks:
                self._status(candidate, "is processed, but no run of it succeeded")
        if candidate.verdict not in ("missing", "expired") and row.runs > attempts:
            self._report.totals.reruns += row.runs - attempts
            elsewhere = candidate.verdict == "elsewhere" and row.runs <= self._rules.conflict_attempts
            if not (self._rules.crashed or elsewhere):
                self._report.add("doubled", f"{candidate.name} ran {row.runs} times, attempts {attempts}")

    @staticmethod
    def _crashed(candidate: Candidate) -> bool:
        reason = candidate.letter.reason if candidate.letter else candidate.first.dead_reason
        return candidate.verdict == "failed" and reason == "crash"

    def _status(self, candidate: Candidate, text: str) -> None:
        self._report.add("status", f"{candidate.name} {text}")
