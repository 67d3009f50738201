"""That a list is said to be dense saves Redis a look-up, and changes nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from eventproc.effects import Claim, Claimed, Entry, Finalize, Finalized, Gap
from eventproc.store.scripts import ScriptSet
from tests.script_runner import entry, failed, group, settings
from tests.simulation.memory_store import MemoryStore

USERS = "uvw"


class StandingClock:
    """It is always the same time."""

    def monotonic_ms(self) -> int:
        return 0

    def wall_ms(self) -> int:
        return 1_700_000_000_000

    def sleep_ms(self, ms: float) -> None:
        raise AssertionError


@dataclass(frozen=True)
class Work:
    """What is in one call for one user, whose list holds every seq up to `last` as far as its owner knows."""

    user: str
    last: int
    behind: int  # seqs that another partition has pushed since
    gap: bool
    kinds: list[str]  # of the entries, in order


works = st.builds(
    Work,
    st.just(""),
    st.integers(0, 3),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([False, False, False, True]),
    st.lists(
        st.sampled_from(["new"] * 6 + ["failed", "final here", "final elsewhere", "marked", "long type"]),
        min_size=1,
        max_size=4,
    ),
)


def entries_of(work: Work) -> list[Entry]:
    made = []
    for at, kind in enumerate(work.kinds):
        seq = work.last + 1 + 2 * work.gap + at
        fields: dict[str, Any] = {"id": f"{work.user}{seq}", "lock_expiry_ms": 1 << 50}
        if kind == "failed":
            made.append(failed(seq, work.user, seq, **fields))
        else:
            made.append(entry(seq, work.user, seq, **fields, type="t" * (70 if kind == "long type" else 1)))
    return made


def without_what_is_told_of_lists(keys: dict[bytes, Any]) -> dict[bytes, Any]:
    """All keys; the reply that the partition keeps lacks what it tells of lists that are not dense."""
    fields = keys[b"partition:events:0"][0]
    rejects = re.sub(rb"\d+!,", b"", fields.pop(b"rejects", b""))
    fields.update({b"rejects": rejects} if rejects else {})
    return keys


def outcome(work: list[Work], *, dense: bool) -> tuple[Finalized, Any]:
    """Reply, and all keys behind it."""
    scripts, store = ScriptSet(settings(), "events", 0), MemoryStore(StandingClock())
    claimed = store.perform(scripts, Claim("me", 1000))
    assert isinstance(claimed, Claimed)
    groups = []
    for one in work:
        for seq in range(1, one.last + one.behind + 1):
            store.command("RPUSH", f"order:{one.user}", seq)
        entries = entries_of(one)
        for it, kind in zip(entries, one.kinds, strict=True):
            if kind.startswith("final"):
                user = one.user if kind == "final here" else "other"
                fields = ("status", "processed", "userId", user, "seq", it.seq)
                store.command("HSET", f"event:{it.id}", *fields)
            if kind == "marked":
                store.command("SET", f"dedup:{it.id}", 1)
        gaps = [Gap(one.user, one.last + 1, one.last + 2, "timeout")] if one.gap else []
        groups.append(group(one.user, *entries, gaps=gaps, dense=dense))
    reply = store.perform(scripts, Finalize(claimed.epoch, "me", 1, 99, 0, groups, [], []))
    assert isinstance(reply, Finalized)
    reply.not_dense.clear()
    return reply, without_what_is_told_of_lists(store.dump())


@given(st.tuples(works, works, works))
def test_the_outcome_is_the_same(work: tuple[Work, ...]) -> None:
    named = [
        Work(user, one.last, one.behind, one.gap, one.kinds) for user, one in zip(USERS, work, strict=True)
    ]
    expected = outcome(named, dense=False)
    assert outcome(named, dense=True) == expected
    for user in USERS:
        found = expected[1].get(f"order:{user}".encode())
        seqs = [int(seq) for seq in found[0]] if found else []
        assert seqs == sorted(set(seqs))


def order_of_u(store: MemoryStore) -> list[int]:
    found = store.dump().get(b"order:u")
    return [int(seq) for seq in found[0]] if found else []


mine = st.tuples(st.just("mine"), st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=3))
others = st.tuples(st.just("other"), st.integers(1, 4))


@given(st.lists(st.one_of(mine, mine, others), max_size=8))
def test_a_list_ascends_whoever_else_writes_to_it(steps: list[tuple[str, Any]]) -> None:
    """`mine`: attempts of each event of a call. `other`: another partition skips some seqs and pushes one."""
    scripts, store = ScriptSet(settings(), "events", 0), MemoryStore(StandingClock())
    claimed = store.perform(scripts, Claim("me", 1000))
    assert isinstance(claimed, Claimed)
    seq, rev, dense = 0, 0, True
    for kind, what in steps:
        if kind == "other":
            store.command("RPUSH", "order:u", (order_of_u(store) or [0])[-1] + what)
            continue
        entries = []
        for attempts in what:
            seq += 1
            entries.append(entry(seq, "u", seq, attempts=attempts))
        groups = [group("u", *entries, dense=dense)]
        rev += 1
        reply = store.perform(scripts, Finalize(claimed.epoch, "me", rev, 99, 0, groups, [], []))
        assert isinstance(reply, Finalized)
        dense = dense and not reply.not_dense
        seqs = order_of_u(store)
        assert seqs == sorted(set(seqs))
