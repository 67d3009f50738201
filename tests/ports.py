"""TCP ports for servers that tests start."""

from __future__ import annotations

import itertools
import random
import socket

# Below the ports that Linux gives to outgoing connections (32768 and up): one of those could take the port
# before the server has it, or between its death and its restart. And a Redis in cluster mode listens on the
# port 10,000 above its own too. Each process goes through them in an order of its own.
_PORTS = range(10_000, 22_000)
_candidates = itertools.cycle(random.SystemRandom().sample(_PORTS, len(_PORTS)))


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listened a moment ago."""
    for port in itertools.islice(_candidates, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"of the ports {_PORTS[0]} to {_PORTS[-1]} none is free")
