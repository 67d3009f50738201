"""What the reorder buffer must do, written as plainly as it can be said; nothing here is fast.

Same calls as `eventproc._reorder.ReorderBuffer`. Whatever the buffer keeps up to date (deadlines, ages,
floor, idle users), the model works out anew from what it knows each time it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Parked:
    item: object
    offset: int
    size: int
    arrival_ms: int


@dataclass
class User:
    name: str
    parked: dict[int, Parked] = field(default_factory=dict)
    expected: int = 0  # 0: not loaded
    adopt: bool = False
    closed: bool = False
    inflight: int = 0
    base_ms: int = -1
    reported: Parked | None = None  # the lowest item when due() named this user
    used: int = 0

    def lowest(self) -> Parked:
        return self.parked[min(self.parked)]

    def waits_behind_gap(self) -> bool:
        return bool(self.expected and not self.closed and self.parked)

    def idle(self) -> bool:
        return bool(self.expected and not self.parked and not self.inflight)

    def run(self) -> list[Parked]:
        """What closing the gap would release: the lowest item and its direct successors."""
        seq = min(self.parked)
        found = []
        while seq in self.parked:
            found.append(self.parked[seq])
            seq += 1
        return found


@dataclass
class Answer:
    ready: list[object] = field(default_factory=list)
    below: list[object] = field(default_factory=list)
    occupied: list[tuple[object, object]] = field(default_factory=list)
    jumped: list[object] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    evicted: list[str] = field(default_factory=list)


class ReorderModel:
    def __init__(
        self,
        *,
        position: int,
        gap_timeout_ms: int,
        max_seq_jump: int,
        max_parked_per_user: int,
        max_parked: int,
        max_parked_bytes: int,
        max_users: int,
    ) -> None:
        self.position = position
        self.gap_timeout_ms = gap_timeout_ms
        self.max_seq_jump = max_seq_jump
        self.max_parked_per_user = max_parked_per_user
        self.max_parked = max_parked
        self.max_parked_bytes = max_parked_bytes
        self.max_users = max_users
        self.known: dict[str, User] = {}
        self.unsettled: set[int] = set()
        self.base_ms = -1
        self.uses = 0

    # --- arrivals ----------------------------------------------------------------------------------

    def push(
        self,
        users: list[str],
        seqs: list[int],
        offsets: list[int],
        sizes: list[int],
        items: list[object],
        now_ms: int,
    ) -> Answer:
        self._check_ascending(offsets)
        if any(not 0 <= seq < 2**53 for seq in seqs):
            raise ValueError("seq out of range")
        if any(seq and not name for name, seq in zip(users, seqs, strict=True)):
            raise ValueError("a seq without user")
        answer = Answer()
        for name, seq, offset, size, item in zip(users, seqs, offsets, sizes, items, strict=True):
            self.unsettled.add(offset)
            self.position = offset + 1
            if seq == 0:
                answer.ready.append(item)
                continue
            if name not in self.known:
                self.known[name] = User(name)
                answer.unknown.append(name)
            self._use(self.known[name])
            self._arrive(self.known[name], seq, Parked(item, offset, size, now_ms), answer)
        self._evict(answer)
        return answer

    def _arrive(self, user: User, seq: int, arrival: Parked, answer: Answer) -> None:
        if user.expected and seq < user.expected:
            answer.below.append(arrival.item)
        elif seq in user.parked:
            answer.occupied.append((arrival.item, user.parked[seq].item))
        elif self._is_jump(user, seq):
            answer.jumped.append(arrival.item)
        else:
            user.parked[seq] = arrival
            self._release(user, answer)

    def _is_jump(self, user: User, seq: int) -> bool:
        if not user.expected or user.adopt or not self.max_seq_jump:
            return False
        return seq > user.expected + self.max_seq_jump

    def _release(self, user: User, answer: Answer) -> None:
        while user.expected in user.parked and not user.closed:
            answer.ready.append(user.parked.pop(user.expected).item)
            user.expected += 1
            user.inflight += 1
            user.adopt = False
        if not user.parked:
            user.base_ms = -1
        if not user.parked or user.lowest() is not user.reported:
            user.reported = None  # what was reported is not the gap that waits now

    def load(self, users: list[str], expected: list[int], adopt: list[bool], now_ms: int) -> Answer:
        if len(set(users)) != len(users):
            raise ValueError("named twice")
        if any(name not in self.known or self.known[name].expected for name in users):
            raise ValueError("not waiting for load")
        if any(not 1 <= seq <= 2**53 for seq in expected):
            raise ValueError("expected out of range")
        answer = Answer()
        for name, seq, adopts in zip(users, expected, adopt, strict=True):
            user = self.known[name]
            user.expected = seq
            user.adopt = adopts
            self._use(user)
            waiting = sorted(user.parked.items(), key=lambda pair: pair[1].offset)
            user.parked = {}
            for parked_seq, arrival in waiting:
                self._arrive(user, parked_seq, arrival, answer)
        self._evict(answer)
        return answer

    # --- gaps --------------------------------------------------------------------------------------

    def _deadline_ms(self, user: User) -> int:
        return max(user.lowest().arrival_ms, user.base_ms, self.base_ms) + self.gap_timeout_ms

    def _pending(self) -> list[User]:
        """Users with a deadline that due() has not reported, earliest first."""
        users = [u for u in self._by_age() if u.reported is not u.lowest()]
        return sorted(users, key=self._deadline_ms)

    def _by_age(self) -> list[User]:
        users = [u for u in self.known.values() if u.waits_behind_gap()]
        return sorted(users, key=lambda u: u.lowest().offset)

    def due(self, now_ms: int) -> list[str]:
        users = [u for u in self._pending() if self._deadline_ms(u) <= now_ms]
        for user in users:
            user.reported = user.lowest()
        return [u.name for u in users]

    def next_deadline_ms(self) -> int:
        return min((self._deadline_ms(u) for u in self._pending()), default=-1)

    def rearm(self, users: list[str], now_ms: int) -> None:
        for name in users:
            user = self.known.get(name)
            if user is not None and user.waits_behind_gap():
                user.base_ms = max(user.base_ms, now_ms)
                user.reported = None

    def restart_timers(self, now_ms: int) -> None:
        self.base_ms = max(self.base_ms, now_ms)
        for user in self.known.values():
            user.reported = None

    def close(self, users: list[str], *, only_due: bool = False) -> list[tuple[str, int, int, bool]]:
        gaps = []
        for name in users:
            user = self.known.get(name)
            if user is None or not user.waits_behind_gap():
                continue
            if only_due and user.reported is not user.lowest():
                continue
            gaps.append((name, user.expected, min(user.parked) - 1, user.adopt))
            user.expected = min(user.parked)
            user.adopt = False
            user.closed = True
            user.reported = None
        return gaps

    def open(self, users: list[str], now_ms: int) -> Answer:
        if len(set(users)) != len(users):
            raise ValueError("named twice")
        if any(name not in self.known or not self.known[name].closed for name in users):
            raise ValueError("not closed")
        answer = Answer()
        for name in users:
            self.known[name].closed = False
            self._release(self.known[name], answer)
        return answer

    # --- caps --------------------------------------------------------------------------------------

    def overfull(self) -> list[str]:
        by_age = self._by_age()
        crowded = [u for u in by_age if len(u.parked) > self.max_parked_per_user]
        remaining = [p for u in by_age for p in u.parked.values()]
        chosen = []
        for user in crowded + [u for u in by_age if u not in crowded]:
            fits = (
                len(remaining) <= self.max_parked and sum(p.size for p in remaining) <= self.max_parked_bytes
            )
            if fits and user not in crowded:
                break
            chosen.append(user.name)
            released = user.run()
            remaining = [p for p in remaining if not any(p is r for r in released)]
        return chosen

    def oldest_gap(self) -> tuple[str, int] | None:
        by_age = self._by_age()
        return (by_age[0].name, by_age[0].lowest().arrival_ms) if by_age else None

    def floor_gap(self) -> tuple[str, int] | None:
        for user in self._by_age():
            if self.floor() in [p.offset for p in user.parked.values()]:
                return user.name, user.lowest().arrival_ms
        return None

    @property
    def parked(self) -> int:
        return sum(len(u.parked) for u in self.known.values())

    @property
    def parked_bytes(self) -> int:
        return sum(p.size for u in self.known.values() for p in u.parked.values())

    # --- users -------------------------------------------------------------------------------------

    @property
    def users(self) -> int:
        return len(self.known)

    def expected(self, user: str) -> int:
        return self.known[user].expected if user in self.known else 0

    def in_flight(self, user: str) -> int:
        return self.known[user].inflight if user in self.known else 0

    def finish(self, users: list[str]) -> None:
        for name in set(users) - {""}:
            if name not in self.known or self.known[name].inflight < users.count(name):
                raise ValueError("nothing ready to finish")
        for name in users:
            if name:
                self.known[name].inflight -= 1
                self._use(self.known[name])

    def _use(self, user: User) -> None:
        self.uses += 1
        user.used = self.uses

    def _evict(self, answer: Answer) -> None:
        while len(self.known) > self.max_users:
            idle = [u for u in self.known.values() if u.idle()]
            if not idle:
                break
            oldest = min(idle, key=lambda u: u.used)
            del self.known[oldest.name]
            answer.evicted.append(oldest.name)

    # --- offsets -----------------------------------------------------------------------------------

    def _check_ascending(self, offsets: list[int]) -> None:
        if [self.position - 1, *offsets] != sorted({self.position - 1, *offsets}):
            raise ValueError("offsets do not ascend")

    def track(self, offsets: list[int]) -> None:
        self._check_ascending(offsets)
        self.unsettled |= set(offsets)
        if offsets:
            self.position = offsets[-1] + 1

    def advance(self, position: int) -> None:
        self.position = max(self.position, position)

    def settle(self, offsets: list[int]) -> None:
        if len(set(offsets)) != len(offsets) or not set(offsets) <= self.unsettled:
            raise ValueError("unknown or settled already")
        self.unsettled -= set(offsets)

    def floor(self) -> int:
        return min(self.unsettled, default=self.position)

    def unfinalized(self) -> int:
        return len(self.unsettled)
