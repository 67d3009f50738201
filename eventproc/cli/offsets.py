"""`eventproc offsets`: where each partition stands in Kafka and in Redis."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from eventproc.broker.admin import partition_offsets
from eventproc.cli.options import KAFKA, STORE, make_app, with_settings
from eventproc.cli.output import print_table
from eventproc.clock import SystemClock
from eventproc.settings import Settings
from eventproc.store.keys import flat
from eventproc.store.reading import RedisReader

app = make_app("Look at the position of each partition.")

_FIELDS = ("offset", "epoch", "rev", "unfinalized", "owner", "seen_ms")


@app.callback()
def root() -> None:
    """Look at the position of each partition."""


@app.command()
@with_settings((*KAFKA, *STORE))
def show(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, with owner and revision")] = False,
) -> None:
    """Show watermarks, the group's offset, and Redis's position and owner."""
    in_kafka = partition_offsets(settings)
    keys = [flat(settings.key_prefix, settings.kafka_topic, p).partition for p in in_kafka]
    with RedisReader(settings) as reader:
        in_redis = reader.hashes(keys, _FIELDS)
    now_ms = SystemClock().wall_ms()
    rows = []
    for (partition, kafka), values in zip(sorted(in_kafka.items()), in_redis, strict=True):
        stored = dict(zip(_FIELDS, values, strict=True))
        seen_ms = _number(stored["seen_ms"])
        position = _number(stored["offset"])
        rows.append(
            {
                "partition": partition,
                "low": kafka.low,
                "high": kafka.high,
                "committed": kafka.committed if kafka.committed >= 0 else None,
                "redis": position,
                "lag": kafka.high - max(kafka.committed, kafka.low),
                "unfinalized": _number(stored["unfinalized"]),
                "epoch": _number(stored["epoch"]),
                "rev": _number(stored["rev"]),
                "owner": stored["owner"],
                "seen_s": None if seen_ms is None else round((now_ms - seen_ms) / 1000, 1),
            }
        )
    if as_json:
        print(json.dumps(rows))
        return
    columns = ("partition", "low", "high", "committed", "redis", "lag", "unfinalized", "seen_s")
    print_table(columns, [[_shown(row[name]) for name in columns] for row in rows])


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _shown(value: Any) -> Any:
    return "-" if value is None else value
