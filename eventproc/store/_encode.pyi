"""The two calls made for every batch, as the bytes that go to Redis: built without an object per argument.

What the arguments mean stands at the head of each script in lua/.
"""

from typing import final

from eventproc.effects import Acquire, Finalize
from eventproc.store.keys import Keyspace

@final
class BatchEncoder:
    """Writes EVALSHA commands of one partition. `limits` are ARGV 7 to 14 of finalize_events."""

    def __init__(
        self,
        keyspace: Keyspace,
        acquire_sha1: bytes,
        finalize_sha1: bytes,
        ours: str,
        lock_ttl_ms: int,
        lock_looks: bool,
        raw_max_bytes: int,
        limits: list[int | str],
    ) -> None:
        """`ours` is what every lock of this partition begins with, `<topic>:<p>:`."""

    def acquire(self, request: Acquire, lock: str) -> bytes:
        """The command for acquire_events; UnicodeEncodeError for text with lone surrogates."""

    def finalize(self, request: Finalize) -> bytes:
        """The command for finalize_events."""
