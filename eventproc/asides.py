"""Users set aside: a key of the wrong type stands in the way of their effects (CONTRACT 4.10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eventproc.effects import Entry, Gap


@dataclass(slots=True)
class _Aside:
    entries: list[Entry] = field(default_factory=list)  # have run, were refused
    gaps: list[Gap] = field(default_factory=list)
    waiting: list[Entry] = field(default_factory=list)  # are not to run yet
    retrying: bool = False


class Asides:
    """What is held back of such users, in order. `found(user, key)` is called for each key once."""

    def __init__(self, found: Callable[[str, str], None]) -> None:
        self.foreign: dict[str, str] = {}  # user -> the key in its way
        self._by: dict[str, int] = {}  # user -> offset of the record that met it
        self._found = found
        self._asides: dict[str, _Aside] = {}

    def __bool__(self) -> bool:
        return bool(self._asides)

    def __contains__(self, user: str) -> bool:
        return user in self._asides

    def name(self, user: str, key: str, offset: int = -1) -> None:
        """A foreign key is in the way of the user, or of its record at `offset`; the first one counts."""
        if user not in self.foreign or (self._by[user] == offset and self.foreign[user] != key):
            self.foreign[user] = key
            self._by[user] = offset
            self._found(user, key)

    def clear(self, user: str, offset: int = -1) -> None:
        """What `name` was told under that offset is not in the way any more."""
        if user not in self._asides and self._by.get(user) == offset:
            del self.foreign[user], self._by[user]

    def refuse(self, user: str, entries: list[Entry], gaps: Sequence[Gap]) -> None:
        """These effects were refused: they go first when the user is tried again."""
        aside = self._asides.setdefault(user, _Aside())
        aside.retrying = False
        aside.entries[:0] = entries
        aside.gaps[:0] = gaps

    def holds_entry(self, entry: Entry) -> bool:
        """Keep an entry that has run, behind those refused."""
        aside = self._asides.get(entry.user)
        if aside is None or aside.retrying:
            return False
        aside.entries.append(entry)
        return True

    def holds_gap(self, gap: Gap) -> bool:
        """Keep a gap that is to be written."""
        aside = self._asides.get(gap.user)
        if aside is None or aside.retrying:
            return False
        aside.gaps.append(gap)
        return True

    def holds_back(self, entry: Entry) -> bool:
        """Keep an entry from being run."""
        aside = self._asides.get(entry.user) if entry.seq else None
        if aside is None:
            return False
        aside.waiting.append(entry)
        return True

    def retry(self, user: str) -> tuple[list[Entry], list[Gap]]:
        """What is to be written again, in order."""
        aside = self._asides.get(user)
        if aside is None:
            return [], []
        aside.retrying = True
        entries, gaps = aside.entries, aside.gaps
        aside.entries, aside.gaps = [], []
        return entries, gaps

    def rejoin(self, user: str) -> list[Entry]:
        """The user's effects were taken: what may run now."""
        aside = self._asides.pop(user)
        del self.foreign[user], self._by[user]
        return aside.waiting

    def entries(self) -> list[Entry]:
        """Everything that is held back."""
        return [entry for aside in self._asides.values() for entry in (*aside.entries, *aside.waiting)]
