"""The reorder buffer against its model: the same random history, every answer and every counter equal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventproc._reorder import ReorderBuffer

from .reorder_model import ReorderModel

NAMES = ["ann", "bob", "čeněk", "dan", "ευα"]
LISTS = ("ready", "below", "occupied", "jumped", "unknown", "evicted")

#: (user, seq, distance to the offset before, size)
Arrival = tuple[str, int, int, int]


class Twins:
    """The buffer and the model; each call goes to both, and their answers must be the same."""

    def __init__(self, caps: dict[str, int]) -> None:
        self.buffer = ReorderBuffer(position=100, **caps)
        self.model = ReorderModel(position=100, **caps)
        self.now_ms = 1000
        self.offset = 99
        self.labels = 0
        self.unloaded: list[str] = []
        self.closed: list[str] = []
        self.ready: list[str] = []  # users of ready items that are not finished
        self.owner: dict[object, str] = {}

    def both(self, method: str, *args: Any, **options: Any) -> Any:
        answers: list[Any] = []
        for side in (self.buffer, self.model):
            try:
                answer = getattr(side, method)(*args, **options)
            except ValueError:
                answer = "ValueError"
            if hasattr(answer, "ready"):
                answer = {name: getattr(answer, name) for name in LISTS}
            answers.append(answer)
        assert answers[0] == answers[1], f"{method}{args}{options}"
        self.compare()
        return answers[0]

    def compare(self) -> None:
        for counter in ("position", "parked", "parked_bytes", "users"):
            assert getattr(self.buffer, counter) == getattr(self.model, counter), counter
        for query in ("floor", "unfinalized", "next_deadline_ms", "oldest_gap", "floor_gap", "overfull"):
            assert getattr(self.buffer, query)() == getattr(self.model, query)(), query
        for name in NAMES:
            assert self.buffer.expected(name) == self.model.expected(name), name
            assert self.buffer.in_flight(name) == self.model.in_flight(name), name

    def push(self, arrivals: list[Arrival]) -> None:
        users, seqs, offsets, sizes, items = [], [], [], [], []
        for name, seq, step, size in arrivals:
            self.offset += step
            self.labels += 1
            item = f"{name}/{seq}#{self.labels}"
            self.owner[item] = name if seq else ""
            users.append(name)
            seqs.append(seq)
            offsets.append(self.offset)
            sizes.append(size)
            items.append(item)
        self.note(self.both("push", users, seqs, offsets, sizes, items, self.now_ms))

    def note(self, answer: dict[str, Any]) -> None:
        self.ready += [self.owner[item] for item in answer["ready"]]
        self.unloaded += answer["unknown"]

    def load(self, users: list[str], expected: list[int], adopt: list[bool]) -> None:
        self.unloaded = [u for u in self.unloaded if u not in users]
        self.note(self.both("load", users, expected, adopt, self.now_ms))

    def close(self, users: list[str], only_due: bool) -> None:
        self.closed += [gap[0] for gap in self.both("close", users, only_due=only_due)]

    def open(self, users: list[str]) -> None:
        self.closed = [u for u in self.closed if u not in users]
        self.note(self.both("open", users, self.now_ms))

    def finish(self, count: int) -> None:
        self.both("finish", self.ready[:count])
        self.ready = self.ready[count:]

    def unsettled(self) -> list[int]:
        return sorted(self.model.unsettled)

    def bad_calls(self, pick: Callable[[list[Any]], Any]) -> None:
        """Calls that must be refused whole: all that was right in them is undone."""
        name = pick(NAMES)
        good = self.ready[:2]
        assert self.both("finish", [*good, *self.ready, name]) == "ValueError"
        assert self.both("finish", [*good, "nobody"]) == "ValueError"
        some = self.unsettled()[:3]
        assert self.both("settle", [*some, self.offset + 1000]) == "ValueError"
        assert self.both("settle", [*some, 0]) == "ValueError"
        if some:
            assert self.both("settle", [*some, some[0]]) == "ValueError"
        here = self.model.position
        for seqs, offsets in (
            ([1, 2], [here, here]),
            ([1, 2], [here + 1, here]),
            ([1, 2], [here - 1, here]),
            ([1, 2**53], [here, here + 1]),
            ([-1, 2], [here, here + 1]),
        ):
            args = ([name, name], seqs, offsets, [1, 1], ["x", "y"], self.now_ms)
            assert self.both("push", *args) == "ValueError"
        assert self.both("push", [name, ""], [1, 1], [here, here + 1], [1, 1], ["x", "y"], 1) == "ValueError"
        assert self.both("track", [here, here]) == "ValueError"
        for waiting in self.unloaded[:1]:
            assert self.both("load", [waiting, waiting], [1, 1], [False, False], 1) == "ValueError"
            assert self.both("load", [waiting, "nobody"], [1, 1], [False, False], 1) == "ValueError"
            assert self.both("load", [waiting], [0], [False], 1) == "ValueError"
        for closed in self.closed[:1]:
            assert self.both("open", [closed, closed], 1) == "ValueError"
            assert self.both("open", [closed, "nobody"], 1) == "ValueError"


names = st.sampled_from(NAMES)
caps = st.fixed_dictionaries(
    {
        "gap_timeout_ms": st.sampled_from([0, 10, 25]),
        "max_seq_jump": st.sampled_from([0, 4, 7]),
        "max_parked_per_user": st.sampled_from([1, 3, 1000]),
        "max_parked": st.sampled_from([0, 2, 6, 1000]),
        "max_parked_bytes": st.sampled_from([10, 40, 10_000]),
        "max_users": st.sampled_from([0, 1, 3, 100]),
    }
)
seqs = st.one_of(st.integers(0, 12), st.integers(0, 12), st.sampled_from([2**53 - 1, 2**53 - 2, 10**9]))
arrival = st.tuples(names, seqs, st.sampled_from([1, 1, 1, 2, 50]), st.integers(0, 9))


class ReorderMachine(RuleBasedStateMachine):
    twins: Twins

    @initialize(limits=caps)
    def start(self, limits: dict[str, int]) -> None:
        self.twins = Twins(limits)

    @rule(arrivals=st.lists(arrival, min_size=1, max_size=8))
    def push(self, arrivals: list[Arrival]) -> None:
        self.twins.push(arrivals)

    @rule(data=st.data(), count=st.integers(1, 6), name=names)
    def push_what_is_expected(self, data: st.DataObject, count: int, name: str) -> None:
        """A run around the expected seq, in any order."""
        first = max(1, self.twins.model.expected(name) - 1)
        run = data.draw(st.permutations([(name, first + i, 1, 1) for i in range(count)]))
        self.twins.push([one for one in run if one[1] < 2**53])

    @precondition(lambda self: self.twins.unloaded)
    @rule(data=st.data(), expected=st.sampled_from([1, 1, 2, 3, 6, 2**53]), adopt=st.booleans())
    def load(self, data: st.DataObject, expected: int, adopt: bool) -> None:
        users = data.draw(st.lists(st.sampled_from(self.twins.unloaded), min_size=1, unique=True))
        self.twins.load(users, [expected] * len(users), [adopt] * len(users))

    @rule(ms=st.sampled_from([0, 1, 5, 10, 30]))
    def pass_time(self, ms: int) -> None:
        self.twins.now_ms += ms

    @rule()
    def due(self) -> None:
        self.twins.both("due", self.twins.now_ms)

    @rule(users=st.lists(names, max_size=3))
    def rearm(self, users: list[str]) -> None:
        self.twins.both("rearm", users, self.twins.now_ms)

    @rule()
    def restart_timers(self) -> None:
        self.twins.both("restart_timers", self.twins.now_ms)

    @rule(users=st.lists(names, min_size=1, max_size=4), only_due=st.booleans())
    def close(self, users: list[str], only_due: bool) -> None:
        self.twins.close(users, only_due)

    @rule()
    def close_overfull(self) -> None:
        self.twins.close(self.twins.model.overfull(), only_due=False)

    @precondition(lambda self: self.twins.closed)
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        self.twins.open(data.draw(st.lists(st.sampled_from(self.twins.closed), min_size=1, unique=True)))

    @rule(count=st.integers(1, 6))
    def finish(self, count: int) -> None:
        self.twins.finish(count)

    @precondition(lambda self: self.twins.model.unsettled)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        open_offsets = st.sampled_from(self.twins.unsettled())
        self.twins.both("settle", data.draw(st.lists(open_offsets, min_size=1, unique=True)))

    @rule(steps=st.lists(st.sampled_from([1, 2, 9]), max_size=3))
    def track(self, steps: list[int]) -> None:
        offsets = []
        for step in steps:
            self.twins.offset += step
            offsets.append(self.twins.offset)
        self.twins.both("track", offsets)

    @rule(distance=st.sampled_from([-5, 0, 1, 20]))
    def advance(self, distance: int) -> None:
        position = self.twins.model.position + distance
        self.twins.both("advance", position)
        self.twins.offset = max(self.twins.offset, position - 1)

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        self.twins.bad_calls(lambda choices: data.draw(st.sampled_from(choices)))

    @invariant()
    def same(self) -> None:
        if hasattr(self, "twins"):
            self.twins.compare()


TestReorderMachine = ReorderMachine.TestCase
TestReorderMachine.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def long_history(seed: int, steps: int) -> None:
    """`steps` random calls from one seed; the same seed makes the same history."""
    rng = random.Random(seed)
    jump = rng.choice([0, 5, 50])
    twins = Twins(
        {
            "gap_timeout_ms": rng.choice([10, 40]),
            "max_seq_jump": jump,
            "max_parked_per_user": rng.choice([3, 10, 1000]),
            "max_parked": rng.choice([8, 20, 1000]),
            "max_parked_bytes": rng.choice([100, 10_000]),
            "max_users": rng.choice([1, 3, 100]),
        }
    )
    # Expected seqs survive eviction as they would in Redis.
    stored: dict[str, int] = {}

    def push() -> None:
        arrivals: list[Arrival] = []
        for _ in range(rng.randint(1, 12)):
            name = rng.choice(NAMES)
            near = max(1, twins.model.expected(name) or stored.get(name, 1))
            seq = max(0, near + rng.choice([0, 0, 0, 1, 1, 2, 3, 5, 8, -1, -3, jump, jump + 1, jump + 2]))
            arrivals.append((name, seq, rng.choice([1, 1, 1, 4]), rng.randint(0, 20)))
        twins.push(arrivals)
        stored.update({n: twins.model.expected(n) for n in NAMES if twins.model.expected(n)})

    def load() -> None:
        users = rng.sample(twins.unloaded, rng.randint(0, len(twins.unloaded)))
        expected = [stored.get(name, 1) for name in users]
        twins.load(users, expected, [seq == 1 and rng.random() < 0.5 for seq in expected])

    def pass_time() -> None:
        twins.now_ms += rng.choice([0, 1, 7, 20])
        reported = twins.both("due", twins.now_ms)
        if rng.random() < 0.7:
            twins.close(reported, only_due=rng.random() < 0.5)
        elif rng.random() < 0.5:
            twins.both("rearm", rng.sample(NAMES, 2), twins.now_ms)
        elif rng.random() < 0.1:
            twins.both("restart_timers", twins.now_ms)

    def open_some() -> None:
        twins.open(rng.sample(twins.closed, rng.randint(0, len(twins.closed))))

    def relieve() -> None:
        twins.close(twins.model.overfull(), only_due=False)

    def settle() -> None:
        # The oldest more often, so that the floor moves.
        offsets = twins.unsettled()[: rng.choice([5, 30, 1000])]
        twins.both("settle", rng.sample(offsets, rng.randint(0, len(offsets))))

    def finish() -> None:
        twins.finish(rng.randint(0, 15))

    def track() -> None:
        twins.offset += 3
        twins.both("track", [twins.offset])
        twins.offset += rng.choice([0, 5])
        twins.both("advance", twins.offset + 1)

    def refuse() -> None:
        twins.bad_calls(rng.choice)

    calls = [push] * 8 + [load] * 4 + [pass_time] * 3 + [open_some] * 3 + [relieve, track]
    calls += [settle] * 3 + [finish] * 5
    for step in range(steps):
        rng.choice(calls)()
        if step % 50 == 0:
            refuse()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_long_histories_are_the_same(seed: int) -> None:
    long_history(seed, steps=400)
