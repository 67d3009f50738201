"""What every peer is given: where to read, and what one event is to leave in Redis."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("process_event.lua").read_text()
#: As eventproc's event_ttl_s and dedup_ttl_s.
_LIFE_MS = 86_400_000
#: Longer than the processes are stopped while the backlog is produced.
SESSION_TIMEOUT_MS = 120_000


@dataclass(frozen=True, slots=True)
class Task:
    """Read `topic` from its beginning as a member of `group`."""

    bootstrap: str
    topic: str
    group: str
    redis_url: str

    @classmethod
    def of_arguments(cls) -> Task:
        """From the command line, in the order of the fields."""
        parser = argparse.ArgumentParser()
        for name in cls.__slots__:
            parser.add_argument(name)
        return cls(**vars(parser.parse_args()))

    def arguments(self) -> list[str]:
        """The command line that says this."""
        return [self.bootstrap, self.topic, self.group, self.redis_url]


def handle(event: dict[str, Any]) -> None:
    """What eventproc's built-in handler does."""
    if event["payload"].get("fail"):
        raise ValueError("payload.fail is true")


def effect(event: dict[str, Any]) -> tuple[list[str], list[str | int]]:
    """KEYS and ARGV of the script for one event."""
    id, user = event["id"], event["userId"]
    keys = [f"dedup:{id}", f"event:{id}", f"order:{user}"]
    return keys, [user, event["type"], event["payload"]["seq"], _LIFE_MS]
