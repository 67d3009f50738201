"""Sorting what is to be judged, in a temporary database file: memory does not grow with the input."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

from eventproc.workload.ledger import Line

_CACHE_KIB = 48 * 1024
_ROWS = 5000

_SCHEMA = """
CREATE TABLE record (
    user TEXT, seq INTEGER, part INTEGER, off INTEGER, id TEXT, kind TEXT, type TEXT, fail INTEGER,
    sent_ms INTEGER, acked_ms INTEGER, crc INTEGER);
CREATE TABLE dead (
    part INTEGER, off INTEGER, reason TEXT, attempts INTEGER, crc INTEGER, copies INTEGER, known INTEGER,
    PRIMARY KEY (part, off)) WITHOUT ROWID;
CREATE TABLE letter (id TEXT PRIMARY KEY, listed INTEGER, wanted INTEGER) WITHOUT ROWID;
CREATE TABLE run (user TEXT, seq INTEGER, id TEXT, file INTEGER, line INTEGER, ok INTEGER);
CREATE TABLE elsewhere (id TEXT, user TEXT, seq INTEGER, PRIMARY KEY (id, user, seq)) WITHOUT ROWID;
"""

_SORT = """
CREATE TABLE sorted AS SELECT * FROM record 
    ORDER BY user, seq, CASE seq WHEN 0 THEN id END, part, off;
DROP TABLE record;
CREATE TABLE ran (
    user TEXT, seq INTEGER, id TEXT, runs INTEGER, oks INTEGER, file INTEGER, files INTEGER, line INTEGER,
    PRIMARY KEY (user, seq, id)) WITHOUT ROWID;
INSERT INTO ran
    SELECT user, seq, id, count(*), sum(ok), min(file), count(DISTINCT file), max(line)
    FROM run GROUP BY user, seq, id ORDER BY user, seq, id;
DROP TABLE run;
"""

_ROWS_QUERY = """
SELECT r.user, r.seq, r.part, r.off, r.id, r.kind, r.type, r.fail, r.sent_ms, r.acked_ms, r.crc,
    coalesce(d.copies, 0), coalesce(d.reason, ''), coalesce(d.attempts, -1), coalesce(d.crc, 0),
    coalesce(n.runs, 0), coalesce(n.oks, 0), coalesce(n.file, -1), coalesce(n.files, 0), coalesce(n.line, -1)
FROM sorted r
LEFT JOIN dead d ON d.part = r.part AND d.off = r.off
LEFT JOIN ran n ON n.user = r.user AND n.seq = r.seq AND n.id = r.id
ORDER BY r.rowid
"""


class Row(NamedTuple):
    """A record that was produced, with its dead letter in the topic and its handler's runs, if any.

    `user` is empty for invalid records and tombstones. `off` is -1 when it was not acknowledged.
    """

    user: str
    seq: int
    part: int
    off: int
    id: str
    kind: str
    type: str
    fail: int
    sent_ms: int
    acked_ms: int
    crc: int
    dead: int  # records of the dead-letter topic with this origin
    dead_reason: str
    dead_attempts: int
    dead_crc: int
    runs: int
    oks: int
    run_file: int
    run_files: int
    last_line: int  # place of its last run in that file


class DeadLetter(NamedTuple):
    """One record of the dead-letter topic; `part` and `off` are its origin."""

    part: int
    off: int
    reason: str
    attempts: int
    crc: int


class Run(NamedTuple):
    """One run of the handler; `line` is its place in the file, so that lines of one file tell the order."""

    user: str
    seq: int
    id: str
    file: int
    line: int
    ok: int


class Staging:
    """Fill it (`add_*`), `sort()` once, then read `rows()`. The file goes with `close()`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="eventproc-audit-", dir=folder)
        self._db = sqlite3.connect(Path(self._folder.name) / "staging.sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "temp_store=FILE"):
            self._db.execute(f"PRAGMA {pragma}").close()
        self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}").close()
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")

    # --- filling ------------------------------------------------------------------------------------

    def add_records(self, lines: Iterable[Line]) -> None:
        """Lines of a ledger, or of the topic."""
        self._insert(
            "INSERT INTO record VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    "" if line.kind in ("invalid", "tombstone") else line.user,
                    line.seq,
                    line.partition,
                    line.offset,
                    line.id,
                    line.kind,
                    line.type,
                    line.fail,
                    line.sent_ms,
                    line.acked_ms,
                    line.crc,
                )
                for line in lines
            ),
        )

    def add_dead_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Records of the dead-letter topic; copies with one origin are counted."""
        self._insert(
            "INSERT INTO dead VALUES (?,?,?,?,?,1,0) ON CONFLICT DO UPDATE SET copies = copies + 1", letters
        )

    def add_listed(self, ids: Iterable[str]) -> None:
        """The elements of dlq:list."""
        self._insert(
            "INSERT INTO letter VALUES (?,1,0) ON CONFLICT DO UPDATE SET listed = listed + 1",
            ((id,) for id in ids),
        )

    def add_runs(self, runs: Iterable[Run]) -> None:
        """The handler's own record."""
        self._insert("INSERT INTO run VALUES (?,?,?,?,?,?)", runs)

    def sort(self) -> None:
        """Call once, when everything is added."""
        self._db.execute("COMMIT")
        self._db.executescript(_SORT)
        self._db.execute("BEGIN")

    # --- reading ------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """All records: by user, seq, partition, offset; unsequenced by user and id; without user first."""
        yield from map(Row._make, self._db.execute(_ROWS_QUERY))

    def dead_letter(self, part: int, off: int) -> DeadLetter | None:
        """The dead letter with that origin; it counts as known from now on."""
        found = self._db.execute(
            "SELECT part, off, reason, attempts, crc FROM dead WHERE part = ? AND off = ?", (part, off)
        ).fetchone()
        if found is not None:
            self.know_dead([(part, off)])
        return None if found is None else DeadLetter._make(found)

    def know_dead(self, origins: Iterable[tuple[int, int]]) -> None:
        """These origins belong to records that are judged."""
        self._db.executemany("UPDATE dead SET known = 1 WHERE part = ? AND off = ?", origins)

    def unknown_dead(self) -> Iterator[tuple[int, int]]:
        """Origins of dead letters that belong to no judged record."""
        yield from self._db.execute("SELECT part, off FROM dead WHERE NOT known")

    def dead_copies(self) -> int:
        """Records in the dead-letter topic."""
        return int(self._db.execute("SELECT coalesce(sum(copies), 0) FROM dead").fetchone()[0])

    def want_letters(self, ids: Iterable[str]) -> None:
        """These ids should be in dlq:list."""
        self._db.executemany(
            "INSERT INTO letter VALUES (?,0,1) ON CONFLICT DO UPDATE SET wanted = 1", ((id,) for id in ids)
        )

    def listings(self) -> Iterator[tuple[str, int, int]]:
        """(id, times listed, 1 if it should be) where these do not agree."""
        yield from self._db.execute("SELECT id, listed, wanted FROM letter WHERE listed <> wanted")

    def expect_elsewhere(self, id: str, user: str, seq: int) -> None:
        """An id is final under that user and seq: some record must say so."""
        self._db.execute("INSERT OR IGNORE INTO elsewhere VALUES (?,?,?)", (id, user, seq))

    def unfounded_elsewhere(self) -> Iterator[tuple[str, str, int]]:
        """(id, user, seq) of those that no record says; reads all records if there are any to look for."""
        if self._db.execute("SELECT 1 FROM elsewhere LIMIT 1").fetchone() is None:
            return
        yield from self._db.execute(
            "SELECT id, user, seq FROM elsewhere EXCEPT SELECT e.id, e.user, e.seq FROM sorted s "
            "CROSS JOIN elsewhere e ON e.id = s.id AND e.user = s.user AND e.seq = s.seq"
        )

    def run_totals(self) -> tuple[int, int]:
        """Runs, and different (user, seq, id) among them."""
        runs, events = self._db.execute("SELECT coalesce(sum(runs), 0), count(*) FROM ran").fetchone()
        return int(runs), int(events)

    def unfounded_runs(self) -> Iterator[tuple[str, int, str]]:
        """(user, seq, id) of runs that belong to no record; reads everything once more."""
        yield from self._db.execute(
            "SELECT user, seq, id FROM ran EXCEPT SELECT user, seq, id FROM sorted ORDER BY 1, 2, 3"
        )

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()

    def _insert(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        source = iter(rows)
        while chunk := list(islice(source, _ROWS)):
            self._db.executemany(statement, chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
