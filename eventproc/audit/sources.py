"""The audit's inputs: the topic itself, the dead-letter topic, the handler's record of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from eventproc._entry import headers_of
from eventproc.audit.staging import DeadLetter, Run
from eventproc.broker.reading import TopicReader
from eventproc.errors import UsageError
from eventproc.event import Invalid, Validator
from eventproc.settings import Settings
from eventproc.workload.ledger import Line

Ranges = Mapping[int, tuple[int, int]]


def topic_lines(reader: TopicReader, settings: Settings, ranges: Ranges) -> Iterator[Line]:
    """The topic's records as the lines of a ledger would tell them; times are the records' own."""
    validator = Validator(settings.kafka_topic, settings.max_event_bytes)
    for message in reader.read(settings.kafka_topic, ranges):
        key, value = message.key() or b"", message.value()
        place = (message.partition() or 0, message.offset() or 0)
        stamp_ms = message.timestamp()[1]
        if value is None:
            yield Line("tombstone", "", "", 0, "", False, *place, stamp_ms, stamp_ms, 0)
            continue
        crc = crc32(value)
        try:
            document = validator.decode(value, len(key) + len(value))
            seq = validator.check(document)
        except Invalid as problem:
            yield Line("invalid", "", "", 0, str(problem), False, *place, stamp_ms, stamp_ms, crc)
            continue
        fail = bool(document["payload"].get("fail"))
        kind = "event" if seq else "unsequenced"
        yield Line(
            kind,
            document["id"],
            document["userId"],
            seq,
            document["type"],
            fail,
            *place,
            stamp_ms,
            stamp_ms,
            crc,
        )


def dead_letters(reader: TopicReader, settings: Settings, ranges: Ranges) -> Iterator[DeadLetter | str]:
    """The records of the dead-letter topic that come from `kafka_topic`; a text for one that tells no origin.

    `crc` is -1 for a pointer, which has not the original's bytes.
    """
    for message in reader.read(settings.dlq_topic, ranges):
        try:
            headers: dict[str, Any] = dict(headers_of(message))
        except ValueError:
            headers = {}
        topic, slash, place = (headers.get("eventproc-origin") or b"").decode(errors="replace").partition("/")
        part, _, off = place.partition("/")
        if not (slash and part.isdigit() and off.isdigit()):
            yield f"{settings.dlq_topic}/{message.partition()}/{message.offset()} tells no origin"
        elif topic == settings.kafka_topic:
            pointer = "eventproc-pointer" in headers
            attempts = (headers.get("eventproc-attempts") or b"").decode(errors="replace")
            yield DeadLetter(
                int(part),
                int(off),
                (headers.get("eventproc-reason") or b"").decode(errors="replace"),
                int(attempts) if attempts.isdigit() else -1,
                -1 if pointer else crc32(message.value() or b""),
            )


def read_runs(path: Path) -> Iterator[Run]:
    """The handler's record: `<user>\\t<seq>\\t<id>\\t<attempt>\\t<ok|fail>` a line, in the order of the runs.

    `path` is one file or a folder of `<partition>.runs`. A torn last line (the process was killed) is left
    out; any other line that cannot be read is a UsageError.
    """
    files = sorted(path.glob("*.runs")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"runs {path}: the folder holds no *.runs file")
    for number, name in enumerate(files):
        try:
            with name.open("rb") as file:
                for place, text in enumerate(file, 1):
                    run = _run(text, number, place)
                    if run is not None:
                        yield run
                    elif text.endswith(b"\n"):
                        raise UsageError(
                            f"runs {name}, line {place}: not <user> <seq> <id> <attempt> <ok|fail>"
                        )
        except OSError as error:
            raise UsageError(f"runs {name}: {error.strerror}") from None


def _run(text: bytes, file: int, line: int) -> Run | None:
    fields = text.decode(errors="replace").rstrip("\n").split("\t")
    if (
        not text.endswith(b"\n")
        or len(fields) != 5
        or not fields[1].isdigit()
        or fields[4] not in ("ok", "fail")
    ):
        return None
    return Run(fields[0], int(fields[1]), fields[2], file, line, int(fields[4] == "ok"))
