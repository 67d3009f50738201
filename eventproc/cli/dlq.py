"""`eventproc dlq`: look at dead-lettered events in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from eventproc.cli.options import STORE, make_app, with_settings
from eventproc.cli.output import print_table
from eventproc.errors import EventprocError
from eventproc.settings import Settings
from eventproc.store.keys import flat
from eventproc.store.reading import RedisReader

app = make_app("Look at dead-lettered events.")

_FIELDS = (
    *("eventId", "reason", "userId", "seq", "attempts", "error", "queuedAt"),
    *("topic", "partition", "offset", "raw"),
)
_NUMBERS = ("seq", "attempts", "queuedAt", "partition", "offset")
_CHUNK = 1000

Letter = dict[str, Any]


@app.command("list")
@with_settings(STORE)
def list_(
    settings: Settings,
    limit: Annotated[int, typer.Option(min=1, help="at most so many, the newest")] = 20,
    reason: Annotated[str | None, typer.Option(help="only those with this reason")] = None,
    user: Annotated[str | None, typer.Option(help="only this user's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON lines, all fields")] = False,
) -> None:
    """List dead letters, oldest first."""
    with RedisReader(settings) as reader:
        keys = flat(settings.key_prefix, settings.kafka_topic, 0)
        ids = reader.elements(keys.dlq_list)
        found: list[Letter] = []
        for letter in _newest_first(reader, keys.dlq, ids):
            if reason in (None, letter["reason"]) and user in (None, letter["userId"]):
                found.append(letter)
                if len(found) == limit:
                    break
    found.reverse()
    if as_json:
        for letter in found:
            print(json.dumps(letter, ensure_ascii=False))
        return
    if found:
        print_table(
            ("queued", "id", "reason", "user", "seq", "tries", "error"),
            [
                (
                    _when(letter["queuedAt"]),
                    letter["eventId"],
                    letter["reason"] or "(expired)",
                    letter["userId"] or "-",
                    letter["seq"] or "-",
                    "-" if letter["attempts"] is None else letter["attempts"],
                    letter["error"] or "",
                )
                for letter in found
            ],
        )
    print(f"{len(found)} of {len(ids)} dead letters")


@app.command()
@with_settings(STORE)
def show(
    settings: Settings,
    id: Annotated[str, typer.Argument(help="id, as `eventproc dlq list` shows it")],
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Show one dead letter with its record."""
    with RedisReader(settings) as reader:
        (letter,) = _letters(reader, flat(settings.key_prefix, settings.kafka_topic, 0).dlq, [id])
    if letter["reason"] is None:
        raise EventprocError(f"no dead letter {id!r}: its entry has expired (dlq_ttl_s), or there was none")
    if as_json:
        print(json.dumps(letter, ensure_ascii=False))
        return
    for name in _FIELDS:
        value = letter[name]
        if value is not None:
            shown = _when(value) if name == "queuedAt" else value
            print(f"{name:9} {shown}")


def _newest_first(reader: RedisReader, prefix: str, ids: Sequence[str]) -> Iterator[Letter]:
    for end in range(len(ids), 0, -_CHUNK):
        yield from reversed(_letters(reader, prefix, ids[max(0, end - _CHUNK) : end]))


def _letters(reader: RedisReader, prefix: str, ids: Sequence[str]) -> list[Letter]:
    """One for each id; all its fields but the id are None when its entry has expired."""
    rows = reader.hashes([prefix + id for id in ids], _FIELDS)
    letters = []
    for id, row in zip(ids, rows, strict=True):
        letter: Letter = dict(zip(_FIELDS, row, strict=True))
        letter["eventId"] = id
        for name in _NUMBERS:
            if letter[name] is not None:
                letter[name] = int(letter[name]) if letter[name].isdecimal() else None
        letters.append(letter)
    return letters


def _when(wall_ms: int | None) -> str:
    if wall_ms is None:
        return "-"
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
