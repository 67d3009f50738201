"""The ten bugs that first versions have, each planted by changing one text of the product, and who notices.

A bug that can be made in several places is planted in each of them.

A mutant's old text has to be found exactly once in its file: one that does not fit any more fails loudly.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug: `changes` are (file below eventproc/, old text, new text). `killer` names one of KILLERS."""

    name: str
    bug: str
    killer: str
    changes: tuple[tuple[str, str, str], ...]


_TESTS = {
    "parked": ("unit/test_pipeline_floor", "a_parked_event_holds_the_floor"),
    "late": ("unit/test_pipeline_gaps", "what_arrives_below_while_the_closing_is_written_is_late"),
    "behind": ("unit/test_pipeline_gaps", "nothing_closes_before_it_has_read_to_the_end_it_was_told"),
    "stalled": ("unit/test_pipeline_gaps", "a_stall_of_the_process_starts_the_full_timeout_anew"),
    "signal": ("unit/test_worker", "a_signal_sets_a_flag_and_raises_nothing"),
    "locks": ("integration/scripts/test_acquire", "fenced_by_a_newer_epoch_and_by_another_owner"),
    "renews": ("integration/scripts/test_ownership", "renew_and_release_are_fenced"),
    "retry": ("integration/scripts/test_finalize", "same_call_again_writes_nothing_and_answers_the_same"),
    "noscript": ("integration/test_channel", "flushed_scripts_are_loaded_again_in_order"),
    "amidst": ("integration/test_channel", "an_error_amidst_a_batch_is_waited_out_by_what_follows"),
    "answer": ("unit/test_acceptance", "nobody_is_answered_before_kafka_has_acknowledged"),
    "delivery": ("unit/test_pipeline_floor", "a_dead_letter_holds_the_floor_until_kafka_has_acknowledged_it"),
}
SEEDS = {
    "zombies": ("0-149", "zombie,race,stop"),
    "failovers": ("0-149", "rewind"),
    "replays": ("0-149", "reset"),
}
#: Arguments for Python. They pass (exit code 0) on the product, and fail (1) on the mutant they are for.
KILLERS: dict[str, tuple[str, ...]] = {
    **{
        name: ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{file}.py::test_{test}")
        for name, (file, test) in _TESTS.items()
    },
    **{name: ("-m", "tests.simulation.run", *arguments) for name, arguments in SEEDS.items()},
}
_FENCE = "if stored_epoch > epoch or stored[2] ~= ARGV[2] then\n"

MUTANTS = (
    Mutant(
        "1 commits past parked events",
        "the floor is what has been read, whether or not it is final",
        "parked",
        (
            (
                "settler.py",
                "        floor = self._buffer.floor()\n",
                "        floor = self._buffer.position\n",
            ),
        ),
    ),
    Mutant(
        "2 takes what is below for a duplicate",
        "seq <= last is a duplicate, although that seq was given up and has never run",
        "late",
        (
            (
                "store/lua/acquire_events.lua",
                "    verdict, failure = look(KEYS[gaps_at], tonumber(seq))\n",
                "    verdict = '1'\n    for _ = 1, 8 do\n      reply[#reply + 1] = ''\n    end\n",
            ),
        ),
    ),
    Mutant(
        "3 closes a gap while it is behind",
        "a due gap is closed although the log has not been read up to its end",
        "behind",
        (
            (
                "gaps.py",
                "self._barriers.append((end, self._probing))",
                "self._barriers.append((0, self._probing))",
            ),
        ),
    ),
    Mutant(
        "3 lets the gap timer run through a stall",
        "the time in which the process was stopped counts",
        "stalled",
        (("gaps.py", "        self._buffer.restart_timers(now_ms)\n", ""),),
    ),
    Mutant(
        "4 raises in a signal handler",
        "a batch that librdkafka has handed out is lost, or the drain is",
        "signal",
        (
            (
                "worker.py",
                "    def ask(_signal: int, _frame: FrameType | None) -> None:\n        worker.stop()\n",
                "    def ask(_signal: int, _frame: FrameType | None) -> None:\n        raise SystemExit(0)\n",
            ),
        ),
    ),
    Mutant(
        "5 applies a retried call twice",
        "a call that was carried out, but whose reply was lost, is carried out again",
        "retry",
        (("store/lua/finalize_events.lua", "if stored_rev >= rev then\n", "if stored_rev > rev then\n"),),
    ),
    Mutant(
        "6 takes NOSCRIPT for success",
        "one error reply of a pipeline is passed over, and the offset committed",
        "noscript",
        (
            (
                "store/channel.py",
                "            self._send_again()\n            self.flush()\n        else:\n",
                "            self._pending.popleft()\n"
                "            self._done.append((item.request, None))\n        else:\n",
            ),
        ),
    ),
    Mutant(
        "6 passes over one error of a batch",
        "one call of a pipeline was refused, and what follows it is taken for the rest",
        "amidst",
        (
            (
                "store/channel.py",
                "        if trouble or item is None:\n",
                "        if trouble and item is not None:\n"
                "            self._pending.popleft()\n"
                "            self._done.append((item.request, None))\n"
                "        elif trouble or item is None:\n",
            ),
        ),
    ),
    Mutant(
        "7 writes after it was replaced",
        "no fence: a worker that was stopped and replaced goes on where it was",
        "zombies",
        (("store/lua/finalize_events.lua", _FENCE, "if false then\n"),),
    ),
    Mutant(
        "7 locks after it was replaced",
        "no fence: a worker that was replaced takes locks, and runs what they are for",
        "locks",
        (("store/lua/acquire_events.lua", _FENCE, "if false then\n"),),
    ),
    Mutant(
        "7 renews after it was replaced",
        "no fence: a worker that was replaced keeps locks and the lease alive",
        "renews",
        (("store/lua/renew_partition.lua", _FENCE, "if false then\n"),),
    ),
    Mutant(
        "8 does not notice a failover",
        "Redis has lost effects whose offsets Kafka has, and the worker goes on",
        "failovers",
        (("store/lua/finalize_events.lua", "if stored_rev < rev - 1 then\n", "if false then\n"),),
    ),
    Mutant(
        "9 settles before the delivery report",
        "the offset of a dead letter passes when it is produced, not when Kafka has acknowledged it",
        "delivery",
        (
            (
                "settler.py",
                'settle it once Kafka has acknowledged."""\n        self._to_produce.append(entry)\n',
                'settle it once Kafka has acknowledged."""\n        self._to_produce.append(entry)\n'
                "        self.settle(entry.offset)\n",
            ),
            (
                "settler.py",
                "            del self._producing[entry.offset]\n            self.settle(entry.offset)\n",
                "            del self._producing[entry.offset]\n",
            ),
        ),
    ),
    Mutant(
        "9 answers before the delivery report",
        "202 is given when the event is produced, not when Kafka has acknowledged it",
        "answer",
        (
            (
                "ingest/acceptance.py",
                "await self._publisher.publish([event.record() for event in events], timeout_s)\n",
                "[''] * len(events)\n"
                "        records = [event.record() for event in events]\n"
                "        self._sent = asyncio.ensure_future(self._publisher.publish(records, timeout_s))\n",
            ),
        ),
    ),
    Mutant(
        "10 forgets ids before a replay",
        "markers live for minutes, a log is replayed after hours",
        "replays",
        (
            (
                "store/lua/finalize_events.lua",
                "local event_expiry = format('%.0f', now_ms + ARGV[7])\n"
                "local dedup_expiry = format('%.0f', now_ms + ARGV[8])\n",
                "local event_expiry = format('%.0f', now_ms + ARGV[7] / 1000)\n"
                "local dedup_expiry = format('%.0f', now_ms + ARGV[8] / 1000)\n",
            ),
        ),
    ),
)
