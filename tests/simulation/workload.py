"""What is written to the simulated log: events out of order, with everything odd that CONTRACT 4 names."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import orjson

from eventproc._reorder import partition_of

PARTITIONS = 2  # of the topic; the simulated one is 0

Document = dict[str, Any]


@dataclass(slots=True)
class Written:
    """A record's value, and the event in it if it is a valid one."""

    body: bytes | None
    document: Document | None = None


def _names(partition: int, count: int) -> list[str]:
    found = (name for name in (f"u{n}" for n in range(1000)) if partition_of(name, PARTITIONS) == partition)
    return [next(found) for _ in range(count)]


OURS = _names(0, 9)
MISROUTED = _names(1, 2)


def _event(id: str, user: str, seq: int, **payload: Any) -> Written:
    if seq:
        payload["seq"] = seq
    document = {"id": id, "userId": user, "type": "t", "payload": payload}
    return Written(orjson.dumps(document), document)


def workload(rng: Random, events: int, users: int) -> list[Written]:
    """About `events` records of `users` users: gaps, late ones, copies, conflicts, jumps, invalid ones."""
    records: list[Written] = []
    seqs = dict.fromkeys(OURS[:users], 0)
    names = list(seqs)
    plain: list[tuple[str, str, int]] = []
    late: list[Written] = []
    random, choice = rng.random, rng.choice
    for n in range(events):
        name = choice(names)
        seqs[name] += 1
        seq, id = seqs[name], f"e{n}"
        kind = random()
        if kind > 0.98:
            continue  # never comes
        payload: dict[str, Any] = {}
        if kind < 0.05:
            payload["fail"] = choice((True, 1))
        elif kind < 0.06:
            payload["reject"] = True
        elif kind < 0.063:
            payload["kill"] = True  # the worker, each time
        written = _event(id, name, seq, **payload)
        if kind > 0.96:
            late.append(written)
            continue
        records.append(written)
        plain.append((id, name, seq))
        if random() < 0.15:
            records += _odd(rng, n, name, seqs, choice(plain))
    window = choice((1, 5, 30))
    for at in range(0, len(records), window):
        part = records[at : at + window]
        rng.shuffle(part)
        records[at : at + window] = part
    for written in late:
        records.insert(rng.randrange(len(records) + 1), written)
    return records


def _odd(rng: Random, n: int, name: str, seqs: dict[str, int], again: tuple[str, str, int]) -> list[Written]:
    """What comes beside the events themselves; `again` is one that was written before."""
    id, user, seq = again
    odd = rng.random()
    if odd < 0.35:
        return [_event(id, user, seq)]  # twice
    if odd < 0.42:
        return [_event(f"x{n}", user, seq)]  # its seq is taken
    if odd < 0.49:
        seqs[name] += 1
        return [_event(id, name, seqs[name])]  # its id is taken
    if odd < 0.56:
        return [_event(f"j{n}", name, seqs[name] + 5000)]
    if odd < 0.63:
        return [Written(rng.choice((b"{bad", b"[]", b'{"id":"list"}', b'{"id":"e1","userId":" "}')))]
    if odd < 0.68:
        return [Written(None)]
    if odd < 0.82:
        return [_event(f"n{n}", name, 0, **({"fail": True} if rng.random() < 0.2 else {}))]
    if odd < 0.87:
        return [_event(f"n{n}", name, 0), _event(f"n{n}", name, 0)]
    if odd < 0.93:
        return [_event(id, name, 0)]  # unsequenced, its id is taken
    return [_event(f"m{n}", rng.choice(MISROUTED), rng.randrange(3))]
