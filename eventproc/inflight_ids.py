"""Ids that are under way: the same id is never looked up, locked or run twice at a time (CONTRACT 4.4)."""

from __future__ import annotations

from eventproc._entry import Entry, free_ids, take_ids


class InflightIds:
    """Ids from their look-up until they are final, and the entries that wait for one of them."""

    def __init__(self) -> None:
        self._ids: dict[str, Entry] = {}
        self._waiters: dict[str, list[Entry]] = {}

    def take(self, entry: Entry) -> Entry | None:
        """Claim the entry's id; answers the entry that has it, if one has."""
        other = self._ids.setdefault(entry.id, entry)
        return None if other is entry else other

    def take_all(self, entries: list[Entry], at: int, now_ms: int, held_ms: list[int]) -> int:
        """`take` for entries from `at` on, up to the first that is not simply to run or whose id is not free.

        Answers the index of that one. `held_ms` gets how long each was kept that did not arrive just now.
        """
        return take_ids(entries, at, self._ids, now_ms, held_ms)

    def await_turn(self, entry: Entry) -> None:
        """Wait until the id is free; `free` hands the entry out then."""
        self._waiters.setdefault(entry.id, []).append(entry)

    def free_all(self, entries: list[Entry]) -> list[Entry]:
        """`free` for entries that have their ids."""
        if self._waiters:
            return [waiter for waiter in map(self.free, entries) if waiter is not None]
        free_ids(entries, self._ids)
        return []

    def free(self, entry: Entry) -> Entry | None:
        """The entry's id is under way no more; answers who waited for it, and has it now."""
        if self._ids.get(entry.id) is not entry:
            return None
        del self._ids[entry.id]
        if not self._waiters:
            return None
        waiters = self._waiters.pop(entry.id, None)
        if not waiters:
            return None
        first = waiters.pop(0)
        self._ids[first.id] = first
        if waiters:
            self._waiters[first.id] = waiters
        return first
