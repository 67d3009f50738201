"""Partitions: ownership, floor, committed and end offset (CONTRACT section 6).

Judged: `partition:<topic>:<p>` is whole (epoch, owner, rev, offset, seen_ms are there and are numbers
where they should be); committed <= floor <= end; when idle, all three are the same, nothing
is unfinalized.
"""

from __future__ import annotations

from typing import NamedTuple

from eventproc.audit.report import Report

PARTITION_FIELDS = ("epoch", "owner", "rev", "offset", "seen_ms", "unfinalized", "baseline")


class Position(NamedTuple):
    """Of one partition. `floor` is -1 without a position in Redis, `committed` without one in the group."""

    low: int
    high: int
    committed: int
    floor: int
    fields: dict[str, str | None]

    @property
    def idle(self) -> bool:
        """Everything is final and committed."""
        at_end = max(self.floor, self.low) == self.high and self.fields.get("unfinalized") in ("0", None)
        return at_end and max(self.committed, self.low) == self.high

    @property
    def baseline(self) -> int:
        text = self.fields.get("baseline") or ""
        return int(text) if text.isascii() and text.isdigit() else -1


def read_position(offsets: tuple[int, int, int], values: list[str | None]) -> Position:
    """From (low, high, committed) and the values of PARTITION_FIELDS."""
    fields = dict(zip(PARTITION_FIELDS, values, strict=True))
    text = fields["offset"] or ""
    floor = int(text) if text.isascii() and text.isdigit() else -1
    return Position(*offsets, floor, fields)


def judge_position(name: str, position: Position, *, idle: bool, report: Report) -> None:
    """Report what is wrong with partition `name` (topic/number)."""
    low, high, committed, floor, fields = position

    def bad(text: str) -> None:
        report.add("position", f"{name}: {text}")

    if all(value is None for value in fields.values()):
        if high > low:
            bad(f"there are records up to offset {high}, but Redis holds no position")
        if committed > low:
            bad(f"offset {committed} is committed, but Redis holds no position")
        return
    for field in ("epoch", "rev", "offset", "seen_ms"):
        text = fields[field] or ""
        if not (text.isascii() and text.isdigit()) and not (field == "offset" and high == low):
            bad(f"{field} is {fields[field]!r}, not a number")
    if not fields["owner"]:
        bad("it has no owner")
    if committed > max(floor, 0):
        bad(f"offset {committed} is committed, beyond the floor {floor}")
    if floor > high:
        bad(f"the floor {floor} is beyond the end {high}")
    if low > max(floor, 0):
        bad(
            f"records up to offset {low} are gone from Kafka, the floor is {floor}: the embedded broker "
            "dropped them, or the topic's retention is too short"
        )
    if not idle:
        return
    if max(floor, low) < high:
        bad(f"not idle: the floor is {floor}, the end {high}")
    elif max(committed, low) < max(floor, low):
        bad(f"the floor is {floor}, but offset {committed} is committed")
    if fields["unfinalized"] not in ("0", None) and floor == high:
        bad(f"unfinalized is {fields['unfinalized']} at the end of the partition")
