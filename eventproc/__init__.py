"""Per-user ordered, effectively-once event processing from Kafka into Redis.

A handler needs only `Event` and `Reject`; everything else is the programs behind the commands.
"""

from eventproc.errors import Reject
from eventproc.event import Event

__all__ = ["Event", "Reject", "__version__"]

__version__ = "0.1.0"
