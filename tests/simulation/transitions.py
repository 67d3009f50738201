"""What can happen to a partition, named: every answer to every kind of request, for every kind of entry.

The names do not depend on how the machine is written. Simulated workers count each as it happens;
`test_simulation.py` demands that the seeds of a test run reach all of `EXPECTED`.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
    Entry,
    Final,
    Finalize,
    Finalized,
    LoadUsers,
    Refusal,
    Release,
    Renew,
    Renewed,
    Run,
    StoreReply,
    StoreRequest,
    Verdict,
)
from eventproc.errors import Reject
from eventproc.handlers import NOT_RUN, Outcome

Counts = dict[str, int]


def asked(counts: Counts, request: StoreRequest) -> None:
    """A request goes to Redis."""
    if isinstance(request, Claim):
        how = "forced" if request.force else "after a dead one" if request.may_take else "plain"
        counts[f"claim: {how}"] += 1
        if request.baseline >= 0:
            counts["claim: with a baseline"] += 1
        if request.death is not None:
            counts[f"claim: with a death of {'one' if len(request.death.offsets) == 1 else 'many'}"] += 1
    elif isinstance(request, Finalize):
        for group in request.groups:
            for gap in group.gaps:
                counts[f"gap: {gap.reason}"] += 1
                if not group.entries:
                    counts["gap: alone"] += 1
        for entry in request.entries():
            counts[f"finalize: {_outcome(entry)}"] += 1
        if not (request.groups or request.loose or request.letters):
            counts["finalize: floor only"] += 1
    elif isinstance(request, Release):
        counts[f"release: {'locks' if request.entries else 'none'}"] += 1


def answered(counts: Counts, request: StoreRequest, reply: StoreReply) -> None:
    """The worker takes a reply."""
    if isinstance(request, Acquire) and isinstance(reply, Acquired):
        counts[f"acquire: {reply.status}"] += 1
        for i, (entry, verdict) in enumerate(zip(request.entries, reply.verdicts, strict=False)):
            name = Verdict(verdict).name
            if verdict == Verdict.FINAL:
                name = f"{name} {_final(entry, reply.finals.get(i, Final()))}"
            counts[f"acquire: {name}, {_kind(entry)}"] += 1
    elif isinstance(request, Finalize) and isinstance(reply, Finalized):
        counts[f"finalize: {reply.status}"] += 1
        if reply.refused or reply.foreign:
            _refused(counts, request, reply)
    elif isinstance(request, LoadUsers) and isinstance(reply, list):
        for state in reply:
            if state.foreign:
                counts["load: foreign"] += 1
            else:
                counts[f"load: {'next' if state.next else 'last' if state.last else 'new'}"] += 1
    elif isinstance(request, Claim) and isinstance(reply, Claimed):
        counts[f"claim: {reply.status}"] += 1
        if reply.suspects:
            counts["claim: suspects"] += 1
    elif isinstance(request, Renew) and isinstance(reply, Renewed):
        counts[f"renew: {reply.status}"] += 1


def ran(counts: Counts, request: Run, outcomes: Sequence[Outcome]) -> None:
    """The handler ran."""
    for entry, outcome in zip(request.entries, outcomes, strict=True):
        kind = "sequenced" if entry.seq else "unsequenced"
        if entry.passed:
            how = "passed" if outcome is None else "passed, behind a failure"
        elif outcome is None:
            how = "processed"
        elif outcome is NOT_RUN:
            how = "not run"
        else:
            how = "rejected" if isinstance(outcome, Reject) else "raised"
        counts[f"run: {how}, {kind}"] += 1


def ended(counts: Counts, entry: Entry, outcome: Outcome, *, thrown_away: bool) -> None:
    """An async handler has ended."""
    if thrown_away:
        how = "thrown away"
    elif outcome is None:
        how = "processed"
    else:
        how = "rejected" if isinstance(outcome, Reject) else "raised"
    counts[f"ended: {how}, {'sequenced' if entry.seq else 'unsequenced'}"] += 1


def _kind(entry: Entry) -> str:
    if entry.look:
        return f"looked up {entry.reason or 'below'}"
    return "sequenced" if entry.seq else "unsequenced"


def _final(entry: Entry, final: Final) -> str:
    if not final.status:
        return "by its marker"
    if final.user != entry.user or final.seq != entry.seq:
        return "for another"
    if final.offset == entry.offset and final.partition >= 0:
        return f"as {final.status} here"
    return f"as {final.status}"


def _outcome(entry: Entry) -> str:
    if entry.passed:
        return f"passed {entry.status or 'as failed'}"
    kind = "letter" if entry.letter else "loose" if entry.look or not entry.seq else "grouped"
    return f"{kind} {entry.status or entry.reason} {entry.reason}".rstrip()


def _refused(counts: Counts, request: Finalize, reply: Finalized) -> None:
    grouped = sum(len(group.entries) for group in request.groups)
    loose = grouped + len(request.loose)
    for index, why in reply.refused.items():
        kind = "grouped" if index < grouped else "loose" if index < loose else "letter"
        counts[f"refused: {Refusal(why).name}, {kind}"] += 1
    for group in reply.foreign:
        if group < len(request.groups):
            given = request.groups[group]
            what = "gap and entries" if given.gaps and given.entries else "gap" if given.gaps else "entries"
            counts[f"set aside: {what}"] += 1


#: What the seeds of a test run have to reach, each dozens of times.
EXPECTED = frozenset(
    (
        "acquire: FINAL as failed here, looked up below",
        "acquire: FINAL as failed here, looked up misrouted",
        "acquire: FINAL as failed here, looked up seq_jump",
        "acquire: FINAL as failed here, unsequenced",
        "acquire: FINAL as failed, looked up below",
        "acquire: FINAL as processed, sequenced",
        "acquire: FINAL as processed, unsequenced",
        "acquire: FINAL as skipped here, looked up below",
        "acquire: FINAL as skipped here, looked up stale",
        "acquire: FINAL as skipped, looked up below",
        "acquire: FINAL by its marker, looked up below",
        "acquire: FINAL by its marker, sequenced",
        "acquire: FINAL by its marker, unsequenced",
        "acquire: FINAL for another, looked up below",
        "acquire: FINAL for another, sequenced",
        "acquire: FINAL for another, unsequenced",
        "acquire: FOREIGN, looked up below",
        "acquire: FOREIGN, looked up seq_jump",
        "acquire: FOREIGN, sequenced",
        "acquire: FOREIGN, unsequenced",
        "acquire: GRANTED, sequenced",
        "acquire: GRANTED, unsequenced",
        "acquire: LATE, looked up below",
        "acquire: PROCESSED, looked up below",
        "acquire: LOCKED, sequenced",
        "acquire: LOCKED, unsequenced",
        "acquire: STALE, looked up below",
        "acquire: STALE, looked up misrouted",
        "acquire: STALE, looked up seq_jump",
        "acquire: STALE, looked up stale",
        "acquire: fenced",
        "acquire: ok",
        "acquire: rewound",
        "claim: after a dead one",
        "claim: forced",
        "claim: held",
        "claim: ok",
        "claim: plain",
        "claim: suspects",
        "claim: with a baseline",
        "claim: with a death of many",
        "claim: with a death of one",
        "ended: processed, sequenced",
        "ended: processed, unsequenced",
        "ended: raised, sequenced",
        "ended: raised, unsequenced",
        "ended: rejected, sequenced",
        "ended: thrown away, sequenced",
        "ended: thrown away, unsequenced",
        "finalize: fenced",
        "finalize: floor only",
        "finalize: grouped failed crash",
        "finalize: grouped failed handler",
        "finalize: grouped failed rejected",
        "finalize: grouped processed",
        "finalize: letter id_conflict id_conflict",
        "finalize: letter invalid invalid",
        "finalize: loose failed handler",
        "finalize: loose failed misrouted",
        "finalize: loose failed seq_jump",
        "finalize: loose processed",
        "finalize: loose skipped",
        "finalize: loose skipped late",
        "finalize: loose skipped stale",
        "finalize: ok",
        "finalize: passed as failed",
        "finalize: passed processed",
        "finalize: rewound",
        "gap: alone",
        "gap: overflow",
        "gap: reset",
        "gap: timeout",
        "load: foreign",
        "load: last",
        "load: new",
        "load: next",
        "refused: CONFLICT, grouped",
        "refused: FINAL, grouped",
        "refused: FOREIGN, grouped",
        "refused: FOREIGN, letter",
        "refused: FOREIGN, loose",
        "release: locks",
        "release: none",
        "renew: fenced",
        "renew: ok",
        "renew: rewound",
        "run: a suspect",
        "run: not run, sequenced",
        "run: not run, unsequenced",
        "run: passed, behind a failure, sequenced",
        "run: passed, sequenced",
        "run: processed, sequenced",
        "run: processed, unsequenced",
        "run: raised, sequenced",
        "run: raised, unsequenced",
        "run: rejected, sequenced",
        "set aside: entries",
        "set aside: gap",
    )
)

_FINALS = ("as failed", "as skipped", "by its marker", "for another")
_LOOKED_UP = ("below", "stale", "seq_jump", "misrouted")
#: What may happen too, but needs two rare things to meet in one event: no run fails for missing it.
RARE = frozenset(
    [f"acquire: FINAL {how}, looked up {why}" for how in _FINALS for why in _LOOKED_UP]
    + [f"acquire: FINAL {how} here, looked up {why}" for how in _FINALS[:2] for why in _LOOKED_UP]
    + [
        f"acquire: {verdict}, looked up {why}"
        for verdict in ("FOREIGN", "LATE", "LOCKED", "PROCESSED")
        for why in _LOOKED_UP
    ]
    + ["acquire: FINAL as failed, sequenced", "acquire: FINAL as failed here, sequenced"]
    + ["acquire: FINAL as failed, unsequenced", "finalize: passed failed", "finalize: passed skipped"]
    + ["refused: CONFLICT, loose", "refused: FINAL, loose", "run: passed, unsequenced"]
    + ["set aside: gap and entries", "run: rejected, unsequenced"]
    + ["finalize: loose failed crash", "ended: rejected, unsequenced"]
)

_KINDS = {name.split(":")[0] for name in EXPECTED}


def unnamed(counts: Counts) -> list[str]:
    """Transitions that happened, but are in neither list."""
    known = EXPECTED | RARE
    return sorted(
        name for name in counts if name.split(":")[0] in _KINDS and ": " in name and name not in known
    )
