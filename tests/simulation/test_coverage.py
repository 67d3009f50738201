"""Every line and branch of the machine, and every line of its scripts, is reached by simulated histories.

What is not is listed here, with its reason. An entry that names a text which is gone fails, too.
"""

from __future__ import annotations

import pytest

from tests.simulation.tracing import PACKAGE, Missing, missing

#: These many histories of all kinds, and as many of those that meet rare lines, are enough.
SEEDS = range(400)

FOREIGN_PARTITION = "nobody else's key stands where the partition's does: tests/integration/test_scripts_*.py"
TROUBLE = "an error of Redis itself, which the channel waits out: tests/integration/test_channel.py"
NO_RECORD_LOST = "the simulated log is never cut: tests/unit/test_ownership.py"
SHOWN = "for status only"
NOT_ASKED = "an answer that nobody waits for any more"
TWO_KEYS = (
    "two keys of others in the way of one event: tests/integration/test_scripts_finalize.py, _acquire.py"
)
LONG_ASIDE = "a user that is set aside for longer than a history lasts: tests/unit/test_pipeline_foreign.py"
MADE_FINAL = "made final between look-up and write, in a rare way: tests/integration/test_scripts_finalize.py"

_WRONGTYPE = "if string.find(stored.err, 'WRONGTYPE', 1, true) then"
_IS_NO_HASH = "return redis.error_reply('FOREIGN key ' .. {} .. ' is no hash: remove it, or set key_prefix')"

EXCLUDED: dict[Missing, str] = {
    **{
        (f"{name}.lua", "", text): reason
        for name, key in (
            ("acquire_events", "KEYS[1]"),
            ("claim_partition", "key"),
            ("finalize_events", "KEYS[1]"),
            ("release_events", "KEYS[1]"),
            ("renew_partition", "KEYS[1]"),
        )
        for text, reason in (
            (
                _WRONGTYPE.replace("string.", "") if name == "finalize_events" else _WRONGTYPE,
                FOREIGN_PARTITION,
            ),
            (_IS_NO_HASH.format(key), FOREIGN_PARTITION),
            ("return stored", TROUBLE),
        )
    },
    (
        "claim_partition.lua",
        "",
        "return redis.error_reply('SCHEMA ' .. stored[7] .. "
        "' of key ' .. key .. ' is newer than ' .. schema ..",
    ): "no newer version has written here: tests/integration/test_scripts_ownership.py",
    (
        "claim_partition.lua",
        "",
        "', which this version writes: upgrade eventproc, or set key_prefix')",
    ): "the same",
    ("acquire_events.lua", "", "return failure"): TROUBLE,
    ("acquire_events.lua", "contend", "return nil, value"): TROUBLE,
    ("acquire_events.lua", "found", "return nil, fields"): TROUBLE,
    ("acquire_events.lua", "look", "return nil, high"): TROUBLE,
    ("finalize_events.lua", "", "return begun"): TROUBLE,
    ("load_users.lua", "", "return last"): TROUBLE,
    ("load_users.lua", "", "return following"): TROUBLE,
    ("acquire_events.lua", "found", "foreign = event_key"): TWO_KEYS,
    ("acquire_events.lua", "look", "reply[#reply + 1] = gaps_key"): TWO_KEYS,
    ("acquire_events.lua", "look", "return '5'"): TWO_KEYS,
    ("finalize_events.lua", "apply", "return FINAL, status"): MADE_FINAL,
    ("finalize_events.lua", "apply", "return write_event(i, user, letter)"): MADE_FINAL,
    ("finalize_events.lua", "apply", "write_letter(i, user, letter)"): MADE_FINAL,
    (
        "finalize_events.lua",
        "apply",
        "elseif not at or found[4] ~= partition or found[5] ~= ARGV[at + 4] then",
    ): MADE_FINAL,
    ("finalize_events.lua", "apply_group", "code, status = FOREIGN, key"): TWO_KEYS,
    ("finalize_events.lua", "apply_group", "code, status = FOREIGN, next_key"): TWO_KEYS,
    ("finalize_events.lua", "write_letter", "call('DEL', key)"): MADE_FINAL,
    (
        "renew_partition.lua",
        "",
        "reply[#reply + 1] = k - 2",
    ): "a lock that ran out and was taken within one run",
    ("renew_partition.lua", "", "return {'rewound'}"): "a failover within one run: test_scripts_ownership.py",
    ("release_events.lua", "", "return {'fenced'}"): "replaced within a drain: test_scripts_ownership.py",
    ("asides.py", "Asides.holds_gap", "aside.gaps.append(gap)"): LONG_ASIDE,
    ("asides.py", "Asides.holds_gap", "return True"): LONG_ASIDE,
    ("asides.py", "Asides.retry", "return [], []"): LONG_ASIDE,
    (
        "finalizer.py",
        "Finalizer._collect",
        "if not self._asides.holds_gap(gap): -> for _ in range(min(len(self._gaps), self._batch_max)):",
    ): LONG_ASIDE,
    ("finalizer.py", "Finalizer._take_single", "self._refuse(entry, why, written)"): MADE_FINAL,
    ("finalizer.py", "Finalizer._applied", "self._settler.dead_letter(entry)"): MADE_FINAL,
    ("ownership.py", "Ownership._start", 'if policy == "stop":'): NO_RECORD_LOST,
    ("ownership.py", "Ownership._start", "policy = self._settings.on_offset_out_of_range"): NO_RECORD_LOST,
    ("ownership.py", "Ownership._start", "raise ConfigError("): NO_RECORD_LOST,
    ("ownership.py", "Ownership._start", 'return low if policy == "earliest" else high'): NO_RECORD_LOST,
    ("ownership.py", "Ownership.on_claimed", "return -1"): NO_RECORD_LOST,
    ("ownership.py", "Ownership.on_claimed", "self._doubted = True"): NO_RECORD_LOST,
    ("ownership.py", "Ownership.on_claimed", 'self._state = "new"'): NO_RECORD_LOST,
    ("ownership.py", "Ownership.on_offsets", 'if self._state == "asked": -> the end'): NOT_ASKED,
    ("pipeline.py", "Pipeline.on_claimed", "self._finalizer.acked_floor = -1  # to be written at once"): (
        NO_RECORD_LOST
    ),
    ("pipeline.py", "Pipeline.foreign", "return self._asides.foreign"): SHOWN,
    ("pipeline.py", "Pipeline.paused", "return self._paused"): SHOWN,
    ("pipeline.py", "Pipeline.on_ran", "return"): NOT_ASKED,
    ("pipeline.py", "Pipeline.on_released", "if request is self._release: -> the end"): NOT_ASKED,
    ("pipeline.py", "Pipeline.on_records", "if batch.end >= 0: -> the end"): "no reader hands in nothing",
}


@pytest.mark.timeout(1800)
def test_every_line_and_branch_is_reached() -> None:
    found = missing(SEEDS, SEEDS)
    assert sorted(found - set(EXCLUDED)) == []


@pytest.mark.parametrize("excluded", EXCLUDED, ids=lambda excluded: f"{excluded[0]}: {excluded[2]}")
def test_what_is_excluded_is_there(excluded: Missing) -> None:
    file, _, text = excluded
    path = PACKAGE / ("store/lua" if file.endswith(".lua") else "") / file
    lines = [line.strip() for line in path.read_text().splitlines()]
    for part in text.split(" -> "):
        assert part == "the end" or part in lines, f"gone from {file}: {part}"
