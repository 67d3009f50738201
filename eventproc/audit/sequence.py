"""Each user's sequence: the order list, the gap ledger, `next:`, and which of two ids won (CONTRACT 4.1-4.4).

Judged, per user: order:<user> is strictly increasing; every seq in it has one processed event, every
processed event's seq is in it. Up to the last seq that took effect, each one is in the list, failed, an
id_conflict, or given up in gaps:<user>. A seq in the ledger was not processed, and its event was not there
in time as far as that is provable: it is not provable whether a record that came after the one beyond the
gap was early enough, unless both carry their producer's times. A skipped event is late (its seq is in the
ledger) or stale (another id has its seq: of two ids the one that comes first in the partition wins).
`next:` is there only when the list does not tell enough, and then tells exactly one more than the last seq
that failed or was given up. With the handler's record, the last runs of a user's events are in seq order.

Not judged: what a trimmed list or ledger no longer tells, gaps of reason reset, users whose records lie in
several partitions (which record came first), seqs with unacknowledged records (the same).
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from itertools import chain, islice
from operator import lt
from typing import NamedTuple

from eventproc.audit.events import EventJudge
from eventproc.audit.report import Finding, Report
from eventproc.audit.rules import CLOCK_SLACK_MS, Candidate, Rules
from eventproc.store.reading import UserKeys

_GAP = re.compile(r"([1-9]\d*)-([1-9]\d*):(timeout|overflow|reset):(\d+)", re.ASCII)


class LedgerGap(NamedTuple):
    """One entry of gaps:<user>."""

    first: int
    last: int
    reason: str
    at_ms: int


class UserJudge:
    """Takes one user's candidates group by group (all of one seq), seqs ascending, then `finish()`."""

    def __init__(self, user: str, keys: UserKeys, rules: Rules, events: EventJudge, report: Report) -> None:
        self._user = user
        self._rules = rules
        self._events = events
        self._report = report
        settings = rules.settings
        self._last = keys.order[-1] if keys.order else 0
        self._next = keys.next
        self._order = self._check_order(keys.order)
        self._order_at = 0
        trimmed = 0 < settings.order_max_len <= len(keys.order)
        self._order_from = self._order[0] if trimmed else 0
        self._gaps = self._read_gaps(keys.gaps)
        self._gap_at = 0
        self._gaps_from = self._gaps[0].first if len(keys.gaps) >= settings.gaps_max_len and self._gaps else 0
        self._previous = 0  # seq of the group before
        self._unexplained: list[tuple[int, int]] = []  # ranges that need an effect beyond them to be gaps
        self._ahead = 0  # one more than the last seq that failed
        self._in_time: tuple[LedgerGap, Candidate] | None = None  # first by offset of those given up
        self._in_time_by_clock: Candidate | None = None
        self._last_run: tuple[int, int, int] = (-1, -1, 0)  # file, line, seq
        self._uncertain = False

    def group(self, seq: int, candidates: list[Candidate]) -> None:
        """All candidates of that seq, the one that came first in front; seq 0: one unsequenced event."""
        for candidate in candidates:
            self._events.judge(candidate)
        if not seq:
            return
        if seq > self._previous + 1:
            self._pass_range(self._previous + 1, seq - 1)
        self._previous = seq
        gap = self._gap_of(seq)
        if self._in_time is not None:
            self._judge_proof(seq, candidates)
        in_order = self._take_order(seq)
        if len(candidates) == 1 and in_order and gap is None and candidates[0].verdict == "processed":
            self._report_unexplained()
            self._judge_run_order(candidates)
            return
        processed = [c for c in candidates if c.verdict == "processed"]
        took = in_order or any(c.verdict in ("processed", "failed", "elsewhere") for c in candidates)
        taken = took or any(c.verdict == "open" for c in candidates)
        self._judge_place(seq, candidates, processed, in_order, gap)
        self._judge_skipped(seq, candidates, taken, gap)
        self._judge_winner(candidates)
        if any(c.verdict in ("failed", "elsewhere") for c in candidates) and not processed:
            self._ahead = max(self._ahead, seq + 1)
        if any(c.verdict in ("missing", "expired") for c in candidates):
            self._uncertain = True
        if took:
            self._report_unexplained()
        self._judge_run_order(candidates)

    def finish(self) -> None:
        """Judge what is left of the list, the ledger and `next:`."""
        self._report.totals.users += 1
        self._pass_range(self._previous + 1, 2**53)
        if self._rules.idle:
            self._judge_next()

    # --- reading ------------------------------------------------------------------------------------

    def _check_order(self, order: array[int]) -> array[int]:
        """Report what is wrong with the list by itself; the list in ascending order, each seq once."""
        if all(map(lt, islice(chain((0,), order), len(order)), order)):
            return order
        highest = 0
        seen: set[int] = set()
        for place, seq in enumerate(order):
            if seq in seen:
                self._add("doubled", f"order:{self._user} holds {seq} again at index {place}")
            elif seq < highest or seq < 1:
                self._add("reordered", f"order:{self._user} holds {seq} at index {place}, behind {highest}")
            seen.add(seq)
            highest = max(highest, seq)
        return array("q", sorted(seen))

    def _read_gaps(self, entries: list[str]) -> list[LedgerGap]:
        gaps: list[LedgerGap] = []
        end = 0
        for entry in entries:
            found = _GAP.fullmatch(entry)
            if found is None:
                self._add("gap", f"gaps:{self._user} holds {entry!r}, which is no ledger entry")
                continue
            gap = LedgerGap(int(found[1]), int(found[2]), found[3], int(found[4]))
            if not end < gap.first <= gap.last:
                self._add("gap", f"gaps:{self._user} holds {entry!r}, behind one that ends at {end}")
                continue
            end = gap.last
            self._report.totals.gaps += 1
            self._report.totals.gap_seqs += gap.last - gap.first + 1
            gaps.append(gap)
        return gaps

    def _gap_of(self, seq: int) -> LedgerGap | None:
        """The ledger entry that gives up `seq`; seqs must ascend from call to call."""
        while self._gap_at < len(self._gaps) and self._gaps[self._gap_at].last < seq:
            self._gap_at += 1
        if self._gap_at < len(self._gaps) and self._gaps[self._gap_at].first <= seq:
            return self._gaps[self._gap_at]
        return None

    def _take_order(self, seq: int) -> bool:
        if self._order_at < len(self._order) and self._order[self._order_at] == seq:
            self._order_at += 1
            return True
        return False

    # --- what lies between the groups ---------------------------------------------------------------

    def _pass_range(self, first: int, last: int) -> None:
        """Seqs of which there is no record."""
        if first > last:
            return
        end = bisect_left(self._order, last + 1)
        if self._rules.complete:
            for seq in self._order[self._order_at : end]:
                self._add("phantom", f"order:{self._user} holds {seq}, which nobody produced")
        self._order_at = max(end, self._order_at)
        if last < 2**53:
            self._unexplained += self._not_given_up(first, last)

    def _not_given_up(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of a range that are not in the gap ledger (and that the ledger could still tell)."""
        first = max(first, self._gaps_from)
        parts = []
        at = self._gap_at
        while first <= last and at < len(self._gaps):
            gap = self._gaps[at]
            if gap.first > last:
                break
            if gap.first > first:
                parts.append((first, gap.first - 1))
            first = max(first, gap.last + 1)
            at += 1
        if first <= last:
            parts.append((first, last))
        return parts

    def _report_unexplained(self) -> None:
        if self._unexplained and self._rules.complete:
            for first, last in self._unexplained:
                seqs = f"{first}-{last}" if last > first else str(first)
                self._add(
                    "gap", f"user {self._user} passed over seq {seqs}, which gaps:{self._user} does not tell"
                )
        self._unexplained.clear()

    # --- one seq ------------------------------------------------------------------------------------

    def _judge_place(
        self,
        seq: int,
        candidates: list[Candidate],
        processed: list[Candidate],
        in_order: bool,
        gap: LedgerGap | None,
    ) -> None:
        if len(processed) > 1:
            names = " and ".join(candidate.first.id for candidate in processed)
            self._add("doubled", f"user {self._user} seq {seq} was processed as {names}")
        if processed and not in_order and seq >= self._order_from:
            self._add("gap", f"{processed[0].name} is processed, but not in order:{self._user}")
        if (
            in_order
            and not processed
            and not self._rules.lows  # else it may be another's, of whom nobody knows any more
            and all(c.verdict not in ("", "missing", "expired", "open") for c in candidates)
        ):
            self._add("status", f"{candidates[0].name} is {candidates[0].verdict}, but in order:{self._user}")
        if processed and gap is not None and gap.reason != "reset":
            given = f"{gap.first}-{gap.last}:{gap.reason}"
            self._add("gap", f"{processed[0].name} is processed, but given up in gaps:{self._user} ({given})")

    def _judge_skipped(
        self, seq: int, candidates: list[Candidate], taken: bool, gap: LedgerGap | None
    ) -> None:
        for candidate in candidates:
            if candidate.verdict != "skipped":
                continue
            reason = candidate.letter.reason if candidate.letter is not None else ""
            if gap is not None:
                if reason == "stale":
                    self._add("status", f"{candidate.name} is stale, but its seq was given up: late")
                self._keep_proof(gap, candidate)
            elif seq < self._gaps_from:
                continue
            elif not taken:
                self._add("gap", f"{candidate.name} is skipped, but its seq was neither given up nor taken")
            elif reason == "late":
                self._add("status", f"{candidate.name} is late, but its seq was not given up: stale")

    def _judge_winner(self, candidates: list[Candidate]) -> None:
        """Of two ids the first to arrive takes the seq."""
        taker = next((c for c in candidates if c.verdict in ("processed", "failed")), None)
        if taker is None or len({row.part for c in candidates for row in c.rows}) > 1:
            return
        for candidate in candidates:
            if (
                candidate.verdict == "skipped"
                and candidate.all_acknowledged()
                and taker.all_acknowledged()
                and candidate.first.off < taker.first.off
            ):
                self._add("status", f"{candidate.name} came before {taker.name}, but was skipped as stale")

    # --- gaps that were none ------------------------------------------------------------------------

    def _keep_proof(self, gap: LedgerGap, candidate: Candidate) -> None:
        if gap.reason == "reset" or not candidate.all_acknowledged():
            return
        kept = self._in_time
        if kept is None or kept[0] is not gap or candidate.first.off < kept[1].first.off:
            self._in_time = (gap, candidate)
        by_clock = self._in_time_by_clock
        new = kept is None or kept[0] is not gap or by_clock is None
        if new or by_clock is None or _acked_ms(candidate) < _acked_ms(by_clock):
            self._in_time_by_clock = candidate

    def _judge_proof(self, seq: int, candidates: list[Candidate]) -> None:
        """With the event beyond a gap at hand: was one of those given up there before it, or in time?"""
        if self._in_time is None or seq <= self._in_time[0].last:
            return
        (gap, candidate), by_clock = self._in_time, self._in_time_by_clock
        self._in_time = self._in_time_by_clock = None
        beyond = [row for c in candidates for row in c.rows]
        if seq != gap.last + 1 or any(row.off < 0 or row.part != candidate.first.part for row in beyond):
            return
        given = f"gaps:{self._user} ({gap.first}-{gap.last}:{gap.reason})"
        if candidate.first.off < min(row.off for row in beyond):
            self._add("gap", f"{candidate.name} was given up in {given}, though it lies before seq {seq}")
            return
        deadline_ms = min(row.sent_ms for row in beyond) + self._rules.settings.gap_timeout_ms
        if (
            self._rules.timed
            and gap.reason == "timeout"
            and by_clock is not None
            and _acked_ms(by_clock) + CLOCK_SLACK_MS < deadline_ms
        ):
            self._add(
                "gap",
                f"{by_clock.name} was given up in {given}, though acknowledged "
                f"{deadline_ms - _acked_ms(by_clock)} ms before that gap could close",
            )

    # --- the handler's record -----------------------------------------------------------------------

    def _judge_run_order(self, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            row = candidate.first
            if candidate.verdict not in ("processed", "failed") or row.run_files != 1:
                continue
            file, line, seq = self._last_run
            if file == row.run_file and row.last_line < line:
                self._add(
                    "reordered",
                    f"the last run of {candidate.name} (line {row.last_line}) is before that of seq {seq} "
                    f"(line {line})",
                )
            else:
                self._last_run = (row.run_file, row.last_line, row.seq)

    # --- the end ------------------------------------------------------------------------------------

    def _judge_next(self) -> None:
        given_up = self._gaps[-1].last + 1 if self._gaps else 0
        wanted = max(self._ahead, given_up)
        if self._next and not (self._next.isascii() and self._next.isdigit()):
            self._add("next", f"next:{self._user} is {self._next!r}, not a number")
        elif self._next and int(self._next) <= self._last + 1:
            self._add(
                "next", f"next:{self._user} is {self._next}, but order:{self._user} ends with {self._last}"
            )
        elif wanted > self._last + 1 and not self._uncertain and self._next != str(wanted):
            self._add("next", f"next:{self._user} is {self._next or 'missing'}, must be {wanted}")
        elif self._next and wanted <= self._last + 1 and not self._uncertain and self._rules.complete:
            self._add("next", f"next:{self._user} is {self._next}, but nothing failed after {self._last}")

    def _add(self, kind: Finding, text: str) -> None:
        self._report.add(kind, text)


def _acked_ms(candidate: Candidate) -> int:
    return min(row.acked_ms for row in candidate.rows)
