"""The one place where the names of Redis keys are made (CONTRACT section 3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keyspace:
    """What the keys of one partition begin with, and the keys that are complete.

    A key of an event or a user is the attribute plus the id: `keyspace.event + id`. Scripts build no key,
    so a layout is nothing but another instance (`partitioned` puts the tag `{<topic>-<p>}` in front of all).
    """

    event: str
    dedup: str
    inflight: str
    order: str
    next: str
    gaps: str
    dlq: str
    dlq_list: str
    partition: str

    @property
    def event_template(self) -> str:
        """What `event:` hashes are copied from, within a call."""
        return f"{self.partition}:event"

    @property
    def dedup_template(self) -> str:
        """What markers are copied from."""
        return f"{self.partition}:dedup"

    @property
    def lock_template(self) -> str:
        """What locks are copied from."""
        return f"{self.partition}:lock"


def flat(prefix: str, topic: str, partition: int) -> Keyspace:
    """The default layout: ids are unique over all partitions, which share their keys."""
    return Keyspace(
        event=f"{prefix}event:",
        dedup=f"{prefix}dedup:",
        inflight=f"{prefix}inflight:",
        order=f"{prefix}order:",
        next=f"{prefix}next:",
        gaps=f"{prefix}gaps:",
        dlq=f"{prefix}dlq:",
        dlq_list=f"{prefix}dlq:list",
        partition=f"{prefix}partition:{topic}:{partition}",
    )
