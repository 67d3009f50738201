"""What a fault is, and the register of all of them.

A fault is written as a generator over a `Ground`: up to its `yield` it injects, after it it heals, and it
returns how often it hit, that is, happened while events were in its window.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random
from typing import Literal

from tests.faults.chaos.ground import Ground

Body = Callable[[Ground, Random], Generator[None, None, int]]
#: What may be told apart afterwards (CONTRACT section 6). "nothing": all is as if it had not happened.
#: "replays": Redis has lost acknowledged writes and they were made again; a late event may have been in
#: time the second time. "effects": those from before are gone for good.
Loss = Literal["nothing", "replays", "effects"]
Thing = Literal["workers", "supervisors", "redis", "redis link", "kafka", "kafka link", "mock"]


@dataclass(frozen=True)
class Fault:
    """One kind. While one is on, no other that touches the same things is; `lasts_s`: from, to.

    Those that touch the mock brokers need them in place of a Kafka, so they are not in the mix.
    """

    name: str
    text: str
    touches: frozenset[Thing]
    lasts_s: tuple[float, float]
    loss: Loss
    hosts: int
    body: Body

    def inject(self, ground: Ground, rng: Random) -> Injection:
        """Let it happen."""
        return Injection(self, ground, rng)


class Injection:
    """A fault that is on."""

    def __init__(self, fault: Fault, ground: Ground, rng: Random) -> None:
        self.lasts_s = rng.uniform(*fault.lasts_s)
        self._run = fault.body(ground, rng)
        next(self._run)

    def heal(self) -> int:
        """End it; how often it hit."""
        try:
            next(self._run)
        except StopIteration as end:
            return int(end.value)
        raise AssertionError("a fault yields once")


FAULTS: dict[str, Fault] = {}


def fault(
    *touches: Thing, lasts_s: tuple[float, float], loss: Loss = "nothing", hosts: int = 1
) -> Callable[[Body], Body]:
    """Register a fault under its function's name. `hosts`: how many there must be for it to make sense."""

    def register(body: Body) -> Body:
        name = body.__name__
        text = (body.__doc__ or "").strip().partition("\n")[0]
        FAULTS[name] = Fault(name, text, frozenset(touches), lasts_s, loss, hosts, body)
        return body

    return register
